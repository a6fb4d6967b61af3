"""Limits of keys over several servers: `SharedLimiter` is to a supervisor what `Limiter` is, and counts in Redis.

What needs no limit goes on without Redis: what it uses is counted when Redis is back. What has one is refused until
then. The places of a server that has died are free after LEASE seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

from auth import refusals, usage
from services import wire
from services.errors import ParleyError, Unavailable
from services.settings import Settings
from services.store.redis_counts import STEPS, Charge, Counts, Verdict
from services.store.redis_link import RENEWED, linked

log = logging.getLogger("parley.auth")
PATIENCE = 0.1                  # seconds to wait for a place: one given back by an answer's end may still be on its way
LOOK = 0.02                     # seconds between two looks whether another server gave one back
TURN = 1.0                      # seconds that one call about places waits for others, before Redis counts as too slow
SOON = 0.2                      # seconds that an amount waits to be counted before the answer goes on
MOST_UNCOUNTED = 100_000        # charges kept while Redis is away; the oldest go first


class SharedLimiter:
    """Safe for threads. `close` gives back what this server holds, and counts the rest."""

    def __init__(self, counts: Counts, now: Callable[[], float] = time.time) -> None:
        self._counts, self._now = counts, now
        self._freed = threading.Condition()     # owns the places and the charges
        self._places: Counter[str] = Counter()
        self._limited: set[str] = set()         # those of `_places` that Redis knows of
        self._told = True                       # Redis knows of all of them
        self._telling = threading.Lock()        # held over a call about places, so that these keep their order
        self._counting = threading.Lock()       # held over a call about charges
        self._uncounted: deque[Charge] = deque(maxlen=MOST_UNCOUNTED)
        self._number = 0
        self._closing = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="limits", daemon=True)
        self._keeper.start()

    @classmethod
    def of(cls, settings: Settings) -> SharedLimiter:
        return cls(Counts(linked(settings, "limits", STEPS)))

    def admit(self, request: wire.Admit) -> wire.Admitted | wire.Failed:
        """As `Limiter.admit`. Unavailable for a key with limits when they cannot be looked at."""
        key, cost, rpm = request.key, request.cost, request.requests_per_minute
        if all(limit is None for limit in (rpm, request.max_parallel, request.tokens_per_minute, request.token_budget)):
            with self._freed:
                self._places[key] += 1
            if cost:
                self.charge(key.partition("/")[0], requests=cost)
            return wire.Admitted()
        verdict = self._ask(request)
        if verdict.refused:
            return self._refused(request, verdict)
        return wire.Admitted() if rpm is None else wire.Admitted(limit=rpm, remaining=verdict.left,
                                                                 reset=verdict.seconds)

    def _ask(self, request: wire.Admit) -> Verdict:
        deadline = time.monotonic() + PATIENCE
        while True:
            with self._in_turn():
                verdict = self._ask_once(request)
            if verdict.refused != "place" or time.monotonic() >= deadline:
                return verdict
            with self._freed:
                self._freed.wait(LOOK)

    def _ask_once(self, request: wire.Admit) -> Verdict:
        try:
            verdict = self._counts.admit(request, self._places[request.key] + 1, self._period(request.token_budget))
        except ParleyError:
            self._told = False          # it may have taken the place, and only its reply be lost
            raise
        if not verdict.refused:
            with self._freed:
                self._places[request.key] += 1
                if request.max_parallel is not None:
                    self._limited.add(request.key)
        return verdict

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if not self._telling.acquire(timeout=TURN):
            raise Unavailable("Redis, which counts this, answers too slowly", code="redis_unavailable", retry_after=2)
        try:
            yield
        finally:
            self._telling.release()

    def _period(self, budget: wire.TokenBudget | None) -> str:
        day, month = usage.today(self._now())
        return {"day": day, "month": month, "total": "total"}[budget.per] if budget else ""

    def _refused(self, request: wire.Admit, verdict: Verdict) -> wire.Failed:
        most, tokens, budget = request.max_parallel, request.tokens_per_minute, request.token_budget
        if verdict.refused == "place" and most is not None:
            return refusals.no_place(most)
        if verdict.refused == "tokens" and tokens is not None:
            return refusals.no_tokens(tokens, verdict.seconds)
        if verdict.refused == "budget" and budget is not None:
            return refusals.no_budget(budget, usage.renewal(budget.per, self._now()))
        assert request.requests_per_minute is not None, verdict
        return refusals.no_request(request.requests_per_minute, verdict.seconds)

    def release(self, key: str) -> None:
        """Gives one place back. Where Redis does not hear of it, `_keep` tells it later."""
        with self._freed:
            assert self._places[key] > 0, f"no place of {key} is taken"
            self._places[key] -= 1
            limited = key in self._limited
            if not self._places[key]:
                del self._places[key]
                self._limited.discard(key)
            self._freed.notify_all()
        if limited:
            try:
                with self._in_turn():
                    self._counts.hold(key, self._places[key])
            except ParleyError:
                self._told = False

    def charge(self, key: str, requests: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        with self._freed:
            self._number += 1
            self._uncounted.append(Charge(self._number, key, requests, prompt_tokens, completion_tokens,
                                          *usage.today(self._now())))
        self._count()

    def _count(self) -> None:
        """Counts what was not yet, if that can be done soon; else the next to count does."""
        if not self._counting.acquire(timeout=SOON):
            return
        try:
            while now := self._oldest():
                self._counts.charge(now)
                with self._freed:
                    while self._uncounted and self._uncounted[0].number <= now[-1].number:
                        self._uncounted.popleft()
        except ParleyError as error:
            log.debug("what keys use is counted later: %s", error.message)
        finally:
            self._counting.release()

    def _oldest(self) -> list[Charge]:
        with self._freed:
            return list(islice(self._uncounted, 1000))

    def usage(self, key: str) -> wire.Usage:
        return self._counts.used(key)

    def close(self) -> None:
        """May be called more than once."""
        self._closing.set()
        self._keeper.join()

    def _keep(self) -> None:
        """Holds this server's places while it lives, and mends what Redis was not told while it was away."""
        while not self._closing.wait(RENEWED):
            self._tell()
        with self._freed:
            self._limited.clear()
            self._told = False
        self._tell()

    def _tell(self) -> None:
        self._count()
        try:
            with self._in_turn():
                with self._freed:
                    own = {name: self._places[name] for name in self._limited}
                if own or not self._told:
                    self._told = True       # and no longer, when a call fails meanwhile
                    self._counts.hold_all(own)
        except ParleyError as error:
            self._told = False
            log.debug("the places of running answers are told later: %s", error.message)
