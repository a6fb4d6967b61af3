"""Idempotency-Key: one run and one answer, whoever asks again, from whichever process, before or after a restart."""

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from services.chat.idempotency import BEAT, Idempotency, check_key, digest_of
from services.errors import BadRequest, ConfigError, Conflict, NotFound, SessionBusy, StorageFull, Unavailable
from services.settings import Settings
from services.store import disk, redis_client
from services.store.crypto import Cipher, SharedCipher
from services.store.kept import KEPT, KeptInFiles
from services.store.redis_kept import ROOM, STEPS, KeptInRedis
from services.store.redis_link import linked
from tests.redis_server import free_port, needs_redis, running

ROOT = Path(__file__).resolve().parents[3]
EVENTS = [{"delta": "one"}, {"delta": "two\ud800"}, {"done": True, "usage": {"total_tokens": 3}}]


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


def in_redis(server, cipher):
    return KeptInRedis(linked(Settings(redis_url=server.url), ROOM, STEPS), cipher)


def opened(request, tmp_path):
    encrypted = request.param.startswith("encrypted")
    if request.param.endswith("redis"):
        server = request.getfixturevalue("server")
        redis_client.connect(Settings(redis_url=server.url)).flushall()
        store = in_redis(server, SharedCipher("k" * 32) if encrypted else None)
    else:
        store = KeptInFiles(tmp_path / "idempotency", Cipher.open(tmp_path, "k" * 32) if encrypted else None)
    idempotency = Idempotency(store)
    yield idempotency
    assert idempotency.drain(30)


FILES = ["plain", "encrypted"]
REDIS = [pytest.param(name, marks=needs_redis) for name in ("redis", "encrypted redis")]
files = pytest.fixture(opened, params=FILES, name="files")
redis = pytest.fixture(opened, params=REDIS, name="redis")
kept = pytest.fixture(opened, params=[*FILES, *REDIS], name="kept")


def again(kept, **more):
    """Another process's view of the same folder, or Redis."""
    store = kept._kept
    return Idempotency(KeptInFiles(store.folder, store.cipher) if isinstance(store, KeptInFiles)
                       else KeptInRedis(store._link, store.cipher), **more)


class Source:
    """Counts how often it is run; `gate` holds it before its last event."""

    def __init__(self, events=EVENTS, error=None, gate=None):
        self.events, self.error, self.gate, self.runs = events, error, gate, 0

    def __call__(self):
        self.runs += 1
        yield from self.events[:-1]
        if self.gate:
            assert self.gate.wait(60)
        if self.error:
            raise self.error
        yield self.events[-1]


def collect(run):
    return [event for event in run if event != BEAT]


def test_a_run_of_this_process_is_followed(kept):
    gate = threading.Event()
    run = kept.run("0", "key", "d", Source(gate=gate))
    followed = kept.follow("0", "key")
    assert again(kept).follow("0", "key") is None and kept.follow("1", "key") is None
    gate.set()
    assert collect(followed) == collect(run) == EVENTS
    assert kept.drain(30) and kept.follow("0", "key") is None


def test_what_is_forgotten_runs_again(kept):
    source = Source()
    kept.forget("0", "key")
    for runs in (1, 1, 2):
        if runs == 2:
            again(kept).forget("0", "key")
        assert collect(kept.run("0", "key", "d", source)) == EVENTS and source.runs == runs
        assert kept.drain(30)


def test_a_retry_gets_the_first_answer(kept):
    source = Source()
    assert collect(kept.run("0", "key", "d", source)) == EVENTS
    for other in (kept, again(kept)):
        assert collect(other.run("0", "key", "d", source)) == EVENTS
    assert source.runs == 1
    assert collect(kept.run("0", "key2", "d", source)) == EVENTS
    assert collect(kept.run("k1", "key", "d", source)) == EVENTS
    assert source.runs == 3


def test_another_request_with_the_same_key(kept):
    gate = threading.Event()
    first = kept.run("0", "key", "d", Source(gate=gate))
    with pytest.raises(Conflict) as caught:
        collect(kept.run("0", "key", "other", Source()))
    assert caught.value.code == "idempotency_mismatch"
    gate.set()
    assert collect(first) == EVENTS
    for other in (kept, again(kept)):
        with pytest.raises(Conflict, match="new key"):
            collect(other.run("0", "key", "other", Source()))


def test_a_retry_attaches_to_the_one_that_runs(kept):
    gate = threading.Event()
    source = Source(gate=gate)
    first, second = kept.run("0", "key", "d", source), kept.run("0", "key", "d", source)
    assert next(first) == next(second) == EVENTS[0]
    other = again(kept)
    elsewhere = other.run("0", "key", "d", source)
    assert next(elsewhere) == BEAT
    gate.set()
    assert [next(first), *collect(first)] == EVENTS[1:]
    assert collect(second) == EVENTS[1:] and collect(elsewhere) == EVENTS
    assert source.runs == 1 and other.drain(30)


