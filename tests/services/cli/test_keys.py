from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from auth.authentication import looks_like_key
from auth.keys import Keys
from services.cli.keys import keys
from services.errors import Conflict, NotFound
from services.settings import Settings

Run = Callable[..., Result]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data")


@pytest.fixture
def run(settings: Settings) -> Run:
    return lambda *words: CliRunner().invoke(keys, words, obj=settings)


def who(settings: Settings, secret: str) -> str | None:
    key = Keys(settings.data_dir, settings).authenticate(secret.strip().encode())
    return key and key.id


def test_create_prints_the_key_alone_on_standard_output(run: Run, settings: Settings) -> None:
    result = run("create", "--name", "bot", "--scope", "answer", "--scope", "keys", "--profile", "small",
                 "--expires-in", "30d", "--rpm", "5", "--parallel", "2", "--weight", "2.5")
    assert result.exit_code == 0 and looks_like_key(result.stdout.strip())
    key_id = who(settings, result.stdout)
    shown = json.loads(run("show", key_id).stdout)
    assert shown["scopes"] == ["answer", "keys"] and shown["profiles"] == ["small"] and shown["name"] == "bot"
    assert (shown["requests_per_minute"], shown["max_parallel"]) == (5, 2) and shown["expires_at"]
    assert shown["weight"] == 2.5 and " 2.5 " in run("list").stdout
    assert result.stdout.strip() not in result.stderr


def test_a_plain_create_gives_what_the_seeds_keys_had(run: Run, settings: Settings) -> None:
    run("create")
    listed = json.loads(run("list", "--json").stdout)
    assert [key["scopes"] for key in listed] == [["answer", "models:read", "models:switch"]]
    assert listed[0]["profiles"] is None and listed[0]["expires_at"] is None


def test_list_is_a_table_without_secrets(run: Run, settings: Settings) -> None:
    secrets = [run("create", "--name", name).stdout.strip() for name in ("one", "two")]
    run("revoke", who(settings, secrets[0]))
    lines = run("list").stdout.splitlines()
    assert lines[0].split()[:3] == ["ID", "STATE", "BEGINS"]
    assert [line.split()[1] for line in lines[1:]] == ["revoked", "valid"] and lines[2].endswith("two")
    assert not any(secret in "\n".join(lines) for secret in secrets)
    assert CliRunner().invoke(keys, ["list"], obj=Settings(data_dir=settings.data_dir / "none")).exit_code == 0


def test_list_shows_what_bounds_a_key(run: Run) -> None:
    run("create", "--rpm", "60", "--tpm", "20000", "--budget", "1000000/month", "--parallel", "2", "--weight", "4")
    run("create")
    head, *rows = (line.split() for line in run("list").stdout.splitlines())
    start = head.index("RPM")
    assert head[start:start + 5] == ["RPM", "TPM", "BUDGET", "PARALLEL", "WEIGHT"]
    assert [row[start:start + 5] for row in rows] == [["60", "20000", "1000000/month", "2", "4"],
                                                      ["-", "-", "-", "-", "1"]]


@pytest.mark.parametrize("option, value", [
    ("--rpm", "0"), ("--tpm", "0"), ("--budget", "0/day"), ("--budget", "x"), ("--parallel", "0"), ("--weight", "1000"),
    ("--expires-in", "0d"), ("--scope", "x"), ("--profile", ""), ("--name", "x" * 81),
    ("--jwt-kid", "")])
def test_what_cannot_be_names_its_option(run: Run, option: str, value: str) -> None:
    result = run("create", option, value)
    assert result.exit_code == 2 and f"Invalid value for '{option}': " in result.output and "expected" in result.output


def test_whose_tokens_come_in_as_a_key(run: Run, settings: Settings) -> None:
    made = run("create", "--jwt-kid", "meet/1", "--jwt-kid", "meet/2", "--jwt-iss", "meet")
    key_id = who(settings, made.stdout)
    assert "warning: no token comes in before ASAP_PUB_KEYS_REPO_URL" in made.stderr
    assert json.loads(run("show", key_id).stdout)["jwt"] == {"kids": ["meet/1", "meet/2"], "iss": "meet"}
    assert run("jwt", key_id, "--jwt-kid", "meet/3").stdout == f"tokens with the kid meet/3 come in as key {key_id}\n"
    assert json.loads(run("show", key_id).stdout)["jwt"] == {"kids": ["meet/3"], "iss": None}
    taken = run("create", "--jwt-kid", "meet/3")
    assert isinstance(taken.exception, Conflict) and f"as key {key_id} already" in str(taken.exception)
    assert run("jwt", key_id).stdout == f"no tokens come in as key {key_id}\n"
    assert json.loads(run("show", key_id).stdout)["jwt"] is None
    for words in (("create",), ("jwt", key_id)):
        result = run(*words, "--jwt-iss", "meet")
        assert result.exit_code == 2 and "give --jwt-kid too" in result.output


