"""Key records: their shape in `data/api_keys.json`, and `Key`, what the rest of the server sees of one.

The file is `{"version": 1, "keys": [Record, ...]}`. A record holds the SHA-256 of its secret, never the secret: keys
are random enough that no slow hash is needed. Unknown fields are refused, so that a mistyped `expires_at` or a limit
that this version does not enforce cannot pass for none.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from services.errors import ConfigError
from services.wire import TokenBudget

MASTER_ID = "0"
SCOPES = ("answer", "models:read", "models:switch", "keys", "admin")
DEFAULT_SCOPES = SCOPES[:3]             # what the seed's keys may
MAX_SECRET_BYTES = 512                  # a longer credential is no key
LOCAL_ID = "bypass-authorization"       # whom requests without a key count as with BYPASS_AUTHORIZATION

Scope = Literal["answer", "models:read", "models:switch", "keys", "admin"]
Id = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Moment = Annotated[datetime, msgspec.Meta(tz=True)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
Weight = Annotated[float, msgspec.Meta(ge=0.1, le=100)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A secret before a rotation, valid `until` then."""

    hash: Digest
    until: Moment


class Identity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whose JSON Web Tokens come in as a key: by the `kid` of what signed them, and by `iss` unless that is None."""

    kids: Annotated[list[Name], msgspec.Meta(min_length=1, max_length=100)]
    iss: Name | None = None


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One key at rest. A revoked one stays, so that its id is never given again. None: no limit, all, or never."""

    id: Id
    name: str = ""
    hash: Digest
    prefix4: str                        # first characters after `ply_`, to recognise a key by
    scopes: list[Scope]
    profiles: list[str] | None = None
    created: Moment
    expires_at: Moment | None = None
    requests_per_minute: Positive | None = None
    max_parallel: Positive | None = None
    revoked_at: Moment | None = None
    rotation: Rotation | list[Rotation] | None = None       # a list, newest first, where several may still work
    weight: Weight | None = None        # share of a busy model beside other keys; none: 1
    tokens_per_minute: Positive | None = None
    token_budget: TokenBudget | None = None
    jwt: Identity | None = None
    networks: None = None               # from here on: places of a later version
    parent: None = None

    def old_secrets(self) -> list[Rotation]:
        """The secrets of before, the newest first; those whose time has ended may be among them."""
        if self.rotation is None:
            return []
        return self.rotation if isinstance(self.rotation, list) else [self.rotation]

    def token_names(self) -> list[tuple[str, str | None]]:
        """(kid, iss) of the tokens that come in as this key; None: whatever their iss."""
        return [] if self.jwt is None else [(kid, self.jwt.iss) for kid in self.jwt.kids]

    def not_after(self) -> float:
        """Unix time from which the secret is refused."""
        if self.revoked_at is not None:
            return -math.inf
        return self.expires_at.timestamp() if self.expires_at is not None else math.inf


