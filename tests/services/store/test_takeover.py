"""A seed's sessions.json: everything in it is there afterwards, once, and the original is kept."""

import json
import signal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.chat.sessions import Sessions
from services.errors import ConfigError
from services.settings import Settings
from services.store.opening import open_store
from tests.services.store.contract import add
from tests.services.store.test_disk import python

SEED = {
    "Active": 2,
    "1": {"name": "Hola, me llamo Ana y vivo en M...",
          "history": ["Human: Hola, me llamo Ana", "AI:  Si", "Human: AI: is how you begin",
                      "AI: Human: is how I do\n"]},
    "2": {"name": "odd", "history": ["Human: one", "AI: two", "Human: three"]},
    "7": {"name": "no prefixes", "history": ["one", "two", "three"]},
    "8": {"name": "empty", "history": []},
    "9": {"name": "añ😀\u2028", "history": ["Human:", "AI:", "Human: \ttabs\r\n", "AI: \u0000"]},
}
TURNS = {
    "1": [("user", "Hola, me llamo Ana"), ("assistant", " Si"), ("user", "AI: is how you begin"),
          ("assistant", "Human: is how I do\n")],
    "2": [("user", "one"), ("assistant", "two"), ("user", "three")],
    "7": [("user", "one"), ("assistant", "two"), ("user", "three")],
    "8": [],
    "9": [("user", ""), ("assistant", ""), ("user", "\ttabs\r\n"), ("assistant", "\0")],
}


def start(folder, key=None):
    return Sessions(open_store(Settings(data_dir=folder, data_key=key)))


def turns(sessions, sid, owner="0"):
    return [(turn["role"], turn["content"]) for turn in sessions.get(owner, sid)["turns"]]


