"""Rows X6 and A9: a seed's data folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from auth.keys import Keys
from services.errors import ConfigError

SEED = {"0": "Zk3vT9qLw2XbR7mNc5Yd", "1": "aaaaBBBBccccDDDD1111", "2": "eeeeFFFFggggHHHH2222"}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def seed(data: Path) -> Callable[..., bytes]:
    def write(content: dict[str, str] | str | bytes = SEED) -> bytes:
        data.mkdir(exist_ok=True)
        text = json.dumps(content, indent=4) if isinstance(content, dict) else content
        raw = text.encode() if isinstance(text, str) else text
        (data / "api_keys.json").write_bytes(raw)
        return raw
    return write


def who(keys: Keys, secret: str) -> str | None:
    key = keys.authenticate(secret.encode())
    return key and key.id


def test_same_keys_log_in_under_their_ids(data: Path, seed: Callable[..., bytes], open_keys: Callable[..., Keys],
                                          caplog: pytest.LogCaptureFixture) -> None:
    original = seed()
    keys = open_keys()
    assert keys.ensure_master() is None
    assert {key_id: who(keys, secret) for key_id, secret in SEED.items()} == {"0": "0", "1": "1", "2": "2"}
    assert keys.get("0").is_master and keys.get("1").scopes == ("answer", "models:read", "models:switch")
    backup = data / "api_keys.json.bak"
    assert backup.read_bytes() == original
    assert backup.stat().st_mode & 0o777 == (data / "api_keys.json").stat().st_mode & 0o777 == 0o600
    assert not any(secret in (data / "api_keys.json").read_text() + caplog.text for secret in SEED.values())


def test_a_second_start_changes_nothing(data: Path, seed: Callable[..., bytes], open_keys: Callable[..., Keys]) -> None:
    seed()
    open_keys().ensure_master()
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in data.iterdir()}
    assert open_keys().ensure_master() is None
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in data.iterdir()} == before


@pytest.mark.parametrize("placeholder", ["YOUR-API-KEY-HERE", "your-api-key-here", " YOUR-API-KEY-HERE ", ""])
def test_a_placeholder_never_logs_in(placeholder: str, seed: Callable[..., bytes],
                                     open_keys: Callable[..., Keys]) -> None:
    seed({"0": placeholder, "1": SEED["1"], "2": placeholder})
    keys = open_keys()
    made = keys.ensure_master()
    assert made is not None and who(keys, made) == "0"
    assert who(keys, placeholder) is None and who(keys, placeholder.strip()) is None
    assert [key.id for key in keys.list()] == ["0", "1"]


@pytest.mark.parametrize("content", ["", "\n", "{}", "{ }\r\n"])
def test_an_empty_file_gives_a_new_master(content: str, seed: Callable[..., bytes],
                                          open_keys: Callable[..., Keys]) -> None:
    seed(content)
    keys = open_keys()
    assert who(keys, keys.ensure_master() or "") == "0"


@pytest.mark.parametrize("change", [lambda text: text.replace("\n", "\r\n"), lambda text: text.replace("    ", "\t"),
                                    lambda text: "\ufeff" + text])
def test_line_ends_tabs_and_a_byte_order_mark(change: Callable[[str], str], seed: Callable[..., bytes],
                                              open_keys: Callable[..., Keys]) -> None:
    seed(change(json.dumps(SEED, indent=4)))
    assert who(open_keys(), SEED["2"]) == "2"


def test_odd_keys_and_ids(seed: Callable[..., bytes], open_keys: Callable[..., Keys],
                          caplog: pytest.LogCaptureFixture) -> None:
    seed({"1": SEED["1"], "0": SEED["1"], "an id/../x": "plainly another one", "3": "kéy", "4": "k" * 513})
    keys = open_keys()
    assert who(keys, SEED["1"]) == "0"                  # the master's id wins
    odd = keys.get(who(keys, "plainly another one") or "")
    assert odd.id.startswith("k") and odd.name == "an id/../x"
    assert len(keys.list()) == 2
    assert sum("was not taken over" in line for line in caplog.messages) == 3


def test_an_older_backup_is_never_overwritten(data: Path, seed: Callable[..., bytes],
                                              open_keys: Callable[..., Keys]) -> None:
    first = seed()
    open_keys()
    second = seed({"0": SEED["2"]})
    open_keys()
    assert (data / "api_keys.json.bak").read_bytes() == first
    assert (data / "api_keys.json.bak2").read_bytes() == second


def test_a_key_that_is_no_text_is_refused_by_line(seed: Callable[..., bytes], open_keys: Callable[..., Keys]) -> None:
    seed('{"0": "abc",\n"1": ["x"]}')
    with pytest.raises(ConfigError, match="line 2"):
        open_keys()


@pytest.mark.parametrize("point", ["takeover_begins", "before_tmp", "after_tmp", "before_fsync", "before_rename",
                                   "after_rename", "takeover_kept", "before_rename:kill@2", "after_rename:kill@2",
                                   "takeover_done"])
def test_a_kill_leaves_old_or_new_and_the_next_start_ends_well(point: str, data: Path, seed: Callable[..., bytes],
                                                               open_keys: Callable[..., Keys]) -> None:
    original = seed()
    script = ("import sys; from pathlib import Path; from auth.keys import Keys\n"
              "from services.settings import Settings\n"
              "data = Path(sys.argv[1]); Keys(data, Settings(data_dir=data))")
    done = subprocess.run([sys.executable, "-c", script, str(data)], cwd=ROOT, timeout=60,
                          env={**os.environ, "FAILPOINT": point if ":" in point else point + ":kill"})
    assert done.returncode == -9
    now = (data / "api_keys.json").read_bytes()
    assert now == original or (b'"version": 1' in now and (data / "api_keys.json.bak").read_bytes() == original)
    keys = open_keys()
    assert {who(keys, secret) for secret in SEED.values()} == {"0", "1", "2"}
    assert (data / "api_keys.json.bak").read_bytes() == original
    assert not (data / "api_keys.json.bak2").exists()
