"""Batches: the lines of a file, each a request, answered behind all that somebody waits for (OpenAI's batch API).

Each answer is appended to the batch's own record when it is there, so what breaks off goes on after it. A batch works
for a slice of time, then lets others have its place in the executor.

A piece of the record is OK or FAILED and a line of JSON: `{"id", "custom_id", "response": {"status_code",
"request_id", "body"}, "error"}`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any

from auth.keys import Keys
from services.errors import BadRequest, Forbidden, NotFound, RunnerCrashed, SessionBusy, Unavailable
from services.jobs.executor import Handler, Later, Tell
from services.jobs.requests import ENDING, Door, Reply, Request, live
from services.store.jobs import MAX_DELAY, Job
from services.store.uploads import Upload, UploadStore

log = logging.getLogger("parley.jobs")
BATCH = "batch"             # the type of jobs that are one batch, and the kind of their records
FILE = "file"               # the kind of what clients upload
ENDPOINTS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/answer")
OK, FAILED = b"+", b"-"
MOST_LINES = 50_000
LANES = 8                   # lines at once
SLICE = 60.0                # seconds after which others have a turn
BEAT = 1.0
PAUSES = (429, 503)         # statuses after which a line is asked again
CRASHES = 3                 # of the runner over one line, which may be why
DAY = 86400.0               # the window in which a batch is to be complete


@dataclass(frozen=True)
class Line:
    custom_id: str
    body: dict[str, Any]


def lines_of(data: bytes, endpoint: str) -> list[Line]:
    """The requests of a file. `BadRequest` (`bad_batch`) that names the line which is none."""
    found: dict[str, Line] = {}
    for number, text in enumerate(data.split(b"\n"), 1):
        if text.strip():
            line = _line(text, number, endpoint)
            if line.custom_id in found:
                raise _bad(number, f"custom_id {line.custom_id[:80]!r} is there twice")
            found[line.custom_id] = line
    if not found:
        raise BadRequest("the file has no line: expected one request a line, as JSON", code="bad_batch",
                         param="input_file_id")
    if len(found) > MOST_LINES:
        raise BadRequest(f"the file has {len(found)} lines; {MOST_LINES} are taken at most", code="bad_batch",
                         param="input_file_id")
    return list(found.values())


def _line(text: bytes, number: int, endpoint: str) -> Line:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise _bad(number, "is not JSON") from None
    if not isinstance(value, dict):
        raise _bad(number, "should be a JSON object")
    custom_id, body = value.get("custom_id"), value.get("body")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= 512:
        raise _bad(number, "custom_id should be a text of 1 to 512 characters")
    if value.get("method", "POST") != "POST":
        raise _bad(number, 'method should be "POST"')
    if value.get("url", endpoint) != endpoint:
        raise _bad(number, f"url is {str(value['url'])[:80]!r}, but the batch's endpoint is {endpoint!r}")
    if not isinstance(body, dict):
        raise _bad(number, "body should be a JSON object: what is to be posted")
    if body.get("stream") or body.get("background") or body.get("async"):
        raise _bad(number, "body: stream, background and async have no place in a batch")
    return Line(custom_id, body)


def _bad(number: int, what: str) -> BadRequest:
    return BadRequest(f"line {number} of the file: {what}", code="bad_batch", param="input_file_id", line=number)


def _is_end(reply: Reply) -> bool:
    """Whether this server stops: then others go on at once, or it does itself after its start."""
    return reply.body["error"].get("code") in ENDING


def _is_crash(reply: Reply) -> bool:
    return reply.status == RunnerCrashed.status and bool(reply.body["error"].get("code") == RunnerCrashed.code)


def _pause(reply: Reply) -> float | None:
    """Seconds after which to ask again; None for an answer. Lines of one session are in each other's way."""
    if reply.status in PAUSES and reply.retry_after is not None and not _is_crash(reply):
        return max(reply.retry_after, BEAT)
    busy = reply.status == SessionBusy.status and reply.body["error"].get("code") == SessionBusy.code
    return BEAT if busy else None


@dataclass(frozen=True)
class Counts:
    total: int
    completed: int = 0
    failed: int = 0


def counted(uploads: UploadStore, batch: Upload) -> Counts:
    """How far a batch is. A complete one has it written down, so that lists of many read no answers."""
    if "counts" in batch.about:
        return Counts(batch.about["total"], *batch.about["counts"])
    marks = [piece[:1] for piece in uploads.pieces(batch.owner, batch.id)]
    return Counts(batch.about["total"], marks.count(OK), marks.count(FAILED))


def output(uploads: UploadStore, batch: Upload, mark: bytes) -> Iterator[bytes]:
    """The lines of what went well (OK), or did not (FAILED)."""
    return (piece[1:] for piece in uploads.pieces(batch.owner, batch.id) if piece[:1] == mark)


def cancelled(uploads: UploadStore, job: Job) -> Upload:
    """The batch whose job was cancelled, which its record tells when the job is long gone."""
    return uploads.change(job.owner, job.id, lambda about: {"cancelled_at": int(job.end or time.time()), **about})


def handler(uploads: UploadStore, keys: Keys, door: Door, seconds: float = SLICE) -> Handler:
    """Does jobs of the type BATCH, whose payload is {"batch": id}, for so many seconds at a time. It has a day: what
    does not work for a while, ends none."""
    def handle(job: Job, tell: Tell) -> dict[str, Any]:
        try:
            return _Batch(uploads, keys, door, job, tell, seconds).work()
        except Unavailable as error:
            if time.time() > job.created + DAY:
                raise
            log.warning("batch %s of %s goes on later: %s", job.id, job.owner, error.message)
            raise Later(min(error.retry_after or BEAT, MAX_DELAY), counted=False, back=True) from None
    return handle


