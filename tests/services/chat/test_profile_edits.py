"""Profiles of config.json changed one by one: nothing else of the file, nobody's change lost, nothing wrong written."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from services.chat import profile_edits
from services.chat.profiles import Profiles
from services.errors import BadRequest, Conflict, NotFound, ParleyError, PreconditionFailed, TooLarge, Unprocessable
from services.settings import Settings
from services.store import config, disk

CONFIG = '{\n\t"b": {"model": "b.gguf", "top_p": 1.0, "description": "ümlaut"},\n\t"SelectedModel": "a",\n\t"a": ' \
         '{"model": "a.gguf", "keep_loaded": true}\n}'


@pytest.fixture
def profiles(tmp_path: Path) -> Profiles:
    models = tmp_path / "models"
    models.mkdir()
    for name in ("a.gguf", "b.gguf"):
        (models / name).write_bytes(b"GGUF")
    path = tmp_path / "config.json"
    path.write_text(CONFIG)
    return Profiles(path, Settings(context_window=1024, models_dir=models))


def anything(tag: str | None) -> None:
    pass


def put(profiles: Profiles, name: str, check: profile_edits.Check = anything, **fields: Any) -> Any:
    return profile_edits.put(profiles, name, fields, profiles.path.parent / "models", check)


def values(profiles: Profiles) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(profiles.path.read_text())
    return found


def test_a_profile_is_told_as_it_stands_there_and_as_what_it_comes_to(profiles: Profiles) -> None:
    one = profile_edits.stored(profiles, "b")
    assert one.fields == {"model": "b.gguf", "top_p": 1.0, "description": "ümlaut"}
    assert (one.profile.n_ctx, one.selected, one.editable) == (1024, False, True) and one.source.endswith("config.json")
    with pytest.raises(NotFound, match="there are: b, a"):
        profile_edits.stored(profiles, "SelectedModel")


def test_a_change_leaves_all_else_as_it_is(profiles: Profiles) -> None:
    os.chmod(profiles.path, 0o640)
    now, is_new = put(profiles, "b", description="ümlaut", top_p=1, model="b.gguf", k=2)
    text = profiles.path.read_text()
    assert not is_new and now.fields == values(profiles)["b"] and now.tag == profile_edits.stored(profiles, "b").tag
    assert list(values(profiles)) == ["b", "SelectedModel", "a"] and "ümlaut" in text and '\n\t"b"' in text
    assert list(values(profiles)["b"]) == ["model", "top_p", "description", "k"] and '"top_p": 1.0,' in text
    assert values(profiles)["a"] == json.loads(CONFIG)["a"] and profiles.path.stat().st_mode & 0o777 == 0o640
    assert profiles.current().profiles["b"].k == 2, "at the next request"


def test_what_changes_nothing_is_not_written(profiles: Profiles) -> None:
    before = profiles.path.stat().st_ino
    put(profiles, "b", top_p=1, description="ümlaut", model="b.gguf")
    assert profiles.path.stat().st_ino == before and profiles.path.read_text() == CONFIG
    put(profiles, "a", model="a.gguf", keep_loaded=1)
    assert '"keep_loaded": 1\n' in profiles.path.read_text(), "a second is not for ever"


def test_a_new_one_comes_last_and_goes_again(profiles: Profiles) -> None:
    now, is_new = put(profiles, "c/d", model="a.gguf")
    assert is_new and list(values(profiles)) == ["b", "SelectedModel", "a", "c/d"] and not now.selected
    profile_edits.delete(profiles, "c/d", anything)
    assert values(profiles) == json.loads(CONFIG) and list(profiles.current().profiles) == ["b", "a"]


@pytest.mark.parametrize("name, fields, error, param", [
    ("c", {"model": "a.gguf", "k": -1}, BadRequest, "k"), ("c", {"model": "a.gguf", "x": 1}, BadRequest, "x"),
    ("c", {}, BadRequest, "model"), ("c", {"model": "../a.gguf"}, BadRequest, "model"),
    ("c", {"model": "absent.gguf"}, NotFound, "model"), ("c", {"model": 3}, BadRequest, "model"),
    ("c", {"model": "a.gguf", "system": "Be brief.", "template": "{input}"}, BadRequest, None),
    ("SelectedModel", {"model": "a.gguf"}, BadRequest, "name"), (" ", {"model": "a.gguf"}, BadRequest, "name"),
    ("c\n", {"model": "a.gguf"}, BadRequest, "name"), ("c" * 201, {"model": "a.gguf"}, BadRequest, "name"),
    ("a", {"model": "a.gguf", "embedding": True}, Unprocessable, "embedding"),
    ("c", {"model": "a.gguf", "template": "x {input}" + "x" * config.MAX_BYTES}, ParleyError, None)])
def test_what_is_wrong_is_told_and_not_written(profiles: Profiles, name: str, fields: dict[str, Any],
                                               error: type[ParleyError], param: str | None) -> None:
    with pytest.raises(error) as told:
        put(profiles, name, **fields)
    assert (param is None or told.value.param == param) and profiles.path.read_text() == CONFIG


def test_a_file_that_would_be_too_long_to_be_read_is_not_written(profiles: Profiles) -> None:
    with pytest.raises(TooLarge, match="at most 1048576"):
        for number in range(100):
            put(profiles, f"c{number}", model="a.gguf", template="{input}" + "x" * 30_000)
    assert Profiles(profiles.path, Settings()).current().profiles["c0"].model == "a.gguf"


def test_the_selected_one_stays(profiles: Profiles) -> None:
    with pytest.raises(Conflict, match="select another one first"):
        profile_edits.delete(profiles, "a", anything)
    with pytest.raises(NotFound):
        profile_edits.delete(profiles, "c", anything)
    assert profiles.path.read_text() == CONFIG


def test_a_broken_file_is_not_touched(profiles: Profiles) -> None:
    profiles.path.write_text("{")
    for call in (lambda: put(profiles, "b", model="b.gguf"), lambda: profile_edits.delete(profiles, "b", anything),
                 lambda: profile_edits.stored(profiles, "b")):
        with pytest.raises(Conflict, match="mend it first") as told:
            call()
        assert told.value.code == "bad_config" and profiles.path.read_text() == "{"


def test_localais_are_told_of_and_refused(profiles: Profiles) -> None:
    (profiles.path.parent / "models" / "theirs.yaml").write_text("{name: theirs, parameters: {model: b.gguf}}")
    profiles = Profiles(profiles.path, Settings(models_dir=profiles.path.parent / "models"))
    one = profile_edits.stored(profiles, "theirs")
    assert (one.source, one.editable, one.fields["model"]) == ("models/theirs.yaml", False, "b.gguf")
    for call in (lambda: put(profiles, "theirs", model="a.gguf"),
                 lambda: profile_edits.delete(profiles, "theirs", anything)):
        with pytest.raises(Conflict, match=r"models/theirs\.yaml: change it there"):
            call()
    assert profiles.path.read_text() == CONFIG


def test_the_state_there_is_is_asked_about_before_anything_is_written(profiles: Profiles) -> None:
    seen: list[str | None] = []

    def refuse(tag: str | None) -> None:
        seen.append(tag)
        raise PreconditionFailed("no")
    tag = profile_edits.stored(profiles, "b").tag
    for call in (lambda: put(profiles, "b", refuse, model="a.gguf"), lambda: put(profiles, "c", refuse, model="a.gguf"),
                 lambda: profile_edits.delete(profiles, "b", refuse)):
        with pytest.raises(PreconditionFailed):
            call()
    assert seen == [tag, None, tag] and profiles.path.read_text() == CONFIG


def test_changes_at_once_are_all_there(profiles: Profiles) -> None:
    """Two servers' profiles over one file; some make new ones, some select."""
    twin = Profiles(profiles.path, Settings(models_dir=profiles.path.parent / "models"))
    calls = [lambda n=n: put((profiles, twin)[n % 2], f"c{n}", model="a.gguf", k=n) for n in range(8)]
    calls += [lambda n=n: (profiles, twin)[n % 2].select("b", "a.gguf") for n in range(4)]
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    found = values(profiles)
    assert [found[f"c{n}"]["k"] for n in range(8)] == [*range(8)] and found["SelectedModel"] == "b"
    assert found["b"]["model"] == "a.gguf" and found["b"]["top_p"] == 1.0


