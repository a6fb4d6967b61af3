"""A runner's thread: room by bytes, loads that nobody waits for, memory that runs out and comes back (P6, P13)."""

from __future__ import annotations

import dataclasses
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from services.engine import process
from services.engine.driver import with_share_of_cores
from services.engine.machine import use_of
from services.errors import BadModel, NoRoom, OutOfMemory, Unavailable
from services.settings import ROOT
from services.wire import RunnerSpec
from tests.services.engine.house import QUICK, House, eventually, gone, runners_of, together

HASTY = dataclasses.replace(QUICK, room=0.4)


class Left(Exception):
    """The caller is gone."""


class TestRoom:
    """Each model needs as many bytes as it has tokens of context."""

    @pytest.fixture
    def cramped(self, open_house: Callable[..., House], monkeypatch: pytest.MonkeyPatch) -> House:
        monkeypatch.setattr("services.engine.fleets.use_of", lambda pid: None)
        monkeypatch.setattr("services.engine.driver.use_of", lambda pid: None)
        return open_house(timing=HASTY, memory_budget=3000, needs=lambda spec: lambda n_ctx: n_ctx)

    def test_idle_ones_go_as_far_as_needed(self, cramped: House):
        selected, a, b = (cramped.spec(f"{name}.gguf", n_ctx=900) for name in ("s", "a", "b"))
        cramped.say(selected, select=True)
        cramped.say(b)
        cramped.say(a)
        small = cramped.spec("small.gguf", n_ctx=300)
        cramped.say(small)                      # fits beside all of them
        assert cramped.spawns() == 4
        state = cramped.state(small)
        assert state and state.estimated_bytes == 300
        cramped.say(cramped.spec("c.gguf", n_ctx=800))
        assert cramped.state(b) is None and cramped.state(a) and cramped.state(small)

    def test_what_would_have_to_go_is_said_at_once(self, cramped: House):
        cramped.say(cramped.spec("s.gguf", n_ctx=1500), select=True)
        with pytest.raises(NoRoom) as caught:
            cramped.say(cramped.spec("x.gguf", n_ctx=2048))
        assert caught.value.status == 409 and caught.value.details["n_ctx"] == 1024
        assert [one["model"] for one in caught.value.details["loaded"]] == ["s.gguf"]
        assert cramped.say(cramped.spec("x.gguf", n_ctx=1024)) == "You said: hello"

    def test_one_in_use_never_goes(self, cramped: House):
        busy, other = cramped.spec("b.gguf", n_ctx=2000), cramped.spec("x.gguf", n_ctx=2000)
        cramped.say(busy)
        with cramped.engine.lease(busy):
            pid = cramped.pid(busy)
            with pytest.raises(Unavailable) as caught:
                cramped.say(other)
            assert caught.value.code == "models_in_use" and caught.value.retry_after and not gone(pid)
        assert cramped.say(other) == "You said: hello" and gone(pid)

    def test_a_file_that_is_none_costs_nobody_his_place(self, open_house: Any):
        def needs(spec: Any) -> Any:
            if "bad" in spec.model:
                raise BadModel("no GGUF")
            return lambda n_ctx: 0

        house = open_house(max_loaded=1, needs=needs)
        good = house.spec()
        house.say(good)
        with pytest.raises(BadModel):
            house.say(house.spec("bad.gguf"))
        assert house.state(good) and house.spawns() == 1


def test_replicas_share_the_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    spec = RunnerSpec(model="/m", n_ctx=8)
    assert [with_share_of_cores(spec, n).n_threads for n in (1, 2, 3, 20)] == [0, 4, 2, 1]
    assert with_share_of_cores(RunnerSpec(model="/m", n_ctx=8, n_threads=6), 4).n_threads == 6


