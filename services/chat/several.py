"""Several answers at the same time as one stream of events, each in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from queue import SimpleQueue

from services.chat.events import Event

Indexed = tuple[int, Event]
Answer = Generator[Event, None, None]


def merged(answers: Sequence[Answer]) -> Generator[Indexed, None, None]:
    """The events of all answers with the index of theirs, as they come. The first error ends them all and is raised;
    closing this closes them, each before its next event."""
    if len(answers) == 1:
        with closing(answers[0]) as answer:
            for event in answer:
                yield 0, event
        return
    news: SimpleQueue[Indexed | BaseException | None] = SimpleQueue()
    over = threading.Event()
    for index, answer in enumerate(answers):
        threading.Thread(target=_told, args=(index, answer, news, over), name="answer", daemon=True).start()
    running = len(answers)
    try:
        while running:
            word = news.get()
            if isinstance(word, BaseException):
                raise word
            if word is None:
                running -= 1
            else:
                yield word
    finally:
        over.set()


def _told(index: int, answer: Answer, news: SimpleQueue[Indexed | BaseException | None], over: threading.Event) -> None:
    """Runs one answer to its end, unless all are `over` before."""
    try:
        with closing(answer):
            for event in answer:
                if over.is_set():
                    return
                news.put((index, event))
        news.put(None)
    except BaseException as error:      # told in the thread of the request
        news.put(error)
