"""Idempotency-Key: a POST that is sent again gets the first one's answer, attached to while that still runs.

The first call runs in a thread of its own to its end, whoever listens; later ones in this process follow its events,
those in other processes wait for its lock and replay what it left under the SHA-256 of the key (`services.store.kept`).
Of errors only those of the request itself are kept, none that may pass (busy, no such profile, a full disk). After a
crash nothing is kept: the retry runs anew, and the session knows the request by its digest (`Turn.prompt(request=…)`,
`Turn.answered`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from services.errors import BadRequest, Conflict, ParleyError, Unavailable, all_classes
from services.store.base import check_names
from services.store.kept import KEPT, Kept

log = logging.getLogger("parley.idempotency")
Event = dict[str, Any]      # {"done": true, …} is the last, PASSING ones are never kept; others are the caller's own
PASSING = ("beat", "queue")     # fields of events that only tell how the wait goes
BEAT: Event = {"beat": True}
BEAT_SECONDS = 1.0
RUN_SECONDS = 3600.0        # how long a follower in another process waits for the first
KEY_LIMIT = 200


def check_key(key: str) -> str:
    """The header's value, or BadRequest."""
    if not 1 <= len(key) <= KEY_LIMIT or not key.isascii() or not key.isprintable():
        raise BadRequest(f"Idempotency-Key: expected 1 to {KEY_LIMIT} printable ASCII characters",
                         code="bad_idempotency_key", param="Idempotency-Key")
    return key


def digest_of(*parts: bytes | str) -> str:
    """What binds a key to one request: a digest of method, path and body."""
    whole = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        whole.update(len(raw).to_bytes(8, "big") + raw)
    return whole.hexdigest()


class _Run:
    """One request's events so far; the thread that makes them adds, followers wait for more. `_news` guards all."""

    def __init__(self, digest: str) -> None:
        self.digest = digest
        self.events: list[Event] = []
        self._error: ParleyError | None = None
        self._ended = False
        self._news = threading.Condition()

    def add(self, event: Event) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    def end(self, error: ParleyError | None) -> None:
        with self._news:
            self._error, self._ended = error, True
            self._news.notify_all()

    def follow(self) -> Iterator[Event]:
        """All events from the first; a beat about every second without one. Raises what the run raised."""
        at = 0
        while True:
            with self._news:
                if at == len(self.events) and not self._ended:
                    self._news.wait(BEAT_SECONDS)
                fresh, ended = self.events[at:], self._ended
            at += len(fresh)
            yield from fresh
            if ended:
                break
            if not fresh:
                yield BEAT
        if self._error is not None:
            raise _rebuild(_described(self._error))     # an exception of its own for each follower