def test_every_failing_call_leaves_the_old_file_or_the_new_one(profiles: Profiles,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    for nth in range(1, 100):
        calls = iter(range(1, 1000))

        def fail(op: disk.Op, nth: int = nth, calls: Any = calls) -> None:
            if next(calls) == nth:
                raise OSError(28, "No space left on device")
        monkeypatch.setattr(disk, "watcher", fail)
        try:
            put(profiles, "b", model="a.gguf")
            break
        except ParleyError:
            assert values(profiles)["b"]["model"] in ("a.gguf", "b.gguf")
        finally:
            monkeypatch.setattr(disk, "watcher", None)
        profiles.path.write_text(CONFIG)
    assert nth > 4 and [*profiles.path.parent.glob(".*.tmp")] == []


def test_what_the_selected_name_stands_for_stays(profiles: Profiles) -> None:
    """An alias of LocalAI's may be selected: a file that could not be read again is not written."""
    bring(profiles, "c", "alias: b")
    profiles.select("c")
    before = profiles.path.read_text()
    for act in (lambda: profile_edits.delete(profiles, "b", anything),
                lambda: put(profiles, "b", model="b.gguf", embedding=True)):
        with pytest.raises(Conflict, match="nothing is changed: with that, ") as told:
            act()
        assert "SelectedModel is" in told.value.message
    assert profiles.path.read_text() == before and put(profiles, "b", model="b.gguf", k=3)


def test_files_that_have_just_come_count(profiles: Profiles) -> None:
    bring(profiles, "c", "parameters: {model: b.gguf}")
    assert profile_edits.stored(profiles, "c").source.endswith("c.yaml")
    bring(profiles, "d", "parameters: {model: b.gguf}")
    with pytest.raises(Conflict, match=r"comes from models/d\.yaml"):
        put(profiles, "d", model="b.gguf")
    assert {"c", "d"} <= {*profiles.current().profiles}


def bring(profiles: Profiles, name: str, text: str) -> None:
    """A file of LocalAI's, which is looked for at once and not in a second."""
    (profiles.path.parent / "models" / f"{name}.yaml").write_text(f"{{name: {name}, {text}}}")
    profiles._folder._next = -1.0
