"""Profiles: C1 to C3, C5 to C7, U1, U5 and X6 of the fault list."""

from __future__ import annotations

import itertools
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat.profiles import DEFAULT, Profile, Profiles, ensure_default
from services.chat.template import SEED_TEMPLATE
from services.errors import BadRequest, ConfigError, Conflict, NotFound, ParleyError, Unprocessable
from services.settings import Settings
from services.store import disk

SETTINGS = Settings(context_window=1024, runner_threads=3, gpu_layers=7)
SEED = """{
    "SelectedModel": "Vicuna",
    "Vicuna": {
        "model": "vicuna.gguf",
        "n_ctx": 4096,
        "temperature": 0.7,
        "max_tokens": 16000,
        "top_p": 0.8,
        "top_k": 40,
        "verbose": true,
        "repeat_penalty": 1.1,
        "template": "You are a chatbot. \\n\\n{chat_history} \\n\\nPROMPT: {input} \\n\\nBOT:"
    }
}"""


def write(folder: Path, content: str | bytes | dict[str, Any]) -> Path:
    path = folder / "config.json"
    raw = json.dumps(content, indent=2) if isinstance(content, dict) else content
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return path


def load(folder: Path, content: str | bytes | dict[str, Any]) -> Profiles:
    return Profiles(write(folder, content), SETTINGS)


def one(**fields: Any) -> dict[str, Any]:
    return {"SelectedModel": "a", "a": {"model": "m.gguf", **fields}}


@pytest.mark.parametrize("text", [SEED, SEED.replace("\n", "\r\n"), SEED.replace("    ", "\t")])
def test_a_seeds_config_loads_as_it_is_clamped_and_warned(tmp_path: Path, text: str,
                                                          caplog: pytest.LogCaptureFixture) -> None:
    name, profile = load(tmp_path, text).current().get()
    assert (name, profile.model, profile.n_ctx, profile.k, profile.parallel) == ("Vicuna", "vicuna.gguf", 4096, 5, 4)
    assert profile.text_template(model_has_one=True) == SEED_TEMPLATE
    assert "16000" in caplog.text and "4096" in caplog.text
    assert profile.public()["max_tokens"] == 4096 and profile.public()["warnings"]


def test_only_a_model_is_required_and_the_settings_give_defaults(tmp_path: Path) -> None:
    profile = load(tmp_path, one()).current().get("a")[1]
    assert (profile.n_ctx, profile.n_threads, profile.n_gpu_layers) == (1024, 3, 7)
    assert (profile.temperature, profile.top_p, profile.top_k, profile.repeat_penalty) == (0.8, 0.95, 40, 1.0)
    assert profile.text_template(model_has_one=True) is None
    assert profile.text_template(model_has_one=False) == SEED_TEMPLATE
    assert not {"template", "system", "verbose"} & set(profile.public())


@pytest.mark.parametrize("selected_last", [True, False])
def test_the_selected_one_may_stand_anywhere(tmp_path: Path, selected_last: bool) -> None:
    content = {"a": {"model": "a.gguf"}, "SelectedModel": "b", "b": {"model": "b.gguf"}}
    if selected_last:
        content["SelectedModel"] = content.pop("SelectedModel")
    assert load(tmp_path, content).current().get()[1].model == "b.gguf"


