"""Rows L1 to L3 and A7, on a real control socket."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from auth import limits
from auth.limits import Admissions, Limiter
from auth.records import SCOPES, Key
from services import wire
from services.errors import QuotaSpent, TooManyRequests, Unavailable

ROOT = Path(__file__).resolve().parents[2]


def key(key_id: str = "k1", **limits: Any) -> Key:
    return Key(**{"id": key_id, "name": "", "prefix": "", "scopes": SCOPES, "profiles": None, "created": "",
                  "expires_at": None, "requests_per_minute": None, "max_parallel": None, "revoked_at": None,
                  "old_secret_until": None, **limits})


def admit(limiter: Limiter, key: str, rpm: int | None = None, parallel: int | None = None,
          **tokens: Any) -> wire.Admitted | wire.Failed:
    return limiter.admit(wire.Admit(key=key, requests_per_minute=rpm, max_parallel=parallel, **tokens))


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


# ---------------------------------------------------------------- Limiter alone

def test_the_limiter_counts_both(limiter: Limiter) -> None:
    assert admit(limiter, "k1/answer", 3, 1) == wire.Admitted(limit=3, remaining=2, reset=pytest.approx(60, abs=5))
    refused = admit(limiter, "k1/answer", 3, 1)
    assert isinstance(refused, wire.Failed) and refused.code == "rate_limited" and "max_parallel" in refused.message
    assert isinstance(admit(limiter, "k1", 3, None), wire.Admitted)      # a short request needs no place
    limiter.release("k1")
    limiter.release("k1/answer")
    assert isinstance(admit(limiter, "k1/answer", 3, 1), wire.Admitted)
    limiter.release("k1/answer")
    refused = admit(limiter, "k1/answer", 3, 1)                          # 4th: what was refused was not counted
    assert isinstance(refused, wire.Failed) and "3 requests a minute" in refused.message
    assert refused.retry_after and 0 < refused.retry_after <= 60
    assert limiter.usage("k1").requests == 3
    assert isinstance(admit(limiter, "k2", None, None), wire.Admitted)


def test_tokens_of_the_last_minute_are_limited(limiter: Limiter) -> None:
    assert isinstance(admit(limiter, "k1/answer", tokens_per_minute=100), wire.Admitted)
    limiter.charge("k1", prompt_tokens=60, completion_tokens=39)
    assert isinstance(admit(limiter, "k1/answer", tokens_per_minute=100), wire.Admitted)
    limiter.charge("k1", completion_tokens=1)
    refused = admit(limiter, "k1/answer", tokens_per_minute=100)
    assert isinstance(refused, wire.Failed) and refused.details == {"limit": "tokens_per_minute", "value": 100}
    assert refused.code == "rate_limited" and 50 < (refused.retry_after or 0) <= 60
    assert isinstance(admit(limiter, "k2/answer", tokens_per_minute=100), wire.Admitted)
    assert isinstance(admit(limiter, "k1/answer"), wire.Admitted), "a key without the limit"


@pytest.mark.parametrize("per, least, most", [("day", 0, 86400), ("month", 0, 31 * 86400), ("total", 86400, 86400)])
def test_a_budget_ends(per: str, least: float, most: float, limiter: Limiter) -> None:
    budget = wire.TokenBudget(tokens=10, per=per)       # type: ignore[arg-type]
    limiter.charge("k1", prompt_tokens=4, completion_tokens=5)
    assert isinstance(admit(limiter, "k1/answer", token_budget=budget), wire.Admitted)
    limiter.charge("k1", prompt_tokens=1)
    refused = admit(limiter, "k1/answer", token_budget=budget)
    assert isinstance(refused, wire.Failed) and (refused.code, refused.details["value"]) == ("insufficient_quota", 10)
    assert least <= (refused.retry_after or 0) <= most and "10 tokens" in refused.message


def test_a_place_given_back_late_is_waited_for(limiter: Limiter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 30)
    admit(limiter, "k1/answer", None, 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(admit, limiter, "k1/answer", None, 1)
        limiter.release("k1/answer")
        assert isinstance(waiting.result(20), wire.Admitted)


def test_a_place_cannot_be_given_back_twice(limiter: Limiter) -> None:
    admit(limiter, "k1", None, 2)
    limiter.release("k1")
    with pytest.raises(AssertionError):
        limiter.release("k1")


def test_usage_is_saved_while_it_runs_and_at_the_end(tmp_path: Path) -> None:
    limiter = Limiter(tmp_path, save_every=0.01)
    limiter.charge("k1", prompt_tokens=5)
    until((tmp_path / "usage.json").exists)
    limiter.charge("k1", completion_tokens=7)
    limiter.close()
    limiter.close()
    again = Limiter(tmp_path)
    assert again.usage("k1") == wire.Usage(prompt_tokens=5, completion_tokens=7)
    again.close()


def test_places_leave_nothing_behind(limiter: Limiter) -> None:
    for number in range(1000):
        admit(limiter, f"k{number}", 5, 5)
        limiter.release(f"k{number}")
    assert not limiter._places


# ---------------------------------------------------------------- over the socket

def test_headers_and_errors(admissions: Admissions) -> None:
    ticket = admissions.admit(key(requests_per_minute=1))
    assert ticket.headers == {
        "x-ratelimit-limit-requests": "1", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "60s",
        "RateLimit-Limit": "1", "RateLimit-Remaining": "0", "RateLimit-Reset": "60"}
    with pytest.raises(TooManyRequests) as caught:
        admissions.admit(key(requests_per_minute=1))
    assert caught.value.details["limit"] == "requests_per_minute" and 0 < (caught.value.retry_after or 0) <= 60
    assert admissions.admit(key("k2")).headers == {}


def test_a_place_is_held_until_the_ticket_closes(admissions: Admissions, limiter: Limiter) -> None:
    ticket = admissions.admit(key(max_parallel=1), place=True)
    admissions.admit(key(max_parallel=1)).close()
    with pytest.raises(TooManyRequests) as caught:
        admissions.admit(key(max_parallel=1), place=True)
    assert caught.value.details["limit"] == "max_parallel" and caught.value.retry_after
    for _ in range(50):     # one after the other never meets the place of the one before
        ticket.close()
        ticket.close()
        ticket = admissions.admit(key(max_parallel=1), place=True)
    ticket.charge(wire.Charge(key="", prompt_tokens=3, completion_tokens=4))
    ticket.close()
    until(lambda: not limiter._places)
    assert admissions.usage("k1") == wire.Usage(requests=52, prompt_tokens=3, completion_tokens=4)


def test_limits_on_tokens_hold_for_answers_only(admissions: Admissions) -> None:
    limited = key(tokens_per_minute=5, token_budget=wire.TokenBudget(tokens=1000, per="day"))
    with admissions.admit(limited, place=True) as ticket:
        ticket.charge(wire.Charge(key="", prompt_tokens=3, completion_tokens=2))
    until(lambda: admissions.usage("k1").prompt_tokens == 3)
    with pytest.raises(TooManyRequests, match="5 tokens"):
        admissions.admit(limited, place=True)
    admissions.admit(limited).close()
    spent = key(token_budget=wire.TokenBudget(tokens=5, per="total"))
    with pytest.raises(QuotaSpent) as caught:
        admissions.admit(spent, place=True)
    assert (caught.value.status, caught.value.code) == (429, "insufficient_quota") and caught.value.retry_after


def test_a_ticket_without_a_place_charges_too(admissions: Admissions) -> None:
    with admissions.admit(key()) as ticket:
        ticket.charge(wire.Charge(key="", prompt_tokens=1, completion_tokens=2))
    until(lambda: admissions.usage("k1").completion_tokens == 2)


def test_sixty_four_clients_and_places_free_when_they_vanish(admissions: Admissions, limiter: Limiter,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PATIENCE", 0)
    start = threading.Barrier(64)

    def ask(_: int) -> Any:
        start.wait()
        try:
            return admissions.admit(key(max_parallel=40), place=True)
        except TooManyRequests:
            return None
    with ThreadPoolExecutor(64) as pool:
        tickets = [ticket for ticket in pool.map(ask, range(64)) if ticket]
    assert len(tickets) == 40 == limiter._places["k1/answer"]
    for ticket in tickets[:20]:
        ticket.close()
    while tickets:      # the others are dropped, as when their worker dies
        tickets.pop()
    until(lambda: not limiter._places)


WORKER = """
import sys
from concurrent.futures import ThreadPoolExecutor
sys.path.insert(0, sys.argv[2])
from auth.limits import Admissions
from auth.records import Key
from services.errors import TooManyRequests
admissions = Admissions(sys.argv[1], b"control")
key = Key("k1", "", "", (), None, "", None, 100, None, None, None)
def ask(_):
    try:
        admissions.admit(key).close()
        return 1
    except TooManyRequests:
        return 0
