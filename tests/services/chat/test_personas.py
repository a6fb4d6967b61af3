"""The folder of personalities: merged, followed, told of with file and line."""

from __future__ import annotations

import json
import logging
import re

import pytest

from services.chat.personas import Personas, ensure_default
from services.chat.shipped_personas import SHIPPED
from services.errors import Forbidden, NotFound
from services.store import config


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "personalities.d"
    path.mkdir()
    return path


def write(folder, name, value):
    text = value if isinstance(value, str) else json.dumps(value, indent=2)
    (folder / name).write_text(text)


def test_new_data_folder_gets_those_that_ship(tmp_path):
    personas = Personas(ensure_default(tmp_path))
    assert list(personas.current()) == [*SHIPPED] and personas.problem is None
    assert {"assistant", "assistant-fr", "summariser", "extractor", "editor", "translator"} == {*SHIPPED}
    assert all(one.imperative and one.description and one.intro_dialogue for one in personas.current().values())


def test_folder_that_is_there_is_left_alone(folder):
    assert ensure_default(folder.parent) == folder
    assert Personas(folder).current() == {}
    assert Personas(folder.parent / "absent").current() == {}


def test_files_are_merged_in_order_field_by_field(folder):
    write(folder, "10.json", {"a": {"imperative": "old", "description": "kept"}, "b": {"imperative": "b"}})
    write(folder, "20.json", {"a": {"imperative": "new"}, "c": {}})
    write(folder, "notes.txt", "no json")
    write(folder, ".hidden.json", "no json")
    current = Personas(folder).current()
    assert [*current] == ["a", "b", "c"]
    assert (current["a"].imperative, current["a"].description) == ("new", "kept")


def test_the_seeds_file_works_as_it_is(folder):
    write(folder, "personalities.json", {"whisper": {"imperative": "You are Whisper."}})
    assert Personas(folder).get("whisper", "1").system == "You are Whisper."


def test_fields_without_effect_are_told_once(folder, caplog):
    value = {"a": {"voice": "x", "flash_attention": "true", "ui_features": ["rag_clipboard"]}}
    write(folder, "a.json", value)
    with caplog.at_level(logging.INFO):
        personas = Personas(folder)
        write(folder, "a.json", {**value, "b": {"voice": "y"}})
        assert [*personas.current()] == ["a", "b"]
    told = [record.message for record in caplog.records if "without effect" in record.message]
    assert told == [f"{folder.parent.name}/personalities.d: without effect here: flash_attention, ui_features, voice"]


def test_changes_are_taken_over_while_it_serves(folder):
    write(folder, "a.json", {"a": {"imperative": "one"}})
    personas = Personas(folder)
    write(folder, "a.json", {"a": {"imperative": "another"}})
    assert personas.current()["a"].imperative == "another"
    write(folder, "b.json", {"b": {}})
    assert [*personas.current()] == ["a", "b"]
    (folder / "a.json").unlink()
    assert [*personas.current()] == ["b"]


@pytest.mark.parametrize(("text", "told"), [
    ('{"a": {}', r"b.json, line 1 column 9: not JSON: "), ('{"a": {}} // by me', "not JSON, which has no comments: "),
    ("", "b.json: empty; expected a JSON object with personalities"),
    ('{"a": {"keys": "k"}}', 'keys: should be a list, not "k"'),
    ('[]', "expected a JSON object with personalities"),
    ('{\n"a": {\n"imperative": 5}}', r"b.json, line 3: personality 'a': imperative: .*string, not 5"),
    ('{\n"a": {"x": 1,\n"intro": 5}}', r"b.json, line 2: personality 'a': x: unknown field; known are: "),
    ('{\n"a": 5}', r"b.json, line 2: personality 'a': should be an object"),
    ('{"a/b": {}}', r"b.json, line 1: personality 'a/b': is no name"),
    ('{\n"c": {"rag_helper": "x"}}', r"b.json, line 2: personality 'c': rag_helper: 'x' is no personality; .* a"),
    ('{\n"c": {"agent_rag_source": "x.txt"}}', r"line 2: personality 'c': agent_rag_source: there is no file 'x.txt'"),
    ('{\n"c": {"agent_rag_source": "../x"}}', r"line 2: .*agent_rag_source: .* not a plain file name")])