def test_the_first_caller_goes_away(kept):
    gate = threading.Event()
    source = Source(gate=gate)
    run = kept.run("0", "key", "d", source)
    assert next(run) == EVENTS[0]
    run.close()
    assert not kept.drain(0.01)
    gate.set()
    assert kept.drain(30)
    assert collect(kept.run("0", "key", "d", source)) == EVENTS and source.runs == 1


def test_the_last_event_is_told_only_once_it_is_kept(files, monkeypatch):
    order = []
    save = disk.write_atomic
    monkeypatch.setattr(disk, "write_atomic", lambda *args: (order.append("kept"), save(*args)))
    for event in files.run("0", "key", "d", Source()):
        if event.get("done"):
            order.append("told")
    assert order[-2:] == ["kept", "told"]


@pytest.mark.parametrize(("error", "lasting"), [
    (BadRequest("bad", code="bad_unicode", param="prompt"), True), (NotFound("no"), False),
    (SessionBusy("busy", retry_after=2.0), False), (Unavailable("full"), False), (StorageFull("full"), False),
    (ConfigError("wrong"), False)])
def test_errors(kept, error, lasting):
    source = Source(error=error)
    for other in (kept, again(kept)):
        with pytest.raises(type(error), match=error.message) as caught:
            collect(other.run("0", "key", "d", source))
        assert caught.value.envelope() == error.envelope() and caught.value.retry_after == error.retry_after
        assert other.drain(30)
    assert source.runs == (1 if lasting else 2)


def test_an_unexpected_error_is_a_500_and_not_kept(kept, caplog):
    source = Source(error=ZeroDivisionError("secret"))
    for _ in range(2):
        with pytest.raises(Exception, match=r"^internal error$"):
            collect(kept.run("0", "key", "d", source))
        assert kept.drain(30)
    assert source.runs == 2


def test_what_tells_of_the_wait_is_passed_on_and_not_kept(kept):
    queue = {"queue": {"position": 2, "eta_seconds": 3}}
    source = Source([BEAT, queue, *EVENTS])
    assert list(itertools.islice(kept.run("0", "key", "d", source), 2)) == [BEAT, queue]
    assert kept.drain(30)
    assert list(again(kept).run("0", "key", "d", source)) == EVENTS


def test_answers_expire(kept):
    source = Source()
    collect(kept.run("0", "key", "d", source))
    assert collect(again(kept, now=lambda: time.time() + KEPT - 60).run("0", "key", "d", source)) == EVENTS
    assert source.runs == 1
    late = again(kept, now=lambda: time.time() + KEPT + 60)
    collect(late.run("0", "other", "d", source))
    assert late.drain(30) and source.runs == 2
    collect(late.run("0", "key", "d", source))
    assert source.runs == 3


def test_old_ones_are_removed(files, monkeypatch):
    for number in range(5):
        collect(files.run("0", f"key{number}", "d", Source()))
    assert files.drain(30)
    folder = files._kept.folder / "0"
    for path in list(folder.iterdir())[:4]:
        os.utime(path, (1, 1))
    old = {path for path in folder.glob("*.json") if path.stat().st_mtime == 1}
    fresh = again(files)
    collect(fresh.run("0", "new", "d", Source()))
    deadline = time.monotonic() + 30
    while any(path.exists() for path in old) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(path.exists() for path in old)
    monkeypatch.setattr("services.store.kept.MOST", 2)
    least = again(files)
    collect(least.run("0", "newest", "d", Source()))
    while len(list(folder.glob("*.json"))) > 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list(folder.glob("*.json"))) == 2
    assert collect(least.run("0", "newest", "d", Source([{"done": True}]))) == EVENTS


def test_nothing_is_legible_with_a_key(tmp_path):
    plain = Idempotency(KeptInFiles(tmp_path / "idempotency"))
    collect(plain.run("0", "key", "d", Source([{"delta": "secret words"}, {"done": True}])))
    cipher = Cipher.open(tmp_path, "k" * 32)
    sealed = Idempotency(KeptInFiles(tmp_path / "idempotency", cipher))
    collect(sealed.run("0", "other", "d", Source([{"delta": "secret words"}, {"done": True}])))
    deadline = time.monotonic() + 30
    while (legible := [path for path in tmp_path.rglob("*.json") if b"secret words" in path.read_bytes()]) \
            and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not legible


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"digest": 5, "at": 0}', b"\xff", b'{"box": "x"}'])
def test_a_damaged_record_runs_again(files, content):
    source = Source()
    collect(files.run("0", "key", "d", source))
    next((files._kept.folder / "0").glob("*.json")).write_bytes(content)
    assert collect(files.run("0", "key", "d", source)) == EVENTS and source.runs == 2


