"""Which models there are, which one is selected, which stay and which go: what the supervisor's threads share.

Everything here is guarded by `changed`, the supervisor's one lock.
"""

from __future__ import annotations

import logging
import math
import threading
import time

from services.engine.fleet import Fleet
from services.engine.machine import use_of
from services.engine.room import Tenant
from services.engine.states import READY, RETIRING, Runner, Timing
from services.errors import Unavailable
from services.wire import RunnerSpec, RunnerState

FRESH = 3.0             # seconds that a runner's measured memory is taken for true
log = logging.getLogger("parley.engine")


class Fleets:
    """`load_on_fly`: no model stays for being selected, and each goes as soon as nobody uses it."""

    def __init__(self, timing: Timing, replicas: int = 1, load_on_fly: bool = False) -> None:
        self.changed = threading.Condition()
        self.timing = timing
        self.selected: RunnerSpec | None = None
        self.drain_until = math.inf             # monotonic; finite once draining
        self._replicas = replicas
        self._load_on_fly = load_on_fly
        self._all: dict[RunnerSpec, Fleet] = {}

    def runners(self) -> list[Runner]:
        return [runner for fleet in list(self._all.values()) for runner in fleet.runners]

    def report(self) -> list[RunnerState]:
        now = time.monotonic()
        return [state for spec, fleet in self._all.items()
                for state in fleet.report(spec == self.selected, self._patience(fleet), now)]

    # ------------------------------------------------------------ which there are

    @property
    def draining(self) -> bool:
        return self.drain_until < math.inf

    def refuse_when_draining(self) -> None:
        if self.draining:
            raise Unavailable("the server is stopping: ask again when it is back", code="draining")

    def enlist(self, spec: RunnerSpec) -> Fleet:
        for fleet in list(self._all.values()):
            self.forget(fleet)
        if spec not in self._all:
            self._all[spec] = Fleet.of(spec, self.timing, self._replicas)
        return self._all[spec]

    def forget(self, fleet: Fleet) -> None:
        """Strike it off the list when it has no thread, nobody wants it, and its past has no bearing any more."""
        if not (fleet.waiters or self.pinned(fleet) or fleet.remembered(time.monotonic())):
            self._all.pop(fleet.spec, None)

    # ------------------------------------------------------------ which stay

    def pinned(self, fleet: Fleet) -> bool:
        """Whether it stays, however long nobody uses it, and comes back by itself."""
        return fleet.keep == math.inf or (fleet.spec == self.selected and not self._load_on_fly)

    def keep(self, spec: RunnerSpec, keep: float) -> None:
        """Have what there is of `spec` stay for so many seconds without use; see `Fleet.keep`."""
        if fleet := self._all.get(spec):
            fleet.keep = keep
            self.end_if_done(fleet)

    def wanted(self, fleet: Fleet, runner: Runner) -> bool:
        """Whether `runner` should be loaded: all replicas are, as long as one serves."""
        return self.pinned(fleet) or fleet.waiters > 0 or fleet.helped(runner)

    def select(self, fleet: Fleet) -> None:
        if self.selected == fleet.spec:
            return
        old = self._all.get(self.selected) if self.selected else None
        self.selected = fleet.spec
        log.info("selected: %s", fleet.name)
        if old and not old.keep:
            for runner in old.runners:
                runner.state = RETIRING if runner.state == READY else runner.state
            self.end_if_done(old)
        self.changed.notify_all()

    def _patience(self, fleet: Fleet) -> float:
        return math.inf if self.pinned(fleet) else fleet.patience(self._load_on_fly)

    def end_if_done(self, fleet: Fleet) -> None:
        """Unload it when nobody has used it for as long as it is to stay."""
        if fleet.idle() and time.monotonic() - fleet.used_at >= self._patience(fleet):
            self.end(fleet)

    def end_if_abandoned(self, fleet: Fleet) -> None:
        """Give a load up that the last of its callers does not wait for."""
        if fleet.abandoned() and not self.pinned(fleet):
            self.end(fleet)
            self.changed.notify_all()

    @staticmethod
    def end(fleet: Fleet) -> None:
        """Tell its processes to end; their own threads see to it that they do."""
        for runner in fleet.runners:
            runner.end()

    # ------------------------------------------------------------ which go for another

    def tenants(self, fleet: Fleet) -> tuple[list[Tenant], int, int]:
        """The models that are loaded beside `fleet`; the bytes that its own runners take; and those that only the end
        of a runner gives back."""
        tenants, held, own = [], 0, 0
        for other in self._all.values():
            for runner in other.loaded:
                self._measure(runner)
                own += runner.use.own if runner.use else 0
            taken = sum(runner.takes() for runner in other.loaded)
            if other is fleet:
                held = taken
            elif other.loaded:
                tenants.append(Tenant(other.spec, taken, other.leases, other.used_at, pinned=self.pinned(other),
                                      idle=other.idle(), ending=other.ending()))
        return tenants, held, own

    @staticmethod
    def _measure(runner: Runner) -> None:
        """For one that loads, which nobody else measures. It takes some time for a large one, so not each time."""
        now = time.monotonic()
        if now - runner.measured_at > FRESH and runner.process and runner.process.pid:
            runner.measured(use_of(runner.process.pid), now)

    def evict(self, tenant: Tenant) -> None:
        self.end(self._all[tenant.spec])
