"""How many threads a decode gets: found by measuring, for the machine may be shared.

llama.cpp's threads wait for each other some hundred times a step. When something else runs on one of their cores, all
wait for the one that has none, and fewer threads are faster, sometimes by far. Nothing tells reliably beforehand
how many (affinity, quotas, other containers, hyperthreads, the model's width), so now and then a step is made with
another number, and the fastest stays. What such trials cost is counted and bounded. Several runners on one machine
settle by themselves: each takes what is best for it beside the others.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

CALM = 0.015            # share of the time that trials may cost
EAGER = 0.1             # the same once steps have become slower or faster than they were at the last trial
CHANGED = 1.25          # by this factor
BETTER = 0.95           # another number of threads is taken at this share of the time of the one in use
NEW = 0.1               # weight of a step in the running mean of the number in use
TRIED = 0.5             # of a trial, which there are few of
TRIAL = 2               # steps of a trial; the first pays for threads that begin or end, and is not compared
LONG = 0.1              # seconds of a step beside which threads that begin or end are nothing: its trials are of one
HOPELESS = 2.0          # a trial whose first step takes so much longer is over
SETTLED = 8             # steps before the first trial: the first ones of a process also pay for its memory
CGROUPS = Path("/sys/fs/cgroup")


class Governor:
    """Chooses the threads of each decode, `most` at most. Ask `choose` before it and tell what it took after it."""

    def __init__(self, most: int) -> None:
        assert most > 0
        self._ladder = ladder(most)
        self._sizes: dict[int, _Size] = {}

    def choose(self, tokens: int) -> int:
        """Threads for a batch of `tokens`."""
        assert tokens > 0
        return self._size(tokens).choose()

    def told(self, threads: int, tokens: int, seconds: float) -> None:
        """What a decode of `tokens` with these threads took."""
        self._size(tokens).told(threads, seconds / tokens, seconds > LONG)

    def _size(self, tokens: int) -> _Size:
        """Batches of about one size have an optimum of their own: the larger, the less the waiting counts."""
        size = tokens.bit_length()
        if size not in self._sizes:
            self._sizes[size] = _Size(self._ladder)
        return self._sizes[size]


class _Size:
    """What is known about batches of about one size. Times are seconds a token."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers, self.best = numbers, numbers[-1]
        self.mean: dict[int, float] = {}
        self.usual = 0.0                # the mean of the best at the last trial
        self.debt = 0.0                 # what trials have cost and steps since have not yet paid for
        self.turn = 0                   # counts trials: the neighbours take turns
        self.trying: int | None = None
        self.left = SETTLED             # steps until the running trial, or the settling, is over

    def choose(self) -> int:
        return self.best if self.trying is None else self.trying

    def told(self, threads: int, seconds: float, long: bool = False) -> None:
        if threads != self.choose():
            return                      # a decode that was chosen for before another one was told
        self.left = max(0, self.left - 1)
        if self.trying is not None:
            self._tried(self.trying, seconds)
        elif self.best not in self.mean or self.left:
            self.mean[self.best] = min(seconds, self.mean.get(self.best, math.inf))
        else:
            self.mean[self.best] += NEW * (seconds - self.mean[self.best])
            self._pay(seconds, 1 if long else TRIAL)

    def _pay(self, seconds: float, trial: int) -> None:
        """A step with the best number pays for trials; the next one begins when there is no debt."""
        now = self.mean[self.best]
        changed = not self.usual / CHANGED < now < self.usual * CHANGED
        self.debt -= seconds * (EAGER if changed else CALM)
        near = [n for n in self.numbers if n != self.best and self.best <= 2 * n <= 4 * self.best]
        if self.debt <= 0 and near:
            self.turn += 1
            self.trying, self.left = near[self.turn % len(near)], trial
            self.debt, self.usual = 0.0, now

    def _tried(self, number: int, seconds: float) -> None:
        """Take a trial's step to account; at its end the faster number goes on."""
        self.debt += seconds - self.mean[self.best]
        if self.left and seconds < HOPELESS * self.mean[self.best]:
            return
        before = self.mean.get(number, seconds)
        self.mean[number] = before + TRIED * (seconds - before)
        self.trying = None
        if self.mean[number] < BETTER * self.mean[self.best]:
            self.best = number


def ladder(most: int) -> list[int]:
    """The numbers of threads worth trying, ascending: all but one (for a machine with one other job), three quarters,
    and halves down to one."""
    numbers = {most, max(1, most - 1), max(1, most * 3 // 4)}
    while most:
        numbers.add(most)
        most //= 2
    return sorted(numbers)


def cores(root: Path = CGROUPS, groups: Path = Path("/proc/self/cgroup")) -> int:
    """Cores that this process may use: by affinity, and by the CPU quotas of its control groups (Linux, version 1 and
    2), rounded down, since a thread without quota stops all that wait for it."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(min(_quotas(root, groups), default=allowed))))


def _quotas(root: Path, groups: Path) -> list[float]:
    """Cores granted by each control group on the way from this process's up to the root, where one is set.

    A container sees its own group at the root, whatever path it is told (man 7 cgroup_namespaces).
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return []                       # no Linux, no control groups
    quotas = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        for folder in (Path(path), *Path(path).parents):
            inside = root / ("cpu" if controllers else "") / folder.relative_to("/")
            quotas += _quota(inside)
    return quotas


def _quota(folder: Path) -> list[float]:
    """The quota of one control group in cores; nothing where there is none."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        try:
            quota, period = " ".join((folder / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue                    # not this version, or not readable from in here
        if quota not in ("max", "-1"):
            return [int(quota) / int(period)]
    return []
