"""The thread that owns one runner's process from spawn to grave: loads it, watches it, loads it again.

The rules are in `states.py`, `fleets.py` and `room.py`; here they meet a process.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import msgspec

from services.engine.failures import failed_of
from services.engine.fleet import Fleet
from services.engine.fleets import Fleets
from services.engine.machine import use_of
from services.engine.process import Died, RunnerProcess
from services.engine.room import Room, Want
from services.engine.states import FAILED, Runner, Watchdog
from services.errors import ParleyError, Unavailable
from services.wire import HANDSHAKE, RunnerLimits, RunnerSpec

LOOK = 1.0              # seconds between two looks at whether there is room, or whether anybody still waits
log = logging.getLogger("parley.engine")


class Unwanted(Exception):
    """Nobody waits any more for what was about to be loaded."""


class Driver:
    """`precheck(spec)` runs before each load and raises a ParleyError when it is hopeless. `stall`: seconds."""

    def __init__(self, fleets: Fleets, room: Room, command: Sequence[str], run_dir: Path, limits: RunnerLimits,
                 stall: float, precheck: Callable[[RunnerSpec], object] | None) -> None:
        self.command = command
        self._fleets = fleets
        self._changed = fleets.changed
        self._timing = fleets.timing
        self._room = room
        self._run_dir = run_dir
        self._limits = limits
        self._stall = stall
        self._precheck = precheck

    def drive(self, fleet: Fleet, runner: Runner) -> None:
        """Have `runner` loaded, and looked after as long as it is wanted. Under the lock."""
        if not runner.driven:
            threading.Thread(target=self._run, args=(fleet, runner), name=f"runner {runner.name}", daemon=True).start()
            runner.driven = True                # only now: there may be no more threads

    def _run(self, fleet: Fleet, runner: Runner) -> None:
        while self._turn(fleet, runner):
            try:
                want = self._room.want(runner.spec)
                self._make_room(fleet, runner, want)
                if self._precheck:
                    self._precheck(runner.spec)
                self._live(fleet, runner, want)
            except ParleyError as error:
                self._refused(fleet, runner, error)
            except Died as death:
                self._died(runner, death)
            except Unwanted:
                with self._changed:
                    runner.ended()
            except Exception as error:
                log.exception("the runner of %s cannot be started", runner.name)
                self._refused(fleet, runner, Unavailable(f"the runner of {runner.name} cannot be started: {error}"))

    def _turn(self, fleet: Fleet, runner: Runner) -> bool:
        """Wait until it may be loaded (again); False when nobody wants it: then its thread ends."""
        with self._changed:
            while not self._fleets.draining and runner.state != FAILED and self._fleets.wanted(fleet, runner):
                pause = runner.retry_at - time.monotonic()
                if pause <= 0:
                    runner.begin()
                    return True
                self._changed.wait(pause)
            runner.driven = False
            self._fleets.forget(fleet)
            return False

    def _make_room(self, fleet: Fleet, runner: Runner, want: Want) -> None:
        """Wait until it may be loaded, and count it as loaded from then on. A further replica takes only what is free.

        One that is selected, or is to be, may stand beside a full house: the old one goes after it is ready.
        """
        deadline = time.monotonic() + self._timing.room
        with self._changed:
            while True:
                beside = fleet.claims > 0 or fleet.spec == self._fleets.selected
                tenants, held, own = self._fleets.tenants(fleet)
                house = self._room.house(tenants, held, own)
                if house.fits(want, beside):
                    break
                self._fleets.refuse_when_draining()
                if not self._fleets.wanted(fleet, runner):
                    raise Unwanted
                victim = house.victim(want, beside)
                if fleet.helped(runner) or (not victim and time.monotonic() >= deadline):
                    raise house.later(want)
                if victim:
                    self._fleets.evict(victim)
                self._changed.wait(LOOK)
            runner.loaded, runner.estimate = True, want.bytes

    def _live(self, fleet: Fleet, runner: Runner, want: Want) -> NoReturn:
        """Spawn, load, probe, serve. Ends in `Died`, or in the error that the runner gave in place of `Ready`."""
        spec = with_share_of_cores(runner.spec, len(fleet.runners))
        process = RunnerProcess(self.command, spec, self._run_dir, self._limits)
        try:
            with self._changed:
                self._fleets.refuse_when_draining()
                if not self._fleets.wanted(fleet, runner):
                    raise Unwanted
                process.start()
                runner.process = process
            log.info("loading %s (pid %s)", runner.name, process.pid)
            deadline = time.monotonic() + self._timing.load
            ready = process.wait_ready(deadline)
            process.probe(deadline)
            with self._changed:
                runner.serves(ready, time.monotonic())
                self._changed.notify_all()
            log.info("%s is ready (pid %s, %.0f ms)", runner.name, process.pid, ready.load_ms)
            self._watch(fleet, runner, process, want)
            raise process.death()
        finally:
            process.bury()

    def _watch(self, fleet: Fleet, runner: Runner, process: RunnerProcess, want: Want) -> None:
        """Until the process has ended: look after its progress, and after its end when it was told to end."""
        limit = self._stall or math.inf
        period = max(0.05, min(self._timing.watch, limit / 4))
        dog = Watchdog(limit, time.monotonic())
        pause = 0.0         # the first look is at a runner that has answered the probe and nothing else
        while not process.wait(pause):
            pause = period
            if process.ended_at is not None:
                if time.monotonic() - process.ended_at > self._timing.grace:
                    process.kill()
                continue
            stats = process.stats(min(HANDSHAKE, limit))
            use = use_of(process.pid) if process.pid else None
            with self._changed:
                runner.stats = stats or runner.stats
                complaint = dog.complaint(stats, time.monotonic())
                runner.stalled_since = dog.stalled_since
                runner.measured(use, time.monotonic())
                if use and stats:
                    self._room.learn(want, use.total - stats.snapshot_memory_bytes)
                self._fleets.end_if_done(fleet)
            if complaint:
                log.error("%s (pid %s): %s; killing it", runner.name, process.pid, complaint)
                process.kill(f"killed by the watchdog: {complaint}")

    def _refused(self, fleet: Fleet, runner: Runner, error: ParleyError) -> None:
        """No runner came of it. What a runner itself said would be said again: that is kept for a while."""
        with self._changed:
            log.error("%s cannot be loaded: %s", runner.name, error.message)
            runner.refused(failed_of(error), time.monotonic(),
                           lasting=runner.process is not None or fleet.helped(runner))
            self._changed.notify_all()

    def _died(self, runner: Runner, death: Died) -> None:
        with self._changed:
            if runner.ending:
                log.info("%s was unloaded", runner.name)
                runner.ended()
            elif (pause := runner.died(str(death), time.monotonic(), death.code)) is None:
                assert runner.error
                log.error("%s", runner.error.message)
            else:
                log.error("the runner of %s died: %s; it may be loaded again in %.1f s", runner.name, death, pause)
            self._changed.notify_all()


def with_share_of_cores(spec: RunnerSpec, replicas: int) -> RunnerSpec:
    """Several replicas that take every core each would only be in each other's way."""
    if spec.n_threads or replicas == 1:
        return spec
    return msgspec.structs.replace(spec, n_threads=max(1, len(os.sched_getaffinity(0)) // replicas))
