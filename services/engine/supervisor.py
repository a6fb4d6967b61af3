"""The supervisor of the runners: loads them, lends them, restarts them, ends them. Lives in the serve process.

One lock guards everything (`_changed`); one thread per runner owns its process from spawn to grave (`_run`); callers
wait on the lock's condition. The rules are in `states.py`, the socket's side in `control.py`.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from services.engine.control import Admission, ControlServer, Figures
from services.engine.failures import error_of, failed_of
from services.engine.process import Died, RunnerProcess
from services.engine.states import ENDED, FAILED, READY, RETIRING, Lease, Runner, Timing, Watchdog
from services.errors import ParleyError, Unavailable
from services.settings import ROOT, Settings
from services.store import crypto
from services.wire import HANDSHAKE, Ready, RunnerAt, RunnerLimits, RunnerSpec, StatusOf

log = logging.getLogger("parley.engine")


class Supervisor:
    """`run_dir`: a folder of mode 0700 with a short path, for the sockets; whoever made it removes it after `stop`.

    `precheck(spec)` runs before each load and raises a ParleyError when it is hopeless. `command` starts a runner.
    """

    def __init__(self, settings: Settings, run_dir: Path, authkey: bytes, admission: Admission, figures: Figures,
                 precheck: Callable[[RunnerSpec], object] | None = None, *, command: Sequence[str] | None = None,
                 timing: Timing = Timing()) -> None:
        self.settings = settings
        self.address = str(run_dir / "control.sock")
        self._run_dir = run_dir
        self._precheck = precheck
        self._command = command or runner_command(settings)
        self._timing = timing
        self._changed = threading.Condition()
        self._runners: dict[RunnerSpec, Runner] = {}
        self._selected: RunnerSpec | None = None
        self._drain_until = math.inf            # monotonic; finite once draining
        self._control = ControlServer(self.address, authkey, self, admission, figures)

    # ------------------------------------------------------------ for everybody, from any thread

    def start(self) -> None:
        self._control.start()

    def ensure(self, spec: RunnerSpec, select: bool = False, keep: bool = False) -> Ready:
        """Have a runner of `spec` loaded; as `lease`, without holding it."""
        with self.lease(spec, select, keep) as lease:
            return lease.at.ready

    def lease(self, spec: RunnerSpec, select: bool = False, keep: bool = False) -> Lease:
        """A ready runner of `spec`, loaded if need be; many callers wait for one load.

        Raises what the load raised (`bad_model`, `not_found`, ...), `Unavailable` while draining (`draining`), when
        all places are taken (`no_room`) or when it keeps dying (`runner_failed`), `RunnerCrashed`.
        """
        with self._changed:
            self._refuse_when_draining()
            runner = self._enlist(spec)
            runner.keep = keep
            if select and self._selected is None:
                self._selected = spec           # nothing to keep until it is ready: say at once what is meant
            if runner.may_retry(time.monotonic()):
                runner.forgive()
            runner.waiters += 1
            runner.claims += select
            self._changed.notify_all()          # a claim may be what its load waits for
            try:
                self._await(runner)
            finally:
                runner.waiters -= 1
                runner.claims -= select
                self._forget(runner)
            return self._grant(runner, select)

    def status(self) -> StatusOf:
        """What there is, with fresh statistics of those that answer at once."""
        with self._changed:
            asked = [(runner, runner.process) for runner in self._runners.values() if runner.usable()]
        fresh = [(runner, process, process.stats(1.0)) for runner, process in asked if process]
        with self._changed:
            for runner, process, stats in fresh:
                if runner.process is process and stats:
                    runner.stats = stats
            now = time.monotonic()
            return StatusOf(draining=self.draining, runners=[
                runner.report(spec == self._selected, now) for spec, runner in self._runners.items()
                if runner.state != ENDED])

    @property
    def draining(self) -> bool:
        return self._drain_until < math.inf

    def stop(self, drain: float) -> None:
        """No new leases; up to `drain` seconds for those that are out; then all runners are ended and the socket
        closed. May be called again with less patience while it waits."""
        with self._changed:
            self._drain_until = min(self._drain_until, time.monotonic() + drain)
            self._changed.notify_all()
            while any(r.leases for r in self._runners.values()) and (left := self._drain_until - time.monotonic()) > 0:
                self._changed.wait(left)
            for runner in self._runners.values():
                self._end(runner)
            if not self._changed.wait_for(self._all_gone, self._timing.grace):
                self.kill()
                self._changed.wait_for(self._all_gone, self._timing.grace)
        self._control.close()

    def kill(self) -> None:
        """End all runners at once. Takes no lock: fit for a signal handler."""
        self._drain_until = 0.0
        for runner in list(self._runners.values()):
            if process := runner.process:
                process.kill()

    # ------------------------------------------------------------ leases; all under the lock

    def _refuse_when_draining(self) -> None:
        if self.draining:
            raise Unavailable("the server is stopping: ask again when it is back", code="draining")

    def _enlist(self, spec: RunnerSpec) -> Runner:
        for runner in list(self._runners.values()):
            self._forget(runner)
        return self._runners.setdefault(spec, Runner(spec, self._timing))

    def _forget(self, runner: Runner) -> None:
        """Strike it off the list when it has no thread, nobody wants it, and its past has no bearing any more."""
        wanted = runner.driven or runner.waiters or self._pinned(runner)
        if not wanted and not runner.remembered(time.monotonic()):
            self._runners.pop(runner.spec, None)

    def _pinned(self, runner: Runner) -> bool:
        return runner.keep or runner.spec == self._selected

    def _await(self, runner: Runner) -> None:
        attempt = runner.awaited()
        while not runner.usable():
            self._refuse_when_draining()
            if failed := runner.hopeless(attempt):
                raise error_of(failed)
            self._drive(runner)
            self._changed.wait()

    def _grant(self, runner: Runner, select: bool) -> Lease:
        assert runner.process and runner.ready
        runner.leases += 1
        if select:
            self._select(runner)
        if self._pinned(runner):
            runner.state = READY                # it may have been retiring
        at = RunnerAt(address=runner.process.address, authkey=runner.process.authkey, ready=runner.ready)
        return Lease(at, lambda: self._returned(runner))

    def _returned(self, runner: Runner) -> None:
        with self._changed:
            runner.leases -= 1
            runner.used_at = time.monotonic()
            assert runner.leases >= 0
            self._end_if_retired(runner)
            self._changed.notify_all()

    def _select(self, runner: Runner) -> None:
        if self._selected == runner.spec:
            return
        old = self._runners.get(self._selected) if self._selected else None
        self._selected = runner.spec
        log.info("selected: %s", runner.name)
        if old and old.state == READY and not old.keep:
            old.state = RETIRING
            self._end_if_retired(old)
        self._changed.notify_all()

    def _end_if_retired(self, runner: Runner) -> None:
        if runner.state == RETIRING and runner.idle():
            self._end(runner)

    def _end(self, runner: Runner) -> None:
        """Tell its process to end; its own thread sees to it that it does."""
        if runner.process and not runner.ending:
            runner.ending = True
            runner.process.terminate()

    def _all_gone(self) -> bool:
        return not any(runner.process for runner in self._runners.values())

    # ------------------------------------------------------------ one runner's thread

    def _drive(self, runner: Runner) -> None:
        if not runner.driven:
            threading.Thread(target=self._run, args=(runner,), name=f"runner {runner.name}", daemon=True).start()
            runner.driven = True                # only now: there may be no more threads

    def _run(self, runner: Runner) -> None:
        while self._turn(runner):
            try:
                self._make_room(runner)
                if self._precheck:
                    self._precheck(runner.spec)
                self._live(runner)
            except ParleyError as error:
                self._refused(runner, error)
            except Died as death:
                self._died(runner, str(death))
            except Exception as error:
                log.exception("the runner of %s cannot be started", runner.name)
                self._refused(runner, Unavailable(f"the runner of {runner.name} cannot be started: {error}"))

    def _turn(self, runner: Runner) -> bool:
        """Wait until it may be loaded (again); False when nobody wants it: then its thread ends."""
        with self._changed:
            while not self.draining and runner.state != FAILED and (self._pinned(runner) or runner.waiters):
                pause = runner.retry_at - time.monotonic()
                if pause <= 0:
                    runner.begin()
                    return True
                self._changed.wait(pause)
            runner.driven = False
            self._forget(runner)
            return False

    def _make_room(self, runner: Runner) -> None:
        """Wait until one more may be loaded, and count this one as loaded from then on."""
        deadline = time.monotonic() + self._timing.room
        with self._changed:
            while not self._fits(runner):
                self._refuse_when_draining()
                left = deadline - time.monotonic()
                others = [other for other in self._runners.values() if other.loaded]
                if left <= 0 or all(self._pinned(other) for other in others):
                    raise Unavailable(f"{len(others)} models are loaded and in use (MAX_LOADED="
                                      f"{self.settings.max_loaded}): ask again later, or raise MAX_LOADED",
                                      code="no_room")
                self._changed.wait(left)
            runner.loaded = True

    def _fits(self, runner: Runner) -> bool:
        """Whether it may be loaded now. Ends the idle one that was used least recently when that makes room.

        One that is selected, or is to be, may stand beside a full house: the old one goes after it is ready.
        """
        limit = self.settings.max_loaded
        others = [other for other in self._runners.values() if other.loaded]
        staying = [other for other in others if not other.ending]
        spare = [other for other in staying if other.idle() and not self._pinned(other)]
        if len(staying) >= limit and spare:
            self._end(min(spare, key=lambda other: other.used_at))
            return False
        beside = bool(runner.claims) or runner.spec == self._selected
        return len(others) < limit or (beside and len(others) == len(staying) == limit)

    def _live(self, runner: Runner) -> NoReturn:
        """Spawn, load, probe, serve. Ends in `Died`, or in the error that the runner gave in place of `Ready`."""
        process = RunnerProcess(self._command, runner.spec, self._run_dir, limits_of(self.settings))
        try:
            with self._changed:
                self._refuse_when_draining()
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
            self._watch(runner, process)
            raise Died(process.reason())
        finally:
            process.bury()

    def _watch(self, runner: Runner, process: RunnerProcess) -> None:
        """Until the process has ended: look after its progress, and after its end when it was told to end."""
        limit = self.settings.stall_timeout or math.inf
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
            with self._changed:
                runner.stats = stats or runner.stats
                complaint = dog.complaint(stats, time.monotonic())
                runner.stalled_since = dog.stalled_since
            if complaint:
                log.error("%s (pid %s): %s; killing it", runner.name, process.pid, complaint)
                process.kill(f"killed by the watchdog: {complaint}")

    def _refused(self, runner: Runner, error: ParleyError) -> None:
        """No runner came of it. What a runner itself said would be said again: that is kept for a while."""
        with self._changed:
            log.error("%s cannot be loaded: %s", runner.name, error.message)
            runner.refused(failed_of(error), time.monotonic(), lasting=runner.process is not None)
            self._changed.notify_all()

    def _died(self, runner: Runner, reason: str) -> None:
        with self._changed:
            if runner.ending:
                log.info("%s was unloaded", runner.name)
                runner.ended()
            elif (pause := runner.died(reason, time.monotonic())) is None:
                assert runner.error
                log.error("%s", runner.error.message)
            else:
                log.error("the runner of %s died: %s; it may be loaded again in %.1f s", runner.name, reason, pause)
            self._changed.notify_all()


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
