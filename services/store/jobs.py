"""Jobs: work that nobody waits for. The contract of the queue; SQLite and Redis keep it (`jobs_sqlite`, `jobs_redis`).

A job is pending → running → success | error, or cancelled before it ended. It ends exactly once: every `take` counts
its `fence` up, and only who holds the newest one may end it. A failed one is kept as a dead letter, which may be put
into the queue once more: its fence counts on. Who took it shows by `renew` that it lives; a job that
shows nothing for the time of its lease is lost, and goes back to the front of the queue.

Order within a priority: between owners in turns, of one owner the oldest first. Ids are an owner's own.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from services.errors import BadRequest, Conflict, Gone, NotFound, TooManyRequests, Unavailable
from services.store.crypto import Seals

log = logging.getLogger("parley.jobs")

PENDING, RUNNING, SUCCESS, ERROR, CANCELLED = STATES = ("pending", "running", "success", "error", "cancelled")
ENDED = (SUCCESS, ERROR, CANCELLED)
NORMAL, HIGH = PRIORITIES = ("normal", "high")
CALLBACK = "callback"       # the type of jobs that tell a URL of another job's end; not shown among an owner's jobs
MAX_ATTEMPTS = 5            # of a job whose executors die, then it is given up
MAX_DELAY = 3600.0          # seconds that a job may wait for its next attempt; a clock that jumped back adds no more
FAILED_KEPT = 7 * 86400.0   # seconds that a failed job is kept
MAX_GAP = 10.0              # seconds between two looks at the running jobs that count as watched
KEY_PAUSE = 60.0            # seconds until a job is looked at again whose owner's data key is missing
PLAIN = "="                 # begins what is not sealed; no base64 does
PACKED = ("payload", "result", "callback")
Row = dict[str, Any]        # a job's fields, those of PACKED as texts or None
SECRET = ("0", "secret")    # the master's, under which no job can be: it has a type
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class JobLost(Exception):
    """This attempt may not go on: the job was cancelled, or counted as lost and given to another executor."""


@dataclass(frozen=True)
class Job:
    """`number` is the order of arrival, which no clock changes. Times are epoch seconds. `result` is a JSON value: of
    an error its text, with `code` as in `services.errors`. `callback`: {"url", "state": pending | delivered | failed,
    "error"} or None. `payload` is {} in lists."""

    owner: str
    type: str
    payload: dict[str, Any] = field(repr=False)
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    priority: str = NORMAL
    state: str = PENDING
    number: int = 0
    created: float = 0.0
    start: float | None = None          # of the newest attempt
    end: float | None = None
    expires: float | None = None        # when it goes, once it has ended
    attempts: int = 0                   # that count against MAX_ATTEMPTS; a stop of the server does not
    fence: int = 0                      # takes
    worker: str | None = None           # who took it last
    chunks_done: int = 0
    chunks_total: int = 0
    result: Any = field(default=None, repr=False)
    code: str | None = None
    callback: dict[str, Any] | None = field(default=None, repr=False)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def duration(self) -> float:
        """Seconds from start to end; 0.0 until it has ended (S1.16)."""
        return round(max(self.end - self.start, 0.0), 3) if self.end is not None and self.start is not None else 0.0


@dataclass(frozen=True)
class Sizes:
    """Jobs by where they stand. `delayed`: of the pending ones, those whose next attempt has to wait."""

    normal: int = 0
    high: int = 0
    delayed: int = 0
    running: int = 0
    dead: int = 0

    @property
    def pending(self) -> int:
        return self.normal + self.high


@dataclass(frozen=True)
class Limits:
    """`kept`: seconds that a job's result is kept after its end. `per_owner`: jobs of one key that wait or run."""

    kept: float = 1800.0
    failed_kept: float = FAILED_KEPT
    per_owner: int = 10_000


@dataclass(frozen=True)
class Pulse:
    """What a running job shows of its life: any change of `beat` is a sign. `lease`: seconds it may show none."""

    owner: str
    id: str
    fence: int
    beat: int
    lease: float


