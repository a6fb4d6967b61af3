"""What the supervisor knows of one runner, and the rules by which it decides. No process is touched here.

    loading ──> ready ──> retiring ──> (gone)        another one was selected; or unused for long, or for another's room
       │          │
       └──────────┴─> crashed ──> loading            by itself when selected or kept, else when somebody asks
                         └──────> failed             too many deaths, or a model that cannot be loaded

All methods are called under the supervisor's lock and take the time as `now` (monotonic seconds).
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from services.engine.machine import Use
from services.engine.process import RunnerProcess
from services.wire import Failed, Ready, RunnerAt, RunnerSpec, RunnerState, Stats

LOADING, READY, RETIRING, CRASHED, FAILED = "loading", "ready", "retiring", "crashed", "failed"
ENDED = "ended"         # its process was ended on purpose; the entry goes unless somebody waits for it


@dataclass(frozen=True)
class Timing:
    """Seconds, unless it says otherwise. Tests shorten them."""

    first_pause: float = 0.2        # before a dead runner is loaded again; doubles with every death
    longest_pause: float = 5.0
    deaths: int = 5                 # this many ...
    window: float = 60.0            # ... within this time and it is given up
    retry: float = 60.0             # after which a failed one is tried again, on request
    idle: float = 300.0             # one that is neither selected nor kept stays loaded after its last use
    load: float = 900.0             # a load may take, probe included
    room: float = 30.0              # a load waits for a busy runner to become idle
    grace: float = 8.0              # from SIGTERM to SIGKILL: last words and last snapshots take 5 at most
    watch: float = 2.0              # between two looks of the watchdog


def fingerprint(path: str) -> tuple[int, int, int] | None:
    """What changes when a model file is replaced; None when there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@dataclass(eq=False)
class Runner:
    """One replica's state. A thread (`driver.py`) drives it while it has a process or should have one."""

    spec: RunnerSpec
    timing: Timing
    number: int = 0                 # among the replicas of its spec
    state: str = LOADING
    leases: int = 0
    used_at: float = 0.0
    driven: bool = False
    loaded: bool = False            # takes room: from the grant of it until the process is gone
    estimate: int = 0               # bytes that it was expected to take when it got its room
    use: Use | None = None          # of memory, as last measured
    measured_at: float = -math.inf
    ending: bool = False            # its process was told to end
    process: RunnerProcess | None = None
    ready: Ready | None = None
    stats: Stats | None = None
    stalled_since: float | None = None      # as the watchdog saw it last
    attempt: int = 0                # loads begun
    failed_attempt: int = 0         # the last load that gave no runner
    error: Failed | None = None     # why it did not
    deaths: list[float] = field(default_factory=list)
    restarts: int = 0
    fate: tuple[str, Failed] | None = None  # the address of its process that died last, and how
    retry_at: float = 0.0           # not loaded again before
    may_retry_at: float = 0.0       # a failed one is not tried again before, unless its file changes
    file: tuple[int, int, int] | None = None        # the model file when it failed

    # ------------------------------------------------------------ what others ask

    @property
    def name(self) -> str:
        return os.path.basename(self.spec.model)

    def usable(self) -> bool:
        """Whether a lease may be given now. Asks the process too: its death may not have been noticed yet."""
        return (self.state in (READY, RETIRING) and not self.ending
                and self.process is not None and self.process.alive())

    def awaited(self) -> int:
        """The attempt whose end a newcomer waits for: the one in progress, else the next."""
        return self.attempt if self.state == LOADING and self.attempt else self.attempt + 1

    def hopeless(self, attempt: int) -> Failed | None:
        """Why somebody who waits for `attempt` waits in vain; None while there is hope."""
        return self.error if self.state == FAILED or self.failed_attempt >= attempt else None

    def takes(self) -> int:
        """Bytes that it has to be given: while it loads, at least what it is expected to take in the end."""
        measured = self.use.total if self.use else 0
        return measured if measured and self.state in (READY, RETIRING) else max(measured, self.estimate)

    def may_retry(self, now: float) -> bool:
        return self.state == FAILED and (now >= self.may_retry_at or fingerprint(self.spec.model) != self.file)

    def remembered(self, now: float) -> bool:
        """Whether what it did still counts: its deaths, or that its model could not be loaded."""
        if self.state == CRASHED:
            return any(now - at < self.timing.window for at in self.deaths)
        return self.state == FAILED and now < self.may_retry_at

    def report(self, selected: bool, now: float) -> RunnerState:
        reason = self.error.message if self.error and self.state in (LOADING, CRASHED, FAILED) else None
        pid = self.process.pid if self.process else None
        stalled = 0.0 if self.stalled_since is None else now - self.stalled_since
        return RunnerState(spec=self.spec, state=self.state, selected=selected, pid=pid, leases=self.leases,
                           restarts=self.restarts, reason=reason, stats=self.stats, stalled_seconds=stalled,
                           replica=self.number, estimated_bytes=self.estimate,
                           memory_bytes=self.use.total if self.use else 0)

    # ------------------------------------------------------------ what happened to it

    def begin(self) -> None:
        """A load begins."""
        self.attempt += 1
        self.restarts += bool(self.deaths)
        self.state = LOADING

    def forgive(self) -> None:
        """A failed one gets another chance."""
        self.state, self.retry_at = CRASHED, 0.0
        self.deaths.clear()

    def serves(self, ready: Ready, now: float) -> None:
        assert self.process and self.state == LOADING
        self.ready, self.state, self.error, self.used_at = ready, READY, None, now

    def measured(self, use: Use | None, now: float) -> None:
        self.use, self.measured_at = use, now

    def refused(self, error: Failed, now: float, *, lasting: bool) -> None:
        """The load gave an error in place of a runner. `lasting`: it would do so again with the same file."""
        self._gone()
        self.state, self.error, self.failed_attempt = FAILED, error, self.attempt
        self.file = fingerprint(self.spec.model)
        self.may_retry_at = now + self.timing.retry if lasting else now

    def ended(self) -> None:
        self._gone()
        self.state, self.retry_at = ENDED, 0.0

    def end(self) -> None:
        """Tell its process to end, if it has one; its own thread sees to it that it does."""
        if self.process and not self.ending:
            self.ending = True
            self.process.terminate()

    def died(self, reason: str, now: float, code: str = "runner_crashed") -> float | None:
        """Its process died by itself. Seconds until it may be loaded again; None: given up."""
        while_loading = self.state == LOADING
        if self.process:
            text = f"the runner of {self.name} died: {reason}"
            self.fate = self.process.address, Failed(code=code, message=text, retry_after=1)
        if not while_loading:       # what dies in each load is given up however long a load takes
            self.deaths = [at for at in self.deaths if now - at < self.timing.window]
        self.deaths.append(now)
        self._gone()
        if len(self.deaths) >= self.timing.deaths:
            text = (f"the runner of {self.name} died {len(self.deaths)} times in a short time and is not started "
                    f"again for now; the last time: {reason}")
            self.refused(Failed(code="runner_failed", message=text, retry_after=self.timing.retry), now, lasting=True)
            return None
        when = " while loading" if while_loading else ""
        self.state = CRASHED
        self.error = Failed(code=code, retry_after=1,
                            message=f"the runner of {self.name} died{when}: {reason}")
        if while_loading:
            self.failed_attempt = self.attempt
        pause = min(self.timing.first_pause * 2 ** (len(self.deaths) - 1), self.timing.longest_pause)
        self.retry_at = now + pause
        return pause

    def _gone(self) -> None:
        self.process = self.ready = self.stats = self.stalled_since = None
        self.loaded = self.ending = False
        self.measured(None, -math.inf)


