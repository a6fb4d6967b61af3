"""What becomes of an answer, as its client feels it: how long it took, what it used, how it ended."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing

from auth.limits import Ticket
from services.chat.events import Called, Delta, Event, Final, Reasoned, Spent
from services.errors import ParleyError
from services.wire import Charge


def measured(events: Generator[Event, None, None], ticket: Ticket, spent: Spent) -> Generator[Event, None, None]:
    """`events` as they are. `ticket` is charged once, before `Final` is passed on or when they break off: then with
    what the pipeline knows by then, `spent`."""
    measure, outcome = _Measure(), "cancelled"
    try:
        with closing(events):
            for event in events:
                if isinstance(event, Final):
                    outcome = ""
                    ticket.charge(measure.whole(event, spent))
                elif isinstance(event, Delta | Reasoned | Called):
                    measure.piece()
                yield event
    except Exception as error:
        outcome = error.code if isinstance(error, ParleyError) else ParleyError.code
        raise
    finally:
        if outcome:
            ticket.charge(measure.part(outcome, spent))


class _Measure:
    """The times of one answer, from its arrival on. Seconds of the monotonic clock."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first: float | None = None        # piece of text
        self._last = self._began

    def piece(self) -> None:
        self._last = time.monotonic()
        self._first = self._first or self._last

    def whole(self, final: Final, spent: Spent) -> Charge:
        """What to charge for a complete answer. One that is only told again tells nothing of times."""
        done, told_again = final.done, not final.done.id
        first = None if told_again else (self._first or time.monotonic()) - self._began
        steps = 0 if told_again or self._first is None else done.completion_tokens - 1
        return Charge(key="", outcome=done.finish_reason, profile=final.profile,
                      prompt_tokens=_prompt(done.prompt_tokens, spent),
                      completion_tokens=done.completion_tokens + spent.search_completion_tokens,
                      cached_tokens=done.cached_tokens, processed_tokens=done.processed_tokens, first_seconds=first,
                      queue_seconds=None if told_again else done.queue_ms / 1000,
                      token_seconds=(self._last - (self._first or 0.0)) / steps if steps > 0 else None,
                      seconds=time.monotonic() - self._began)

    def part(self, outcome: str, spent: Spent) -> Charge:
        """What to charge for one that broke off."""
        return Charge(key="", outcome=outcome, profile=spent.profile,
                      completion_tokens=spent.completion_tokens + spent.search_completion_tokens,
                      prompt_tokens=_prompt(spent.prompt_tokens, spent),
                      first_seconds=None if self._first is None else self._first - self._began,
                      seconds=time.monotonic() - self._began)


def _prompt(tokens: int, spent: Spent) -> int:
    """What to charge for the prompt, and for what was asked before it."""
    return spent.search_prompt_tokens + (0 if spent.shares_prompt else tokens)