def test_a_full_disk_still_answers(files, monkeypatch):
    def full(*args, **more):
        raise StorageFull("full")
    collect(files.run("0", "before", "d", Source()))
    monkeypatch.setattr(disk, "write_atomic", full)
    assert collect(files.run("0", "key", "d", Source())) == EVENTS


@pytest.mark.parametrize("key", ["", "x" * 201, "é", "a\n", "\x7f"])
def test_keys_that_cannot_be(kept, key):
    with pytest.raises(BadRequest):
        kept.run("0", key, "d", Source())
    assert check_key(" any printable: ../ ") == " any printable: ../ "


def test_digests_keep_their_parts_apart():
    assert digest_of("POST", "/answer", b"x") != digest_of("POST", "/answerx", b"")
    assert digest_of("a") == digest_of(b"a") != digest_of("a", "")


def test_64_callers_one_run(kept):
    source, found = Source(), []

    def call():
        found.append(collect(kept.run("0", "key", "d", source)))
    threads = [threading.Thread(target=call) for _ in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [EVENTS] * 64 and source.runs == 1


KILLED = """
import os, sys
from pathlib import Path
from services.chat.idempotency import Idempotency
from services.chat.sessions import Sessions
from services.store.files import FileStore
from services.store.kept import KeptInFiles
home = Path(sys.argv[1])
sessions = Sessions(FileStore(home))
def produce():
    with sessions.turn("0", "1", 5) as turn:
        before = turn.answered("digest")
        if before is None:
            turn.prompt("question", request="digest")
            yield {"delta": "ans"}
            before = turn.answer("answer", finish_reason="stop")
        yield {"done": True, "result": before.content}
for event in Idempotency(KeptInFiles(home / "idempotency")).run("0", "key", "digest", produce):
    print(event, flush=True)
"""


@pytest.mark.parametrize("point", ["before_append", "mid_append", "after_prompt_saved", "before_ack", "before_rename"])
def test_killed_in_the_middle_the_retry_makes_no_second_turn(tmp_path, point):
    environment = {**os.environ, "FAILPOINT": f"{point}:kill"}
    for nth in ("", "@2"):
        environment["FAILPOINT"] = f"{point}:kill{nth}"
        subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, env=environment, timeout=60,
                       capture_output=True, check=False)
    del environment["FAILPOINT"]
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, env=environment, timeout=60,
                              capture_output=True, text=True, check=True)
        assert "'result': 'answer'" in done.stdout
    lines = (tmp_path / "sessions/0/1.jsonl").read_text().splitlines()
    assert [json.loads(line)["type"] for line in lines] == ["head", "user", "assistant"]


# ---------------------------------------------------------------- in Redis alone

def names_of(server, kind):
    return redis_client.connect(Settings(redis_url=server.url)).keys(f"*:kept:{kind}:*")


@needs_redis
def test_the_oldest_in_redis_go(redis, server, monkeypatch):
    monkeypatch.setattr("services.store.kept.MOST", 3)
    for number in range(5):
        collect(redis.run("0", f"key{number}", "d", Source()))
        collect(redis.run(f"k{number}", "key", "d", Source()))
        assert redis.drain(30)
    assert len(names_of(server, "kept")) == 8 and not names_of(server, "lock")


@needs_redis
def test_nothing_in_redis_is_legible_with_a_key(redis, server):
    collect(redis.run("0", "key", "d", Source([{"delta": "secret words"}, {"done": True}])))
    client = redis_client.connect(Settings(redis_url=server.url))
    found = [client.get(name) for name in names_of(server, "kept")]
    assert len(found) == 1 and ("secret words" in found[0]) == (redis._kept.cipher is None)
    client.set(names_of(server, "kept")[0], '{"box": "x"}')
    source = Source()
    assert redis.drain(30) and collect(redis.run("0", "key", "d", source)) == EVENTS and source.runs == 1


@needs_redis
def test_the_name_of_a_dead_server_is_free_again(redis, monkeypatch):
    monkeypatch.setattr("services.store.redis_kept.LEASE", 0.1)
    dead = again(redis)._kept
    monkeypatch.setattr(dead._leases, "hold", lambda *_: None)
    with dead.held("0", "ab", 1), redis._kept.held("0", "ab", 5):
        pass


@needs_redis
def test_without_redis_nothing_runs_and_then_all_does():
    with running(port=free_port()) as server:
        idempotency = Idempotency(in_redis(server, None))
        server.kill()
        source = Source()
        with pytest.raises(Unavailable) as told:
            collect(idempotency.run("0", "key", "d", source))
        assert told.value.code == "redis_unavailable" and source.runs == 0
        server.start()
        gate = threading.Event()
        run = idempotency.run("0", "key", "d", Source(gate=gate))
        assert next(run) == EVENTS[0]
        server.kill()
        gate.set()
        assert collect(run) == EVENTS[1:]                       # told, though nothing kept it
        assert idempotency.drain(30)
