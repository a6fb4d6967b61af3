"""Two servers and one Redis: one set of users, keys, sessions and limits, whichever server they come to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from services.settings import Settings
from services.store import redis_client
from tests.conftest import Server, descendants, make_home, serving
from tests.redis_server import RedisServer, free_port, needs_redis, running

pytestmark = needs_redis
DATA_KEY = "d" * 32
LONG = "!tokens 2000 !sleep 0.01"


@dataclass
class Gateways:
    redis: RedisServer
    one: Server
    two: Server


@pytest.fixture(scope="module")
def gateways(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    homes = [make_home(tmp_path_factory.mktemp(name) / "home") for name in ("one", "two")]
    with running(port=free_port()) as redis:
        shared = {"STORE": "redis", "REDIS_URL": redis.url, "DATA_KEY": DATA_KEY}
        with serving(homes[0], **shared) as one, serving(homes[1], **shared) as two:
            yield Gateways(redis, one.ready(), two.ready())


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline


def test_a_session_goes_on_at_the_other_server(gateways: Gateways) -> None:
    one, two = gateways.one, gateways.two
    begun = one.answer("My name is Ada", "s1").json()
    went_on = two.answer("What is my name?", "s1").json()
    assert begun["session_id"] == went_on["session_id"] == "s1"
    turns = one.call("GET", "/answer/s1").json()["turns"]
    assert [turn["content"] for turn in turns[::2]] == ["My name is Ada", "What is my name?"] and len(turns) == 4
    forked = two.call("POST", "/answer/s1/fork", json={"at": 2}).json()["session_id"]
    assert len(one.call("GET", f"/answer/{forked}").json()["turns"]) == 2
    assert two.call("DELETE", "/answer/s1").status_code == 204 and one.call("GET", "/answer/s1").status_code == 404
    assert not list((one.data / "sessions").rglob("*.jsonl")) and not (one.data / "api_keys.json").exists()


def test_a_key_made_at_one_works_at_the_other(gateways: Gateways) -> None:
    one, two = gateways.one, gateways.two
    made = one.call("POST", "/auth/key", json={"name": "ada"}).json()
    assert two.answer("hello", "of-ada", key=made["key"]).status_code == 200
    assert one.call("GET", "/answer/of-ada", key=made["key"]).status_code == 200
    assert one.call("GET", "/answer/of-ada").status_code == 404
    turned = two.call("POST", f"/auth/keys/{made['id']}/rotate").json()["key"]
    assert one.call("GET", "/auth", key=made["key"]).status_code == 401
    assert one.call("GET", "/auth", key=turned).json()["usage"]["requests"] >= 1
    assert one.call("DELETE", f"/auth/keys/{made['id']}").ok
    assert two.call("GET", "/auth", key=turned).status_code == 401


def test_limits_hold_over_both(gateways: Gateways) -> None:
    key = gateways.one.make_key(requests_per_minute=10)
    servers = [gateways.one, gateways.two]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: servers[n % 2].call("GET", "/auth", key=key).status_code, range(24)))
    assert sorted(found) == [200] * 10 + [429] * 14


def test_answers_in_parallel_are_counted_over_both(gateways: Gateways) -> None:
    key = gateways.one.make_key(max_parallel=1)
    stream = gateways.one.stream(LONG, "long", key=key, max_tokens=2000)
    next(stream)
    refused = gateways.two.answer("hello", key=key)
    assert refused.status_code == 429 and refused.json()["error"]["limit"] == "max_parallel"
    stream.close()
    until(lambda: gateways.two.answer("hello", key=key).status_code == 200)


def test_a_retry_at_the_other_server_gets_the_first_answer(gateways: Gateways) -> None:
    head = {"headers": {"Idempotency-Key": "once"}, "json": {"prompt": "hello", "session_id": "retried"}}
    first = gateways.one.call("POST", "/answer", **head)
    second = gateways.two.call("POST", "/answer", **head)
    assert first.status_code == second.status_code == 200 and first.json() == second.json()
    assert len(gateways.two.call("GET", "/answer/retried").json()["turns"]) == 2


def test_while_redis_is_away_what_needs_it_says_so(gateways: Gateways) -> None:
    one = gateways.one
    limited = one.make_key(requests_per_minute=100)
    gateways.redis.kill()
    try:
        for refused in (one.answer("hello", "s2"), one.call("GET", "/answer"), one.call("POST", "/auth/key"),
                        one.call("GET", "/auth", key=limited)):
            assert refused.status_code == 503, refused.text
            assert refused.json()["error"]["code"] == "redis_unavailable" and refused.headers["Retry-After"] == "2"
        assert requests.get(one.url + "/healthz", timeout=10).status_code == 200
        assert requests.get(one.url + "/docs", timeout=10).status_code == 200
        assert one.call("GET", "/metrics").status_code == 200
        ready = one.call("GET", "/readyz")
        assert ready.status_code == 503 and "Redis" in ready.json()["error"]["reasons"][0]
        assert one.call("GET", "/auth", key="ply_" + "x" * 36).status_code == 401
    finally:
        gateways.redis.start()
    until(lambda: one.answer("hello", "s2").status_code == 200)
    assert one.ready(10) and one.call("GET", "/auth", key=limited).status_code == 200


def test_a_killed_server_loses_no_turn(gateways: Gateways, tmp_path: Path) -> None:
    dying = Server(make_home(tmp_path / "home"), STORE="redis", REDIS_URL=gateways.redis.url, DATA_KEY=DATA_KEY)
    dying.start().ready()
    assert dying.process is not None and dying.answer("one", "s3").status_code == 200
    stream = dying.stream(f"two {LONG}", "s3", max_tokens=2000)
    next(stream)
    for pid in [dying.process.pid, *descendants(dying.process.pid)]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    dying.process.wait()
    client = redis_client.connect(Settings(redis_url=gateways.redis.url))
    assert 0 < client.pttl("{parley}:sessions:lock:0/s3") <= 10_000
    client.pexpire("{parley}:sessions:lock:0/s3", 200)      # which saves the test the rest of the lease
    assert gateways.two.answer("three", "s3").status_code == 200
    turns = gateways.two.call("GET", "/answer/s3").json()["turns"]
    assert [turn["content"].partition(" ")[0] for turn in turns if turn["role"] == "user"] == ["one", "two", "three"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user", "user", "assistant"]
    assert [turn.get("interrupted", False) for turn in turns] == [False, False, True, False, False]
