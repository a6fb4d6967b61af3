"""Which replica a caller gets, and how long a model stays; without a process."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

from services.engine import fleet as fleets
from services.engine.fleet import Fleet
from services.engine.states import FAILED, RETIRING, Runner, Timing
from services.wire import RunnerSpec
from tests.services.engine.test_states import READY_WORD


def fleet(replicas: int = 3, ready: int = 3, parallel: int = 2) -> Fleet:
    it = Fleet.of(RunnerSpec(model="/models/m.gguf", n_ctx=8, parallel=parallel), Timing(), replicas)
    for runner in it.runners[:ready]:
        serve(runner)
    return it


def serve(runner: Runner) -> None:
    runner.begin()
    runner.loaded = True
    runner.process = cast(Any, SimpleNamespace(alive=lambda: True, pid=1, terminate=lambda: None))
    runner.serves(READY_WORD, 0)


def lend(it: Fleet, affinity: str = "") -> Runner:
    runner = it.choose(affinity)
    assert runner
    it.take(runner, affinity)
    return runner


class TestChoice:
    def test_leases_go_where_there_are_fewest(self):
        it = fleet()
        assert sorted(lend(it).number for _ in range(6)) == [0, 0, 1, 1, 2, 2]
        it.give_back(it.runners[1], "", 1)
        assert lend(it).number == 1

    def test_a_session_goes_where_it_was(self):
        it = fleet()
        lend(it)
        home = lend(it, "s1")
        it.give_back(home, "s1", 1)
        assert lend(it, "s1") is home

    def test_but_not_where_all_slots_are_taken_while_others_have_some(self):
        it = fleet(replicas=2, ready=2)
        home = lend(it, "s1")
        it.give_back(home, "s1", 1)
        for _ in range(2):
            it.take(home, "")
        other = lend(it, "s1")
        assert other is not home and lend(it, "s1") is other

    def test_nor_where_nobody_answers(self):
        it = fleet()
        home = lend(it, "s1")
        home.ending = True
        assert it.choose("s1") is not home
        for runner in it.runners:
            runner.ending = True
        assert it.choose("s1") is None

    def test_old_homes_are_forgotten(self, monkeypatch: Any):
        monkeypatch.setattr(fleets, "HOMES", 2)
        it = fleet()
        for name in ("a", "b", "c"):
            it.give_back(lend(it, name), name, 0)
        assert list(it.homes) == ["b", "c"]


def test_who_waits_waits_for_one_that_may_come():
    it = fleet(ready=0)
    assert it.lead is it.runners[0]
    it.runners[0].state = FAILED
    assert it.lead is it.runners[1]
    for runner in it.runners:
        runner.state = FAILED
    assert it.lead is it.runners[0]


def test_one_that_serves_helps_the_others():
    it = fleet(ready=1)
    assert not it.helped(it.runners[0]) and it.helped(it.runners[1])


def test_users_are_told_apart_by_what_they_say_of_themselves():
    it = fleet()
    for name in ("a", "a", "b", "", ""):
        lend(it, name)
    assert it.report(True, math.inf, 5)[0].users == 4
    for runner, name in ((it.runners[0], "a"), (it.runners[1], "b")):
        it.give_back(runner, name, 6)
    assert it.report(True, math.inf, 7)[0].users == 3 and "b" not in it.users


def test_how_long_it_stays():
    it = fleet()
    assert it.patience(load_on_fly=False) == it.timing.idle and it.patience(load_on_fly=True) == 0
    it.keep = 20.0
    assert it.patience(load_on_fly=True) == 20
    it.keep, it.runners[0].state = 0.0, RETIRING
    assert it.patience(load_on_fly=False) == 0


def test_the_report_says_when_it_goes_and_who_serves_first():
    it = fleet(ready=0)
    serve(it.runners[2])
    it.runners[1].begin()
    told = it.report(False, 300.0, 100.0)
    assert [(state.replica, state.state) for state in told] == [(2, "ready"), (0, "loading"), (1, "loading")]
    assert {state.unload_seconds for state in told} == {200.0}
    lend(it)
    assert it.report(False, 300.0, 100.0)[0].unload_seconds is None


def test_it_is_idle_or_abandoned_only_when_nobody_is_there():
    it = fleet(ready=1)
    assert it.idle() and not it.abandoned()
    it.runners[1].begin()
    it.runners[1].loaded = True
    assert not it.idle() and not it.abandoned()
    it.runners[0].ended()
    assert it.abandoned()
    it.waiters = 1
    assert not it.abandoned()