class Idempotency:
    """The runs of this process and the answers that are `kept`. One object serves all threads of a process."""

    def __init__(self, kept: Kept, now: Callable[[], float] = time.time) -> None:
        self._kept, self._now = kept, now
        self._running: dict[tuple[str, str], tuple[_Run, threading.Thread]] = {}
        self._lock = threading.Lock()

    def run(self, owner: str, key: str, digest: str, produce: Callable[[], Iterable[Event]]) -> Iterator[Event]:
        """The events of `produce()`, or of the first call with this owner and key. `produce` runs in another thread.

        Conflict (`idempotency_mismatch`) when the key came with another `digest`. Closing the iterator stops nothing.
        """
        check_names(owner, "any")
        name = (owner, hashlib.sha256(check_key(key).encode()).hexdigest())
        with self._lock:
            if name not in self._running:
                run = _Run(digest)
                thread = threading.Thread(target=self._work, args=(name, run, produce), name="idempotent", daemon=True)
                self._running[name] = run, thread
                thread.start()
            run, _ = self._running[name]
        if run.digest != digest:
            raise mismatch()
        return run.follow()

    def follow(self, owner: str, key: str) -> Iterator[Event] | None:
        """The events of the call with this key that runs in this process; None when none does."""
        with self._lock:
            running = self._running.get((owner, hashlib.sha256(check_key(key).encode()).hexdigest()))
        return None if running is None else running[0].follow()

    def forget(self, owner: str, key: str) -> None:
        """What is kept for this key is kept no longer, unless it is in use now."""
        check_names(owner, "any")
        self._kept.remove(owner, hashlib.sha256(check_key(key).encode()).hexdigest())

    def drain(self, timeout: float) -> bool:
        """Waits until nothing runs; False when something still does after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._lock:
            threads = [thread for _, thread in self._running.values()]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    # ------------------------------------------------------------ the thread of a run

    def _work(self, name: tuple[str, str], run: _Run, produce: Callable[[], Iterable[Event]]) -> None:
        error: ParleyError | None = None
        last: list[Event] = []
        try:
            with self._kept.held(*name, RUN_SECONDS):
                error = self._replay_or_run(name, run, produce, last)
        except TimeoutError:
            error = Unavailable("the first request with this Idempotency-Key still runs", code="idempotency_busy")
        except ParleyError as failed:
            error = failed
        except Exception:
            log.exception("a request with an Idempotency-Key failed")
            error = ParleyError("internal error")
        finally:
            with self._lock:
                del self._running[name]
            for event in last:
                run.add(event)
            run.end(error)
        try:
            self._kept.prune(self._now())
        except ParleyError as failed:
            log.warning("old answers kept for retries could not be removed: %s", failed.message)

    def _replay_or_run(self, name: tuple[str, str], run: _Run, produce: Callable[[], Iterable[Event]],
                       last: list[Event]) -> ParleyError | None:
        """Fills `run`; the final event goes to `last`, to be told once it is kept. The error that the run ends with."""
        kept = self._load(name)
        if kept is not None:
            if kept["digest"] != run.digest:
                return mismatch()
            last += kept["events"]
            return _rebuild(kept["error"]) if kept["error"] else None
        error = None
        try:
            for event in produce():
                (last.append if event.get("done") else run.add)(event)
        except ParleyError as failed:
            error = failed
        if error is None or _lasting(error):
            self._save(name, run, last, error)
        return error

    def _save(self, name: tuple[str, str], run: _Run, last: list[Event], error: ParleyError | None) -> None:
        events = [event for event in [*run.events, *last] if event.keys().isdisjoint(PASSING)]
        record = {"digest": run.digest, "at": self._now(), "events": events,
                  "error": _described(error) if error else None}
        try:
            self._kept.save(*name, json.dumps(record).encode())
        except ParleyError as failed:       # the answer itself is kept in its session; only a retry will not find it
            log.warning("an answer could not be kept for retries: %s", failed.message)

    def _load(self, name: tuple[str, str]) -> dict[str, Any] | None:
        """The kept record, None when there is none, it is too old or damaged: then the request runs."""
        try:
            stored = self._kept.load(*name)
            if stored is None:
                return None
            record = json.loads(stored)
            fresh = abs(self._now() - record["at"]) < KEPT
            return record if fresh and isinstance(record["digest"], str) and "error" in record else None
        except (ValueError, KeyError, TypeError) as error:
            log.warning("a kept answer is damaged, so the request runs again: %s", error)
            return None


def _lasting(error: ParleyError) -> bool:
    """Whether trying again would bring the same error: what is wrong in the request, not what it did not find."""
    return error.status in (400, 413, 415) and error.retry_after is None


def mismatch() -> Conflict:
    return Conflict("this Idempotency-Key was used with another request: use a new key for a new request",
                    code="idempotency_mismatch", param="Idempotency-Key")


def _described(error: ParleyError) -> dict[str, Any]:
    return {"status": error.status, "code": error.code, "message": error.message, "param": error.param,
            "retry_after": error.retry_after, "details": error.details}


def _rebuild(kept: dict[str, Any]) -> ParleyError:
    cls = next((cls for cls in all_classes() if cls.status == kept["status"] and cls.code == kept["code"]), None) \
        or next((cls for cls in all_classes() if cls.status == kept["status"]), ParleyError)
    return cls(kept["message"], code=kept["code"], param=kept["param"], retry_after=kept["retry_after"],
               **kept["details"])
