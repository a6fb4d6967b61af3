"""What each key has used since it was made, kept in `data/usage.json`. Counts only, for people to read: no limit
depends on it, so a few seconds may be lost when the process is killed."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from pathlib import Path

import msgspec

from services.errors import ParleyError
from services.store import disk
from services.wire import Usage

log = logging.getLogger("parley.auth")
FILE_NAME = "usage.json"


class _File(msgspec.Struct, frozen=True):
    version: int
    keys: dict[str, dict[str, int]]


class UsageBook:
    """Counters per key id, in `data_dir/usage.json` after each `save`. Safe for threads; one process may own a folder.

    Beyond `max_keys` the key that was idle for longest is forgotten.
    """

    def __init__(self, data_dir: Path, max_keys: int = 100_000) -> None:
        self._path = data_dir / FILE_NAME
        self._max_keys = max_keys
        self._lock = threading.Lock()           # owns the counters and _changed
        self._saving = threading.Lock()         # one writer at a time, so an older state never replaces a newer one
        self._changed = False
        self._failed = False
        self._used: OrderedDict[str, Usage] = OrderedDict(self._load())

    def add(self, key_id: str, requests: int = 0, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        """Counts; negative numbers take back. Nothing goes below zero."""
        with self._lock:
            old = self._used.get(key_id, Usage())
            self._used[key_id] = Usage(requests=max(old.requests + requests, 0),
                                       prompt_tokens=max(old.prompt_tokens + prompt_tokens, 0),
                                       completion_tokens=max(old.completion_tokens + completion_tokens, 0))
            self._used.move_to_end(key_id)
            while len(self._used) > self._max_keys:
                self._used.popitem(last=False)
            self._changed = True

    def get(self, key_id: str) -> Usage:
        with self._lock:
            return self._used.get(key_id, Usage())

    def save(self) -> None:
        """Writes what changed. A failure is logged once and the next call tries again."""
        with self._saving:
            with self._lock:
                if not self._changed:
                    return
                self._changed = False
                keys = {name: {field: getattr(used, field) for field in Usage.__struct_fields__}
                        for name, used in self._used.items()}
            try:
                disk.make_dirs(self._path.parent)
                disk.write_atomic(self._path, msgspec.json.encode(_File(version=1, keys=keys)) + b"\n", mode=0o600)
                self._failed = False
            except ParleyError as error:
                if not self._failed:
                    log.warning("what keys use is counted but not saved: %s", error)
                self._failed = self._changed = True

    def _load(self) -> dict[str, Usage]:
        try:
            data = disk.read_bytes(self._path)
        except FileNotFoundError:
            return {}
        try:
            return {name: msgspec.convert(used, Usage)
                    for name, used in msgspec.json.decode(data, type=_File).keys.items()}
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            copy = disk.keep_copy(self._path.parent, FILE_NAME, data)
            log.warning("%s is damaged (%s): it is set aside as %s, and counting begins anew", self._path, error, copy)
            return {}
