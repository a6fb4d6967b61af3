"""Runners that die, die again, and hang (faults P3 to P5)."""

from __future__ import annotations

import dataclasses
import math
import os
import random
from pathlib import Path
from typing import Any

import pytest

from services.errors import OutOfMemory, ParleyError, RunnerCrashed, Unavailable
from services.wire import Piece
from tests.services.engine.house import QUICK, House, eventually, generate, runners_of, together, whole

PATIENT = dataclasses.replace(QUICK, window=600.0, retry=600.0)


@pytest.mark.parametrize(("how", "reason"), [
    ("SIGKILL", "killed by SIGKILL"), ("SIGSEGV", "killed by SIGSEGV"), ("SIGABRT", "killed by SIGABRT"),
    ("SIGBUS", "killed by SIGBUS"), ("0", "exit 0"), ("134", "exit 134")])
def test_a_death_in_mid_stream(house: House, caplog: pytest.LogCaptureFixture, how: str, reason: str):
    spec, pieces = house.spec(), []
    house.say(spec, select=True)
    with house.engine.lease(spec) as lease, pytest.raises(RunnerCrashed) as caught:
        for event in lease.generate(generate(f"!tokens 9 !die {how} 3")):
            pieces.append(event)
    assert [event.text for event in pieces if isinstance(event, Piece)] == ["w1", " w2", " w3"]
    assert (caught.value.status, caught.value.code) == (503, "runner_crashed")
    assert house.say(spec, "are you back?") == "You said: are you back?"
    assert reason in caplog.text and house.spawns() == 2


def test_who_is_answered_hears_that_memory_ran_out(house: House, monkeypatch: pytest.MonkeyPatch):
    """Row P6. Who waits in the queue is asked for anew all the same."""
    kills = iter(range(1000))
    monkeypatch.setattr("services.engine.process.oom_kills", lambda: next(kills))
    spec, pieces = house.spec(parallel=1), []
    house.say(spec, select=True)

    def ask(number: int) -> Any:
        with house.engine.lease(spec, select=True) as lease:
            if number:
                eventually(lambda: house.state(spec).stats.running == 1)
                return whole(lease, "waited")
            for event in lease.generate(generate("!tokens 9 !sleep 0.2 !die SIGKILL 5")):
                pieces.append(event)

    died, waited = together(2, ask)
    assert isinstance(died, OutOfMemory) and "for want of memory" in died.message, died
    assert len([event for event in pieces if isinstance(event, Piece)]) == 5
    assert waited == "You said: waited" and house.spawns() == 2


def test_a_death_is_told_to_whom_it_answered_and_the_queue_is_kept(house: House):
    spec = house.spec(parallel=2)

    def stats() -> Any:
        return (state := house.state(spec)) and state.stats

    def ask(number: int) -> Any:
        if number == 8:
            eventually(lambda: stats() and stats().waiting == 6)
            return os.kill(house.pid(spec), 9)
        if number >= 2:
            eventually(lambda: stats() and stats().running == 2)
        with house.engine.lease(spec, select=True) as lease:
            return whole(lease, "!hang" if number < 2 else str(number))

    results = together(9, ask)
    assert all(isinstance(result, RunnerCrashed) for result in results[:2])
    assert results[2:8] == [f"You said: {number}" for number in range(2, 8)]


def test_the_selected_and_the_kept_come_back_by_themselves_others_when_asked_for(open_house: Any):
    house = open_house(max_loaded=3)
    selected, kept, other = (house.spec(f"{name}.gguf") for name in ("s", "k", "o"))
    house.say(selected, select=True)
    house.say(kept, keep=math.inf)
    house.say(other)
    for spec in (selected, kept, other):
        with pytest.raises(RunnerCrashed):
            house.say(spec, "!die SIGKILL", keep=math.inf if spec is kept else 0)
    for spec in (selected, kept):
        eventually(lambda spec=spec: (state := house.state(spec)) and (state.state, state.restarts) == ("ready", 1))
    state = house.state(other)
    assert state and state.state == "crashed" and "killed by SIGKILL" in state.reason
    assert house.say(other) == "You said: hello"


