"""Requests and tokens per minute, tokens in all, and answers in parallel: `Limiter` counts in the supervisor,
`Admissions` asks from the web side.

There is one `Limiter` per server however many web workers, so a limit is exact; servers that share a Redis count there
together (`auth.shared_limits`). A place for an answer is held by an
open connection: whatever becomes of a worker, its places are free as soon as it is gone.

An admission's `key` on the wire is `<key id>` or `<key id>/answer`: requests are counted per key id, places per whole
string, so a short request never takes a place from an answer.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from auth import refusals
from auth.records import Key
from auth.usage import UsageBook
from auth.windows import Amounts, Windows
from services import wire
from services.errors import TooManyRequests, Unavailable, from_code
from services.settings import Settings

if TYPE_CHECKING:
    from auth.shared_limits import SharedLimiter

log = logging.getLogger("parley.auth")
WRONG_KEYS_PER_MINUTE = 60      # per source address and web worker; a right key is never refused for wrong ones
PATIENCE = 0.1                  # seconds to wait for a place: one given back by an answer's end may still be on its way
ANSWER_TIMEOUT = 10.0           # seconds the supervisor may take to say yes or no


class Limiter:
    """Counts for all keys. Safe for threads. `close` saves what was used.

    Memory is bounded: windows of at most `max_keys` keys, and places that are taken.
    """

    def __init__(self, data_dir: Path, *, window: int = 60, max_keys: int = 100_000, save_every: float = 5.0) -> None:
        self._windows = Windows(window, max_keys)
        self._tokens = Amounts(window, max_keys)
        self._book = UsageBook(data_dir, max_keys)
        self._freed = threading.Condition()     # owns the places, and makes both limits one decision
        self._places: Counter[str] = Counter()
        self._closing = threading.Event()
        self._saver = threading.Thread(target=self._save_now_and_then, args=(save_every,), name="usage", daemon=True)
        self._saver.start()

    def admit(self, request: wire.Admit) -> wire.Admitted | wire.Failed:
        """Takes a place, to be given back with `release`, and counts `cost` requests; `Failed` takes nothing."""
        key, rpm, max_parallel, cost = request.key, request.requests_per_minute, request.max_parallel, request.cost
        key_id = key.partition("/")[0]
        with self._freed:
            if spent := self._spent(key_id, request):
                return spent
            if max_parallel is not None and not self._freed.wait_for(
                    lambda: self._places[key] < max_parallel, PATIENCE):
                return refusals.no_place(max_parallel)
            hit = None if rpm is None else self._windows.hit(key_id, rpm, cost)
            if rpm is not None and hit is not None and not hit.allowed:
                return refusals.no_request(rpm, hit.reset)
            self._places[key] += 1
        if cost:
            self._book.add(key_id, requests=cost)
        return wire.Admitted(limit=rpm, remaining=hit and hit.remaining, reset=hit and hit.reset)

    def _spent(self, key_id: str, request: wire.Admit) -> wire.Failed | None:
        """Why no more tokens may be used now."""
        most, budget = request.tokens_per_minute, request.token_budget
        if most is not None and (wait := self._tokens.wait(key_id, most)):
            return refusals.no_tokens(most, wait)
        if budget is None or self._book.spent(key_id, budget.per) < budget.tokens:
            return None
        return refusals.no_budget(budget, self._book.renewal(budget.per))

    def release(self, key: str) -> None:
        """Gives one place back."""
        with self._freed:
            assert self._places[key] > 0, f"no place of {key} is taken"
            self._places[key] -= 1
            if not self._places[key]:
                del self._places[key]
            self._freed.notify_all()

    def charge(self, key: str, requests: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        self._book.add(key, requests, prompt_tokens, completion_tokens)
        self._tokens.add(key, prompt_tokens + completion_tokens)

    def usage(self, key: str) -> wire.Usage:
        return self._book.get(key)

    def close(self) -> None:
        """Ends the saving thread and saves. May be called more than once."""
        self._closing.set()
        self._saver.join()
        self._book.save()

    def _save_now_and_then(self, every: float) -> None:
        while not self._closing.wait(every):
            self._book.save()


def open_limiter(settings: Settings) -> Limiter | SharedLimiter:
    """What counts for this server, or with STORE=redis for all that have one Redis."""
    if settings.store == "files":
        return Limiter(settings.data_dir)
    from auth.shared_limits import SharedLimiter
    return SharedLimiter.of(settings)


class Ticket:
    """One admitted request. `close` ends it, and gives its place back; also on leaving a `with`."""

    def __init__(self, admissions: Admissions, key: Key, admitted: wire.Admitted, channel: wire.Channel | None) -> None:
        self._admissions = admissions
        self._key = key
        self._channel = channel         # open as long as a place is held
        self._lock = threading.Lock()   # a stream may be closed by another thread than the one that charges
        self.headers = _headers(admitted)

    def charge(self, charge: wire.Charge) -> None:
        """Adds to what the key has used. A supervisor that is gone is logged: the answer is more than its count."""
        charge = msgspec.structs.replace(charge, key=self._key.id)
        try:
            with self._lock:
                if self._channel is not None:
                    self._channel.send(charge)
                    return
            self._admissions.tell(charge)
        except (wire.WireError, Unavailable) as error:
            log.warning("%d tokens of key %s were not counted: %s", charge.prompt_tokens + charge.completion_tokens,
                        self._key.id, error)

    def close(self) -> None:
        """May be called more than once."""
        with self._lock:
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()

    def __enter__(self) -> Ticket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Admissions:
    """Asks the supervisor at `control_address`, over one connection per request. Safe for threads and after forks."""

    def __init__(self, control_address: str, authkey: bytes, wrong_keys: int = WRONG_KEYS_PER_MINUTE) -> None:
        self._address = control_address
        self._authkey = authkey
        self._wrong_keys_per_minute = wrong_keys
        self._wrong_keys = Windows(60)

    def count_tokens(self, owner: str, tokens: int) -> None:
        """Counts tokens that a key has used beside answers. A supervisor that is gone is logged."""
        try:
            self.tell(wire.Charge(key=owner, prompt_tokens=tokens))
        except (wire.WireError, Unavailable) as error:
            log.warning("%d tokens of key %s were not counted: %s", tokens, owner, error)

    def admit(self, key: Key, cost: int = 1, place: bool = False) -> Ticket:
        """Counts a request of `key`; with `place` it also counts as an answer until the ticket closes.

        TooManyRequests says which limit and when to try again; Unavailable when the supervisor does not answer.
        """
        request = wire.Admit(key=key.id + ("/answer" if place else ""), requests_per_minute=key.requests_per_minute,
                             cost=cost)
        if place:
            request = msgspec.structs.replace(request, max_parallel=key.max_parallel, token_budget=key.token_budget,
                                              tokens_per_minute=key.tokens_per_minute)
        channel = self._connect()
        kept = False
        try:
            answer = _answer(channel, request)
            if not isinstance(answer, wire.Admitted):
                raise _down(f"unexpected answer {type(answer).__name__}")
            kept = place
        finally:
            if not kept:
                channel.close()
        return Ticket(self, key, answer, channel if kept else None)

    def usage(self, key_id: str) -> wire.Usage:
        """What a key has used since it was made. `Unavailable` where that cannot be told now."""
        return self.usages([key_id])[key_id]

    def usages(self, key_ids: Iterable[str]) -> dict[str, wire.Usage]:
        """The same of several keys, by their ids."""
        with self._connect() as channel:
            return {key_id: _usage(channel, key_id) for key_id in key_ids}

    def tell(self, message: wire.Message) -> None:
        """Sends a message that has no answer."""
        with self._connect() as channel:
            channel.send(message)

    def admit_source(self, address: str) -> None:
        """Counts a wrong key from `address`, the peer of the connection; TooManyRequests when there were too many."""
        hit = self._wrong_keys.hit(_source(address), self._wrong_keys_per_minute)
        if not hit.allowed:
            raise TooManyRequests("too many wrong keys from this address; check the key and try again later",
                                  code="too_many_wrong_keys", retry_after=max(hit.reset, 1.0))

    def _connect(self) -> wire.Channel:
        try:
            return wire.connect(self._address, self._authkey, ANSWER_TIMEOUT)
        except wire.WireError as error:
            raise _down(str(error)) from None


def _usage(channel: wire.Channel, key_id: str) -> wire.Usage:
    answer = _answer(channel, wire.GetUsage(key=key_id))
    if not isinstance(answer, wire.Usage):
        raise _down(f"unexpected answer {type(answer).__name__}")
    return answer


def _answer(channel: wire.Channel, request: wire.Message) -> wire.Message:
    try:
        channel.send(request)
        answer = channel.receive(ANSWER_TIMEOUT)
    except wire.WireError as error:
        raise _down(str(error)) from None
    if answer is None:
        raise _down(f"no answer in {ANSWER_TIMEOUT:g} s")
    if isinstance(answer, wire.Failed):
        raise from_code(answer.code, answer.message, answer.retry_after, **answer.details)
    return answer


def _down(why: str) -> Unavailable:
    log.warning("the supervisor cannot be asked: %s", why)
    return Unavailable("the server is starting or stopping; try again", code="supervisor_down", retry_after=2)


def _headers(admitted: wire.Admitted) -> dict[str, str]:
    """What OpenAI's clients and the IETF draft call the request limit; nothing for a key without one."""
    if admitted.limit is None or admitted.remaining is None or admitted.reset is None:
        return {}
    limit, remaining, reset = str(admitted.limit), str(admitted.remaining), f"{admitted.reset:.0f}"
    return {"x-ratelimit-limit-requests": limit, "x-ratelimit-remaining-requests": remaining,
            "x-ratelimit-reset-requests": reset + "s",
            "RateLimit-Limit": limit, "RateLimit-Remaining": remaining, "RateLimit-Reset": reset}


def _source(address: str) -> str:
    """`address`, of IPv6 its /64: what one customer gets."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if ip.version == 4:
        return address
    mapped = ip.ipv4_mapped
    return str(mapped or ipaddress.ip_network((int(ip), 64), strict=False))
