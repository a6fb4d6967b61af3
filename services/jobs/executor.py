"""Takes jobs from the queue and has them done: so many at once, each in a thread of its own.

    run: beat (signs of life, timeouts) → every few seconds: lost jobs, expired ones → take → a thread → end it

One thread, that of `run`, talks of life and death; a job's thread only works and says how it ended. What is asked of a
handler: to call `tell(done, total)` about every second, and to let through what that raises.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from services.errors import (
    ParleyError,
    QuotaSpent,
    RunnerCrashed,
    SessionBusy,
    StorageFull,
    TooManyRequests,
    Unavailable,
)
from services.store.jobs import CALLBACK, ERROR, MAX_ATTEMPTS, SUCCESS, Job, JobLost, JobStore

log = logging.getLogger("parley.jobs")
Tell = Callable[[int, int], None]               # chunks done, chunks in all; raises when the work is to stop
Handler = Callable[[Job, Tell], Any]            # the job's result, a JSON value; ParleyError when there is none
CALLBACKS = 2               # deliveries at once, beside the jobs
SUSPECT = 3                 # the attempt from which on a job runs alone: others shall not die with it
BUSY_WAIT = 60.0            # seconds at most between two attempts of what could not be begun
PATIENCE = 3600.0           # seconds after which a job that could not be begun is given up
STUCK = 4                   # exit status: a handler hangs, which nothing but the end of its process ends
REMEMBERED = 10_000         # jobs that could not be begun


class Later(Exception):
    """A handler's: not now, but in `delay` seconds anew. `counted`: as an attempt, of which there are so many. `back`:
    behind the jobs that wait now."""

    def __init__(self, delay: float, counted: bool = True, back: bool = False) -> None:
        super().__init__(f"again in {delay:g} s")
        self.delay, self.counted, self.back = delay, counted, back


class TimedOut(JobLost):
    """This attempt has taken too long, and was ended."""


@dataclass(frozen=True)
class Rules:
    """How jobs are run. Times in seconds."""

    concurrency: int = 5
    timeout: float = 300.0      # of one attempt
    untimed: frozenset[str] = frozenset()   # types whose handlers see to their time themselves
    lease: float = 30.0         # without a sign of life, after which others take a job
    beat: float = 3.0           # between two of them
    house: float = 5.0          # between two looks for lost and expired jobs
    look: float = 1.0           # between two looks at everything
    stuck: float = 30.0         # that a handler may take to notice that it is to stop
    attempts: int = MAX_ATTEMPTS


@dataclass
class Run:
    """One attempt."""

    job: Job
    began: float                        # monotonic, as all times here
    beaten: float                       # when its last sign of life was given
    progress: tuple[int, int] = (0, 0)  # chunks done, chunks in all
    over: float | None = None           # since when it is to stop
    late: bool = False                  # it took too long
    thread: threading.Thread | None = None
    gone: threading.Event = field(default_factory=threading.Event)

    def tell(self, done: int, total: int) -> None:
        self.progress = (done, total)
        if self.gone.is_set():
            raise (TimedOut if self.late else JobLost)(self.job.id)

    def stop(self) -> None:
        self.over = self.over or time.monotonic()
        self.gone.set()


class Executor:
    """`handlers` by type of job. `worker`: a name that no other executor has, but this one after a restart."""

    def __init__(self, store: JobStore, handlers: Mapping[str, Handler], worker: str, rules: Rules = Rules()) -> None:
        self._store = store
        self._handlers = dict(handlers)
        self._worker = worker
        self._rules = rules
        self._runs: list[Run] = []
        self._suspect: Run | None = None        # taken, waits until it is alone
        self._refused: dict[int, float] = {}    # jobs that could not be begun by their numbers: since when
        self._lock = threading.Lock()           # guards _refused
        self._housed = float("-inf")
        self._drain = 0.0
        self._stopping = threading.Event()
        self._trouble = ""                      # what is wrong with the store, once told

    def run(self) -> bool:
        """Until `stop`. False when it ended because a handler hangs: the process is to end, which ends that."""
        self._recover()
        while not self._stopping.is_set() and not self._stuck():
            self._patiently(self.step)
        began = time.monotonic()
        while any(not run.over for run in self._runs) and time.monotonic() - began < self._drain:
            self._patiently(self._beat)
            self._settle(0.05)
        self._give_back()
        return not self._stuck()

    def stop(self, drain: float) -> None:
        """Take no more; running jobs have `drain` seconds to end, then they go back to the front of the queue. From any
        thread, and again with another patience."""
        self._drain = drain
        self._stopping.set()

    def step(self) -> None:
        """One look at everything; waits for work or for a free place, at most `Rules.look`."""
        self._beat()
        if time.monotonic() - self._housed >= self._rules.house:
            self._keep_house()
        if not self._take():
            if self._types():
                self._store.wait(self._rules.look)
            else:
                self._settle(self._rules.look)

    # ------------------------------------------------------------ signs of life

    def _beat(self) -> None:
        self._runs = [run for run in self._runs
                      if (run.over is None if run.thread is None else run.thread.is_alive())]
        now = time.monotonic()
        for run in self._runs:
            if self._takes_long(run, now):
                self._time_out(run)
            elif run.over is None and now - run.beaten >= self._rules.beat:
                self._renew(run, now)

    def _takes_long(self, run: Run, now: float) -> bool:
        timed = run.over is None and run.thread is not None and run.job.type not in self._rules.untimed
        return timed and now - run.began > self._rules.timeout

    def _renew(self, run: Run, now: float) -> None:
        try:
            self._store.renew(run.job, self._rules.lease, *run.progress)
            run.beaten = now
        except JobLost:
            run.stop()

    def _time_out(self, run: Run) -> None:
        log.warning("job %s of %s takes more than %g s: given up", run.job.id, run.job.owner, self._rules.timeout)
        try:
            self._store.finish(run.job, ERROR, "Job timed out", "job_timeout")
            run.late = True
        except JobLost:
            pass                            # it ended just now, or somebody else has it
        run.stop()

    def _stuck(self) -> bool:
        now = time.monotonic()
        return any(run.over is not None and now - run.over > self._rules.stuck for run in self._runs
                   if run.thread is not None and run.thread.is_alive())

    def _keep_house(self) -> None:
        if (lost := self._store.requeue_lost(most=self._rules.attempts)):
            log.warning("%d jobs whose executors died go on", lost)
        self._store.sweep()
        self._housed = time.monotonic()

    # ------------------------------------------------------------ taking

    def _types(self) -> list[str]:
        """Of what kinds there is a free place."""
        calling = sum(run.job.type == CALLBACK for run in self._runs)
        alone = any(run.job.attempts >= SUSPECT and run.job.type != CALLBACK for run in self._runs)
        free = len(self._runs) - calling < self._rules.concurrency and not alone
        return [type for type in self._handlers if (calling < CALLBACKS if type == CALLBACK else free)]

    def _take(self) -> bool:
        """Begin one job; whether one was there."""
        if self._suspect is not None and all(run is self._suspect or run.job.type == CALLBACK for run in self._runs):
            if self._suspect.over is None:
                self._start(self._suspect)
            self._suspect = None
        types = self._types()
        job = self._store.take(self._worker, types, self._rules.lease) if types else None
        if job is None:
            return False
        now = time.monotonic()
        run = Run(job, began=now, beaten=now)
        self._runs.append(run)
        if job.attempts >= SUSPECT and job.type != CALLBACK:
            self._suspect = run
        else:
            self._start(run)
        return True

    def _start(self, run: Run) -> None:
        run.began = time.monotonic()
        run.thread = threading.Thread(target=self._work, args=(run,), name=f"job {run.job.id}", daemon=True)
        run.thread.start()

    # ------------------------------------------------------------ a job's own thread

    def _work(self, run: Run) -> None:
        try:
            result = self._handlers[run.job.type](run.job, run.tell)
            if any(run.progress):
                self._say(run, partial(self._store.renew, run.job, self._rules.lease, *run.progress))
            self._say(run, partial(self._store.finish, run.job, SUCCESS, result))
        except JobLost:
            log.info("job %s of %s was stopped", run.job.id, run.job.owner)
        except Later as later:
            self._say(run, partial(self._store.release, run.job, later.delay, counted=later.counted, back=later.back))
        except ParleyError as error:
            self._failed(run, error)
        except Exception as error:
            log.exception("job %s of %s failed", run.job.id, run.job.owner)
            self._fail(run, f"an error of the server ({type(error).__name__}), which its log tells of", None)

    def _failed(self, run: Run, error: ParleyError) -> None:
        """Try again what may go better: at once counted where the job itself may be why, else when there is room."""
        job = run.job
        if self._stopping.is_set() and isinstance(error, Unavailable):
            self._say(run, partial(self._store.release, job))       # the engine ends, too
            return
        if isinstance(error, RunnerCrashed):
            delay = 2.0 ** job.attempts if job.attempts < self._rules.attempts else None
        elif isinstance(error, Unavailable | TooManyRequests | SessionBusy) and not isinstance(error, QuotaSpent):
            waited = self._waited(job)
            delay = min(max(error.retry_after or 1.0, waited / 5), BUSY_WAIT) if waited < PATIENCE else None
        else:
            delay = None
        if delay is None:
            self._fail(run, error.message, error.code)
            return
        log.info("job %s of %s is tried again in %.0f s: %s", job.id, job.owner, delay, error.message)
        counted = isinstance(error, RunnerCrashed)
        self._say(run, partial(self._store.release, job, delay, counted=counted))

    def _waited(self, job: Job) -> float:
        """Seconds since this executor could not begin the job for the first time: how long it stood in the queue is no
        reason to give it up."""
        now = time.monotonic()
        with self._lock:
            if len(self._refused) >= REMEMBERED and job.number not in self._refused:
                del self._refused[next(iter(self._refused))]
            return now - self._refused.setdefault(job.number, now)

    def _fail(self, run: Run, reason: str, code: str | None) -> None:
        self._say(run, partial(self._store.finish, run.job, ERROR, reason, code or ParleyError.code))

    def _say(self, run: Run, act: Callable[[], object]) -> None:
        """How it ended shall not be lost while the store is away for a moment: said until it is heard."""
        while not run.gone.is_set():
            try:
                act()
                return
            except JobLost:
                return
            except (Unavailable, StorageFull) as error:
                self._tell_trouble(error)
                run.gone.wait(self._rules.look)

    # ------------------------------------------------------------ beginning and end

    def _recover(self) -> None:
        """What this worker had in an earlier life goes on."""
        while not self._stopping.is_set():
            try:
                if (lost := self._store.requeue_worker(self._worker, self._rules.attempts)):
                    log.warning("%d jobs that were broken off go on", lost)
                return
            except (Unavailable, StorageFull) as error:
                self._tell_trouble(error)
                self._stopping.wait(self._rules.look)

    def _give_back(self) -> None:
        for run in self._runs:
            if run.over is None:
                run.stop()
                try:
                    self._store.release(run.job)
                except JobLost:
                    continue                # it ended at the last moment
                except (Unavailable, StorageFull) as error:
                    log.warning("job %s cannot be given back (%s): others take it in %g s", run.job.id, error.message,
                                self._rules.lease)

    def _settle(self, seconds: float) -> None:
        """Until a running job ends, at most so long."""
        until = time.monotonic() + seconds
        while all(run.thread is None or run.thread.is_alive() for run in self._runs) and time.monotonic() < until:
            time.sleep(0.02)

    def _patiently(self, act: Callable[[], None]) -> None:
        try:
            act()
            if self._trouble:
                log.warning("the queue works again")
                self._trouble = ""
        except (Unavailable, StorageFull) as error:
            self._tell_trouble(error)
            self._stopping.wait(self._rules.look)

    def _tell_trouble(self, error: ParleyError) -> None:
        if error.code != self._trouble:
            self._trouble = error.code
            log.error("the queue does not work: %s", error.message)