class JobStore(ABC):
    """Any thread may use it, and so may other processes. Raises `Unavailable` and `StorageFull`, besides what is said.

    `owner=None` in `get`, `all` and `cancel` means every owner's jobs: the master's view.
    """

    def __init__(self, cipher: Seals | None = None, limits: Limits = Limits()) -> None:
        self.codec = Codec(cipher)
        self.limits = limits
        self._silent: dict[Pulse, float] = {}   # of running jobs: seconds that they were watched and seen so
        self._looked = 0.0

    @abstractmethod
    def put(self, job: Job) -> Job:
        """Store a new pending job, durably; as it is stored. `Conflict` (`job_exists`), `TooManyRequests`
        (`too_many_jobs`), `BadRequest` for an id of other characters."""

    @abstractmethod
    def get(self, owner: str | None, id: str) -> Job:
        """`NotFound` (`job_not_found`). For None the newest of that id."""

    @abstractmethod
    def all(self, owner: str | None, *, states: Collection[str] = (), types: Collection[str] = (), limit: int = 100,
            before: int | None = None) -> list[Job]:
        """The newest first, without their payload; (): any state, any type. `before`: a job's number."""

    def take(self, worker: str, types: Collection[str], lease_seconds: float) -> Job | None:
        """The next job that may run, for `worker` alone, or None. What cannot be decrypted holds nobody up."""
        while (row := self._take(worker, types, lease_seconds)) is not None:
            try:
                return opened(row, self.codec)
            except ValueError:
                self.finish(bare(row), ERROR, *UNREADABLE)
            except Unavailable as error:
                log.error("job %s of %s waits: %s", row["id"], row["owner"], error.message)
                self.release(bare(row), KEY_PAUSE)
        return None

    @abstractmethod
    def _take(self, worker: str, types: Collection[str], lease_seconds: float) -> Row | None: ...

    @abstractmethod
    def renew(self, job: Job, lease_seconds: float, done: int = 0, total: int = 0) -> None:
        """A sign of life of an attempt, with its progress in chunks. `JobLost`."""

    @abstractmethod
    def finish(self, job: Job, state: str, result: Any = None, code: str | None = None) -> Job:
        """End the job, durably, and have its callback told, if it has one. Said again by the same attempt it changes
        nothing. `JobLost`."""

    @abstractmethod
    def cancel(self, owner: str | None, id: str) -> Job:
        """A job that has not ended is cancelled; the job as it is now. `NotFound`."""

    def retry(self, owner: str | None, id: str) -> Job:
        """Put a failed job into the queue once more, as if it were asked for now: under its id, its callback to be told
        of the new end; an end that it was not told yet, it is told no more. `NotFound`, `Conflict` (`job_not_failed`),
        `TooManyRequests`, `Gone` for one that cannot be read."""
        job = self.get(owner, id)
        if job.state != ERROR:
            raise not_failed(job.state)
        return self._again(checked(Job(job.owner, job.type, job.payload, id, job.priority, fence=job.fence,
                                       callback=job.callback)))

    @abstractmethod
    def _again(self, job: Job) -> Job:
        """Put `job` in the place of the failed one of its id and fence. `Conflict` when that is none any more."""

    @abstractmethod
    def release(self, job: Job, delay: float = 0.0, *, counted: bool = False, back: bool = False) -> None:
        """Give a job back to the front of the queue, to be taken again after `delay` seconds. `counted`: this attempt
        counts against MAX_ATTEMPTS, unlike one that a stop of the server broke off. `back`: to where a new job of its
        owner would come, for others to have a turn. `JobLost`."""

    @abstractmethod
    def tell_callback(self, job: Job, callback: dict[str, Any]) -> None:
        """Note how the delivery of the callback of this end of a job goes; nothing when the job is gone, or was tried
        again."""

    @abstractmethod
    def sweep(self, now: float | None = None) -> int:
        """Remove the jobs that expired by `now` (epoch seconds); how many."""

    @abstractmethod
    def sizes(self, owner: str | None = None) -> Sizes:
        """Of one owner, or of all."""

    @abstractmethod
    def busy(self) -> bool:
        """Whether anything waits or runs, callbacks too."""

    def secret(self) -> bytes:
        """32 bytes, made once, the same for everybody who uses these jobs."""
        found = self._secret(self.codec.pack(*SECRET, secrets.token_hex(32)))
        try:
            return bytes.fromhex(self.codec.unpack(*SECRET, found))
        except ValueError:
            raise damaged("secret") from None

    @abstractmethod
    def _secret(self, fresh: str) -> str:
        """What is kept; `fresh`, if there was none."""

    @abstractmethod
    def wait(self, seconds: float) -> None:
        """Until there may be a job to take, at most so long."""

    @abstractmethod
    def close(self) -> None: ...

    def requeue_lost(self, now: float | None = None, most: int = MAX_ATTEMPTS) -> int:
        """Bring the jobs of dead executors back to the front of the queue; how many. To be called every few seconds.

        A job is lost when this process watched it for the time of its lease without seeing a sign of life, by its own
        steady clock (`now`, seconds): no clock that jumps or differs, no pause of the watcher and no outage of the
        store makes one lost. After `most` attempts it is given up: state error."""
        now = time.monotonic() if now is None else now
        passed, self._looked = min(now - self._looked, MAX_GAP), now
        silent = {pulse: self._silent[pulse] + passed if pulse in self._silent else 0.0 for pulse in self._pulses()}
        lost = [pulse for pulse, seconds in silent.items() if seconds >= pulse.lease]
        self._silent = {pulse: seconds for pulse, seconds in silent.items() if pulse not in lost}
        return sum(self._lose(pulse, most) for pulse in lost)

    def requeue_worker(self, worker: str, most: int = MAX_ATTEMPTS) -> int:
        """The same at once for all that `worker` took: called by it when it starts, so these are of an earlier life."""
        return sum(self._lose(pulse, most) for pulse in self._pulses(worker))

    @abstractmethod
    def _pulses(self, worker: str | None = None) -> list[Pulse]:
        """Of all running jobs, or those of one worker."""

    @abstractmethod
    def _lose(self, pulse: Pulse, most: int) -> bool:
        """Give the job back, or up, if its pulse is still this one; whether it was."""


