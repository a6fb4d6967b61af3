"""Rows A5, A6, A9 and K1 to K8."""

from __future__ import annotations

import json
import logging
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from auth import keyfile
from auth.authentication import KEY_PATTERN, PREFIX, checksum, generate_api_key, looks_like_key
from auth.keys import Keys
from services.errors import BadRequest, ConfigError, Conflict, Forbidden, NotFound, StorageFull, Unavailable
from services.settings import Settings
from services.store import disk
from services.wire import TokenBudget

ROOT = Path(__file__).resolve().parents[2]
GIVEN = "a-secret-of-one's-own-0123456789-abcdef"
Open = Callable[..., Keys]


def who(keys: Keys, secret: str) -> str | None:
    key = keys.authenticate(secret.encode())
    return key and key.id


# ---------------------------------------------------------------- the master

def test_the_first_start_makes_a_master_once(data: Path, open_keys: Open) -> None:
    keys = open_keys()
    secret = keys.ensure_master()
    assert secret is not None and looks_like_key(secret)
    assert who(keys, secret) == "0" and keys.get("0").is_master
    assert keys.ensure_master() is None and open_keys().ensure_master() is None
    assert (data / "api_keys.json").stat().st_mode & 0o777 == 0o600


def test_a_given_master_key_is_taken_and_replaces_another(open_keys: Open) -> None:
    made = open_keys().ensure_master()
    keys = open_keys(master_key=GIVEN)
    assert keys.ensure_master() is None
    assert who(keys, GIVEN) == "0" and who(keys, made or "") is None
    before = keys.get("0")
    open_keys(master_key=GIVEN).ensure_master()
    assert keys.get("0") == before
    assert open_keys().ensure_master() is None and who(keys, GIVEN) == "0"


def test_a_master_key_that_is_another_keys_is_refused(keys: Keys, open_keys: Open) -> None:
    secret, key = keys.create()
    with pytest.raises(ConfigError, match=key.id):
        open_keys(master_key=secret).ensure_master()
    with pytest.raises(ConfigError, match="512"):
        open_keys(master_key="x" * 513).ensure_master()


def test_the_way_back_from_a_lost_master(keys: Keys, open_keys: Open) -> None:
    other, _ = keys.create()
    secret = open_keys().new_master()
    assert who(keys, secret) == "0" and who(keys, other) is not None
    again = open_keys().new_master()
    assert who(keys, secret) is None and who(keys, again) == "0"
    with pytest.raises(Conflict, match="MASTER_KEY"):
        open_keys(master_key=GIVEN).new_master()


def test_the_master_is_neither_revoked_nor_rotated_over_the_api(keys: Keys) -> None:
    master = keys.get("0")
    for change in (lambda: keys.revoke("0", by=master), lambda: keys.rotate("0", by=master), lambda: keys.revoke("0")):
        with pytest.raises(Conflict, match="keys master"):
            change()


# ---------------------------------------------------------------- making keys