def test_edit_changes_what_is_given_and_says_what(run: Run, settings: Settings) -> None:
    secret = run("create", "--name", "n", "--rpm", "5", "--profile", "small").stdout
    key_id = who(settings, secret)
    result = run("edit", key_id, "--rpm", "60", "--tpm", "7", "--budget", "100/day", "--scope", "answer",
                 "--parallel", "2", "--weight", "2.5", "--expires-in", "30d", "--name", "new", "--profile", "big")
    assert result.exit_code == 0 and f"key {key_id}: requests_per_minute is 60, was 5\n" in result.stdout
    assert f"key {key_id}: token_budget is 100/day, was none\n" in result.stdout and secret not in result.output
    shown = json.loads(run("show", key_id).stdout)
    assert (shown["scopes"], shown["profiles"], shown["name"], shown["weight"]) == (["answer"], ["big"], "new", 2.5)
    assert shown["expires_at"] and (shown["tokens_per_minute"], shown["max_parallel"]) == (7, 2)
    limits = ("--rpm", "--tpm", "--budget", "--parallel", "--weight", "--expires-in", "--profile")
    assert run("edit", key_id, *(word for option in limits for word in (option, "none"))).exit_code == 0
    bare = json.loads(run("show", key_id).stdout)
    assert [bare[field] for field in ("requests_per_minute", "tokens_per_minute", "token_budget", "max_parallel",
                                      "weight", "expires_at", "profiles")] == [None] * 4 + [1.0, None, None]
    assert bare["name"] == "new" and run("edit", key_id, "--name", "new").stdout == f"key {key_id} is as it was\n"
    assert run("edit", key_id, "--name", "none").stdout == f"key {key_id}: name is none, was new\n"
    assert who(settings, secret) == key_id


def test_what_is_no_edit_is_told(run: Run, settings: Settings) -> None:
    key_id = who(settings, run("create").stdout)
    for option, value in (("--rpm", "0"), ("--rpm", "x"), ("--budget", "x"), ("--weight", "y"), ("--expires-in", "30"),
                          ("--scope", "none"), ("--tpm", "")):
        result = run("edit", key_id, option, value)
        assert result.exit_code == 2 and f"Invalid value for '{option}': " in result.output, result.output
    result = run("edit", key_id)
    assert result.exit_code == 2 and "give one or more of the options" in result.output
    assert isinstance(run("edit", "kNobody", "--rpm", "1").exception, NotFound)
    run("revoke", key_id)
    assert isinstance(run("edit", key_id, "--rpm", "1").exception, Conflict)


def test_revoke_and_rotate(run: Run, settings: Settings) -> None:
    first = run("create").stdout
    key_id = who(settings, first)
    second = run("rotate", key_id, "--grace", "1h").stdout
    assert who(settings, first) == who(settings, second) == key_id
    third = run("rotate", key_id).stdout
    assert who(settings, second) is None and who(settings, third) == key_id
    assert "is revoked" in run("revoke", key_id).stdout
    assert who(settings, third) is None


def test_a_second_rotation_says_what_still_works(run: Run, settings: Settings) -> None:
    first = run("create").stdout
    key_id = who(settings, first)
    run("rotate", key_id, "--grace", "1h")
    told = run("rotate", key_id, "--grace", "1m")
    assert who(settings, first) == key_id and "(and of those before it, until 20" in told.stderr
    assert "the old one no longer works; it" in run("rotate", key_id).stderr and who(settings, first) is None


def test_a_second_revoke_says_so(run: Run, settings: Settings) -> None:
    key_id = who(settings, run("create").stdout)
    run("revoke", key_id)
    again = run("revoke", key_id)
    assert again.exit_code == 0 and f"key {key_id} was revoked already, at 20" in again.stdout


@pytest.mark.parametrize(("config", "warned"), [
    (None, ""), ('{"SelectedModel": "one", "one": {"model": "x.gguf"}}', "no profile 'nosuch' now; there are: one\n"),
    ("{", "is not known: ")])
def test_a_profile_that_is_not_there_is_told(run: Run, settings: Settings, config: str | None, warned: str) -> None:
    settings.data_dir.mkdir()
    if config is not None:
        (settings.data_dir / "config.json").write_text(config)
    result = run("create", "--profile", "nosuch")
    assert result.exit_code == 0 and looks_like_key(result.stdout.strip())
    assert warned in result.stderr and ("warning: " in result.stderr) == bool(warned)
    assert "warning" not in run("create").stderr


def test_master_is_the_way_back(run: Run, settings: Settings) -> None:
    lost = Keys(settings.data_dir, settings).ensure_master() or ""
    found = run("master").stdout
    assert who(settings, lost) is None and who(settings, found) == "0"


def test_errors_are_parleys_own(run: Run, settings: Settings) -> None:
    assert isinstance(run("revoke", "0").exception, Conflict)
    assert isinstance(run("show", "kNobody").exception, NotFound)
    for words in (("create", "--expires-in", "soon"), ("create", "--expires-in", "30"), ("rotate", "k", "--grace", "5"),
                  ("create", "--rpm", "x"), ("rotate",), ("nonsense",)):
        assert run(*words).exit_code == 2
    assert "for example 30s, 12h or 30d" in " ".join(run("create", "--expires-in", "30").output.split())
    assert not settings.data_dir.exists() or not list(settings.data_dir.glob("*.json"))


@pytest.mark.parametrize("verb", ["create", "list", "show", "edit", "revoke", "rotate", "master"])
def test_each_verb_has_help(verb: str, run: Run) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0 and len(result.output.splitlines()) > 3