print(sum(ThreadPoolExecutor(8).map(ask, range(60))))
if sys.argv[3] == "hold":
    ticket = admissions.admit(Key("k2", "", "", (), None, "", None, None, 1, None, None), place=True)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def worker(control: Any) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started = []

    def start(what: str = "") -> subprocess.Popen[str]:
        started.append(subprocess.Popen([sys.executable, "-c", WORKER, control.address, str(ROOT), what], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        return started[-1]
    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_workers_share_one_limit(worker: Callable[..., subprocess.Popen[str]]) -> None:
    both = [worker(), worker()]
    assert sum(int(process.communicate(timeout=60)[0]) for process in both) == 100


def test_a_killed_worker_gives_its_places_back(worker: Callable[..., subprocess.Popen[str]], limiter: Limiter,
                                              admissions: Admissions) -> None:
    process = worker("hold")
    assert process.stdout and [process.stdout.readline(), process.stdout.readline()][1] == "held\n"
    with pytest.raises(TooManyRequests):
        admissions.admit(key("k2", max_parallel=1), place=True)
    process.kill()
    until(lambda: not limiter._places)
    admissions.admit(key("k2", max_parallel=1), place=True).close()


def test_no_supervisor_is_unavailable(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    admissions = Admissions(str(tmp_path / "nobody.sock"), b"control")
    for ask in (lambda: admissions.admit(key()), lambda: admissions.usage("k1")):
        with pytest.raises(Unavailable) as caught:
            ask()
        assert caught.value.code == "supervisor_down" and caught.value.retry_after
        assert str(tmp_path) not in caught.value.message
    limits.Ticket(admissions, key(), wire.Admitted(), None).charge(wire.Charge(key="", prompt_tokens=1,
                                                                           completion_tokens=2))
    assert "3 tokens of key k1 were not counted" in caplog.text


def test_what_the_supervisor_cannot_tell_is_told_as_it_tells_it(
        admissions: Admissions, limiter: Limiter, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = wire.Failed(code="redis_unavailable", message="Redis is away", retry_after=2)
    monkeypatch.setattr(limiter, "usage", lambda key: failed)
    with pytest.raises(Unavailable, match="Redis is away") as caught:
        admissions.usage("k1")
    assert (caught.value.code, caught.value.retry_after) == ("redis_unavailable", 2)


def test_a_supervisor_with_another_authkey_is_unavailable(control: Any) -> None:
    with pytest.raises(Unavailable):
        Admissions(control.address, b"wrong").admit(key())


# ---------------------------------------------------------------- wrong keys by source

def refused(admissions: Admissions, address: str, times: int) -> int:
    count = 0
    for _ in range(times):
        try:
            admissions.admit_source(address)
        except TooManyRequests as error:
            assert error.retry_after and error.retry_after >= 1
            count += 1
    return count


def test_wrong_keys_are_counted_by_source() -> None:
    admissions = Admissions("/nowhere", b"", wrong_keys=10)
    assert refused(admissions, "10.0.0.1", 15) == 5
    assert refused(admissions, "10.0.0.2", 10) == 0
    assert refused(admissions, "::ffff:10.0.0.2", 1) == 1
    assert sum(refused(admissions, f"2001:db8::{number:x}", 1) for number in range(20)) == 10
    assert refused(admissions, "2001:db8:0:1::1", 1) == 0
    assert refused(admissions, "unix:" * 100, 11) == 1


def test_sources_are_bounded_in_memory() -> None:
    admissions = Admissions("/nowhere", b"")
    for number in range(20_000):
        admissions.admit_source(f"10.1.{number // 256}.{number % 256}")
    assert len(admissions._wrong_keys) == 10_000
