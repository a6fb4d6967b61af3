"""All replicas of one model as one spec has it: who uses them, who gets which, and how long they stay loaded.

No process is touched here. All methods are called under the supervisor's lock and take the time as `now` (monotonic
seconds).
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

import msgspec

from services.engine.states import ENDED, FAILED, LOADING, READY, RETIRING, Runner, Timing
from services.wire import RunnerSpec, RunnerState

HOMES = 4096            # sessions whose replica is remembered


@dataclass(eq=False)
class Fleet:
    spec: RunnerSpec
    timing: Timing
    runners: list[Runner]           # never empty
    keep: float = 0.0               # as the last Ensure said
    claims: int = 0                 # callers that wait to select it: it may be loaded beside a full house
    waiters: int = 0
    users: Counter[str] = field(default_factory=Counter)            # affinity -> leases
    homes: OrderedDict[str, Runner] = field(default_factory=OrderedDict)    # affinity -> the last one that served it

    @classmethod
    def of(cls, spec: RunnerSpec, timing: Timing, replicas: int) -> Fleet:
        return cls(spec, timing, [Runner(spec, timing, number) for number in range(replicas)])

    # ------------------------------------------------------------ what others ask

    @property
    def name(self) -> str:
        return self.runners[0].name

    @property
    def lead(self) -> Runner:
        """The one that a caller waits for when none is ready."""
        return next((runner for runner in self.runners if runner.state != FAILED), self.runners[0])

    @property
    def leases(self) -> int:
        return sum(runner.leases for runner in self.runners)

    @property
    def loaded(self) -> list[Runner]:
        return [runner for runner in self.runners if runner.loaded]

    @property
    def used_at(self) -> float:
        return max(runner.used_at for runner in self.runners)

    def idle(self) -> bool:
        """Whether it could be unloaded without anybody noticing."""
        return not self.waiters and not self.leases and all(
            runner.state in (READY, RETIRING) for runner in self.loaded)

    def ending(self) -> bool:
        return all(runner.ending for runner in self.loaded)

    def abandoned(self) -> bool:
        """Whether all that there is of it are loads that nobody waits for any more."""
        return not self.waiters and not self.leases and all(runner.state == LOADING for runner in self.loaded)

    def helped(self, runner: Runner) -> bool:
        """Whether another one serves while `runner` does not."""
        return any(other.usable() for other in self.runners if other is not runner)

    def remembered(self, now: float) -> bool:
        return any(runner.driven or runner.remembered(now) for runner in self.runners)

    def patience(self, load_on_fly: bool) -> float:
        """Seconds without use after which it goes, unless it is pinned."""
        at_once = load_on_fly or any(runner.state == RETIRING for runner in self.runners)
        return self.keep or (0.0 if at_once else self.timing.idle)

    def report(self, selected: bool, patience: float, now: float) -> list[RunnerState]:
        """How its runners are, those that serve first. `patience`: infinite when it does not go by itself."""
        busy = self.leases or self.waiters or patience == math.inf
        left = None if busy else max(0.0, self.used_at + patience - now)
        users = self.users[""] + len(self.users.keys() - {""})      # who does not say who it is counts by itself
        there = [runner for runner in self.runners if runner.state != ENDED and (runner.attempt or not runner.number)]
        return [msgspec.structs.replace(runner.report(selected, now), users=users, unload_seconds=left)
                for runner in sorted(there, key=lambda runner: not runner.usable())]

    # ------------------------------------------------------------ leases

    def choose(self, affinity: str) -> Runner | None:
        """The ready one with the fewest leases; the one that served this `affinity` last, while it has a slot free."""
        ready = [runner for runner in self.runners if runner.usable()]
        if not ready:
            return None
        home, fewest = self.homes.get(affinity), min(ready, key=lambda runner: runner.leases)
        if home in ready and home.leases < max(self.spec.parallel, fewest.leases + 1):
            return home
        return fewest

    def take(self, runner: Runner, affinity: str) -> None:
        runner.leases += 1
        self.users[affinity] += 1
        if affinity and len(self.runners) > 1:
            self.homes[affinity] = runner
            self.homes.move_to_end(affinity)
            if len(self.homes) > HOMES:
                self.homes.popitem(last=False)

    def give_back(self, runner: Runner, affinity: str, now: float) -> None:
        runner.leases -= 1
        runner.used_at = now
        self.users[affinity] -= 1
        self.users += Counter()             # forgets those at 0
        assert runner.leases >= 0
