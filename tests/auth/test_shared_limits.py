"""Limits over several servers: what holds for one, for all together (rows L1, L2 and X2)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from auth import shared_limits
from auth.limits import open_limiter
from auth.shared_limits import SharedLimiter
from services import wire
from services.errors import Unavailable
from services.settings import Settings
from services.store import redis_client
from services.store.redis_counts import STEPS, Counts
from services.store.redis_link import Link, linked
from tests.auth.test_edits import (  # noqa: F401
    test_a_changed_budget_counts_what_was_used,
    test_a_changed_rate_is_no_new_window,
    test_fewer_at_once_wait_for_those_that_run,
)
from tests.auth.test_limits import (  # noqa: F401
    admit,
    test_a_budget_ends,
    test_a_killed_worker_gives_its_places_back,
    test_a_place_cannot_be_given_back_twice,
    test_a_place_is_held_until_the_ticket_closes,
    test_a_ticket_without_a_place_charges_too,
    test_headers_and_errors,
    test_limits_on_tokens_hold_for_answers_only,
    test_sixty_four_clients_and_places_free_when_they_vanish,
    test_the_limiter_counts_both,
    test_tokens_of_the_last_minute_are_limited,
    test_two_workers_share_one_limit,
    until,
    worker,
)
from tests.redis_server import RedisServer, free_port, needs_redis, running

pytestmark = needs_redis
Open = Callable[..., SharedLimiter]


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with running() as server:
        yield server


@pytest.fixture
def another(server: RedisServer) -> Iterator[Open]:
    """`another()` is one server's limiter; `window` in seconds."""
    settings = Settings(store="redis", redis_url=server.url)
    redis_client.connect(settings).flushall()
    opened: list[SharedLimiter] = []

    def begin(window: float = 60, **more: object) -> SharedLimiter:
        opened.append(SharedLimiter(Counts(linked(settings, "limits", STEPS), window), **more))  # type: ignore[arg-type]
        return opened[-1]
    yield begin
    for limiter in opened:
        limiter.close()


@pytest.fixture
def limiter(another: Open) -> SharedLimiter:
    return another()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_limits, "RENEWED", 0.01)


def keys_of(server: RedisServer) -> set[str]:
    return {name.split(":limits:")[1].split(":")[0] for name in
            redis_client.connect(Settings(redis_url=server.url)).scan_iter()}


def admitted(answers: list[wire.Admitted | wire.Failed]) -> int:
    return sum(isinstance(answer, wire.Admitted) for answer in answers)


def answers(true: Callable[[], bool]) -> bool:
    try:
        return true()
    except Unavailable:
        return False


def test_two_servers_admit_exactly_so_many_together(another: Open) -> None:
    servers = [another(), another()]
    with ThreadPoolExecutor(16) as pool:
        assert admitted(list(pool.map(lambda n: admit(servers[n % 2], "k1", 100), range(150)))) == 100
        assert admitted(list(pool.map(lambda n: admit(servers[n % 2], "k2/answer", None, 7), range(40)))) == 7
    one, two = (server._places["k2/answer"] for server in servers)
    assert one + two == 7 and one and two
    servers[0].release("k2/answer")
    assert admitted([admit(servers[1], "k2/answer", None, 7) for _ in range(3)]) == 1
    assert servers[0].usage("k1").requests == 100


def test_a_window_moves(limiter: SharedLimiter, server: RedisServer) -> None:
    assert admitted([admit(limiter, "k1", 2) for _ in range(3)]) == 2
    limiter.charge("k1", prompt_tokens=5)
    assert admitted([admit(limiter, "k1", tokens_per_minute=5)]) == 0
    age(server, "k1", 30)
    refused, spent = admit(limiter, "k1", 2), admit(limiter, "k1", tokens_per_minute=5)
    assert isinstance(refused, wire.Failed) and refused.retry_after == pytest.approx(30, abs=5)
    assert isinstance(spent, wire.Failed) and spent.retry_after == pytest.approx(30, abs=5)
    age(server, "k1", 31)
    assert admitted([admit(limiter, "k1", 2, tokens_per_minute=5) for _ in range(3)]) == 2
    assert isinstance(limiter.admit(wire.Admit(key="k9", requests_per_minute=1, cost=0)), wire.Admitted)
    assert admitted([admit(limiter, "k9", 1)]) == 1
    assert isinstance(limiter.admit(wire.Admit(key="k9", requests_per_minute=1, cost=0)), wire.Failed)


def test_a_rate_that_was_lowered_says_when_there_is_room(limiter: SharedLimiter, server: RedisServer) -> None:
    """As in test_windows."""
    assert admitted([admit(limiter, "k1", 9) for _ in range(3)]) == 3
    age(server, "k1", 50)
    assert admitted([admit(limiter, "k1", 9)]) == 1
    for rate, wait in ((4, 10), (2, 10), (1, 60)):
        refused = admit(limiter, "k1", rate)
        assert isinstance(refused, wire.Failed) and refused.retry_after == pytest.approx(wait, abs=5), rate


def age(server: RedisServer, key: str, seconds: int) -> None:
    """As if what a key did had been so much earlier."""
    client = redis_client.connect(Settings(redis_url=server.url))
    hits, tokens = f"{{parley}}:limits:hits:{key}", f"{{parley}}:limits:tokens:{key}"
    for at, hit in enumerate(client.lrange(hits, 0, -1)):
        client.lset(hits, at, str(int(hit) - seconds * 1_000_000))
    for member in client.zrange(tokens, 0, -1):
        client.zincrby(tokens, -seconds * 1_000_000, member)