def test_a_loop_of_crashes_stops_with_the_reason(open_house: Any):
    house = open_house(timing=PATIENT)
    spec, good = house.spec(script="!die 134"), house.spec("good.gguf")
    with pytest.raises(RunnerCrashed, match="while loading: exit 134"):
        house.say(spec, select=True)
    eventually(lambda: house.state(spec).state == "failed")
    for _ in range(3):
        with pytest.raises(Unavailable, match="exit 134") as caught:
            house.say(spec)
        assert caught.value.code == "runner_failed" and caught.value.retry_after == 600
    assert house.spawns() == 5
    assert house.say(good, select=True) == "You said: hello"
    Path(spec.model).write_text("mended")
    assert house.say(spec) == "You said: hello"


def test_prompts_that_kill_stop_after_five(open_house: Any):
    house = open_house(timing=PATIENT)
    spec = house.spec()
    for _ in range(5):
        with pytest.raises(RunnerCrashed):
            house.say(spec, "!die SIGSEGV", select=True)
    eventually(lambda: house.state(spec).state == "failed")
    with pytest.raises(Unavailable, match="SIGSEGV"):
        house.say(spec)
    assert house.spawns() == 5


def test_one_that_was_given_up_gets_another_chance_later(open_house: Any):
    house = open_house(timing=dataclasses.replace(PATIENT, retry=0.3, deaths=1))
    spec = house.spec()
    with pytest.raises(RunnerCrashed):
        house.say(spec, "!die 7", select=True)
    eventually(lambda: house.state(spec).state == "failed")

    def answered() -> bool:
        try:
            return house.say(spec) == "You said: hello"
        except ParleyError:
            return False

    eventually(answered)


@pytest.mark.parametrize("how", ["hang", "freeze"])
def test_the_watchdog_ends_what_makes_no_progress(open_house: Any, caplog: pytest.LogCaptureFixture, how: str):
    house = open_house(stall_timeout=0.6)
    spec = house.spec()
    house.say(spec, "!tokens 4 !sleep 0.2", select=True)        # long enough for the watchdog to see it move
    pid = house.pid(spec)
    with pytest.raises(RunnerCrashed):
        house.say(spec, f"!tokens 5 !{how} 2")
    assert house.say(spec) == "You said: hello" and house.pid(spec) != pid
    assert ("no progress for 0.6 s" if how == "hang" else "no sign of life for 0.6 s") in caplog.text


def test_the_watchdog_leaves_slow_work_alone(open_house: Any):
    house = open_house(stall_timeout=1.0)
    spec = house.spec()
    assert house.say(spec, "!tokens 12 !sleep 0.2", select=True).endswith("w12")
    assert house.spawns() == 1


def test_many_hands_at_once(open_house: Any):
    """Twelve callers load, switch, kill, cancel and leave at random: each answer is its own, nothing hangs or leaks."""
    house = open_house(max_loaded=2, max_queue=4, timing=dataclasses.replace(QUICK, deaths=1000, longest_pause=0.1))
    specs = [house.spec(f"{n}.gguf", parallel=2) for n in range(4)]
    expected = {"runner_crashed", "no_room", "models_in_use", "unavailable"}

    def work(number: int) -> int:
        chance, answers = random.Random(number), 0
        for turn in range(25):
            spec, text = chance.choice(specs), f"{number}.{turn}"
            how = chance.choice(["say"] * 6 + ["die", "leave", "cancel"])
            try:
                keep = math.inf if chance.random() < 0.1 else 0
                with house.engine.lease(spec, select=chance.random() < 0.3, keep=keep) as lease:
                    if how == "cancel":
                        next(lease.generate(generate("!tokens 3 !hang 1")))
                    elif how != "leave":
                        said = whole(lease, f"!die SIGKILL 1\n{text}" if how == "die" else text)
                        assert said == f"You said: {text}"
                        answers += 1
            except ParleyError as error:
                assert error.code in expected, error
        return answers

    results = together(12, work)
    assert all(isinstance(result, int) and result > 0 for result in results), results
    eventually(lambda: all(state.leases == 0 for state in house.supervisor.status().runners))
    assert sum(state.selected for state in house.supervisor.status().runners) == 1
    for spec in specs:
        assert house.say(spec, "still here", select=True) == "You said: still here"
    eventually(lambda: len(runners_of(os.getpid())) <= 2)