def seed(folder, content=None, write=json.dumps):
    raw = write(SEED if content is None else content)
    (folder / "sessions.json").write_bytes(raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass"))
    return (folder / "sessions.json").read_bytes()


@pytest.mark.parametrize("key", [None, "k" * 32])
def test_golden(tmp_path, key):
    raw = seed(tmp_path)
    sessions = start(tmp_path, key)
    assert {sid: turns(sessions, sid) for sid in sessions.list("0")} == TURNS
    assert sessions.list("0") == {sid: value["name"] for sid, value in SEED.items() if sid != "Active"}
    assert sessions.get("0", "2")["session_id"] == 2 and sessions.get("0", "2")["turns"][2]["interrupted"] is True
    assert (tmp_path / "sessions.json.bak").read_bytes() == raw and not (tmp_path / "sessions.json").exists()
    with sessions.turn("0", "2", 1) as turn:
        assert [record.content for pair in turn.history for record in pair] == ["one", "two"]


def test_a_second_start_changes_nothing(tmp_path):
    seed(tmp_path)
    start(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    start(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("write", [
    lambda data: json.dumps(data, indent=4, ensure_ascii=False).replace("\n", "\r\n"),
    lambda data: json.dumps(data, indent="\t"),
    lambda data: b"\xef\xbb\xbf" + json.dumps(data, ensure_ascii=False).encode(),
    lambda data: json.dumps({key: data[key] for key in sorted(data)}),
    lambda data: json.dumps({key: value for key, value in data.items() if key != "Active"})])
def test_ways_to_write_it(tmp_path, write):
    seed(tmp_path, write=write)
    sessions = start(tmp_path)
    assert {sid: turns(sessions, sid) for sid in sessions.list("0")} == TURNS


@pytest.mark.parametrize(("content", "told"), [
    (b'{"1": {"name"', "cannot be taken over"), (b"[]", "expected an object"), (b"\xff\xfe", "cannot be taken over"),
    (b"[" * 100_000, "cannot be taken over"), (b'{"1": 5}', "session '1'"), (b'{"1": {"history": "x"}}', "session '1'"),
    (b'{"1": {"history": [1]}}', "session '1'"), (b'{"1": {"name": 4, "history": []}}', "session '1'")])
def test_what_cannot_be_read_is_told_and_left(tmp_path, content, told):
    (tmp_path / "sessions.json").write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        start(tmp_path)
    assert (tmp_path / "sessions.json").read_bytes() == content
    assert list((tmp_path / "sessions").iterdir()) == []


def test_an_empty_file_is_an_empty_one(tmp_path):
    seed(tmp_path, write=lambda data: b"")
    assert start(tmp_path).list("0") == {}


def test_ids_that_are_taken_or_cannot_be(tmp_path):
    add(open_store(Settings(data_dir=tmp_path)), "0", "1", "newer")
    odd = {"1": {"name": "a", "history": ["Human: old"]}, "my chat": {"name": "b", "history": ["Human: x"]},
           "../x": {"name": "c", "history": ["Human: y"]}, "con": {"name": "d", "history": ["Human: z"]},
           "01": {"name": "e", "history": ["Human: w"]}, "\ud800": {"name": "f", "history": ["Human: \udfff"]}}
    seed(tmp_path, odd)
    sessions = start(tmp_path)
    assert turns(sessions, "1") == [("user", "newer")] and turns(sessions, "seed-1") == [("user", "old")]
    assert turns(sessions, "01") == [("user", "w")]
    assert sorted(sessions.list("0").values()) == ["a", "b", "c", "d", "e", "f", "newer"]
    seed(tmp_path, {"1": {"name": "second", "history": []}})
    assert start(tmp_path).list("0")["seed-1-2"] == "second"
    assert (tmp_path / "sessions.json.bak2").exists()


def test_many(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda fd: None)
    seed(tmp_path, {"Active": 1} | {str(n): {"name": f"n{n}", "history": [f"Human: {n}", f"AI: to {n}"] * 3}
                                    for n in range(5000)})
    sessions = start(tmp_path)
    assert len(sessions.list("0")) == 5000
    assert turns(sessions, "4999") == [("user", "4999"), ("assistant", "to 4999")] * 3


POINTS = ["before_tmp", "before_rename", "after_rename", "after_taken_over", "before_backup", "after_backup"]


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_taking_over(tmp_path, point):
    raw = seed(tmp_path)
    nths = (1, 3) if point in POINTS[:3] else (1,)
    for nth in nths:
        child = python("import sys; from pathlib import Path; from services.settings import Settings\n"
                       "from services.store.opening import open_store\n"
                       "open_store(Settings(data_dir=Path(sys.argv[1])))", tmp_path, FAILPOINT=f"{point}:kill@{nth}")
        child.communicate(timeout=60)
        assert child.returncode in (-signal.SIGKILL, 0)
        assert [path.read_bytes() for path in tmp_path.glob("sessions.json*")] == [raw]
    sessions = start(tmp_path)
    assert {sid: turns(sessions, sid) for sid in sessions.list("0")} == TURNS
    assert (tmp_path / "sessions.json.bak").read_bytes() == raw


TEXT = st.text(st.characters(codec="utf-8"), max_size=30)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.integers(0, 10 ** 6).map(str),
                       st.tuples(TEXT, st.lists(st.tuples(TEXT, TEXT), max_size=5), st.booleans()), max_size=5),
       st.booleans())
def test_whatever_the_seed_wrote(tmp_path_factory, sessions, ascii_only):
    folder = tmp_path_factory.mktemp("seed")
    written, expected = {"Active": 1}, {}
    for sid, (name, pairs, odd) in sessions.items():
        entries = [entry for human, ai in pairs for entry in (("user", human), ("assistant", ai))][:-1 if odd else None]
        expected[sid] = entries
        written[sid] = {"name": name, "history": [("Human: " if role == "user" else "AI: ") + text
                                                  for role, text in entries]}
    (folder / "sessions.json").write_text(json.dumps(written, ensure_ascii=ascii_only), encoding="utf-8")
    found = start(folder)
    assert {sid: turns(found, sid) for sid in found.list("0")} == expected
    assert found.list("0") == {sid: name for sid, (name, _, _) in sorted(sessions.items(), key=lambda s: int(s[0]))}
