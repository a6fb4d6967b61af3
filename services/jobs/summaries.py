"""Summaries, action items, tables of contents, and texts worked on as a caller says: skynet's jobs (S1.11–S1.24).

A text that fits in one prompt is one answer. Else it is map and reduce: its parts are answered together, beside each
other on the runner and behind everything that somebody waits for; then what came out for them is put together, by the
model where it is text, in as many levels as it takes to fit.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from auth.keys import Key, Keys
from auth.limits import Admissions
from services.chat import prompt, window
from services.chat.answer import Chat
from services.chat.asking import asked, profile_of
from services.chat.events import Ask, Beat, Event, Final, Spent
from services.chat.several import merged
from services.engine.client import Lease
from services.errors import (
    ContextOverflow,
    ParleyError,
    QuotaSpent,
    RunnerCrashed,
    TooManyRequests,
    Unavailable,
    Unprocessable,
)
from services.jobs import actions, contents, prompts
from services.jobs.asking import TYPES, Asking, Work
from services.jobs.chunks import OVERLAP, chunks
from services.jobs.executor import TimedOut
from services.jobs.requests import ENDING, live
from services.store.jobs import Job
from services.wire import Charge, Report, WireError, Worked

log = logging.getLogger("parley.jobs")
TRIES = 3               # of an answer that is empty
WARMTH = 0.4            # temperature of the second and third try: the first one's would be as empty again
MARGIN = 8              # tokens that a part may have more within its prompt than by itself
AT_ONCE = 16            # characters of a text that are counted at once, for each token of the context
LEAST_ROOM = 64         # tokens of a text that must fit beside its prompt
PATIENCE = 90.0         # seconds that a part waits for its key's limits, or for a place in the runner's queue
BEAT = 1.0              # seconds

Tell = Callable[[int, int], None]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `data`: action items, or None."""

    text: str
    data: list[actions.Item] | None = None
    language: str | None = None                 # that it was asked to be in
    profile: str = ""
    model: str = ""
    chunks: int = 1                             # parts that the text was cut in
    warnings: list[str] = []
    usage: dict[str, int] = {}


def handlers(chat: Chat, keys: Keys, admissions: Admissions) -> dict[str, Callable[[Job, Tell], dict[str, Any]]]:
    """What does the jobs of each type; an `Outcome` as JSON values comes of each."""
    def handle(job: Job, tell: Tell) -> dict[str, Any]:
        key = live(keys, job.owner)
        wanted = msgspec.convert({**job.payload, "type": job.type}, Work)
        with _counted(job, wanted, admissions) as chunks:
            outcome = work(chat, admissions, key, wanted, tell)
            chunks.append(outcome.chunks)
        found: dict[str, Any] = msgspec.to_builtins(outcome)
        return found
    return dict.fromkeys(TYPES, handle)


@contextmanager
def _counted(job: Job, wanted: Work, admissions: Admissions) -> Iterator[list[int]]:
    """Has the attempt counted in the server's figures. What could not even begin is no attempt."""
    chunks: list[int] = []
    outcome, start = "success", job.start or time.time()
    try:
        yield chunks
    except ParleyError as error:
        if isinstance(error, Unavailable | TooManyRequests) and not isinstance(error, QuotaSpent):
            raise
        outcome = error.code
        raise
    except TimedOut:
        outcome = "job_timeout"
        raise
    finally:
        if chunks or outcome != "success":
            now = time.time()
            _report(admissions, Worked(type=job.type, outcome=outcome, length=len(wanted.text), chunks=sum(chunks),
                                       queue_seconds=max(0.0, start - job.created), seconds=max(0.0, now - start),
                                       full_seconds=max(0.0, now - job.created)))


def _report(admissions: Admissions, worked: Worked) -> None:
    try:
        admissions.tell(Report(worked=[worked]))
    except (WireError, Unavailable) as error:
        log.warning("a job is missing in /metrics: %s", error)


def work(chat: Chat, admissions: Admissions, key: Key, wanted: Work, tell: Tell) -> Outcome:
    """Do it for `key`, within its limits. `tell(done, total)` is called about every second and may raise to end it.

    Raises what the first answer does when nothing can be done now: `TooManyRequests` and `Unavailable` with the time
    after which to try again.
    """
    return _Working(chat, admissions, key, wanted, tell).outcome()


