"""A seed's `data/sessions.json` becomes session files: everything in it, ids as before, the original kept as a backup.

The seed wrote `{"Active": id, "<id>": {"name": …, "history": ["Human: …", "AI: …", …]}}`, one file for all callers, so
the sessions go to the master key. Each becomes durable by itself, whole; the original is renamed when all are. A run
that was cut short is completed by the next one: a session already made from the same file is not made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from services.errors import ConfigError
from services.store import base, disk
from services.store.base import Record
from services.store.files import FileStore

log = logging.getLogger("parley.store")
FILE = "sessions.json"
MASTER = "0"
BATCH = 500                 # sessions made at once
_PREFIXES = {"Human: ": "user", "AI: ": "assistant"}
_BARE = {"Human:": "user", "AI:": "assistant"}
_OTHER = {"user": "assistant", "assistant": "user"}


def take_over(store: FileStore) -> int:
    """Takes over `sessions.json` if there is one; how many sessions it held. ConfigError when it cannot be read."""
    path = store.data_dir / FILE
    try:
        raw = disk.read_bytes(path)
    except FileNotFoundError:
        return 0
    source = hashlib.sha256(raw).hexdigest()[:16]
    sessions = _sessions(path, raw, source)
    done = _taken(store, source)
    left = [(_chooser(key), records) for key, records in sessions if _clean(key) not in done]
    for at in range(0, len(left), BATCH):
        store.create_many(MASTER, left[at:at + BATCH])
        disk.failpoint("after_taken_over")
    disk.failpoint("before_backup")
    backup = _free_name(path)
    disk.rename_durable(path, backup)
    disk.failpoint("after_backup")
    log.warning("%d sessions of %s were taken over; the original is kept as %s", len(sessions), FILE, backup.name)
    return len(sessions)


def check(data_dir: Path) -> None:
    """ConfigError where `take_over` would not read `sessions.json`. Changes nothing."""
    path = data_dir / FILE
    with suppress(FileNotFoundError):
        _sessions(path, disk.read_bytes(path), "")


def _sessions(path: Path, raw: bytes, source: str) -> list[tuple[str, list[Record]]]:
    """The seed's ids and the records that they become. "Active" named the one that was open for everybody."""
    when = datetime.fromtimestamp(path.stat().st_mtime, timezone.utc).isoformat(timespec="milliseconds")
    return [(key, _records(path, key, value, when, source)) for key, value in _load(path, raw).items()
            if key != "Active"]


def _load(path: Path, raw: bytes) -> dict[str, Any]:
    try:
        content = json.loads(raw.decode("utf-8-sig")) if raw.strip() else {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be taken over: {error}; mend the file, or move it away to start without its "
                          "sessions") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} cannot be taken over: expected an object of sessions by id, found "
                          f"{type(content).__name__}; mend the file, or move it away")
    return content


def _records(path: Path, key: str, value: Any, when: str, source: str) -> list[Record]:
    history = value.get("history", []) if isinstance(value, dict) else None
    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(history, list) or not all(isinstance(text, str) for text in history) \
            or not isinstance(name, str | None):
        raise ConfigError(f'{path} cannot be taken over: session {key[:80]!r} is not {{"name": text, "history": '
                          "[texts]}; mend the file, or move it away")
    head = base.new_head(when, _clean("" if name is None and not history else name), source=source, seed_id=_clean(key))
    return [head, *({"type": role, "at": when, "content": content, "extra": {}} for role, content in _turns(history))]


def _turns(history: list[str]) -> list[tuple[str, str]]:
    """Role and text of each entry. The prefix tells the role and is cut once; without one the roles take turns."""
    turns: list[tuple[str, str]] = []
    for text in history:
        role = next((role for prefix, role in _PREFIXES.items() if text.startswith(prefix)), None)
        if role is not None:
            text = text.partition(": ")[2]
        elif text in _BARE:
            role, text = _BARE[text], ""
        else:
            role = _OTHER[turns[-1][0]] if turns else "user"
        turns.append((role, _clean(text) or ""))
    return turns


def _clean(text: str | None) -> str | None:
    """`text` with halves of surrogate pairs, which no UTF-8 file can hold, as U+FFFD."""
    return None if text is None else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _taken(store: FileStore, source: str) -> set[str]:
    """The seed's ids that an earlier, cut run already made from this same file."""
    found = set()
    for sid, entry in store.index(MASTER).items():
        if entry.problem is None:
            head = store.read(MASTER, sid)[0]
            if head.get("source") == source:
                found.add(head["seed_id"])
    return found


def _chooser(key: str) -> Callable[[Collection[str]], str]:
    """Gives the id as it was; where that is no id, or another session has it, one beginning with `seed-`."""
    def choose(used: Collection[str]) -> str:
        if base.is_id(key) and key not in used:
            return key
        stem = "seed-" + (key if base.is_id(key) else hashlib.sha256(key.encode("utf-8", "replace")).hexdigest())[:40]
        return next(sid for sid in (stem, *(f"{stem}-{n}" for n in range(2, len(used) + 3))) if sid not in used)
    return choose


def _free_name(path: Path) -> Path:
    backup = path.with_name(path.name + ".bak")
    number = 1
    while backup.exists() or backup.is_symlink():
        number += 1
        backup = path.with_name(f"{path.name}.bak{number}")
    return backup
