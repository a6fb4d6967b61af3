"""The supervisor of the runners: loads them, lends them, restarts them, ends them. Lives in the serve process.

One lock guards everything (`Fleets.changed`); one thread per runner owns its process from spawn to grave
(`driver.py`); callers wait on the lock's condition. The rules are in `states.py`, `fleets.py` and `room.py`, the
socket's side in `control.py`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from services.engine.control import Admission, ControlServer, Figures
from services.engine.driver import LOOK, Driver
from services.engine.failures import error_of
from services.engine.fleet import Fleet
from services.engine.fleets import Fleets
from services.engine.room import Needs, Room
from services.engine.states import FAILED, READY, RETIRING, Lease, Runner, Timing
from services.errors import Unavailable
from services.settings import ROOT, Settings
from services.store import crypto
from services.wire import Failed, Forget, Ready, RunnerAt, RunnerLimits, RunnerSpec, StatusOf

NOTICE = 0.5            # seconds in which a runner's death is noticed


class Supervisor:
    """`run_dir`: a folder of mode 0700 with a short path, for the sockets; whoever made it removes it after `stop`.

    `precheck(spec)` runs before each load and raises a ParleyError when it is hopeless. `needs(spec)` tells the bytes
    that a runner takes, by its context (`catalog.needs`). `command` starts a runner.
    """

    def __init__(self, settings: Settings, run_dir: Path, authkey: bytes, admission: Admission, figures: Figures,
                 precheck: Callable[[RunnerSpec], object] | None = None,
                 needs: Callable[[RunnerSpec], Needs] | None = None, *, command: Sequence[str] | None = None,
                 timing: Timing = Timing()) -> None:
        self.address = str(run_dir / "control.sock")
        self._timing = timing
        self._fleets = Fleets(timing, settings.replicas, settings.load_on_fly)
        self._changed = self._fleets.changed
        self._driver = Driver(self._fleets, Room(settings.max_loaded, settings.memory_budget, needs),
                              command or runner_command(settings), run_dir, limits_of(settings),
                              settings.stall_timeout, precheck)
        self._control = ControlServer(self.address, authkey, self, admission, figures)

    # ------------------------------------------------------------ for everybody, from any thread

    def start(self) -> None:
        self._control.start()

    def ensure(self, spec: RunnerSpec, select: bool = False, keep: float = 0.0) -> Ready:
        """Have a runner of `spec` loaded; as `lease`, without holding it."""
        with self.lease(spec, select, keep) as lease:
            return lease.at.ready

    def lease(self, spec: RunnerSpec, select: bool = False, keep: float = 0.0, affinity: str = "",
              gone: Callable[[], bool] = lambda: False) -> Lease:
        """A ready runner of `spec`, loaded if need be; many callers wait for one load. See `wire.Ensure`.

        `gone` is asked now and then whether the caller has left; the last one to leave gives the load up. Raises what
        the load raised (`bad_model`, `not_found`, `no_room`, ...), `Unavailable` while draining (`draining`), while
        those that could make room are busy (`models_in_use`) or when it keeps dying (`runner_failed`), `RunnerCrashed`.
        """
        with self._changed:
            self._fleets.refuse_when_draining()
            fleet = self._fleets.enlist(spec)
            fleet.keep = keep
            if select and self._fleets.selected is None:
                self._fleets.selected = spec    # nothing to keep until it is ready: say at once what is meant
            for runner in fleet.runners:
                if runner.may_retry(time.monotonic()):
                    runner.forgive()
            fleet.waiters += 1
            fleet.claims += select
            self._changed.notify_all()          # a claim may be what its load waits for
            try:
                runner = self._await(fleet, affinity, gone)
            finally:
                fleet.waiters -= 1
                fleet.claims -= select
                self._fleets.end_if_abandoned(fleet)
                self._fleets.forget(fleet)
            return self._grant(fleet, runner, select, affinity)

    def status(self) -> StatusOf:
        """What there is, with fresh statistics of those that answer at once."""
        with self._changed:
            asked = [(runner, runner.process) for runner in self._fleets.runners() if runner.usable()]
        fresh = [(runner, process, process.stats(1.0)) for runner, process in asked if process]
        with self._changed:
            for runner, process, stats in fresh:
                if runner.process is process and stats:
                    runner.stats = stats
            return StatusOf(draining=self.draining, runners=self._fleets.report())

    def fate(self, address: str) -> Failed:
        """How the runner at `address` died; a death that was not noticed yet is waited for a moment."""
        with self._changed:
            self._changed.wait_for(lambda: not any(
                runner.process and runner.process.address == address for runner in self._fleets.runners()), NOTICE)
            for runner in self._fleets.runners():
                if runner.fate and runner.fate[0] == address:
                    return runner.fate[1]
        return Failed(code="runner_crashed", message="the model's process broke off", retry_after=1)

    def forget(self, message: Forget) -> None:
        """Tell all runners that are loaded."""
        with self._changed:
            processes = [runner.process for runner in self._fleets.runners() if runner.usable()]
        for process in processes:
            if process:
                process.tell(message)

    def keep(self, spec: RunnerSpec, keep: float) -> None:
        """See `wire.Keep`."""
        with self._changed:
            self._fleets.keep(spec, keep)

    @property
    def draining(self) -> bool:
        return self._fleets.draining

    def stop(self, drain: float) -> None:
        """No new leases; up to `drain` seconds for those that are out; then all runners are ended and the socket
        closed. May be called again with less patience while it waits."""
        fleets = self._fleets
        with self._changed:
            fleets.drain_until = min(fleets.drain_until, time.monotonic() + drain)
            self._changed.notify_all()
            while any(r.leases for r in fleets.runners()) and (left := fleets.drain_until - time.monotonic()) > 0:
                self._changed.wait(left)
            for runner in fleets.runners():
                runner.end()
            if not self._changed.wait_for(self._all_gone, self._timing.grace):
                self.kill()
                self._changed.wait_for(self._all_gone, self._timing.grace)
        self._control.close()

    def kill(self) -> None:
        """End all runners at once. Takes no lock: fit for a signal handler."""
        self._fleets.drain_until = 0.0
        for runner in self._fleets.runners():
            if process := runner.process:
                process.kill()

    # ------------------------------------------------------------ leases; all under the lock

    def _await(self, fleet: Fleet, affinity: str, gone: Callable[[], bool]) -> Runner:
        lead = fleet.lead
        attempt = lead.awaited()
        while not (found := fleet.choose(affinity)):
            self._fleets.refuse_when_draining()
            if failed := lead.hopeless(attempt):
                raise error_of(failed)
            if gone():
                raise Unavailable(f"nobody waits any more for {fleet.name}")
            self._driver.drive(fleet, lead)
            self._changed.wait(LOOK)
        return found

    def _grant(self, fleet: Fleet, runner: Runner, select: bool, affinity: str) -> Lease:
        assert runner.process and runner.ready
        for other in fleet.runners:
            if other.state != FAILED:
                self._driver.drive(fleet, other)
        fleet.take(runner, affinity)
        if select:
            self._fleets.select(fleet)
        if self._fleets.pinned(fleet):
            for other in fleet.runners:
                other.state = READY if other.state == RETIRING else other.state
        at = RunnerAt(address=runner.process.address, authkey=runner.process.authkey, ready=runner.ready)
        return Lease(at, lambda: self._returned(fleet, runner, affinity))

    def _returned(self, fleet: Fleet, runner: Runner, affinity: str) -> None:
        with self._changed:
            fleet.give_back(runner, affinity, time.monotonic())
            self._fleets.end_if_done(fleet)
            self._changed.notify_all()

    def _all_gone(self) -> bool:
        return not any(runner.process for runner in self._fleets.runners())


def limits_of(settings: Settings) -> RunnerLimits:
    """What bounds the runners that `settings` ask for. ConfigError when the key of their snapshots is not to be had."""
    kv_key = crypto.kv_key(settings.data_dir, settings.data_key).hex() if settings.data_key else ""
    return RunnerLimits(max_queue=settings.max_queue, max_queue_per_owner=settings.max_queue_per_key,
                        kv_folder=str(settings.data_dir / "kv"), kv_key=kv_key,
                        kv_memory_bytes=settings.kv_memory_bytes, kv_disk_bytes=settings.kv_disk_bytes,
                        log_level="DEBUG" if settings.debug else settings.log_level)


def runner_command(settings: Settings) -> list[str]:
    """How the runner that `settings` ask for is started."""
    return [sys.executable, str(ROOT / "main.py"), "fake-runner" if settings.runner == "fake" else "runner"]