@dataclass
class _Working:
    """Everything about one job."""

    chat: Chat
    admissions: Admissions
    key: Key
    wanted: Work
    tell: Tell
    lanes: int = 1                              # answers at the same time
    done: int = 0                               # answers
    total: int = 1
    parts: int = 0                              # of the text
    told: float = 0.0
    begun: bool = False                         # whether any answer was let in
    last: Final | None = None
    usage: dict[str, int] = field(default_factory=lambda: {"prompt_tokens": 0, "completion_tokens": 0,
                                                           "total_tokens": 0})
    warnings: list[str] = field(default_factory=list)

    def outcome(self) -> Outcome:
        values = self._answers(self.wanted.text)
        self.parts = self.done
        data = None
        if self.wanted.form == prompts.ACTION_ITEMS:
            data = actions.joined(values)
            text = actions.lines(data)
        elif self.wanted.form == prompts.CONTENTS:
            text = "\n".join(self._shortened(contents.joined(values)))
        else:
            text = self._reduced(values)
        assert self.last is not None
        return Outcome(text=text, data=data, language=self.wanted.language, profile=self.last.profile,
                       model=self.last.model, chunks=self.parts, warnings=self.warnings, usage=self.usage)

    def _reduced(self, texts: list[str]) -> str:
        """One text of several: each level has less, since an answer for a part is shorter than the part."""
        while len(texts) > 1:
            texts = self._answers("\n\n".join(texts), again=True)
        return texts[0]

    def _shortened(self, lines: list[str]) -> list[str]:
        """A table of a length that can be read."""
        while len(lines) > contents.MOST_LINES:
            fewer = contents.joined(self._answers("\n".join(lines), again=True))
            if len(fewer) >= len(lines):
                break
            lines = fewer
        return lines

    # ------------------------------------------------------------ what is asked

    def _answers(self, text: str, again: bool = False) -> list[Any]:
        """What the model makes of a text: of all of it, or of each of its parts."""
        asking = Asking(self.wanted, self.key, text, again)
        parts, most = self._parts(asking, 0 if again else OVERLAP)
        reduces = len(parts) > 1 and self.wanted.form in (prompts.SUMMARY, prompts.PROCESS)
        self.total = self.done + len(parts) + reduces
        values = self._together(asking.asks(parts, most))
        if left_out := len(parts) - len(values):
            log.warning("a job of key %s: %d of %d answers stayed empty", self.key.id, left_out, len(parts))
            self._warn(f"the model wrote nothing that could be used for {left_out} of {len(parts)} parts")
        if not values:
            raise Unprocessable(f"the model wrote nothing that could be used, in {TRIES} tries; another model may",
                                code="empty_result")
        return values

    def _parts(self, asking: Asking, overlap: int) -> tuple[list[str], int | None]:
        """The parts of a text, and how many tokens the answer for each may have; None: as many as are wanted."""
        whole, bare = asking.ask(asking.text), asking.ask("")
        _, profile = profile_of(whole, self.chat.profiles)
        spec = self.chat.profiles.spec(profile, self.chat.settings.models_dir)
        with self.chat.engine.lease(spec, keep=self.chat.profiles.current().keep(profile), beat=self._beat) as lease:
            ready = lease.ready
            self.lanes = min((ready.n_slots + 1) * self.chat.settings.replicas, self.key.max_parallel or 1 << 10)
            most = window.limit(ready.n_ctx, profile.max_tokens)
            tokens, around = self._sizes(lease, asking.text, *(
                prompt.build(profile, ready, [], asked(ask)) for ask in (whole, bare)))
            if tokens <= most:
                return [asking.text], None
            room = most - around - MARGIN
            if room < LEAST_ROOM:
                raise ContextOverflow(f"the prompt takes {around} of the context's {ready.n_ctx} tokens, which leaves "
                                      "no room for a text: use a shorter prompt or a profile with a larger n_ctx",
                                      prompt_tokens=around, limit=most - MARGIN - LEAST_ROOM, n_ctx=ready.n_ctx)
            found = chunks(asking.text, tokens - around, room, lambda texts: lease.count([[one] for one in texts]),
                           overlap)
        return found, min(profile.max_tokens, room // 3)

    def _sizes(self, lease: Lease, text: str, whole: list[str], bare: list[str]) -> tuple[int, int]:
        """Tokens of a prompt with its text, and without it. A long text is counted piece by piece: no runner counts at
        once what is far beyond its context."""
        step = lease.ready.n_ctx * AT_ONCE
        if len(text) <= step:
            tokens, around = lease.count([whole, bare])
            return tokens, around
        tokens = around = lease.count([bare])[0]
        for start in range(0, len(text), step):
            self._beat()
            tokens += lease.count([[text[start:start + step]]])[0]
        return tokens, around

    # ------------------------------------------------------------ what is answered

    def _together(self, asks: Sequence[Ask]) -> list[Any]:
        """What came of all that is asked, in its order, but for what stayed empty."""
        waiting, values = deque(enumerate(asks)), dict[int, Any]()
        before = self.done
        self.tell(before, self.total)
        with closing(merged([self._lane(waiting, values) for _ in range(min(len(asks), self.lanes))])) as events:
            for _, event in events:
                self.done = before + len(values)
                self._count(event)
                self._beat()
        self.done = before + len(values)
        self.tell(self.done, self.total)
        return [values[index] for index in sorted(values) if values[index] is not None]

    def _lane(self, waiting: deque[tuple[int, Ask]], values: dict[int, Any]) -> Generator[Event, None, None]:
        """Answers one after the other, of what no other lane has taken."""
        while True:
            try:
                index, ask = waiting.popleft()
            except IndexError:
                return
            values[index] = yield from self._value(ask)

    def _value(self, ask: Ask) -> Generator[Event, None, Any]:
        """What the answer says, or None when it says nothing each time."""
        for number in range(TRIES):
            again = {"temperature": WARMTH, "seed": number} if number else {}
            final = yield from self._patiently(replace(ask, spent=Spent(), **again))    # type: ignore[arg-type]
            if (value := self._read(final)) is not None:
                return value
        return None

    def _read(self, final: Final) -> Any:
        if self.wanted.form == prompts.ACTION_ITEMS:
            return actions.items_of(final.result)
        if self.wanted.form == prompts.CONTENTS:
            return contents.lines_of(final.result, final.finish_reason == "length")
        return final.result.strip() or None

    def _patiently(self, ask: Ask) -> Generator[Event, None, Final]:
        """The answer, once the key's limits and the runner's queue let it in. The job's first one does not wait: then
        somebody else's job can be done meanwhile."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                return (yield from self._answer(ask))
            except (TooManyRequests, Unavailable) as error:
                over = not self.begun or time.monotonic() > until or error.code in ENDING
                if over or isinstance(error, QuotaSpent | RunnerCrashed):
                    raise
                resume = time.monotonic() + (error.retry_after or BEAT)
                while (left := resume - time.monotonic()) > 0:
                    time.sleep(min(BEAT, left))
                    yield Beat()

    def _answer(self, ask: Ask) -> Generator[Event, None, Final]:
        """One answer, which counts as one of its key's in parallel, and whose tokens are charged whatever comes. It is
        charged without an outcome: its times would say nothing of answers that somebody waits for."""
        with self.admissions.admit(self.key, cost=0, place=True) as ticket, closing(self.chat.answer(ask)) as events:
            self.begun = True
            try:
                for event in events:
                    yield event
                    if isinstance(event, Final):
                        return event
                raise AssertionError("an answer ended without its Final")
            finally:
                ticket.charge(Charge(key="", prompt_tokens=ask.spent.prompt_tokens,
                                     completion_tokens=ask.spent.completion_tokens))

    # ------------------------------------------------------------ what is told

    def _count(self, event: Event) -> None:
        if isinstance(event, Final):
            self.last = event
            for name in self.usage:
                self.usage[name] += event.usage[name]
            if event.finish_reason == "length":
                self._warn(f"an answer was cut after {event.done.completion_tokens} tokens (max_completion_tokens, or "
                           "max_tokens of the profile)")
            for warning in event.warnings:
                self._warn(warning)

    def _warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _beat(self) -> None:
        if time.monotonic() >= self.told + BEAT:
            self.told = time.monotonic()
            self.tell(self.done, self.total)
