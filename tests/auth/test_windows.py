from __future__ import annotations

import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest

from auth.windows import Amounts, Windows


def test_n_pass_and_no_more() -> None:
    windows = Windows(60)
    hits = [windows.hit("a", 5) for _ in range(7)]
    assert [hit.allowed for hit in hits] == [True] * 5 + [False] * 2
    assert [hit.remaining for hit in hits] == [4, 3, 2, 1, 0, 0, 0]
    assert all(50 < hit.reset <= 60 for hit in hits)
    assert windows.hit("b", 5).allowed


def test_exact_for_many_threads() -> None:
    windows = Windows(60)
    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(lambda _: windows.hit("a", 100).allowed, range(400))) == 100


def test_a_cost_counts_whole_or_not_at_all() -> None:
    windows = Windows(60)
    assert windows.hit("a", 5, cost=3).allowed
    assert not windows.hit("a", 5, cost=3).allowed
    assert windows.hit("a", 5, cost=2).allowed
    assert not windows.hit("a", 5, cost=6).allowed


def test_a_limit_that_changes_counts_what_was() -> None:
    windows = Windows(60)
    assert all(windows.hit("a", 3).allowed for _ in range(3))
    assert not any(windows.hit("a", limit, cost).allowed for limit in (3, 2, 1) for cost in (0, 1))
    assert windows.hit("a", 1).remaining == 0
    assert [windows.hit("a", 5).allowed for _ in range(3)] == [True, True, False]


def test_a_limit_that_was_lowered_says_when_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    windows, now = Windows(60), 1_800_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    assert all(windows.hit("a", 9).allowed for _ in range(3))
    now += 50
    assert windows.hit("a", 9).reset == 10
    assert [windows.hit("a", limit).reset for limit in (4, 2, 1)] == [10, 10, 60]
    now += 11
    assert [windows.hit("a", limit).allowed for limit in (1, 2)] == [False, True]


def test_cost_zero_only_asks() -> None:
    windows = Windows(60)
    assert [windows.hit("a", 1, cost=0).allowed for _ in range(3)] == [True] * 3
    windows.hit("a", 1)
    assert not windows.hit("a", 1, cost=0).allowed


def test_the_window_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("limits.storage.memory.time.time", lambda: now[0])
    windows = Windows(60)
    assert windows.hit("a", 2).allowed
    now[0] += 40
    assert windows.hit("a", 2).allowed
    assert not windows.hit("a", 2).allowed
    now[0] += 21
    assert windows.hit("a", 2).allowed and not windows.hit("a", 2).allowed


def test_memory_is_bounded_and_no_thread_is_started() -> None:
    """Row L3, with 10,000 names: what is kept is the newest 1,000."""
    windows = Windows(60, max_names=1000)
    for number in range(1000):
        windows.hit(str(number), 5)
    threads = threading.active_count()
    tracemalloc.start()
    for number in range(10_000):
        windows.hit(f"name {number}", 5)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(windows) == 1000 and grown < 2_000_000
    assert threading.active_count() <= threads
    for _ in range(1000):
        windows.hit("busy", 5)
    assert len(windows._storage.events[next(key for key in windows._storage.events if "busy" in key)]) == 5


def test_an_idle_name_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("auth.windows.time.monotonic", lambda: now[0])
    windows = Windows(60)
    windows.hit("a", 5)
    now[0] += 61
    windows.hit("b", 5)
    assert len(windows) == 1


def test_amounts_of_the_last_seconds() -> None:
    now = [0.0]
    amounts = Amounts(60, 2, clock=lambda: now[0])
    amounts.add("a", 10)
    now[0] = 20
    amounts.add("a", 5)
    assert [amounts.wait("a", limit) for limit in (16, 15, 5, 1)] == [0.0, 40, 60, 60]
    now[0] = 60
    assert [amounts.wait("a", limit) for limit in (6, 5)] == [0.0, 20]
    amounts.add("b", 1)
    amounts.add("c", 1)
    assert amounts.wait("a", 1) == 0.0, "the one idle for longest is forgotten"
