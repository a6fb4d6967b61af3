"""The loop of a runner: messages in, a step, events out. What a step is, is its scheduler's."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from services.runner.post import Post
from services.wire import (
    Count,
    Counted,
    Detokenize,
    Embed,
    Forget,
    Generate,
    Message,
    Prepare,
    Rank,
    Stats,
    Tokenize,
    Tokens,
)

REST = 1.0              # seconds without a message after which there is time for other things
Events = Sequence[tuple[Any, Message]]      # whose request, and what to tell


class Schedule(Protocol):
    """What the loop asks of a scheduler. Requests are its own kind of thing."""

    progress: float         # when it got on last, by the monotonic clock

    @property
    def runnable(self) -> bool:
        """Whether a step has anything to do."""

    def add(self, request: Any) -> Events:
        """Take a request in."""

    def cancel(self, request: Any) -> Events:
        """End a request, if it has not ended."""

    def admit(self) -> Events:
        """Begin what can be begun."""

    def step(self) -> Events:
        """Do a small part of the work."""

    def stats(self) -> Stats:
        """How it is."""


Work = TypeVar("Work", bound=Schedule)


class Loop(ABC, Generic[Work]):
    """The loop and what it shares with the post: the inbox, and a snapshot of how it is. Base of both runners."""

    def __init__(self, scheduler: Work) -> None:
        self.scheduler = scheduler
        self.inbox: SimpleQueue[Callable[[], Events]] = SimpleQueue()
        self.snapshot = scheduler.stats()
        self.post = Post(self)

    def run(self) -> None:
        """Take messages, step, tell; rests only when nothing is runnable. Never returns."""
        while True:
            while not (self.scheduler.runnable and self.inbox.empty()):
                self.tell(self.hear())
            self.tell(self.scheduler.admit())
            self.tell(self.scheduler.step())

    def hear(self) -> Events:
        """Act on the next message; `rest` while none comes."""
        try:
            return self.inbox.get(timeout=REST)()
        except Empty:
            self.rest()
            return []

    def rest(self) -> None:
        """There is nothing to do."""

    def tell(self, events: Events) -> None:
        self.snapshot = self.scheduler.stats()
        self.post.tell(events)

    def leave(self) -> None:
        """The process ends: tell those who wait. Called in another thread."""
        self.post.finish()

    # ------------------------------------------------------------ the post's desk: called in its thread

    @abstractmethod
    def prepare(self, message: Generate | Embed | Rank) -> Any:
        """The request, tokenised and checked."""

    @abstractmethod
    def count(self, message: Count) -> Counted:
        """Token counts."""

    @abstractmethod
    def tokens(self, message: Tokenize | Detokenize) -> Tokens:
        """A text and its tokens."""

    def stats(self) -> Stats:
        """As after the last step; who was not heard since waits, too."""
        return msgspec.structs.replace(self.snapshot, waiting=self.snapshot.waiting + self.inbox.qsize(),
                                       idle_seconds=time.monotonic() - self.scheduler.progress,
                                       memory_bytes=_resident())

    def begin(self, request: Any) -> None:
        self.inbox.put(partial(self.scheduler.add, request))

    def cancel(self, request: Any) -> None:
        self.inbox.put(partial(self.scheduler.cancel, request))

    def ahead(self, message: Prepare) -> None:
        """Nothing is prepared where nothing is kept."""

    def forget(self, message: Forget) -> None:
        """Nothing is kept."""


def _resident() -> int:
    """Bytes of this process that are in memory, its files' pages included; 0 where the system does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