class Lease:
    """The right to use a runner: it is not ended before `release`, which may be called more than once."""

    def __init__(self, at: RunnerAt, release: Callable[[], None]) -> None:
        self.at = at
        self._release: Callable[[], None] | None = release
        self._lock = threading.Lock()

    def release(self) -> None:
        with self._lock:
            release, self._release = self._release, None
        if release:
            release()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Watchdog:
    """Judges one runner by its progress, as seen from outside: an open socket says nothing.

    Counted is only the time in which it was seen to have work, so a request that comes after a long rest is no stall.
    Until it has moved on for the first time it gets `FIRST` times the limit: of a model of experts, say, the probe's
    one token read only some from the disk, and the first prompt needs them all.
    """

    FIRST = 4

    def __init__(self, limit: float, now: float) -> None:
        self.limit = limit
        self.answered_at = now
        self.progress_at = now
        self.stalled_since: float | None = None     # its last progress or sign of life; None while it rests
        self._at_first: int | None = None           # tokens done when it was first seen
        self._moved = False

    def complaint(self, stats: Stats | None, now: float) -> str | None:
        """Why the runner must go, after it answered `stats` (None: it did not answer); None when all is well."""
        if stats is None:
            self.stalled_since, what = self.answered_at, "no sign of life for {:g} s"
        else:
            self._look(stats, now)
            what = "no progress for {:g} s with work to do"
        limit = self.limit if self._moved else self.limit * self.FIRST
        late = self.stalled_since is not None and now - self.stalled_since > limit
        return what.format(limit) + " (STALL_TIMEOUT)" if late else None

    def _look(self, stats: Stats, now: float) -> None:
        tokens = stats.prompt_tokens + stats.completion_tokens + stats.prepared_tokens
        self._at_first = tokens if self._at_first is None else self._at_first
        self._moved = self._moved or tokens > self._at_first
        working = bool(stats.running or stats.waiting)
        self.answered_at = now
        self.progress_at = max(self.progress_at, now - stats.idle_seconds) if working else now
        self.stalled_since = self.progress_at if working else None
