"""The keys in Redis: what holds for those in a file, for several servers; and what happens when Redis is away."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from auth.keys import Keys
from services.errors import ConfigError, Unavailable
from services.settings import Settings
from services.store import redis_client
from tests.auth.test_edits import (  # noqa: F401
    test_limits_of_requests_without_a_key,
    test_nobody_lifts_a_limit_of_their_own,
    test_what_has_ended_is_not_edited,
    test_what_is_given_changes_and_the_rest_stays,
)
from tests.auth.test_keys import (  # noqa: F401
    test_a_given_master_key_is_taken_and_replaces_another,
    test_a_key_expires,
    test_a_master_key_that_is_another_keys_is_refused,
    test_a_revoked_key_is_refused_by_all,
    test_no_request_fails_while_a_key_turns,
    test_nobody_grants_what_they_have_not,
    test_old_and_new_secret_work_during_the_grace,
    test_the_way_back_from_a_lost_master,
    who,
)
from tests.redis_server import RedisServer, free_port, needs_redis, running

pytestmark = needs_redis
Open = Callable[..., Keys]
NAME = "{parley}:keys:document"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running(port=free_port()) as server:
        yield server


@pytest.fixture
def open_keys(server: RedisServer, clock: list[float]) -> Open:
    """`open_keys()` is one server's view."""
    redis_client.connect(Settings(redis_url=server.url)).flushall()
    return opener(server, clock)


def opener(server: RedisServer, clock: list[float]) -> Open:
    return lambda **settings: Keys(Settings().data_dir / "nowhere", Settings(
        store="redis", redis_url=server.url, **settings), now=lambda: clock[0])


def test_servers_that_start_at_once_make_one_master(open_keys: Open) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda keys: keys.ensure_master(), [open_keys() for _ in range(8)]))
    assert sum(secret is not None for secret in made) == 1
    assert [key.id for key in open_keys().list()] == ["0"]


def test_no_servers_change_is_lost(keys: Keys, open_keys: Open) -> None:
    servers = [open_keys() for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda n: servers[n % 4].create(name=str(n)), range(40)))
    assert {key.id for _, key in made} | {"0"} == {key.id for key in keys.list()}
    assert all(who(keys, secret) == key.id for secret, key in made)


def test_a_change_that_is_sent_twice_is_one(keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = keys._place._document._link._steps  # type: ignore[attr-defined]
    once = steps["REPLACE"]
    monkeypatch.setitem(steps, "REPLACE", lambda **given: (once(**given), once(**given))[1])
    secret, key = keys.create()
    assert who(keys, secret) == key.id and len(keys.list()) == 2


def test_the_last_good_keys_work_while_redis_is_away(clock: list[float], caplog: pytest.LogCaptureFixture) -> None:
    with running(port=free_port()) as server:
        keys = opener(server, clock)()
        master = keys.ensure_master() or ""
        secret, key = keys.create()
        server.kill()
        with caplog.at_level(logging.ERROR, "parley.auth"):
            assert [who(keys, secret) for _ in range(3)] == [key.id] * 3 and who(keys, master) == "0"
        assert sum("go on working" in line for line in caplog.messages) == 1
        assert keys.problem and "Redis" in keys.problem
        with pytest.raises(Unavailable):            # one that was made since may be there
            keys.get("kUnknown")
        for change in (keys.create, lambda: keys.revoke(key.id), keys.ensure_master):
            with pytest.raises(Unavailable):
                change()
        late = opener(server, clock)()                          # a worker that starts now knows nobody, and says so
        with pytest.raises(Unavailable) as told:
            late.authenticate(secret.encode())
        assert told.value.retry_after
        server.start()
        assert who(late, secret) == key.id and keys.problem is None
        keys.revoke(key.id)
        assert who(late, secret) is None


@pytest.mark.parametrize("content", ["{", '{"version": 2, "keys": []}', '{"1": "a-plain-key"}'])
def test_a_broken_list_keeps_the_last_good_keys(content: str, server: RedisServer, keys: Keys,
                                                open_keys: Open) -> None:
    secret, key = keys.create()
    client = redis_client.connect(Settings(redis_url=server.url))
    client.hset(NAME, mapping={"version": "f" * 32, "content": content})
    assert who(keys, secret) == key.id and keys.problem and "the list of keys in Redis" in keys.problem
    with pytest.raises(Unavailable) as told:
        keys.create()
    assert told.value.code == "keys_unreadable"
    with pytest.raises(ConfigError):
        open_keys()
    client.delete(NAME)
    assert who(keys, secret) == key.id
    with pytest.raises(Unavailable):
        keys.create()
