"""What a change does to the list of records: policy alone. `auth.keys` reads and writes the file around it.

Each edit changes the list in place, or raises and leaves the file alone.
"""

from __future__ import annotations

import hmac
from typing import Any

import msgspec

from auth import grants, records
from auth.authentication import random_base62
from auth.grants import Wish
from auth.records import LOCAL_ID, MASTER_ID, SCOPES, Identity, Key, Record, Rotation
from services.errors import ConfigError, Conflict, NotFound

MAX_OLD = 100       # secrets of before that may still work, of one key
Records = list[Record]


def add(found: Records, secret: str, wish: Wish, now: float) -> Record:
    """A record of a new key, with an id that no key has or had: what belongs to a key belongs to its id."""
    taken = {record.id for record in found}
    while (key_id := "k" + random_base62(8)) in taken:
        continue
    record = _record(key_id, secret, wish, now)
    found.append(record)
    return record if wish.identity is None else assign(found, key_id, wish.identity)


def add_local(found: Records, secret: str, now: float) -> None:
    """The record that requests without a key count as, unless there is one."""
    if not any(record.id == LOCAL_ID for record in found):
        found.append(_record(LOCAL_ID, secret, Wish(name="requests without a key", scopes=("answer",)), now))


def assign(found: Records, key_id: str, identity: Identity | None) -> Record:
    """Has the tokens of `identity` come in as a key, those of before no longer. Conflict for what another key has."""
    at, record = _find(found, key_id)
    if key_id in (MASTER_ID, LOCAL_ID) or record.revoked_at is not None:
        raise Conflict(f"no token comes in as key {key_id}: only as one that was made for it and is not revoked")
    changed = msgspec.structs.replace(record, jwt=identity)
    for other in found:
        for kid, iss in {*changed.token_names()} & {*other.token_names()} if other.id != key_id else ():
            raise Conflict(f"tokens with the kid {kid!r} and the iss {iss!r} come in as key {other.id} already; have "
                           f"them no longer do so first: main.py keys jwt {other.id}")
    found[at] = changed
    return changed


def revoke(found: Records, key_id: str, by: Key | None, now: float) -> Record:
    at, record = _find(found, key_id)
    if by is not None:
        grants.require_scopes(by, {"admin"} & set(record.scopes), "revoke")
    if record.revoked_at is None:
        found[at] = msgspec.structs.replace(record, revoked_at=records.moment(now), rotation=None,
                                            jwt=None)
    return found[at]


def edit(found: Records, key_id: str, changes: dict[str, Any], by: Key | None, now: float) -> Record:
    """Changes the fields of `grants.Wish` that `changes` has; those that it leaves out stay."""
    at, record = _find(found, key_id)
    if key_id == MASTER_ID:
        raise Conflict("the master key may do everything without limits: it cannot be edited")
    if now >= record.not_after():
        raise Conflict(f"key {key_id} is revoked or expired, for good; make a new one")
    for field in ("scopes", "expires_in") if key_id == LOCAL_ID else ():
        if field in changes:
            raise Conflict("requests without a key may answer, and for as long as BYPASS_AUTHORIZATION is on: "
                           f"{field} cannot be edited here, limits can", param=field)
    terms = _terms(Wish(**changes), now)
    wanted = {"expires_at" if field == "expires_in" else field for field in changes}
    changed = msgspec.structs.replace(record, **{field: terms[field] for field in wanted})
    grants.require_edit(by, records.key_of(record), records.key_of(changed), now)
    found[at] = changed
    return changed


def rotate(found: Records, key_id: str, secret: str, grace: float, by: Key | None, now: float) -> Record:
    at, record = _find(found, key_id)
    if now >= record.not_after():
        raise Conflict(f"key {key_id} is revoked or expired; make a new one")
    grants.require_cover(by, records.key_of(record), now)
    old = _old_secrets(record, grace, now)
    found[at] = msgspec.structs.replace(record, hash=records.digest_of(secret), prefix4=records.prefix_of(secret),
                                        rotation=(old if len(old) > 1 else old[0]) if old else None)
    return found[at]


def _old_secrets(record: Record, grace: float, now: float) -> list[Rotation]:
    """What still works after a rotation: with `grace` the secret of now and those whose time is not over."""
    if not grace:
        return []
    running = [old for old in record.old_secrets() if old.until.timestamp() > now]
    if len(running) >= MAX_OLD:
        raise Conflict(f"key {record.id} has {len(running)} old secrets that still work; rotate it without grace, "
                       "which ends them all, or wait")
    return [Rotation(hash=record.hash, until=records.moment(now + grace)), *running]


def has_master(found: Records) -> bool:
    return any(record.id == MASTER_ID for record in found)


def put_master(found: Records, secret: str, now: float) -> None:
    """Makes `secret` the master's, in place of the one before."""
    master = _record(MASTER_ID, secret, Wish(name="master", scopes=SCOPES), now)
    found[:] = [master, *(record for record in found if record.id != MASTER_ID)]


def adopt_master(found: Records, given: str, now: float) -> bool:
    """Makes `given`, from MASTER_KEY, the master's secret; False when it is already."""
    if len(given) > records.MAX_SECRET_BYTES:
        raise ConfigError(f"MASTER_KEY=(not shown): expected at most {records.MAX_SECRET_BYTES} characters")
    wanted = bytes.fromhex(records.digest_of(given))
    for record in found:
        hashes = [record.hash, *(old.hash for old in record.old_secrets())]
        if any(hmac.compare_digest(bytes.fromhex(known), wanted) for known in hashes):
            if record.id == MASTER_ID:
                return False
            raise ConfigError(f"MASTER_KEY=(not shown): this is the secret of key {record.id}; set another one")
    put_master(found, given, now)
    return True


def unknown(key_id: str) -> NotFound:
    return NotFound(f"there is no key with the id {key_id[:64]!r}", param="id")


def _find(found: Records, key_id: str) -> tuple[int, Record]:
    for at, record in enumerate(found):
        if record.id == key_id:
            return at, record
    raise unknown(key_id)


def _record(key_id: str, secret: str, wish: Wish, now: float) -> Record:
    return Record(id=key_id, hash=records.digest_of(secret), prefix4=records.prefix_of(secret),
                  created=records.moment(now), **_terms(wish, now))


def _terms(wish: Wish, now: float) -> dict[str, Any]:
    """The fields of a record that `wish` decides."""
    return {"name": wish.name, "scopes": [scope for scope in SCOPES if scope in wish.scopes],
            "profiles": None if wish.profiles is None else list(wish.profiles),
            "expires_at": None if wish.expires_in is None else records.moment(now + wish.expires_in),
            "requests_per_minute": wish.requests_per_minute, "max_parallel": wish.max_parallel,
            "weight": None if wish.weight is None else float(wish.weight),
            "tokens_per_minute": wish.tokens_per_minute, "token_budget": wish.budget}
