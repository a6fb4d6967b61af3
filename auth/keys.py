"""The API keys of this server: who is it, make, edit, revoke, rotate.

`data/api_keys.json`, or one document in Redis, is the truth and the only way in which processes tell each other: each
`authenticate` looks (one stat, one call) whether it changed, so a key revoked by another worker or server or by the
command line is refused at once. When it is broken or gone while the server runs, that changes nothing about who may
come in; `problem` says so.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from auth import edits, grants, keyplaces, records, takeover
from auth.authentication import generate_api_key
from auth.grants import Wish
from auth.keyfile import Signature
from auth.keyplaces import FILE_NAME, LOCK_WAIT
from auth.records import DEFAULT_SCOPES, LOCAL_ID, MASTER_ID, SCOPES, Document, Identity, Key, Record
from services.errors import BadRequest, ConfigError, Conflict, ParleyError, Unavailable
from services.settings import Settings
from services.store import disk

if TYPE_CHECKING:
    from auth.tokens import Tokens

__all__ = ["DEFAULT_SCOPES", "FILE_NAME", "MASTER_ID", "SCOPES", "Identity", "Key", "Keys", "Wish"]

log = logging.getLogger("parley.auth")
LONGEST_GRACE = 30 * 86400      # seconds an old secret may go on working
T = TypeVar("T")


@dataclass(frozen=True)
class _Entry:
    """A secret by its digest, and until when (Unix time) it lets its key in."""

    digest: bytes
    key: Key | None
    not_after: float


_NOBODY = _Entry(b"\0" * 32, None, -math.inf)


class Keys:
    """The keys in `data_dir`, or with STORE=redis those in Redis. Safe for threads, and for any number of processes on
    the same folder or Redis.

    `ConfigError` when the file that is there cannot be used. A seed's plain file is taken over. `now` gives Unix time.
    With BYPASS_AUTHORIZATION `local_secret` opens the key of requests that have none. It never leaves this process.
    """

    def __init__(self, data_dir: Path, settings: Settings, now: Callable[[], float] = time.time) -> None:
        self._place = keyplaces.place_of(data_dir, settings)
        self._settings = settings
        self._now = now
        self._lock = threading.Lock()               # owns the four below while they change
        self._seen: Signature | None = None         # of the list as last read, good or not
        self._loaded = False                        # a good list was read once
        self._keys: dict[str, Key] = {}
        self._entries: dict[bytes, _Entry] = {}     # replaced as a whole, so readers need no lock
        self._issuers: dict[str, dict[str | None, _Entry]] = {}     # kid -> iss -> whose tokens come in as it
        self._problem: str | None = None
        self._tokens = _tokens(settings)
        self.local_secret = generate_api_key() if settings.bypass_authorization else None
        with suppress(FileNotFoundError, Unavailable):      # a Redis that is away may come back
            if settings.store == "files" and not isinstance(
                    records.parse(self._place.read()[0], self._place.where), Document):
                takeover.take_over(data_dir / FILE_NAME, LOCK_WAIT, now())
            self._load()

    # ------------------------------------------------------------ who is it

    def authenticate(self, secret: bytes) -> Key | None:
        """The key that `secret` opens now; None when there is none, or it is revoked, expired or rotated away.

        With ASAP_PUB_KEYS_REPO_URL also the key that a JSON Web Token comes in as: raises as `Tokens.key` does.
        """
        self._refresh()
        digest = hashlib.sha256(secret).digest()
        entry = self._entries.get(digest, _NOBODY)
        if hmac.compare_digest(entry.digest, digest) and self._now() < entry.not_after:
            return entry.key
        return None if self._tokens is None else self._tokens.key(secret, self._keys_of)

    def _keys_of(self, kid: str) -> dict[str | None, Key]:
        """By `iss`: the keys that tokens with this `kid` come in as now."""
        return {iss: entry.key for iss, entry in self._issuers.get(kid, {}).items()
                if entry.key is not None and self._now() < entry.not_after}

    @property
    def problem(self) -> str | None:
        """What is wrong with the list while the last good keys go on working, for /readyz; None when all is well."""
        self._refresh()
        problem = self._problem
        return problem and problem.replace(self._place.where, self._place.name)     # where it is, is for the log alone

    def list(self) -> list[Key]:
        """All keys, the revoked and expired too, in the order they were made."""
        self._refresh()
        return [*self._keys.values()]

    def get(self, key_id: str) -> Key:
        """NotFound; Unavailable where the list cannot be read now, and may have it."""
        self._refresh()
        try:
            return self._keys[key_id]
        except KeyError:
            if self._problem and (self._loaded or self._seen):      # else there has never been a list
                raise Unavailable("the list of keys cannot be read, so it is unknown whether there is a key with the "
                                  f"id {key_id!r}") from None
            raise edits.unknown(key_id) from None

    # ------------------------------------------------------------ changes

    def create(self, *, by: Key | None = None, **wish: Any) -> tuple[str, Key]:
        """A new key: its secret, kept nowhere, and its record. `wish` holds fields of `grants.Wish`.

        `by` is who asks, None the command line. BadRequest names a wrong field, Forbidden what `by` cannot grant.
        """
        wanted, now = Wish(**wish), self._now()
        grants.check(wanted)
        wanted = grants.within(wanted, by, now)
        secret = generate_api_key()
        key = records.key_of(self._change(lambda found: edits.add(found, secret, wanted, now)))
        log.info("key %s was made by %s: scopes %s", key.id, _name(by), ", ".join(key.scopes))
        return secret, key

    def edit(self, key_id: str, *, by: Key | None = None, **changes: Any) -> Key:
        """Changes the fields of `grants.Wish` that are given, at once and everywhere; None takes a limit away.

        BadRequest for nothing or a wrong field, Conflict for the master's or a key that has ended, Forbidden unless
        `by` could have made such a key, as it is and as it becomes. A key may narrow itself, and no more.
        """
        assert {*changes} <= {*grants.EDITABLE}, changes
        if not changes:
            raise BadRequest(f"nothing to change: give one or more of {', '.join(grants.EDITABLE)}")
        grants.check(Wish(**changes))
        now = self._now()
        key = records.key_of(self._change(lambda found: edits.edit(found, key_id, changes, by, now)))
        log.info("key %s was edited by %s: %s", key.id, _name(by), ", ".join(changes))
        return key

    def revoke(self, key_id: str, by: Key | None = None) -> Key:
        """Ends a key at once and for good; once more is no error. Conflict for the master's."""
        if key_id == MASTER_ID:
            raise Conflict("the master key cannot be revoked; `main.py keys master` on the server makes a new one, "
                           "which ends the old")
        now = self._now()
        key = records.key_of(self._change(lambda found: edits.revoke(found, key_id, by, now)))
        log.info("key %s was revoked by %s", key.id, _name(by))
        return key

    def rotate(self, key_id: str, grace_seconds: float = 0, by: Key | None = None) -> tuple[str, Key]:
        """A new secret for a key, whose old one works for `grace_seconds` more.

        So do those of earlier rotations until the end that was promised; without grace all of them end at once.
        Conflict for the master's or a key that has ended, Forbidden unless `by` could have made such a key.
        """
        if isinstance(grace_seconds, bool) or not isinstance(grace_seconds, (int, float)) \
                or not 0 <= grace_seconds <= LONGEST_GRACE:
            raise BadRequest(f"grace_seconds: expected a number from 0 to {LONGEST_GRACE}", param="grace_seconds")
        if key_id == MASTER_ID:
            raise Conflict("the master key is not rotated over the API; use `main.py keys master` on the server")
        secret, now = generate_api_key(), self._now()
        key = records.key_of(self._change(lambda found: edits.rotate(found, key_id, secret, grace_seconds, by, now)))
        log.info("key %s was rotated by %s: the old secret works for %g s more, and so many of before it: %d", key.id,
                 _name(by), grace_seconds, max(len(key.old_secrets) - 1, 0))
        return secret, key

    def assign_tokens(self, key_id: str, identity: Identity | None) -> Key:
        """Has the tokens of `identity` come in as a key, and those of before no longer. For the command line only."""
        grants.check_identity(identity)
        key = records.key_of(self._change(lambda found: edits.assign(found, key_id, identity)))
        log.info("tokens that come in as key %s have the kid %s", key.id, identity and identity.kids)
        return key

    def ensure_local(self) -> None:
        """Makes the record of requests without a key, if there is none. Nobody is told its secret."""
        secret, now = generate_api_key(), self._now()
        self._change(lambda found: edits.add_local(found, secret, now))

    # ------------------------------------------------------------ the master

    def ensure_master(self) -> str | None:
        """The master's secret when this call made one, to be shown once; None when it is known already.

        With `MASTER_KEY` set that is the master's secret, and replaces a stored one that differs.
        """
        given, now = self._settings.master_key, self._now()
        if given is not None:
            if self._change(lambda found: edits.adopt_master(found, given, now)):
                log.warning("the master key is the one of MASTER_KEY from now on; one that was stored no longer works")
            return None
        secret = generate_api_key()

        def add(found: edits.Records) -> bool:
            missing = not edits.has_master(found)
            if missing:
                edits.put_master(found, secret, now)
            return missing
        if not self._change(add):
            return None
        log.info("a master key was made")
        return secret

    def new_master(self) -> str:
        """Replaces the master's secret: the old one stops at once. For the command line only."""
        if self._settings.master_key is not None:
            raise Conflict("MASTER_KEY is set and would replace a new master key at the next start; change it there, "
                           "or unset it first")
        secret, now = generate_api_key(), self._now()
        self._change(lambda found: edits.put_master(found, secret, now))
        log.warning("the master key was replaced on the command line; the old one no longer works")
        return secret

    # ------------------------------------------------------------ the list

    def _change(self, edit: Callable[[edits.Records], T]) -> T:
        """Reads, lets `edit` change the list, and writes, in one step for all others: no process's change is lost.
        `edit` is called again where another was faster."""
        with self._place.changing():
            while True:
                before, seen = self._records()
                after = [*before]
                result = edit(after)
                disk.failpoint("keys_before_write")
                if after == before or self._place.write(records.encode(Document(keys=after)), seen):
                    break
        self._refresh()
        return result

    def _records(self) -> tuple[edits.Records, Signature | None]:
        """What is in the list now, never what memory holds, and its signature: one that cannot be read is for a person
        to mend."""
        name = self._place.name
        try:
            data, seen = self._place.read()
            document = records.parse(data, self._place.where)
        except FileNotFoundError:
            if self._loaded:
                raise Unavailable(f"{name} has gone; put it back, nothing is changed until then",
                                  code="keys_unreadable") from None
            return [], ()
        except ConfigError as error:
            log.error("no key can be changed: %s", error)
            raise Unavailable(f"{name} cannot be read; nothing is changed until it is mended (the log says what is "
                              "wrong)", code="keys_unreadable") from None
        if isinstance(document, Document):
            return document.keys, seen
        raise Unavailable(f"{name} is a plain one again; start the server anew to have it taken over",
                          code="keys_unreadable")

    def _refresh(self) -> None:
        """Takes over a changed list; keeps the last good keys, and says so once, when it cannot be used. Unavailable
        where there are no such keys, and who comes is not known."""
        if self._seen is not None and self._place.signature() == self._seen:
            return
        with self._lock:
            seen = self._place.signature()
            if seen == self._seen:
                return
            try:
                self._load()
            except FileNotFoundError:
                self._keep(seen, f"{self._place.where} is missing")
            except ParleyError as error:
                if not self._loaded and isinstance(error, Unavailable):
                    raise
                self._keep(seen, error.message)

    def _load(self) -> None:
        data, seen = self._place.read()
        document = records.parse(data, self._place.where)
        if not isinstance(document, Document):
            raise ConfigError(f"{self._place.where}: a plain file of ids and keys is taken over at the start only")
        self._keys = {record.id: records.key_of(record) for record in document.keys}
        self._entries = {entry.digest: entry for record in document.keys
                         for entry in _entries(record, self.local_secret)}
        self._issuers = _issuers(document)
        self._seen, self._loaded = seen, True
        if self._problem is not None:
            log.info("%s can be used again", self._place.where)
        self._problem = None

    def _keep(self, seen: Signature, problem: str) -> None:
        self._seen = seen
        if problem != self._problem and (self._loaded or seen):
            log.error("the last good keys go on working: %s", problem)
        self._problem = problem


def _entries(record: Record, local_secret: str | None) -> list[_Entry]:
    key, end = records.key_of(record), record.not_after()
    found = [_Entry(bytes.fromhex(record.hash), key, end)]
    found += [_Entry(bytes.fromhex(old.hash), key, min(end, old.until.timestamp())) for old in record.old_secrets()]
    if record.id == LOCAL_ID and local_secret is not None:
        found.append(_Entry(bytes.fromhex(records.digest_of(local_secret)), replace(key, scopes=("answer",)), end))
    return found


def _tokens(settings: Settings) -> Tokens | None:
    if settings.asap_keys is None:
        return None
    from auth.tokens import Tokens
    return Tokens(settings)


def _issuers(document: Document) -> dict[str, dict[str | None, _Entry]]:
    found: dict[str, dict[str | None, _Entry]] = {}
    for record in document.keys:
        entry = _Entry(_NOBODY.digest, records.key_of(record), record.not_after())
        for kid, iss in record.token_names():
            found.setdefault(kid, {})[iss] = entry
    return found


def _name(by: Key | None) -> str:
    return "the command line" if by is None else f"key {by.id}"
