"""How long models stay loaded, and replicas: with real processes, the fake runner's."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from typing import Any

import pytest

from services.errors import RunnerCrashed
from tests.services.engine.house import QUICK, House, eventually, gone, together

SHORT = dataclasses.replace(QUICK, idle=0.3, watch=0.05)


class TestStaying:
    def test_one_that_nobody_asks_goes_and_comes_back_when_asked(self, open_house: Any):
        house = open_house(timing=SHORT)
        selected, other = house.spec("s.gguf"), house.spec("o.gguf")
        house.say(selected, select=True)
        assert house.say(other)
        pid = house.pid(other)
        state = house.state(other)
        assert state and state.unload_seconds is not None and state.unload_seconds <= 0.3
        eventually(lambda: gone(pid) and house.state(other) is None)
        state = house.state(selected)
        assert state and state.state == "ready" and state.unload_seconds is None
        assert house.say(other) == "You said: hello"

    def test_one_that_is_used_stays(self, open_house: Any):
        house = open_house(timing=SHORT)
        spec = house.spec()
        assert house.say(spec, "!tokens 20 !sleep 0.05").endswith("w20")
        assert house.spawns() == 1

    def test_a_profile_says_for_how_long(self, open_house: Any):
        house = open_house(timing=SHORT)
        kept, long, short = (house.spec(f"{name}.gguf") for name in ("kept", "long", "short"))
        for spec, keep in ((kept, math.inf), (long, 600), (short, 0.05)):
            house.say(spec, keep=keep)
        eventually(lambda: house.state(short) is None)
        state = house.state(long)
        assert state and 0 < state.unload_seconds <= 600
        state = house.state(kept)
        assert state and state.unload_seconds is None

    def test_one_with_a_time_of_its_own_outlives_a_switch(self, house: House):
        old, new = house.spec("old.gguf"), house.spec("new.gguf")
        house.say(old, select=True, keep=600)
        pid = house.pid(old)
        house.say(new, select=True)
        assert house.pid(old) == pid and house.state(old).state == "ready"

    def test_on_the_fly_all_go_after_their_last_request(self, open_house: Any):
        house = open_house(load_on_fly=True)
        spec, kept = house.spec(), house.spec("kept.gguf")
        with house.engine.lease(spec, select=True):
            assert house.say(spec, select=True) and house.spawns() == 1
        eventually(lambda: house.state(spec) is None)
        assert house.say(spec, select=True) == "You said: hello" and house.spawns() == 2
        house.say(kept, keep=math.inf)
        assert house.pid(kept)

    def test_on_the_fly_one_that_died_is_not_loaded_for_nobody(self, open_house: Any):
        house = open_house(load_on_fly=True)
        with pytest.raises(RunnerCrashed):
            house.say(house.spec(), "!die SIGKILL", select=True)
        eventually(lambda: not any(runner.state == "loading" for runner in house.supervisor.status().runners))
        assert house.spawns() == 1


class TestReplicas:
    def test_all_are_loaded_and_share_the_work(self, open_house: Any):
        house = open_house(replicas=3)
        spec = house.spec(parallel=1)
        house.say(spec, select=True)
        eventually(lambda: [state.state for state in house.states(spec)] == ["ready"] * 3)
        answers = together(9, lambda n: house.say(spec, f"!wait 0.3\n{n}"))
        assert answers == [f"You said: {n}" for n in range(9)]
        states = house.states(spec)
        assert len({state.pid for state in states}) == 3 and all(state.stats.requests >= 3 for state in states)
        assert all(state.memory_bytes > 1 << 20 for state in states)

    def test_a_session_finds_its_replica_again(self, open_house: Any):
        house = open_house(replicas=2)
        spec = house.spec()
        house.say(spec, select=True)
        eventually(lambda: [state.state for state in house.states(spec)] == ["ready"] * 2)
        homes = {}
        for name in "abcd":
            with house.engine.lease(spec), house.engine.lease(spec, affinity=name) as lease:
                homes[name] = lease._at.address
        for name in "abcd" * 2:
            with house.engine.lease(spec, affinity=name) as lease:
                assert lease._at.address == homes[name]

    def test_one_that_dies_is_stood_in_for_and_comes_back(self, open_house: Any):
        house = open_house(replicas=2)
        spec = house.spec()
        house.say(spec)
        eventually(lambda: [state.state for state in house.states(spec)] == ["ready"] * 2)
        os.kill(house.states(spec)[0].pid, signal.SIGKILL)
        assert house.say(spec) == "You said: hello"
        eventually(lambda: [state.state for state in house.states(spec)] == ["ready"] * 2)
        assert house.spawns() == 3

    def test_all_go_together(self, open_house: Any):
        house = open_house(replicas=2, timing=SHORT)
        spec = house.spec()
        house.say(spec, keep=0.6)
        pids = [state.pid for state in house.states(spec)]
        eventually(lambda: all(gone(pid) for pid in pids if pid) and not house.states(spec))

    def test_a_further_one_takes_only_room_that_is_free(self, open_house: Any, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("services.engine.fleets.use_of", lambda pid: None)
        monkeypatch.setattr("services.engine.driver.use_of", lambda pid: None)
        house = open_house(replicas=2, memory_budget=2000, needs=lambda spec: lambda n_ctx: n_ctx)
        first, second = house.spec("a.gguf", n_ctx=800), house.spec("b.gguf", n_ctx=800)
        house.say(first)
        eventually(lambda: len(house.states(first)) == 2)
        house.say(second)                       # `first` is idle, and goes
        assert house.states(first) == []
        third = house.spec("c.gguf", n_ctx=1100)
        house.say(third, select=True)
        eventually(lambda: [state.state for state in house.states(third)] == ["ready", "failed"])
        assert house.say(third) == "You said: hello"