def test_wrong_file_changes_nothing_and_is_told_of(folder, text, told):
    write(folder, "a.json", {"a": {"imperative": "good"}})
    personas = Personas(folder)
    write(folder, "b.json", text)
    assert {name: one.imperative for name, one in personas.current().items()} == {"a": "good"}
    assert re.search(told, personas.problem), personas.problem
    (folder / "b.json").unlink()
    personas.current()
    assert personas.problem is None


def test_what_is_wrong_at_the_start_is_left_out(folder):
    write(folder, "a.json", {"good": {}, "bad": {"imperative": 5}, "helped": {"rag_helper": "bad"}})
    write(folder, "b.json", "{")
    personas = Personas(folder)
    assert [*personas.current()] == ["good"]
    assert "b.json" in personas.problem and "'bad'" in personas.problem and "rag_helper" in personas.problem


def test_file_beside_it_is_read_and_followed(folder):
    write(folder, "a.json", {"a": {"imperative": "Be brief.", "agent_rag_source": "facts.md"}})
    write(folder, "facts.md", "The sky is green.\n")
    personas = Personas(folder)
    assert personas.current()["a"].system.endswith("Consider the following content:\nThe sky is green.")
    write(folder, "facts.md", "The sky is blue.")
    assert personas.current()["a"].system.endswith("blue.")
    (folder / "facts.md").write_bytes(b"\xff\xfe")
    assert personas.current()["a"].system.endswith("blue.")
    assert "not UTF-8" in personas.problem


def test_file_that_is_missing_is_taken_once_it_is_there_and_told_of_once(folder, caplog):
    write(folder, "a.json", {"a": {}})
    personas = Personas(folder)
    with caplog.at_level(logging.INFO):
        write(folder, "b.json", {"b": {"agent_rag_source": "hours.md"}})
        assert [*personas.current()] == ["a"]
        write(folder, "hours.md", "We open at nine.")
        assert personas.current()["b"].system.endswith("We open at nine.")
    assert personas.problem is None
    assert [record.message for record in caplog.records] == [
        "personalities.d/b.json, line 3: personality 'b': agent_rag_source: there is no file 'hours.md' beside it; "
        "the last good personalities stay in use", f"{folder.parent.name}/personalities.d was changed and is in use"]


@pytest.mark.parametrize("begun", [True, False], ids=["reload", "start"])
def test_what_is_written_while_it_is_read_is_not_missed(folder, monkeypatch, begun):
    write(folder, "a.json", {"a": {"imperative": "first"}})
    personas = Personas(folder) if begun else None
    write(folder, "a.json", {"a": {"imperative": "second one"}})
    read = config.read

    def slow(path, what):
        document = read(path, what)
        if document.values["a"]["imperative"] == "second one":
            write(folder, "a.json", {"a": {"imperative": "the third and last"}})
        return document
    monkeypatch.setattr(config, "read", slow)
    personas = personas or Personas(folder)
    assert [personas.current()["a"].imperative for _ in range(2)][-1] == "the third and last"


def test_keys_that_may_use_one(folder):
    write(folder, "a.json", {"all": {}, "few": {"keys": ["7"]}})
    personas = Personas(folder)
    assert [*personas.allowed("7")] == ["all", "few"] == [*personas.allowed("0")]
    assert [*personas.allowed("8")] == ["all"]
    with pytest.raises(Forbidden, match="may not use the personality 'few'; there are: all"):
        personas.get("few", "8")
    with pytest.raises(NotFound, match="no personality 'x'; there are: all, few"):
        personas.get("x", "7")
