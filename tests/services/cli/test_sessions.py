"""`main.py sessions`: through the same door as a user, beside a writer that holds the session."""

import json
import stat

import pytest

from auth.keys import Keys
from services.chat.sessions import Sessions
from services.cli import main, parley
from services.settings import Settings
from services.store.opening import open_store


@pytest.fixture(params=[None, "k" * 32], ids=["plain", "encrypted"])
def settings(request, tmp_path):
    return Settings(data_dir=tmp_path / "data", data_key=request.param)


@pytest.fixture
def sessions(settings):
    made = Sessions(open_store(settings))
    for owner, sid, text in (("0", "1", "hello\nyou"), ("0", "chat", "añ😀\x1b[31m"), ("kabcDEF12", "1", "hers")):
        with made.turn(owner, sid, 1) as turn:
            turn.prompt(text)
            turn.answer("to " + text, finish_reason="stop")
    return made


@pytest.fixture
def cli(settings, monkeypatch, capfd):
    monkeypatch.setattr("services.settings.load", lambda: settings)

    def run(*arguments, status=0):
        capfd.readouterr()
        assert main(["sessions", *map(str, arguments)]) == status
        out, err = capfd.readouterr()
        assert status == 0 or (out == "" and err.count("\n") == 1 and err.startswith("main.py: ")), (out, err)
        return out if status == 0 else err
    return run


def test_list(cli, sessions, settings):
    out = cli("list")
    assert [line.split()[0] for line in out.splitlines()] == ["0/1", "0/chat", "kabcDEF12/1"]
    assert "\x1b" not in out and "2 turns" in out
    assert [line.split()[0] for line in cli("list", "--owner", "kabcDEF12").splitlines()] == ["kabcDEF12/1"]
    assert json.loads(cli("list", "--json"))["0/1"]["name"] == "hello\nyou"


def test_list_counts_the_turns_that_are_shown(cli, sessions):
    with sessions.turn("0", "1", 1) as turn:
        turn.prompt("cut")
    assert " 3 turns  hello" in cli("list")
    sessions.rewind("0", "1", 1)
    assert " 1 turn   hello" in cli("list", "--owner", "0")
    assert json.loads(cli("list", "--json"))["0/1"]["turns"] == cli("show", "0/1").count("\n## ") == 1


def test_damaged_ones_are_listed_and_deleted(cli, sessions, settings):
    (settings.data_dir / "sessions/0/1.jsonl").write_bytes(b"broken\n")
    assert "PROBLEM: session 1 is damaged" in cli("list")
    assert "sessions/0/1.jsonl" in cli("show", "0/1", status=1)
    cli("delete", "0/1")
    assert "0/1" not in cli("list")


def test_show_and_export(cli, sessions, tmp_path):
    with sessions.turn("0", "1", 1) as turn:
        turn.prompt("in progress")
        shown = cli("show", "0/1")
    assert shown.startswith("# hello\ufffdyou\n") and "## Assistant, " in shown and "(interrupted)" in shown
    exported = json.loads(cli("export", "0/chat"))
    assert exported["turns"][0]["content"] == "añ😀\x1b[31m"
    target = tmp_path / "out.md"
    cli("export", "0/chat", "--format", "markdown", "-o", target)
    assert "to añ😀" in target.read_text(encoding="utf-8") and stat.S_IMODE(target.stat().st_mode) == 0o600
    assert "exists" in cli("export", "0/chat", "-o", target, status=1)


def test_export_and_import(cli, sessions, settings, tmp_path):
    file = tmp_path / "out.json"
    cli("export", "0/chat", "-o", file)
    _, key = Keys(settings.data_dir, settings).create(name="hers")
    assert cli("import", file, "--owner", key.id) == f"{key.id}/chat\n"
    assert sessions.get(key.id, "chat")["turns"] == sessions.get("0", "chat")["turns"]
    assert "session chat exists" in cli("import", file, status=1)
    assert cli("import", file, "--new-id") == "0/2\n"
    assert sessions.get("0", "2")["name"] == sessions.get("0", "chat")["name"]