@pytest.mark.parametrize(("content", "words"), [
    ("", "empty"), ("  \n", "empty"), ("\ufeff{}", "byte order mark"), ("{\n  \"a\": ,\n}", "line 2 column 8"),
    (b'{\n"a": "\xff"}', "line 2"), ("[]", "JSON object"), ("{}", "no profile"), ("[" * 200_000, "nested too deeply"),
    ('{"SelectedModel": "a",\n "a": {"model": "m",\n "top_p": NaN}}', "line 3: NaN"),
    ('{"SelectedModel": "a",\n "a": {"model": "m",\n "n_ctx": 1' + "0" * 5000 + "}}", "digits"),
    ('{"SelectedModel": "a",\n "a": {"model": "m",\n "model": "n"}}', "line 3: 'model' is given twice"),
    ('{"a": {"model": "m"}}', "SelectedModel is missing; set it to one of: a"),
    ('{\n"SelectedModel": "x",\n"a": {"model": "m"}, "b": {"model": "m"}}', "line 2: SelectedModel is \"x\""),
    ('{\n"SelectedModel": 3,\n"a": {"model": "m"}}', "there are: a"),
    ('{"a": {"model": "m"},\n"SelectedModel": {"model": "m"}}', "line 2: a profile cannot be called SelectedModel"),
    ('{"SelectedModel": "a", "a": {\n"model": "m",\n"modell": 3}}', "line 3: profile 'a': modell: unknown field"),
    ('{"SelectedModel": "a",\n"a": {"n_ctx": 5}}', "line 2: profile 'a': model: missing"),
    ('{"SelectedModel": "a",\n"a": "m.gguf"}', "line 2: 'a' must be a profile"),
    ('{"SelectedModel": "a", "a": {"model": "m", "description": "\\ud800"}}', "description"),
    ('{"SelectedModel": "a", "a": {"model": "m"}, "\\ud800": {"model": "m"}}', "no name"),
])
def test_a_wrong_file_is_refused_with_one_line_that_says_where(tmp_path: Path, content: str | bytes,
                                                               words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, content)
    assert words in caught.value.message and "\n" not in caught.value.message
    assert caught.value.message.startswith(f"{tmp_path.name}/config.json")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    def refused(words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            Profiles(path, SETTINGS)
    path = tmp_path / "config.json"
    refused("no such file")
    path.mkdir()
    refused("not a regular file")
    path.rmdir()
    os.mkfifo(path)
    refused("not a regular file")
    path.unlink()
    path.symlink_to("config.json")
    refused("symbolic link")
    path.unlink()
    with path.open("wb") as file:
        file.truncate(1 << 30)
    refused("at most")


@pytest.mark.parametrize(("field", "value"), [
    ("n_ctx", 10**9), ("n_ctx", 0), ("n_ctx", 1.0), ("n_ctx", "512"), ("n_ctx", True), ("n_threads", -1),
    ("n_gpu_layers", -2), ("parallel", 0), ("k", -1), ("max_tokens", 0), ("max_tokens", -1), ("max_tokens", 2**31),
    ("temperature", -1), ("temperature", 1e9), ("temperature", float("inf")), ("temperature", "0.5"), ("top_p", 0),
    ("top_p", 2), ("top_k", -1), ("min_p", 1.5), ("repeat_penalty", 0), ("seed", 2**64), ("seed", -1),
    ("stop", [""]), ("stop", ["x"] * 17), ("stop", ["x" * 1_000_000]), ("stop", "x"), ("chat_format", "chatml"),
    ("model", ""), ("template", "no field"), ("keep_loaded", -1), ("keep_loaded", "300"), ("system", 5),
])
def test_every_number_has_a_range(tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"profile 'a': {field}" if value != float("inf") else "Infinity"):
        load(tmp_path, one(**{field: value}))
    valid = Profile(model="m.gguf")
    if field != "model":
        with pytest.raises(BadRequest) as caught:
            valid.overridden(**{field: value})
        assert caught.value.param == field


@pytest.mark.parametrize("template", [
    "{input:>300000000}", "{input!r}", "{input.__class__}", "{input[0]}", "{} {input}", "{0} {input}",
    "{history}{input}", "{input} {", "} {input}", "{chat_history}", "{input} {chat_history:{input}}", "{{input}}",
    "{input}" + "x" * 70_000, "\ud800{input}",
])
def test_a_template_has_plain_fields_only(tmp_path: Path, template: str) -> None:
    with pytest.raises(ConfigError, match="profile 'a': template: "):
        load(tmp_path, one(template=template))


def test_a_system_text_needs_a_place(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \{system\}"):
        load(tmp_path, one(system="Be kind.", template="{input}"))
    profile = load(tmp_path, one(system="Be kind.")).current().get()[1]
    assert "{system}" in (profile.text_template(model_has_one=False) or "")


def test_an_edit_is_taken_over_when_valid_and_else_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    profiles = load(tmp_path, one(k=1))
    write(tmp_path, "{half a file")
    with caplog.at_level(logging.INFO, "parley.chat"):
        for _ in range(3):
            assert profiles.current().get()[1].k == 1
        assert profiles.problem and "line 1 column 2" in profiles.problem
        assert len(caplog.records) == 1
        (tmp_path / "config.json").unlink()
        assert profiles.current().get()[1].k == 1 and "no such file" in str(profiles.problem)
        write(tmp_path, one(k=2))
        assert profiles.current().get()[1].k == 2 and profiles.problem is None


def test_an_unknown_profile_is_not_found_naming_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there are: a"):
        load(tmp_path, one()).current().get("b")


TWO = '{\n\t"b": {"model": "b.gguf", "description": "ümlaut"},\n\t"SelectedModel": "a",\n\t"a": {"model": "a.gguf"}\n}'


def test_selecting_changes_two_values_and_nothing_else(tmp_path: Path) -> None:
    profiles = load(tmp_path, TWO)
    os.chmod(profiles.path, 0o640)
    config = profiles.select("b", "new.gguf")
    assert config.get() == ("b", profiles.current().profiles["b"]) and config.get()[1].model == "new.gguf"
    text = profiles.path.read_text()
    assert list(json.loads(text)) == ["b", "SelectedModel", "a"] and "ümlaut" in text and '\n\t"b"' in text
    assert profiles.path.stat().st_mode & 0o777 == 0o640
    assert Profiles(profiles.path, SETTINGS).current() == config


def test_selecting_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    profiles = load(tmp_path, TWO)
    before = profiles.path.read_bytes()
    for call in (lambda: profiles.select("c"), lambda: profiles.candidate("c")):
        with pytest.raises(NotFound):
            call()
    with pytest.raises(BadRequest):
        profiles.select("a", "")
    assert profiles.candidate("a", "x.gguf").model == "x.gguf" and profiles.path.read_bytes() == before
    profiles.path.write_text("{")
    with pytest.raises(Conflict, match="mend it first"):
        profiles.select("b")
    assert profiles.path.read_text() == "{"


def test_selections_at_once_leave_one_whole_file(tmp_path: Path) -> None:
    profiles = load(tmp_path, TWO)
    threads = [threading.Thread(target=profiles.select, args=("ab"[n % 2], f"{n}.gguf")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    config = Profiles(profiles.path, SETTINGS).current()
    assert all(profile.model[0].isdigit() for profile in config.profiles.values())


def failing(nth: int) -> Callable[[disk.Op], None]:
    """Makes the `nth` call to the disk fail."""
    calls = itertools.count(1)

    def watch(op: disk.Op) -> None:
        if next(calls) == nth:
            raise OSError(28, "No space left on device")
    return watch


def test_every_failing_call_of_a_selection_leaves_the_old_file_or_the_new_one(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = load(tmp_path, TWO)
    old = profiles.path.read_bytes()
    for nth in range(1, 100):
        monkeypatch.setattr(disk, "watcher", failing(nth))
        try:
            profiles.select("b", "new.gguf")
            break
        except ParleyError:
            assert profiles.current().get()[0] in "ab"
        finally:
            monkeypatch.setattr(disk, "watcher", None)
        if profiles.path.read_bytes() != old:
            assert Profiles(profiles.path, SETTINGS).current().get()[1].model == "new.gguf"
            profiles.path.write_bytes(old)
    assert nth > 4 and [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_the_default_file_is_written_once(tmp_path: Path) -> None:
    path = ensure_default(tmp_path)
    assert json.loads(path.read_text()) == DEFAULT
    name, profile = Profiles(path, SETTINGS).current().get()
    assert (name, profile.model, profile.n_ctx, profile.temperature) == ("starter", "starter.gguf", 1024, 0)
    path.write_text(TWO)
    assert ensure_default(tmp_path).read_text() == TWO


def test_of_the_profiles_with_a_file_one_that_a_key_may_use_is_preferred(tmp_path: Path) -> None:
    profiles = load(tmp_path, json.dumps({"SelectedModel": "a", **{name: {"model": "m.gguf"} for name in "abc"}}))
    assert [profiles.named("m.gguf", allowed)[0] for allowed in (None, ["c", "b"], ["x"])] == ["a", "b", "a"]


def test_a_spec_names_the_file_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    profile = Profile(model="m.gguf", n_ctx=64, parallel=2, n_threads=1)
    spec = Profiles.spec(profile, tmp_path)
    assert (spec.model, spec.n_ctx, spec.parallel, spec.n_threads) == (str(tmp_path / "m.gguf"), 64, 2, 1)
    with pytest.raises(NotFound, match=r"m\.gguf"):
        Profiles.spec(Profile(model="other.gguf"), tmp_path)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=4)))
def test_any_json_is_a_configuration_or_a_named_error(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    folder = tmp_path_factory.mktemp("any")
    for content in (value, {"SelectedModel": "a", "a": value}, {"SelectedModel": "a", "a": {"model": value}}):
        write(folder, json.dumps(content))
        try:
            assert Profiles(folder / "config.json", SETTINGS).current().selected == "a"
        except ConfigError as error:
            assert "config.json" in error.message


EMBEDDING = {"SelectedModel": "a", "a": {"model": "m.gguf"}, "e": {"model": "e.gguf", "embedding": True, "parallel": 8}}


def test_an_embedding_profile_is_for_embeddings_only(tmp_path: Path) -> None:
    profiles = load(tmp_path, EMBEDDING)
    assert profiles.current().get("e")[1].embedding and not profiles.current().for_text()[1].embedding
    for refused in (lambda: profiles.current().for_text("e"), lambda: profiles.candidate("e"),
                    lambda: profiles.select("e")):
        with pytest.raises(Unprocessable, match=r"'e' makes embeddings .* take one of: a$"):
            refused()
    assert profiles.current().selected == "a"
    with pytest.raises(ConfigError, match=r"line 2.*SelectedModel is 'e', which makes embeddings"):
        load(tmp_path, {**EMBEDDING, "SelectedModel": "e"})


def test_the_spec_of_an_embedding_profile_says_so(tmp_path: Path) -> None:
    (tmp_path / "e.gguf").write_bytes(b"")
    spec = Profiles.spec(load(tmp_path, EMBEDDING).current().get("e")[1], tmp_path)
    assert spec.embedding and spec.parallel == 1


@pytest.mark.parametrize(("values", "seconds"), [
    ([False], 0), ([True], float("inf")), ([30], 30), ([0], 0), ([0.5, 20, False], 20), ([5, True], float("inf"))])
def test_profiles_that_share_a_runner_keep_it_as_long_as_any_of_them(tmp_path: Path, values: list[Any],
                                                                     seconds: float) -> None:
    sharing = {f"p{n}": {"model": "m.gguf", "keep_loaded": value, "temperature": n / 10}
               for n, value in enumerate(values)}
    loaded = load(tmp_path, {"SelectedModel": "p0", **sharing, "other": {"model": "m.gguf", "n_ctx": 64,
                                                                        "keep_loaded": 1000}}).current()
    assert {loaded.keep(loaded.profiles[name]) for name in sharing} == {seconds}
    assert loaded.keep(loaded.profiles["other"]) == 1000
    assert loaded.keep(loaded.profiles["p0"].overridden(model="another.gguf")) == (
        float("inf") if values[0] is True else values[0])
