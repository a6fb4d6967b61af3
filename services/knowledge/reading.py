"""The child process that reads one document: `python -m services.knowledge.reading`, data on stdin, answer on stdout.

What it reads was written by strangers and is given to parsers in C and in Python. So it runs with little time and
memory, without files to write, processes to start or addresses to connect to, and ends after one document.
"""

from __future__ import annotations

import importlib
import logging
import os
import resource
import signal
import sys
from typing import NoReturn

import msgspec

from services.knowledge import kinds
from services.knowledge.documents import Document

MEMORY = 1 << 30            # bytes of address space
SECONDS = {kinds.HTML: 1.0, kinds.FEED: 3.0, kinds.PDF: 12.0} | dict.fromkeys(kinds.ZIPPED, 5.0)   # of processor time
DEFAULT_SECONDS = 1.0
_ROOM = {kinds.HTML: "html", kinds.FEED: "feed", kinds.XML: "xml", kinds.PDF: "pdf",
         **dict.fromkeys(kinds.ZIPPED, "office")}
_FORBIDDEN = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.remove",
              "os.rename", "os.kill", "ctypes.", "shutil.")


_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Job(msgspec.Struct, frozen=True):
    kind: str
    name: str
    charset: str | None
    data: bytes


class Answer(msgspec.Struct, frozen=True):
    """`problem`: why there is no document."""

    document: Document | None = None
    problem: str = ""


def answer(job: Job) -> Answer:
    """What `job`'s document holds. May take any time, and end the process: only for a child."""
    from services.knowledge.readers.building import Unreadable
    from services.knowledge.readers.text import READERS

    read = READERS.get(job.kind) or importlib.import_module(f"services.knowledge.readers.{_ROOM[job.kind]}").read
    signal.setitimer(signal.ITIMER_PROF, SECONDS.get(job.kind, DEFAULT_SECONDS))
    sys.addaudithook(_forbid)
    try:
        return Answer(read(job.data, job.charset, job.name, job.kind))
    except Unreadable as error:
        return Answer(problem=str(error))
    except MemoryError:
        return Answer(problem="reading it takes too much memory")


def _limit() -> None:
    """Signals keep their default action, which is to end the process."""
    most = int(max(SECONDS.values())) + 5
    for what, limit in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, most), (resource.RLIMIT_CORE, 0),
                        (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NPROC, 0)):
        resource.setrlimit(what, (limit, limit))


def _forbid(event: str, arguments: tuple[object, ...]) -> None:
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
    if writes or event.startswith(_FORBIDDEN):
        raise PermissionError(f"a reader of documents does no {event}")


def main() -> NoReturn:
    _limit()
    logging.disable(logging.CRITICAL)       # parsers complain of documents; nobody reads that
    job = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Job)
    sys.stdout.buffer.write(msgspec.msgpack.encode(answer(job)))
    sys.stdout.buffer.flush()
    sys.exit(0)


if __name__ == "__main__":
    main()