def test_an_owner_is_a_keys_id(cli, sessions, settings, tmp_path):
    file = tmp_path / "out.json"
    cli("export", "0/chat", "-o", file)
    assert "'nosuch' is no key's id; there are: 0 (0 is the master key)" in cli("import", file, "--owner", "nosuch",
                                                                                status=1)
    _, key = Keys(settings.data_dir, settings).create()
    assert f"there are: 0, {key.id} (" in cli("import", file, "--owner", "nosuch", status=1)
    assert not (settings.data_dir / "sessions/nosuch").exists()
    cli("delete", "0/chat")
    assert cli("import", file) == "0/chat\n"


def test_an_import_from_elsewhere_does_not_steer_the_terminal(cli, sessions, tmp_path):
    turn = {"role": "user", "content": "x\x1b[31m", "at": "\x1b[31m2026"}
    (tmp_path / "in.json").write_text(json.dumps({"session_id": "in", "name": "x\x1b[31m", "turns": [turn]}))
    cli("import", tmp_path / "in.json", "--owner", "0")
    assert "\x1b" not in cli("list") and "\x1b" not in cli("show", "0/in")


@pytest.mark.parametrize(("content", "told"), [
    (b"", "is not JSON"), (b"\xff", "is not JSON"), (b"[" * 100_000, "is not JSON"), (b"[]", "no exported session"),
    (b'{"session_id": 1, "name": "x", "turns": 5}', "no exported session"),
    (b'{"session_id": "../x", "name": "x", "turns": []}', "is no session id"),
    (b'{"session_id": 9, "name": "x", "turns": [5]}', "turn 0 is not"),
    (b'{"session_id": 9, "name": "x", "turns": [{"role": "system", "content": "x"}]}', "turn 0 is not"),
    (b'{"session_id": 9, "name": "x", "turns": [{"role": "user", "content": "x", "at": 5}]}', "at and finish_reason"),
    (b'{"session_id": 9, "name": "x", "turns": [{"role": "user", "content": "\\ud800"}]}', "surrogate"),
    (b'{"session_id": 9, "name": "\\ud800", "turns": []}', "surrogate"),
    (b'{"session_id": 9, "name": "x", "turns": [], "version": 2}', "version 2")])
def test_what_cannot_be_imported(cli, sessions, tmp_path, content, told):
    (tmp_path / "in.json").write_bytes(content)
    assert told in cli("import", tmp_path / "in.json", "--owner", "0", status=1)
    assert set(sessions.list("0")) == {"1", "chat"}


def test_errors(cli, sessions, tmp_path):
    assert "there is no session 5" in cli("show", "0/5", status=1)
    assert "there is no session 1" in cli("delete", "k9/1", status=1)
    assert "expected OWNER/ID" in cli("show", "1", status=1)
    assert "is no session id" in cli("show", "0/../x", status=1)
    assert "there is no file" in cli("import", tmp_path / "none", "--owner", "0", status=1)
    assert "cannot be the id of a key" in cli("list", "--owner", "../x", status=1)


def test_delete_while_a_turn_runs(cli, sessions):
    with sessions.turn("0", "1", 1) as turn:
        turn.prompt("x")
        cli("delete", "0/1")
    assert set(sessions.list("0")) == {"chat"}


def test_no_data_folder(cli, settings):
    assert "check DATA_DIR" in cli("list", status=1)
    assert not settings.data_dir.exists()


def test_a_wrong_key(sessions, settings, monkeypatch, capfd):
    other = Settings(data_dir=settings.data_dir, data_key="o" * 32)
    monkeypatch.setattr("services.settings.load", lambda: other)
    assert main(["sessions", "list"]) == 1
    told = "DATA_KEY is not the one" if settings.data_key else "not encrypted yet"
    assert told in capfd.readouterr().err


def test_help_names_all_verbs():
    command = parley.get_command(None, "sessions")
    assert set(command.commands) == {"list", "show", "export", "import", "delete"}