class Codec:
    """JSON values of jobs as texts: sealed for their owner and job where there is a cipher, else marked by PLAIN."""

    def __init__(self, cipher: Seals | None) -> None:
        self.cipher = cipher

    def pack(self, owner: str, id: str, value: Any) -> str:
        text = json.dumps(value, separators=(",", ":"))
        return PLAIN + text if self.cipher is None else self.cipher.seal(owner, f"job/{id}", text.encode())

    def unpack(self, owner: str, id: str, stored: str) -> Any:
        """ValueError for what was changed, moved or sealed with another key."""
        if stored.startswith(PLAIN):
            return json.loads(stored[len(PLAIN):])
        if self.cipher is None:
            raise ValueError("sealed")
        return json.loads(self.cipher.unseal(owner, f"job/{id}", stored))


def opened(row: Row, codec: Codec) -> Job:
    """ValueError, and Unavailable without the owner's key."""
    texts = {name: codec.unpack(row["owner"], row["id"], row[name]) if row.get(name) else None for name in PACKED}
    return Job(**{**row, **texts, "payload": texts["payload"] or {}})


def bare(row: Row) -> Job:
    """The job without what may be sealed."""
    return Job(**{**row, "payload": {}, "result": None, "callback": None})


def shown(row: Row, codec: Codec) -> Job:
    """For lists, which one damaged job does not spoil."""
    try:
        return opened({**row, "payload": None}, codec)
    except ValueError:
        return replace(bare(row), result=UNREADABLE[0], code=UNREADABLE[1])


def checked(job: Job) -> Job:
    """`job` as it may be stored. BadRequest for its id, which may be a client's; the rest is ours."""
    assert job.state == PENDING and job.priority in PRIORITIES and job.type and job.owner, job
    if not _ID.fullmatch(job.id):
        raise BadRequest("job_id: expected 1 to 64 of the characters A-Z a-z 0-9 . _ -", code="bad_job_id",
                         param="job_id")
    callback = None if job.callback is None else {"url": job.callback["url"], "state": PENDING}
    return replace(job, created=time.time(), callback=callback)


def told_of(job: Job | Pulse) -> dict[str, Any]:
    """The payload of the job that tells a job's callback of its end: of this one, should it be tried again."""
    return {"job": job.id, "fence": job.fence}


def callback_of(job: Job) -> Job:
    """The job that tells a job's callback of its end."""
    return Job(owner=job.owner, type=CALLBACK, payload=told_of(job), created=time.time())


def given_up(attempts: int) -> tuple[str, str]:
    """(result, code) of a job whose executors died."""
    return (f"given up: its executor died or hung in each of {attempts} attempts", "job_lost")


UNREADABLE = ("its stored text cannot be read: it is damaged, or DATA_KEY is another one", "job_damaged")


def exists() -> Conflict:
    return Conflict("Job ID already exists", code="job_exists", param="job_id")


def not_found() -> NotFound:
    return NotFound("Job not found", code="job_not_found")


def not_failed(state: str) -> Conflict:
    return Conflict(f"only a failed job is tried again, and this one is {state}", code="job_not_failed")


def too_many(limits: Limits) -> TooManyRequests:
    return TooManyRequests(f"{limits.per_owner} jobs of this key wait or run already, which is as many as may: try "
                           "again when some have ended", code="too_many_jobs", retry_after=30)


def damaged(id: str) -> Gone:
    return Gone(f"job {id}: {UNREADABLE[0]}", code=UNREADABLE[1])


def rank_of(priority: str, front: bool = False) -> int:
    """Where a job waits: 0 and 1 are the front's, 2 and 3 the queue's, each high before normal."""
    return (0 if front else 2) + (0 if priority == HIGH else 1)


def expiry(state: str, now: float, limits: Limits) -> float:
    return now + (limits.failed_kept if state == ERROR else limits.kept)
