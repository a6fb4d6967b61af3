"""What each key has used since it was made, today and this month, kept in `data/usage.json`. It is saved every few
seconds: so much of a budget may be had twice when the process is killed."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec

from services.errors import ParleyError
from services.store import disk
from services.wire import Usage

log = logging.getLogger("parley.auth")
FILE_NAME = "usage.json"


DAY = "%Y-%m-%d"
MONTH = "%Y-%m"


class Spent(msgspec.Struct, frozen=True):
    """Tokens used in the latest day and month of UTC in which there were any."""

    day: str = ""
    day_tokens: int = 0
    month: str = ""
    month_tokens: int = 0

    def plus(self, tokens: int, day: str, month: str) -> Spent:
        return Spent(day, tokens + (self.day_tokens if day == self.day else 0),
                     month, tokens + (self.month_tokens if month == self.month else 0))


class _File(msgspec.Struct, frozen=True):
    version: int
    keys: dict[str, dict[str, int]]
    spent: dict[str, Spent] = {}


def today(now: float) -> tuple[str, str]:
    """The day and the month of UTC at a Unix time."""
    at = datetime.fromtimestamp(now, timezone.utc)
    return at.strftime(DAY), at.strftime(MONTH)


def renewal(per: str, now: float) -> float | None:
    """Seconds from a Unix time until the next day or month of UTC; None for "total", which never begins anew."""
    at = datetime.fromtimestamp(now, timezone.utc)
    begun = at.replace(hour=0, minute=0, second=0, microsecond=0)
    if per == "total":
        return None
    month = (begun.replace(day=1) + timedelta(days=32)).replace(day=1)
    return ((begun + timedelta(days=1) if per == "day" else month) - at).total_seconds()


class UsageBook:
    """Counters per key id, in `data_dir/usage.json` after each `save`. Safe for threads; one process may own a folder.

    Beyond `max_keys` the key that was idle for longest is forgotten.
    """

    def __init__(self, data_dir: Path, max_keys: int = 100_000, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._path = data_dir / FILE_NAME
        self._max_keys = max_keys
        self._lock = threading.Lock()           # owns the counters and _changed
        self._saving = threading.Lock()         # one writer at a time, so an older state never replaces a newer one
        self._changed = False
        self._failed = False
        self._used: OrderedDict[str, Usage] = OrderedDict()
        self._spent: dict[str, Spent] = {}      # of keys in _used
        self._load()

    def add(self, key_id: str, requests: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Counts; negative numbers take back. Nothing goes below zero."""
        with self._lock:
            old = self._used.get(key_id, Usage())
            self._used[key_id] = Usage(requests=max(old.requests + requests, 0),
                                       prompt_tokens=max(old.prompt_tokens + prompt_tokens, 0),
                                       completion_tokens=max(old.completion_tokens + completion_tokens, 0))
            self._used.move_to_end(key_id)
            if tokens := max(prompt_tokens + completion_tokens, 0):
                self._spent[key_id] = self._spent.get(key_id, Spent()).plus(tokens, *self._today())
            while len(self._used) > self._max_keys:
                self._spent.pop(self._used.popitem(last=False)[0], None)
            self._changed = True

    def get(self, key_id: str) -> Usage:
        with self._lock:
            return self._used.get(key_id, Usage())

    def spent(self, key_id: str, per: str) -> int:
        """Tokens that a key has used in this "day" or "month" of UTC, or in "total"."""
        with self._lock:
            if per == "total":
                used = self._used.get(key_id, Usage())
                return used.prompt_tokens + used.completion_tokens
            spent, (day, month) = self._spent.get(key_id, Spent()), self._today()
            if per == "day":
                return spent.day_tokens if spent.day == day else 0
            return spent.month_tokens if spent.month == month else 0

    def renewal(self, per: str) -> float | None:
        """Seconds until the next day or month of UTC; None for "total", which never begins anew."""
        return renewal(per, self._now())

    def _today(self) -> tuple[str, str]:
        return today(self._now())

    def save(self) -> None:
        """Writes what changed. A failure is logged once and the next call tries again."""
        with self._saving:
            with self._lock:
                if not self._changed:
                    return
                self._changed = False
                keys = {name: {field: getattr(used, field) for field in Usage.__struct_fields__}
                        for name, used in self._used.items()}
                spent = dict(self._spent)
            try:
                disk.make_dirs(self._path.parent)
                data = msgspec.json.encode(_File(version=1, keys=keys, spent=spent)) + b"\n"
                disk.write_atomic(self._path, data, mode=0o600)
                self._failed = False
            except ParleyError as error:
                if not self._failed:
                    log.warning("what keys use is counted but not saved: %s", error)
                self._failed = self._changed = True

    def _load(self) -> None:
        try:
            data = disk.read_bytes(self._path)
        except FileNotFoundError:
            return
        try:
            file = msgspec.json.decode(data, type=_File)
            self._used = OrderedDict((name, msgspec.convert(used, Usage)) for name, used in file.keys.items())
            self._spent = {name: spent for name, spent in file.spent.items() if name in self._used}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            copy = disk.keep_copy(self._path.parent, FILE_NAME, data)
            log.warning("%s is damaged (%s): it is set aside as %s, and counting begins anew", self._path, error, copy)