def test_a_key_is_kept_nowhere(data: Path, keys: Keys, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secret, key = keys.create(name="bot", profiles=["p"], requests_per_minute=5, max_parallel=2, expires_in=60)
    assert who(keys, secret) == key.id and re.fullmatch("k[0-9A-Za-z]{8}", key.id)
    assert key.prefix == secret[4:8] and key.scopes == ("answer", "models:read", "models:switch")
    stored = "".join(path.read_text() for path in data.rglob("*") if path.is_file())
    assert secret not in stored + caplog.text and secret[4:] not in stored and not KEY_PATTERN.search(caplog.text)
    assert key.id in caplog.text and "bot" not in caplog.text
    assert secret not in repr(key) and secret not in repr(keys.list())


@pytest.mark.parametrize(("wish", "param", "code"), [
    ({"tokens_per_minute": 0}, "tokens_per_minute", None), ({"token_budget": {"tokens": 1}}, "token_budget", None),
    ({"token_budget": {"tokens": 1, "per": "week"}}, "token_budget", None),
    ({"weight": 0.09}, "weight", None), ({"weight": 101}, "weight", None), ({"weight": float("nan")}, "weight", None),
    ({"weight": True}, "weight", None), ({"weight": "1"}, "weight", None),
    ({"token_budget": {"tokens": 0, "per": "day"}}, "token_budget.tokens", None),
    ({"name": "x" * 81}, "name", None), ({"name": "a\nb"}, "name", None), ({"name": "\ud800"}, "name", None),
    ({"scopes": []}, "scopes", None), ({"scopes": ["root"]}, "scopes", None), ({"scopes": "answer"}, "scopes", None),
    ({"scopes": [["answer"]]}, "scopes", None), ({"profiles": []}, "profiles", None),
    ({"profiles": [1]}, "profiles", None), ({"expires_in": 0}, "expires_in", None),
    ({"expires_in": float("nan")}, "expires_in", None), ({"expires_in": 1e30}, "expires_in", None),
    ({"expires_in": True}, "expires_in", None), ({"requests_per_minute": 1.5}, "requests_per_minute", None),
    ({"requests_per_minute": 0}, "requests_per_minute", None), ({"max_parallel": "2"}, "max_parallel", None),
])
def test_what_cannot_be_is_named(wish: dict[str, object], param: str, code: str | None, keys: Keys) -> None:
    with pytest.raises(BadRequest) as caught:
        keys.create(**wish)
    assert caught.value.param == param and caught.value.code == (code or "invalid_request")
    assert len(keys.list()) == 1


def test_fifty_at_once_are_fifty_keys(data: Path, keys: Keys) -> None:
    """Two processes with ten threads each beside thirty in this one."""
    script = ("import sys; from pathlib import Path; from concurrent.futures import ThreadPoolExecutor as Pool\n"
              "from auth.keys import Keys; from services.settings import Settings\n"
              "data = Path(sys.argv[1]); keys = Keys(data, Settings(data_dir=data))\n"
              "print('\\n'.join(Pool(10).map(lambda _: keys.create()[0], range(10))))")
    others = [subprocess.Popen([sys.executable, "-c", script, str(data)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
              for _ in range(2)]
    with ThreadPoolExecutor(30) as pool:
        secrets = list(pool.map(lambda _: keys.create()[0], range(30)))
    for other in others:
        secrets += other.communicate(timeout=60)[0].split()
    assert len({who(keys, secret) for secret in secrets} - {None}) == len(secrets) == 50
    assert len(json.loads((data / "api_keys.json").read_text())["keys"]) == 51


def test_a_full_disk_changes_nothing(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(op: disk.Op) -> None:
        if op.kind == "write":
            raise OSError(28, "No space left on device")
    secret, key = keys.create()
    monkeypatch.setattr(disk, "watcher", full)
    with pytest.raises(StorageFull):
        keys.revoke(key.id)
    assert who(keys, secret) == key.id and keys.problem is None


# ---------------------------------------------------------------- who is it

@pytest.mark.parametrize("change", [lambda key: key[:-1], lambda key: key[:-1] + ("0" if key[-1] != "0" else "1"),
                                    lambda key: key + "0", str.upper, lambda key: key[4:], lambda key: " " + key,
                                    lambda key: PREFIX + key[4:33] + "0" + checksum(key[4:33] + "0"),
                                    lambda key: generate_api_key(), lambda key: ""])
def test_an_almost_right_key_is_wrong(change: Callable[[str], str], keys: Keys) -> None:
    secret, _ = keys.create()
    assert who(keys, change(secret)) is None


def test_any_bytes_are_answered(keys: Keys) -> None:
    for secret in (b"", b"\0", b"\xff\xfe", b"x" * 100_000, "ключ".encode()):
        assert keys.authenticate(secret) is None


def test_the_hash_does_not_log_in(data: Path, keys: Keys) -> None:
    keys.create()
    for record in json.loads((data / "api_keys.json").read_text())["keys"]:
        assert who(keys, record["hash"]) is None and keys.authenticate(bytes.fromhex(record["hash"])) is None


def test_right_prefix_and_wrong_take_the_same_time(keys: Keys) -> None:
    """Row A6: a guess that shares all but the last character is told no faster and no slower than a random one."""
    secret, _ = keys.create()
    near, far = (secret[:-1] + "!").encode(), (generate_api_key()[:-1] + "!").encode()
    taken: dict[bytes, list[int]] = {near: [], far: []}
    for _ in range(20_000):
        for guess in (near, far):
            begin = time.perf_counter_ns()
            keys.authenticate(guess)
            taken[guess].append(time.perf_counter_ns() - begin)
    medians = [statistics.median(times) for times in taken.values()]
    assert max(medians) < 1.5 * min(medians)


# ---------------------------------------------------------------- ending and turning

def test_a_revoked_key_is_refused_by_all(keys: Keys, open_keys: Open) -> None:
    secret, key = keys.create()
    workers = [open_keys() for _ in range(4)]
    assert all(who(worker, secret) == key.id for worker in workers)
    revoked = open_keys().revoke(key.id)
    assert revoked.revoked_at and [who(worker, secret) for worker in workers] == [None] * 4
    assert keys.revoke(key.id) == revoked
    with pytest.raises(Conflict):
        keys.rotate(key.id)
    with pytest.raises(NotFound, match="kNobody"):
        keys.revoke("kNobody")


def test_a_key_expires(keys: Keys, clock: list[float]) -> None:
    secret, key = keys.create(expires_in=30)
    clock[0] += 29
    assert who(keys, secret) == key.id
    clock[0] += 1
    assert who(keys, secret) is None and keys.get(key.id).expires_at == "2027-01-15T08:00:30Z"


def test_old_and_new_secret_work_during_the_grace(keys: Keys, clock: list[float]) -> None:
    old, key = keys.create()
    new, turned = keys.rotate(key.id, 60)
    assert who(keys, old) == who(keys, new) == key.id and turned.old_secret_until
    clock[0] += 61
    assert who(keys, old) is None and who(keys, new) == key.id
    newest, _ = keys.rotate(key.id)
    assert who(keys, new) is None and who(keys, newest) == key.id
    keys.rotate(key.id, 60)
    keys.revoke(key.id)
    assert who(keys, newest) is None
    for grace in (-1, True, "5", float("nan"), 1e12):
        with pytest.raises(BadRequest, match="grace_seconds"):
            keys.rotate(key.id, grace)  # type: ignore[arg-type]


def test_a_second_rotation_keeps_what_the_first_promised(data: Path, keys: Keys, clock: list[float],
                                                          open_keys: Open) -> None:
    first, key = keys.create()
    second, _ = keys.rotate(key.id, 3600)
    third, turned = keys.rotate(key.id, 60)
    assert all(who(open_keys(), secret) == key.id for secret in (first, second, third))
    assert turned.old_secret_until == turned.old_secrets[1] == "2027-01-15T09:00:00Z"
    assert turned.old_secrets[0] == "2027-01-15T08:01:00Z"
    clock[0] += 61
    assert who(keys, second) is None and who(keys, first) == key.id
    fourth, turned = keys.rotate(key.id, 10)
    assert len(turned.old_secrets) == 2         # the one that ended is forgotten
    fifth, turned = keys.rotate(key.id)
    assert [who(keys, secret) for secret in (first, third, fourth, fifth)] == [None, None, None, key.id]
    assert turned.old_secret_until is None and turned.old_secrets == ()
    assert json.loads((data / "api_keys.json").read_text())["keys"][-1]["rotation"] is None


def test_old_secrets_are_counted(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("auth.edits.MAX_OLD", 2)
    _, key = keys.create()
    keys.rotate(key.id, 60)
    keys.rotate(key.id, 60)
    with pytest.raises(Conflict, match="2 old secrets that still work; rotate it without grace"):
        keys.rotate(key.id, 60)
    keys.rotate(key.id)


def test_no_request_fails_while_a_key_turns(keys: Keys, open_keys: Open) -> None:
    current, key = keys.create()
    worker = open_keys()
    for _ in range(20):
        with ThreadPoolExecutor(2) as pool:
            turning = pool.submit(keys.rotate, key.id, 60)
            while not turning.done():
                assert who(worker, current) == key.id
        current = turning.result()[0]
        assert who(worker, current) == key.id


# ---------------------------------------------------------------- K5

def test_nobody_grants_what_they_have_not(keys: Keys) -> None:
    _, small = keys.create(scopes=["keys", "answer"], profiles=["a", "b"], expires_in=100, requests_per_minute=10)
    for wish in ({"scopes": ["admin"]}, {"scopes": ["answer", "models:read"]}, {}, {"scopes": ["answer"],
                 "profiles": ["c"]}, {"scopes": ["answer"], "expires_in": 101},
                 {"scopes": ["answer"], "requests_per_minute": 11}):
        with pytest.raises(Forbidden):
            keys.create(by=small, **wish)
    _, child = keys.create(by=small, scopes=["answer"])
    assert (child.profiles, child.requests_per_minute) == (("a", "b"), 10) and child.ends() <= small.ends()
    _, child = keys.create(by=small, scopes=["keys"], profiles=["a"], requests_per_minute=3, expires_in=5)
    assert (child.profiles, child.requests_per_minute) == (("a",), 3)
    _, other = keys.create(by=keys.get("0"), scopes=["admin"])
    assert other.scopes == ("admin",) and not other.is_master


def test_nobody_takes_over_a_stronger_key(keys: Keys) -> None:
    _, small = keys.create(scopes=["keys"], expires_in=100)
    _, admin = keys.create(scopes=["admin"])
    _, plain = keys.create()
    for key in (admin, plain):
        with pytest.raises(Forbidden):
            keys.rotate(key.id, by=small)
    with pytest.raises(Forbidden):
        keys.revoke(admin.id, by=small)
    assert keys.revoke(plain.id, by=small).revoked_at
    keys.rotate(small.id, by=small)
    _, child = keys.create(by=small, scopes=["keys"])
    keys.rotate(child.id, by=small)


# ---------------------------------------------------------------- the file

@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe\0", b'{"version": 1, "keys": 5}', b'{"0": "plain"}', None])
def test_a_file_broken_while_running_keeps_the_last_good_keys(damage: bytes | None, data: Path, keys: Keys,
                                                              caplog: pytest.LogCaptureFixture) -> None:
    secret, key = keys.create()
    path = data / "api_keys.json"
    good = path.read_bytes()
    path.unlink() if damage is None else path.write_bytes(damage)
    for _ in range(5):
        assert who(keys, secret) == key.id and who(keys, "plain") is None and who(keys, generate_api_key()) is None
    assert keys.problem and "api_keys.json" in keys.problem and str(data) not in keys.problem
    assert sum("go on working" in line for line in caplog.messages) == 1
    for change in (lambda: keys.create(), lambda: keys.revoke(key.id), lambda: keys.ensure_master()):
        with pytest.raises(Unavailable, match=r"api_keys\.json"):
            change()
    assert not path.exists() if damage is None else path.read_bytes() == damage
    path.write_bytes(good)
    assert keys.problem is None and who(keys, secret) == key.id


def test_no_file_means_no_keys_and_never_an_open_door(open_keys: Open) -> None:
    keys = open_keys()
    assert keys.authenticate(b"") is None and who(keys, "anything") is None and keys.list() == []
    assert "missing" in (keys.problem or "")


@pytest.mark.parametrize("content", ["{", '{"version": 1}', "[]"])
def test_a_broken_file_stops_the_start(content: str, data: Path, open_keys: Open) -> None:
    data.mkdir()
    (data / "api_keys.json").write_text(content)
    with pytest.raises(ConfigError, match=r"api_keys\.json, line 1"):
        open_keys()
    assert (data / "api_keys.json").read_text() == content


def test_an_open_mode_is_tightened_with_a_warning(data: Path, keys: Keys, open_keys: Open,
                                                  caplog: pytest.LogCaptureFixture) -> None:
    path = data / "api_keys.json"
    path.chmod(0o644)
    open_keys()
    assert path.stat().st_mode & 0o777 == 0o600 and "mode 0644" in caplog.text
    path.chmod(0o660)
    assert keys.problem is None and path.stat().st_mode & 0o777 == 0o600


def test_another_users_file_is_refused(data: Path, keys: Keys, open_keys: Open,
                                       monkeypatch: pytest.MonkeyPatch) -> None:
    secret, key = keys.create()
    path = data / "api_keys.json"
    monkeypatch.setattr(keyfile.os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to user"):
        open_keys()
    os.utime(path)
    assert "belongs to user" in (keys.problem or "") and who(keys, secret) == key.id


def test_a_link_or_a_fifo_is_refused(data: Path, keys: Keys, open_keys: Open) -> None:
    path = data / "api_keys.json"
    path.rename(data / "elsewhere.json")
    path.symlink_to(data / "elsewhere.json")
    with pytest.raises(ConfigError, match="no link"):
        open_keys()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError):
        open_keys()


def test_two_changes_within_one_time_stamp_are_both_seen(data: Path, keys: Keys) -> None:
    """A file rewritten in place with the same size and time stamps is still read again while it is young."""
    path = data / "api_keys.json"
    secret, key = keys.create()
    text = path.read_text()
    stamp = path.stat().st_mtime_ns
    assert who(keys, secret) == key.id
    digest = next(record["hash"] for record in json.loads(text)["keys"] if record["id"] == key.id)
    path.write_text(text.replace(digest, digest[::-1]))
    os.utime(path, ns=(stamp, stamp))
    assert who(keys, secret) is None


def test_default_clock_is_the_wall_clock(data: Path) -> None:
    keys = Keys(data, Settings(data_dir=data))
    _, key = keys.create(expires_in=3600)
    assert 3590 < key.ends() - time.time() <= 3600


def test_a_weight_is_kept_and_granted_up_to_ones_own(keys: Keys) -> None:
    assert keys.create()[1].weight == 1
    _, heavy = keys.create(weight=20, scopes=["keys", "answer"])
    _, light = keys.create(weight=0.5, scopes=["keys", "answer"], by=heavy)
    assert (heavy.weight, light.weight, keys.get(light.id).public()["weight"]) == (20.0, 0.5, 0.5)
    assert keys.create(scopes=["answer"], by=light)[1].weight == 0.5
    with pytest.raises(Forbidden, match=r"at most its own 0\.5"):
        keys.create(scopes=["answer"], weight=1, by=light)
    with pytest.raises(Forbidden):
        keys.rotate(heavy.id, 0, by=light)


def test_a_budget_is_passed_on_and_not_exceeded(keys: Keys) -> None:
    _, own = keys.create(scopes=["answer", "keys"], tokens_per_minute=50, token_budget={"tokens": 100, "per": "day"})
    _, made = keys.create(by=own, scopes=["answer"])
    assert (made.tokens_per_minute, made.token_budget) == (50, TokenBudget(tokens=100, per="day"))
    _, less = keys.create(by=own, scopes=["answer"], tokens_per_minute=5, token_budget={"tokens": 9, "per": "day"})
    assert (less.tokens_per_minute, less.public()["token_budget"]) == (5, {"tokens": 9, "per": "day"})
    for wish in ({"tokens_per_minute": 51}, {"token_budget": {"tokens": 101, "per": "day"}},
                 {"token_budget": {"tokens": 9, "per": "month"}}):
        with pytest.raises(Forbidden):
            keys.create(by=own, scopes=["answer"], **wish)
