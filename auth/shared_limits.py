"""Limits of keys over several servers: `SharedLimiter` is to a supervisor what `Limiter` is, and counts in Redis.

What needs no limit goes on without Redis: what it uses is counted when Redis is back. What has one is refused until
then. The places of a server that has died are free after LEASE seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable

from auth import refusals, usage
from services import wire
from services.errors import ParleyError
from services.settings import Settings
from services.store.redis_counts import STEPS, Charge, Counts, Verdict
from services.store.redis_link import RENEWED, linked

log = logging.getLogger("parley.auth")
PATIENCE = 0.1                  # seconds to wait for a place: one given back by an answer's end may still be on its way
LOOK = 0.02                     # seconds between two looks whether another server gave one back
MOST_UNCOUNTED = 100_000        # charges kept while Redis is away; the oldest go first


class SharedLimiter:
    """Safe for threads. `close` gives back what this server holds, and counts the rest."""

    def __init__(self, counts: Counts, now: Callable[[], float] = time.time) -> None:
        self._counts, self._now = counts, now
        self._freed = threading.Condition()     # owns the places; held over calls of Redis, so that these keep order
        self._places: Counter[str] = Counter()
        self._limited: set[str] = set()         # those of `_places` that Redis knows of
        self._told = True                       # Redis knows of all of them
        self._counting = threading.Lock()       # owns the charges, over calls too
        self._uncounted: list[Charge] = []
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
        with self._freed:
            verdict = self._ask(request)
            if verdict.refused:
                return self._refused(request, verdict)
            self._places[key] += 1
            if request.max_parallel is not None:
                self._limited.add(key)
        return wire.Admitted() if rpm is None else wire.Admitted(limit=rpm, remaining=verdict.left,
                                                                 reset=verdict.seconds)

    def _ask(self, request: wire.Admit) -> Verdict:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                verdict = self._counts.admit(request, self._places[request.key] + 1,
                                             self._period(request.token_budget))
            except ParleyError:
                self._told = False      # it may have taken the place, and only its reply be lost
                raise
            if verdict.refused != "place" or time.monotonic() >= deadline:
                return verdict
            self._freed.wait(LOOK)

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
            own = self._places[key]
            if key in self._limited:
                try:
                    self._counts.hold(key, own)
                except ParleyError:
                    self._told = False
            if not own:
                del self._places[key]
                self._limited.discard(key)
            self._freed.notify_all()

    def charge(self, key: str, requests: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        with self._counting:
            self._number += 1
            self._uncounted.append(Charge(self._number, key, requests, prompt_tokens, completion_tokens,
                                          *usage.today(self._now())))
            self._count()

    def _count(self) -> None:
        """Counts what was not yet, if that can be done now."""
        if not self._uncounted:
            return
        try:
            self._counts.charge(self._uncounted[:1000])
            del self._uncounted[:1000]
        except ParleyError:
            del self._uncounted[:max(len(self._uncounted) - MOST_UNCOUNTED, 0)]

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
        with self._counting:
            self._count()
        with self._freed:
            if not self._limited and self._told:
                return
            try:
                self._counts.hold_all({name: self._places[name] for name in self._limited})
                self._told = True
            except ParleyError as error:
                self._told = False
                log.warning("the places of running answers are not held in Redis: %s", error.message)