class _Batch:
    """One attempt at a batch, or one slice of it."""

    def __init__(self, uploads: UploadStore, keys: Keys, door: Door, job: Job, tell: Tell, seconds: float) -> None:
        self._uploads, self._keys, self._door, self._tell = uploads, keys, door, tell
        self._owner = live(keys, job.owner).id
        self._until = time.monotonic() + seconds
        self._pause = 0.0                           # seconds until a line may be let in that was not
        self._crashed = threading.Lock()            # held over a line that was there when the runner crashed
        self._gone = threading.Event()              # nobody wants it any more
        try:
            self._record = uploads.get(self._owner, job.payload["batch"])
        except NotFound:
            raise Forbidden("the batch was deleted", code="batch_deleted") from None
        self._endpoint: str = self._record.about["endpoint"]
        self._done = 0

    def work(self) -> dict[str, Any]:
        """The job's result when all lines are done; `Later` when some are left."""
        about = self._note(in_progress_at=self._record.about.get("in_progress_at") or int(time.time()))
        lines = lines_of(self._input(about["input_file_id"]), self._endpoint)
        there = {json.loads(piece[1:])["custom_id"] for piece in self._uploads.pieces(self._owner, self._record.id)}
        left = [line for line in lines if line.custom_id not in there]
        self._done = len(there)
        self._tell(self._done, len(lines))
        if time.time() > self._record.created + DAY:
            self._expire(left)
        elif not self._all(left, len(lines)):
            day = self._record.created + DAY - time.time()
            raise Later(max(min(self._pause, day, MAX_DELAY), 0.0), counted=False, back=True)
        counts = counted(self._uploads, self._record)
        self._note(completed_at=int(time.time()), counts=[counts.completed, counts.failed])
        return {"text": f"{counts.completed} of {counts.total} requests were answered", "completed": counts.completed,
                "failed": counts.failed}

    def _input(self, id: str) -> bytes:
        try:
            self._uploads.get(self._owner, id)
        except NotFound:
            raise Forbidden("its input file was deleted before all of it was answered", code="file_deleted") from None
        return b"".join(self._uploads.pieces(self._owner, id))

    def _note(self, **facts: Any) -> dict[str, Any]:
        return self._uploads.change(self._owner, self._record.id, lambda about: {**about, **facts}).about

    def _all(self, lines: Sequence[Line], total: int) -> bool:
        """Whether all lines were answered before the slice was over."""
        left = iter(lines)
        before = self._done
        running: set[Future[bool]] = set()
        with ThreadPoolExecutor(LANES, thread_name_prefix="batch") as pool:
            try:
                while True:
                    while len(running) < LANES and time.monotonic() < self._until and (line := next(left, None)):
                        running.add(pool.submit(self._one, line))
                    if not running:
                        return self._done - before == len(lines)
                    done, running = wait(running, BEAT, FIRST_COMPLETED)
                    self._done += sum(one.result() for one in done)
                    self._tell(self._done, total)
            finally:
                self._gone.set()

    def _one(self, line: Line) -> bool:
        """Whether the line was answered."""
        reply = self._asked(line)
        if reply is None:
            return False
        told = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line.custom_id, "response": {
            "status_code": reply.status, "request_id": reply.request_id, "body": reply.body}, "error": None}
        self._keep(OK if reply.status < 400 else FAILED, told)
        return True

    def _asked(self, line: Line) -> Reply | None:
        """The answer to a line, once the key's limits and the server's queue let it in; None when that is not before
        the slice is over, which it is then."""
        with ExitStack() as alone:
            for crashes in count(1):
                reply = self._let_in(line)
                if reply is None or not _is_crash(reply) or crashes == CRASHES:
                    return reply
                if crashes == 1:
                    alone.enter_context(self._crashed)      # who is no reason for it shall not be in the next one
                self._rest(reply.retry_after or BEAT)
        raise AssertionError("counted without an end")

    def _let_in(self, line: Line) -> Reply | None:
        """As `_asked`, but a crash of the runner is an answer, too."""
        while True:
            self._check()
            reply = self._door(Request(live(self._keys, self._owner), self._endpoint, line.body, self._retry(line)),
                               self._check)
            seconds = _pause(reply)
            if seconds is None:
                return reply
            if time.monotonic() + seconds > self._until or _is_end(reply):
                self._pause, self._until = seconds, 0.0
                return None
            self._rest(seconds)

    def _retry(self, line: Line) -> str:
        """A line whose answer was given, but not kept here before a crash, shall not be a session's turn twice."""
        if self._endpoint != "/answer" or line.body.get("session_id") is None:
            return ""
        return f"{self._record.id}-{hashlib.sha256(line.custom_id.encode('utf-8', 'surrogatepass')).hexdigest()}"

    def _rest(self, seconds: float) -> None:
        resume = time.monotonic() + seconds
        while (left := resume - time.monotonic()) > 0:
            self._check()
            time.sleep(min(BEAT, left))

    def _check(self) -> None:
        if self._gone.is_set():
            raise Forbidden("the batch goes on no more", code="batch_over")

    def _expire(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self._keep(FAILED, {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": line.custom_id, "response": None,
                                "error": {"code": "batch_expired", "message": "not answered within 24 hours"}})
        self._note(expired_at=int(time.time()))

    def _keep(self, mark: bytes, told: dict[str, Any]) -> None:
        self._uploads.append(self._owner, self._record.id,
                             mark + json.dumps(told, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