class TestGivingUp:
    def leave(self, house: House, spec: Any) -> threading.Event:
        """Ask for `spec`, and hang up when the event that is returned is set."""
        left = threading.Event()

        def beat() -> None:
            if left.is_set():
                raise Left

        def wait() -> None:
            with pytest.raises(Left), house.engine.lease(spec, beat=beat):
                raise AssertionError("it was loaded")

        threading.Thread(target=wait).start()
        return left

    def test_a_load_ends_with_its_last_caller(self, house: House):
        spec = house.spec(script="!sleep 600")
        first, second = self.leave(house, spec), self.leave(house, spec)
        pid = eventually(lambda: (state := house.state(spec)) and state.pid)
        first.set()
        time.sleep(2.5)
        assert not gone(pid)                    # the second one still waits
        second.set()
        eventually(lambda: gone(pid))
        eventually(lambda: house.state(spec) is None)

    def test_so_does_the_wait_for_room(self, open_house: Any):
        house = open_house(max_loaded=1, timing=dataclasses.replace(QUICK, room=600.0))
        busy, spec = house.spec("b.gguf"), house.spec("x.gguf")
        with house.engine.lease(busy):
            left = self.leave(house, spec)
            eventually(lambda: house.state(spec))
            left.set()
            eventually(lambda: house.state(spec) is None)
        assert house.say(busy) == "You said: hello" and house.spawns() == 1

    def test_who_comes_just_then_is_served(self, house: House):
        spec = house.spec(script="!stubborn\n!sleep 2")
        left = self.leave(house, spec)
        pid = eventually(lambda: (state := house.state(spec)) and state.pid)
        left.set()
        eventually(lambda: any(runner.ending for runner in house.supervisor._fleets.runners()))
        assert house.say(spec) == "You said: hello" and gone(pid)


class TestMemory:
    def test_a_runner_that_finds_none_says_so(self, house: House):
        spec = house.spec(script="!fail out_of_memory no room for 64 x 65536 tokens of context")
        with pytest.raises(OutOfMemory, match="no room for 64"):
            house.say(spec)
        assert house.say(house.spec("small.gguf")) == "You said: hello"

    @pytest.mark.model
    def test_llama_cpp_that_gets_none_is_no_bad_model(self, house: House):
        """With an address space of 2 GB it cannot have 19 GB of KV cache; beside a file that is none it still can."""
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({2 << 30}, {2 << 30}))"
        start = f"import sys, runpy; sys.argv = ['main.py', 'runner']; runpy.run_path({str(ROOT / 'main.py')!r}, " \
            "run_name='__main__')"
        house.supervisor._driver.command = [sys.executable, "-c", f"{limit}; {start}"]
        model = str(ROOT / "models" / "starter.gguf")
        with pytest.raises(OutOfMemory, match="64 x 65536 tokens"):
            house.say(RunnerSpec(model=model, n_ctx=65536, parallel=64))
        with pytest.raises(BadModel):
            house.say(house.spec("none.gguf", script="not a GGUF"))
        assert house.supervisor.ensure(RunnerSpec(model=model, n_ctx=64, parallel=1)).n_ctx >= 64

    def test_one_that_the_kernel_ends_for_want_of_it(self, house: House, monkeypatch: pytest.MonkeyPatch):
        kills = iter(range(1000))
        monkeypatch.setattr(process, "oom_kills", lambda: next(kills))
        with pytest.raises(OutOfMemory, match="for want of memory"):
            house.say(house.spec(script="!die SIGKILL"))

    def test_a_hundred_loads_leave_nothing_behind(self, open_house: Any):
        house = open_house(load_on_fly=True)
        specs = [house.spec(f"{n}.gguf") for n in range(4)]

        def load(times: int) -> None:
            assert together(4, lambda n: [house.say(specs[n]) for _ in range(times)]) \
                == [["You said: hello"] * times] * 4
            eventually(lambda: not runners_of(os.getpid()))

        load(2)
        before, threads = use_of(os.getpid()), threading.active_count()
        load(25)
        after = use_of(os.getpid())
        assert before and after and after.own <= before.own * 1.05 + (2 << 20)
        eventually(lambda: threading.active_count() <= threads)
        assert not house.supervisor.status().runners
