"""Bytes of any kind to a `Document`, read by a child process that has little time, little memory and no network."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
import threading
from dataclasses import replace

import msgspec

from services.errors import Unavailable, Unprocessable
from services.knowledge import kinds
from services.knowledge.documents import Document
from services.knowledge.reading import SECONDS, Answer, Job
from services.settings import ROOT, runner_environment

log = logging.getLogger("parley.knowledge")
COMMAND = [sys.executable, "-m", "services.knowledge.reading"]
AT_ONCE = 2                 # children of this process
WAIT = 2 * max(SECONDS.values()) + 5        # seconds on the clock, for machines that are busy with other things
_seats = threading.BoundedSemaphore(AT_ONCE)


def extract(data: bytes, media_type: str, url_or_name: str, charset: str | None = None, *,
            cut: bool = False) -> Document:
    """The text in `data`. `media_type` is what was said of it ("" when nothing was); the content and the name overrule
    it. `cut`: this is only the beginning of it.

    Raises `UnsupportedMedia` (415) for kinds that have no text, `Unprocessable` (`unreadable_document`, 422) for
    damaged, locked or hostile ones, `Unavailable` where too many are being read.
    """
    kind = kinds.kind(data, media_type, url_or_name)
    if cut and kind in (kinds.PDF, *kinds.ZIPPED):
        raise _unreadable(url_or_name, "it is longer than is fetched (FETCH_MAX_BYTES), and of no use without its end")
    if not _seats.acquire(timeout=WAIT):
        raise Unavailable(f"{AT_ONCE} documents are being read, which is as many as are at once, and others wait")
    try:
        answer = _asked(Job(kind, url_or_name, charset, data))
    finally:
        _seats.release()
    if answer.document is None:
        raise _unreadable(url_or_name, answer.problem)
    return replace(answer.document, truncated=True) if cut else answer.document


def _asked(job: Job) -> Answer:
    try:
        done = subprocess.run(COMMAND, input=msgspec.msgpack.encode(job), capture_output=True, cwd=ROOT, timeout=WAIT,
                              env=runner_environment(), check=False)
    except subprocess.TimeoutExpired:
        raise _unreadable(job.name, "reading it takes too long") from None
    if done.returncode in (-signal.SIGPROF, -signal.SIGXCPU):
        raise _unreadable(job.name, "reading it takes too long")
    if done.returncode:
        log.warning("the reader of %r ended with %d: %s", job.name[:200], done.returncode,
                    done.stderr.decode("utf-8", "replace")[-1000:])
        raise _unreadable(job.name, "it brings the program down that reads it")
    return msgspec.msgpack.decode(done.stdout, type=Answer)


def _unreadable(name: str, why: str) -> Unprocessable:
    return Unprocessable(f"{name[-200:]!r} cannot be read: {why}", code="unreadable_document")
