"""The rules, without a process: states, back-off, giving up, trying again, and the watchdog's judgement."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.states import CRASHED, FAILED, READY, Lease, Runner, Timing, Watchdog
from services.wire import Failed, Ready, RunnerAt, RunnerSpec, Stats

READY_WORD = Ready(model="m", architecture="fake", n_ctx=8, n_ctx_train=8, n_slots=1, n_vocab=0, n_threads=1,
                   chat_template=None, bos="", eos="", special_tokens=[])


def runner(path: str = "/models/m.gguf") -> Runner:
    return Runner(RunnerSpec(model=path, n_ctx=8), Timing())


def serve(it: Runner, now: float) -> None:
    it.begin()
    it.process = cast(Any, SimpleNamespace(alive=lambda: True, pid=1, address="", authkey=b""))
    it.serves(READY_WORD, now)


def stats(running: int = 0, waiting: int = 0, idle: float = 0.0, tokens: int = 0) -> Stats:
    return Stats(running=running, waiting=waiting, slots=4, slots_used=0, cached_tokens=0, prompt_tokens=0,
                 completion_tokens=tokens, requests=0, max_batch=0, tokens_per_second=0.0, idle_seconds=idle)


def test_pauses_double_up_to_the_longest():
    it, pauses = runner(), []
    it.timing = Timing(deaths=9)
    for number in range(8):
        serve(it, number)
        pauses.append(it.died("exit 1", number))
    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert it.retry_at == 7 + 5.0


def test_five_deaths_within_the_window_and_it_is_given_up():
    it = runner()
    for now in (0, 10, 20, 30):
        serve(it, now)
        assert it.died("killed by SIGSEGV", now) is not None and it.state == CRASHED
    serve(it, 40)
    assert it.died("killed by SIGSEGV", 40) is None
    assert it.state == FAILED and it.error and "killed by SIGSEGV" in it.error.message and it.error.retry_after == 60
    assert not it.may_retry(99) and it.may_retry(100)


def test_deaths_far_apart_do_not_add_up():
    it = runner()
    for now in range(0, 2000, 20):
        serve(it, now)
        assert it.died("exit 1", now) is not None


def test_what_dies_in_every_load_is_given_up_however_long_a_load_takes():
    it = runner()
    for now in (0, 300, 600, 900):
        it.begin()
        assert it.died("killed by SIGBUS", now) is not None
        assert it.error and "while loading: killed by SIGBUS" in it.error.message
    it.begin()
    assert it.died("killed by SIGBUS", 1200) is None


def test_a_newcomer_waits_for_the_load_in_progress_or_the_next_one():
    it = runner()
    assert it.awaited() == 1
    it.begin()
    first = it.awaited()
    assert first == 1
    it.died("exit 1", 0)
    second = it.awaited()
    assert second == 2 and it.hopeless(first) and not it.hopeless(second)


def test_a_lasting_failure_is_tried_again_when_the_file_changes(tmp_path: Path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"bad")
    it = runner(str(file))
    it.begin()
    it.refused(Failed(code="bad_model", message="bad"), 0, lasting=True)
    assert not it.may_retry(1) and it.remembered(1)
    file.write_bytes(b"better")
    assert it.may_retry(1)
    it.forgive()
    assert it.state == CRASHED and not it.remembered(1)
    os.unlink(file)


def test_a_failure_that_does_not_last_is_tried_again_at_once():
    it = runner()
    it.begin()
    it.refused(Failed(code="no_room", message="full", retry_after=5), 7, lasting=False)
    assert it.may_retry(7) and not it.remembered(7)


def test_an_unnoticed_death_is_no_usable_runner():
    it = runner()
    serve(it, 0)
    assert it.usable() and it.state == READY
    it.process = cast(Any, SimpleNamespace(alive=lambda: False))
    assert not it.usable()


def test_a_lease_is_given_back_once():
    given_back = []
    lease = Lease(RunnerAt(address="", authkey=b"", ready=READY_WORD), lambda: given_back.append(1))
    with lease:
        lease.release()
    assert given_back == [1]


def at_work(now: float) -> Watchdog:
    """A watchdog of 10 s over a runner that has answered somebody."""
    dog = Watchdog(10, now)
    for tokens in (1, 2):
        assert dog.complaint(stats(running=1, tokens=tokens), now) is None
    return dog


class TestWatchdog:
    def test_rest_is_no_stall_however_long(self):
        dog = at_work(0)
        assert all(dog.complaint(stats(idle=now), now) is None for now in range(0, 500, 2))
        assert dog.stalled_since is None

    def test_a_request_after_a_long_rest_is_no_stall(self):
        dog = at_work(0)
        assert dog.complaint(stats(idle=1000), 1000) is None
        assert dog.complaint(stats(running=1, idle=1001), 1001) is None
        assert dog.stalled_since == 1000

    @pytest.mark.parametrize("work", [{"running": 1}, {"waiting": 1}])
    def test_work_without_progress_is_a_stall(self, work: dict[str, int]):
        dog = at_work(0)
        assert [dog.complaint(stats(**work, idle=now), now) for now in range(0, 11, 2)] == [None] * 6
        assert "no progress for 10 s" in str(dog.complaint(stats(**work, idle=12), 12))
        assert dog.stalled_since == 0

    def test_silence_is_a_stall(self):
        dog = at_work(0)
        assert dog.complaint(None, 10) is None
        assert "no sign of life for 10 s" in str(dog.complaint(None, 11)) and dog.stalled_since == 0
        assert dog.complaint(stats(), 12) is None and dog.stalled_since is None

    def test_the_first_request_may_take_four_times_as_long(self):
        for said in (stats(running=1, tokens=5, idle=100), None):
            dog = Watchdog(10, 0)
            dog.complaint(stats(tokens=5), 0)
            assert dog.complaint(said, 40) is None
            assert "for 40 s" in str(dog.complaint(said, 41))

    @given(st.lists(st.tuples(st.floats(0, 5), st.booleans()), max_size=50))
    def test_progress_in_time_is_never_a_stall(self, steps: list[tuple[float, bool]]):
        dog, now = at_work(0), 0.0
        for pause, busy in steps:
            now += pause
            assert dog.complaint(stats(running=int(busy), idle=pause), now) is None