def test_tokens_and_budgets_are_everybodys(another: Open) -> None:
    at = [1_800_000_000.0]
    one, two = another(now=lambda: at[0]), another(now=lambda: at[0])
    one.charge("k1", prompt_tokens=60)
    two.charge("k1", completion_tokens=40)
    assert one.usage("k1") == wire.Usage(prompt_tokens=60, completion_tokens=40)
    for limiter in (one, two):
        assert admitted([admit(limiter, "k1", tokens_per_minute=100)]) == 0
        for per in ("day", "month", "total"):
            assert admitted([admit(limiter, "k1", token_budget=wire.TokenBudget(tokens=100, per=per))]) == 0
    at[0] += 86400
    day, month, total = (wire.TokenBudget(tokens=100, per=per) for per in ("day", "month", "total"))
    assert [admitted([admit(one, "k1", token_budget=budget)]) for budget in (day, month, total)] == [1, 0, 0]
    at[0] += 31 * 86400
    assert [admitted([admit(one, "k1", token_budget=budget)]) for budget in (day, month, total)] == [1, 1, 0]
    one.charge("k1", prompt_tokens=-100)
    assert two.usage("k1").prompt_tokens == 0


def test_places_of_a_dead_server_are_given_back(another: Open, server: RedisServer,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_limits, "RENEWED", 3600)
    dying, living = another(), another()
    assert admitted([admit(dying, "k1/answer", None, 1)]) == 1
    assert admitted([admit(living, "k1/answer", None, 1)]) == 0
    (places,), client = places_of(server)
    assert 0 < client.pttl(places) <= 10_000
    client.pexpire(places, 1)
    until(lambda: admitted([admit(living, "k1/answer", None, 1)]) == 1)


def test_a_living_server_keeps_its_places(another: Open, server: RedisServer) -> None:
    one, two = another(), another()
    admit(one, "k1/answer", None, 1)
    (places,), client = places_of(server)
    client.pexpire(places, 5000)
    until(lambda: client.pttl(places) > 5000)
    client.delete(places)                       # as when Redis was away for longer
    until(lambda: bool(client.exists(places)))
    assert admitted([admit(two, "k1/answer", None, 1)]) == 0
    one.close()
    assert admitted([admit(two, "k1/answer", None, 1)]) == 1


def places_of(server: RedisServer) -> Any:
    client = redis_client.connect(Settings(redis_url=server.url))
    return client.keys("*:limits:places:*"), client


def test_nothing_is_left_but_what_was_used(limiter: SharedLimiter, server: RedisServer) -> None:
    for number in range(100):
        admit(limiter, f"k{number}/answer", None, 5)
        limiter.release(f"k{number}/answer")
    assert keys_of(server) == {"used"} and not limiter._places and not limiter._limited


def test_a_charge_that_is_sent_twice_counts_once(limiter: SharedLimiter, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Link.run
    monkeypatch.setattr(Link, "run", lambda *given: (run(*given), run(*given))[1])
    limiter.charge("k1", prompt_tokens=3)
    assert admitted([admit(limiter, "k1/answer", None, 2) for _ in range(3)]) == 2
    limiter.charge("k1", completion_tokens=4)
    assert limiter.usage("k1").prompt_tokens == 3 and limiter.usage("k1").completion_tokens == 4


def test_redis_goes_and_comes_back() -> None:
    with running(port=free_port()) as server:
        limiter = open_limiter(Settings(store="redis", redis_url=server.url))
        other = open_limiter(Settings(store="redis", redis_url=server.url))
        assert isinstance(limiter, SharedLimiter)
        admit(limiter, "k1/answer", None, 2)
        admit(limiter, "k1/answer", None, 2)
        server.kill()
        for limits in ({"rpm": 5}, {"parallel": 5}, {"tokens_per_minute": 5},
                       {"token_budget": wire.TokenBudget(tokens=5, per="day")}):
            with pytest.raises(Unavailable) as told:
                admit(limiter, "k2/answer", **limits)  # type: ignore[arg-type]
            assert told.value.code == "redis_unavailable" and told.value.retry_after
        assert admitted([admit(limiter, "k2/answer")]) == 1
        limiter.charge("k2", prompt_tokens=7)
        limiter.release("k1/answer")
        with pytest.raises(Unavailable):
            limiter.usage("k2")
        server.start()
        until(lambda: answers(lambda: limiter.usage("k2") == wire.Usage(requests=1, prompt_tokens=7)))
        until(lambda: admitted([admit(other, "k1/answer", None, 2)]) == 1)
        assert admitted([admit(other, "k1/answer", None, 2)]) == 0
        limiter.close()
        other.close()


def test_a_redis_that_hangs_delays_no_key_without_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_client, "ANSWER", 0.2)
    monkeypatch.setattr(shared_limits, "SOON", 0.01)
    with running() as server:
        limiter = open_limiter(Settings(store="redis", redis_url=server.url))
        admit(limiter, "k1/answer", 100, 5)
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            for _ in range(3):
                with pytest.raises(Unavailable):
                    admit(limiter, "k1/answer", 100, 5)
            with ThreadPoolExecutor(8) as pool:
                assert admitted(list(pool.map(lambda _: admit(limiter, "k2/answer"), range(50)))) == 50
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        until(lambda: answers(lambda: limiter.usage("k2").requests == 50))
        limiter.release("k1/answer")
        limiter.close()
