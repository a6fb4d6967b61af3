"""Taking over a seed's plain `api_keys.json`, `{"0": "<master>", "1": "<key>", ...}`: same keys, same ids, hashed.

The original is kept beside it as `api_keys.json.bak` before anything is replaced, and each of the two writes is
atomic: whenever the process dies, the file is the old one or the new one, and the next start ends up the same.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

from auth import keyfile, records
from auth.authentication import random_base62
from auth.records import Document, Record
from services.errors import ConfigError
from services.settings import PLACEHOLDERS
from services.store import disk

log = logging.getLogger("parley.auth")


def take_over(path: Path, wait: float, now: float) -> None:
    """Replaces a plain file by one of records. Nothing happens to a file that another process took over meanwhile."""
    try:
        with disk.locked(path, wait):
            _take_over(path, now)
    except TimeoutError:
        raise ConfigError(f"{path} is held by another process for more than {wait:g} s; try again") from None


def _take_over(path: Path, now: float) -> None:
    data, _ = keyfile.read(path)
    found = records.parse(data, path)
    if isinstance(found, Document):
        return
    disk.failpoint("takeover_begins")
    backup = _keep(path, data) if found else None
    disk.failpoint("takeover_kept")
    document = Document(keys=_records(found, now))
    disk.write_atomic(path, records.encode(document), mode=0o600)
    disk.failpoint("takeover_done")
    if backup:
        log.warning("%d of %d keys of %s were taken over and are hashed now; the original with its plain keys is %s: "
                    "delete it when all is well", len(document.keys), len(found), path.name, backup.name)


def _keep(path: Path, data: bytes) -> Path:
    """The copy of `data` beside `path`. One that is there already is used when equal and never overwritten when not."""
    number = 1
    while True:
        backup = path.with_name(path.name + (".bak" if number == 1 else f".bak{number}"))
        try:
            if disk.read_bytes(backup) == data:
                return backup
            number += 1
        except FileNotFoundError:
            disk.write_atomic(backup, data, mode=0o600)
            return backup


def _records(found: dict[str, str], now: float) -> list[Record]:
    """Records for all keys that can log in, the master's first, so that it wins when another id has the same key."""
    taken: dict[str, Record] = {}
    for old_id, secret in sorted(found.items(), key=lambda item: item[0] != records.MASTER_ID):
        why = _unusable(secret)
        digest = records.digest_of(secret.encode("utf-8", "surrogatepass"))
        if not why and digest in taken:
            why = f"it is the same key as id {taken[digest].id}"
        if why:
            log.warning("the key of id %.40r was not taken over: %s", old_id, why)
        else:
            taken[digest] = _record(old_id, secret, digest, now)
    return list(taken.values())


def _unusable(secret: str) -> str | None:
    """Why no request can or may carry `secret`."""
    if secret.strip().lower() in PLACEHOLDERS:
        return "it is the placeholder, which everybody knows"
    if not secret or len(secret) > records.MAX_SECRET_BYTES:
        return f"a key has 1 to {records.MAX_SECRET_BYTES} characters"
    if not secret.isascii() or not secret.isprintable() or secret.strip() != secret:
        return "a header cannot carry it: it is not printable ASCII, or begins or ends with a blank"
    return None


def _record(old_id: str, secret: str, digest: str, now: float) -> Record:
    plain = re.fullmatch(r"[A-Za-z0-9_-]{1,64}", old_id) is not None
    name = "" if plain else "".join(c for c in old_id if c.isprintable())[:80]
    scopes = list(records.SCOPES if old_id == records.MASTER_ID else records.DEFAULT_SCOPES)
    return Record(id=old_id if plain else "k" + random_base62(8), name=name, hash=digest,
                  prefix4=records.prefix_of(secret), scopes=scopes, created=records.moment(now))  # type: ignore[arg-type]