class Document(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: Literal[1] = 1
    keys: list[Record]


@dataclass(frozen=True)
class Key:
    """A key without its secret. Times are ISO 8601 in UTC; None means no limit, all profiles, or never."""

    id: str
    name: str
    prefix: str
    scopes: tuple[str, ...]
    profiles: tuple[str, ...] | None
    created: str
    expires_at: str | None
    requests_per_minute: int | None
    max_parallel: int | None
    revoked_at: str | None
    old_secret_until: str | None        # set by a rotation with grace: the last end of those in `old_secrets`
    old_secrets: tuple[str, ...] = ()   # until when each of the secrets of before works, the newest first
    weight: float = 1.0                 # share of a busy model beside other keys
    tokens_per_minute: int | None = None
    token_budget: TokenBudget | None = None
    jwt: Identity | None = None         # whose tokens come in as this key

    @property
    def is_master(self) -> bool:
        return self.id == MASTER_ID

    def may_use(self, profile: str) -> bool:
        """Whether it is not held to other profiles."""
        return self.profiles is None or profile in self.profiles

    def ends(self) -> float:
        """Unix time from which the key is expired; inf when never."""
        if self.expires_at is None:
            return math.inf
        return datetime.fromisoformat(self.expires_at.replace("Z", "+00:00")).timestamp()

    def public(self) -> dict[str, Any]:
        """The record as JSON-ready values, for answers and `keys list --json`."""
        return {"id": self.id, "name": self.name, "prefix": self.prefix, "master": self.is_master,
                "scopes": list(self.scopes), "profiles": None if self.profiles is None else list(self.profiles),
                "created": self.created, "expires_at": self.expires_at, "revoked_at": self.revoked_at,
                "requests_per_minute": self.requests_per_minute, "max_parallel": self.max_parallel,
                "tokens_per_minute": self.tokens_per_minute, "token_budget": budget_shape(self.token_budget),
                "weight": self.weight, "old_secret_until": self.old_secret_until,
                "jwt": None if self.jwt is None else msgspec.to_builtins(self.jwt)}


def key_of(record: Record) -> Key:
    """What `record` lets its holder do. The master has every scope and profile whatever its record says."""
    master = record.id == MASTER_ID
    profiles = None if master or record.profiles is None else tuple(record.profiles)
    old = [secret.until for secret in record.old_secrets()]
    return Key(id=record.id, name=record.name, prefix=record.prefix4, profiles=profiles,
               scopes=SCOPES if master else tuple(record.scopes),
               created=_iso(record.created), expires_at=_iso_or_none(record.expires_at),
               requests_per_minute=record.requests_per_minute, max_parallel=record.max_parallel,
               revoked_at=_iso_or_none(record.revoked_at),
               old_secret_until=_iso_or_none(max(old, default=None)), old_secrets=tuple(_iso(until) for until in old),
               weight=1.0 if record.weight is None else record.weight,
               tokens_per_minute=record.tokens_per_minute, token_budget=record.token_budget, jwt=record.jwt)


def budget_shape(budget: TokenBudget | None) -> dict[str, Any] | None:
    """As in a request's body."""
    return None if budget is None else {"tokens": budget.tokens, "per": budget.per}


def digest_of(secret: str | bytes) -> str:
    """The SHA-256 of a secret, in hex: all that is kept of it."""
    return hashlib.sha256(secret.encode() if isinstance(secret, str) else secret).hexdigest()


def prefix_of(secret: str) -> str:
    """Four characters to recognise a key by; none of a short secret, where four would be a good part of it."""
    return secret.removeprefix("ply_")[:4] if len(secret) >= 20 else ""


def moment(seconds: float) -> datetime:
    """Unix time as a record's time."""
    return datetime.fromtimestamp(seconds, timezone.utc)


def encode(document: Document) -> bytes:
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def parse(data: bytes, path: Path | str) -> Document | dict[str, str]:
    """A document, or the seed's plain `{"<id>": "<key>"}`, which an empty file also is.

    `ConfigError` names file, line and what is wrong, and quotes nothing of the file: it may hold plain keys.
    """
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(text, object_pairs_hook=_unique) if text.strip() else {}
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}, line {error.lineno}: no JSON: {error.msg}; mend it or restore a copy") from None
    except (ValueError, RecursionError) as error:
        line = data[:error.start].count(b"\n") + 1 if isinstance(error, UnicodeDecodeError) else 1
        told = str(error) if isinstance(error, _Doubled) else "not UTF-8 JSON"
        raise ConfigError(f"{path}, line {line}: {told}; mend it or restore a copy") from None
    if isinstance(value, dict) and "version" not in value:
        return _seed(value, text, path)
    try:
        document = msgspec.convert(value, Document)
    except msgspec.ValidationError as error:
        line = _line_of(text, value, str(error))
        raise ConfigError(f"{path}, line {line}: {error}; mend it or restore a copy") from None
    _check_unique(document, path)
    return document


def _seed(value: dict[str, Any], text: str, path: Path | str) -> dict[str, str]:
    for name, secret in value.items():
        if not isinstance(secret, str):
            line = text[:max(text.find(json.dumps(name)), 0)].count("\n") + 1
            raise ConfigError(f"{path}, line {line}: expected either {{\"version\": 1, \"keys\": [...]}} or an old "
                              f"file of ids and keys, where every key is a string; mend it or restore a copy")
    return value


def _check_unique(document: Document, path: Path | str) -> None:
    ids = [record.id for record in document.keys]
    rotated = [secret.hash for record in document.keys for secret in record.old_secrets()]
    for what, values in (("id", ids), ("hash", [record.hash for record in document.keys] + rotated),
                         ("kid and iss", [pair for record in document.keys for pair in record.token_names()])):
        if len(set(values)) < len(values):
            raise ConfigError(f"{path}: two keys have the same {what}; take one of them out")


def _line_of(text: str, value: Any, problem: str) -> int:
    """The line with the id of the record that msgspec's `$.keys[3]...` points at; 1 when that is not to be told."""
    try:
        number = int(problem.split("$.keys[", 1)[1].split("]", 1)[0])
        at = text.index(json.dumps(value["keys"][number]["id"], ensure_ascii=False))
    except (IndexError, KeyError, TypeError, ValueError):
        return 1
    return text[:at].count("\n") + 1


class _Doubled(ValueError):
    """An object of the file has a name twice: which one counts would be a guess."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Doubled("an object has the same name twice")
    return found


def _iso(at: datetime) -> str:
    return at.astimezone(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z")


def _iso_or_none(at: datetime | None) -> str | None:
    return None if at is None else _iso(at)
