"""The contract of a session store: append-only logs of records, one log per owner and session id.

A record is a JSON object `{"n": running number, "type": …, …}`. The first is the head; later ones are only ever added:

    head       v (schema), id, owner, name (None: taken from the first prompt), created, further fields of its maker
    user       at, content, extra; `request`: digest of the Idempotency-Key it came with; `about`: `Ask.about`
    assistant  at, content, extra, finish_reason, interrupted; `to`: number of the record that it answers, where it
               takes the place of an interrupted one
    rename     at, name
    rewind     at, to: how many turns (as listed) are kept
    note       at, fields of its maker, who alone reads them

Which of them are turns of the conversation as it stands is `listed`; what else they mean is `services.chat.sessions`'
business.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from services.errors import BadRequest, Gone, NotFound, SessionBusy

SCHEMA = 1                  # raised when older programs would misread what newer ones write
NAME_LENGTH = 30            # characters of the first prompt that become the session's name

Record = dict[str, Any]
_OWNER = re.compile(r"[A-Za-z0-9_-]{1,64}")      # what `auth.records` takes for a key's id
_SID = re.compile(r"[A-Za-z0-9_-]{1,64}")
# A word of the seed's file, and names that a copy on Windows could not hold.
_RESERVED = re.compile(r"Active|(?i:con|prn|aux|nul|com[0-9]|lpt[0-9])")


@dataclass(frozen=True)
class Entry:
    """One line of a list of sessions. `problem`: why it cannot be read; then the rest is unknown."""

    name: str
    created: str = ""
    updated: str = ""
    turns: int = 0          # as `listed` gives them
    problem: str | None = None


class Log(ABC):
    """A session held by one writer until its `with` block ends."""

    records: list[Record]

    @abstractmethod
    def append(self, record: Record) -> Record:
        """Adds `record`, numbered; durable on return. Gone when the session was deleted meanwhile."""

    @abstractmethod
    def gone(self) -> bool:
        """Whether the session was deleted meanwhile."""


class Store(ABC):
    """Sessions of all owners. Safe to share between threads; several processes may use the same files at once."""

    def problem(self) -> str | None:
        """Why no turn could be kept now, for /readyz; None where nothing is known to be wrong."""
        return None

    @abstractmethod
    def owners(self) -> list[str]:
        """Who has sessions, in order."""

    @abstractmethod
    def index(self, owner: str) -> dict[str, Entry]:
        """All sessions of `owner` by id, damaged ones included."""

    @abstractmethod
    def read(self, owner: str, sid: str) -> list[Record]:
        """All records. NotFound; Gone (`session_damaged`) for a log that cannot be trusted."""

    @abstractmethod
    def open(self, owner: str, sid: str, wait: float, head: Record | None = None) -> AbstractContextManager[Log]:
        """Holds a session for writing. `head`: makes it when absent (and takes that back when nothing was added).

        SessionBusy after `wait` seconds; NotFound without `head`; Gone for a damaged one.
        """

    @abstractmethod
    def create(self, owner: str, choose: Callable[[Collection[str]], str], records: Sequence[Record]) -> str:
        """Makes a session of `records` (the head first), whole or not at all. `choose` gets the ids in use and gives a
        free one, which is returned; no other creation comes between. Conflict when it is not free."""

    @abstractmethod
    def delete(self, owner: str, sid: str) -> None:
        """Removes a session for good, also while somebody writes to it. NotFound."""


def is_id(text: str) -> bool:
    """Whether `text` may name a session: letters, digits, "-" and "_", 64 at most. `1` and `01` are two ids.

    The file name is this text and ".jsonl".
    """
    return bool(_SID.fullmatch(text)) and not _RESERVED.fullmatch(text)


def is_owner(text: str) -> bool:
    """Whether `text` may be the id of a key, which is the name of its sessions' folder."""
    return bool(_OWNER.fullmatch(text))


def check_names(owner: str, sid: str) -> None:
    """The last guard before a name becomes part of a path; callers check with words for their users."""
    if not is_owner(owner):
        raise BadRequest(f"{owner[:80]!r} cannot be the id of a key, to which sessions belong", code="bad_name")
    if not is_id(sid):
        raise BadRequest(f"{sid[:80]!r} cannot be the name of a session", code="bad_name")


def new_head(created: str, name: str | None = None, **more: Any) -> Record:
    return {"type": "head", "v": SCHEMA, "name": name, "created": created, **more}


def numbered(owner: str, sid: str, records: Sequence[Record]) -> list[Record]:
    """Copies of `records` for a new log: numbered, the head with its owner and id."""
    result = [{"n": n, **{key: value for key, value in record.items() if key != "n"}}
              for n, record in enumerate(records)]
    assert result and result[0]["type"] == "head"
    result[0].update(id=sid, owner=owner)
    return result


def listed(records: Sequence[Record]) -> list[Record]:
    """The user and assistant records that the conversation amounts to, in its order: rewinds and retries applied."""
    turns: list[Record] = []
    for record in records:
        kind = record["type"]
        if kind == "rewind":
            del turns[record["to"]:]
        elif kind == "user":
            turns.append(record)
        elif kind == "assistant":
            at = _answered(turns, record)
            if at is not None:
                prompt = turns.pop(at)
                if at < len(turns) and turns[at]["type"] == "assistant" and turns[at].get("interrupted"):
                    del turns[at]       # the part that a first try left, which this answer takes the place of
                turns.append(prompt)    # an answer that came late, after a retry, brings its prompt to the end
            turns.append(record)
    return turns


def _answered(turns: list[Record], record: Record) -> int | None:
    """Where the prompt is that the answer `record` belongs to: the one it names, else a prompt right before it."""
    if "to" in record:
        return next((at for at in reversed(range(len(turns))) if turns[at]["n"] == record["to"]), None)
    return len(turns) - 1 if turns and turns[-1]["type"] == "user" else None


def describe(records: Sequence[Record]) -> Entry | None:
    """What a list shows of these records; None for a log that was made but never got a name or a turn."""
    head = records[0]
    name = head.get("name")
    created: str = head["created"]
    for record in records:
        if record["type"] == "rename":
            name = record["name"]
        elif name is None and record["type"] == "user":
            name = short_name(record["content"])
    if name is None and len(records) == 1:
        return None
    updated = max(created, records[-1].get("at", created))      # a fork is younger than the turns it took along
    return Entry(name=name or "", created=created, updated=updated, turns=len(listed(records)))


def short_name(text: str) -> str:
    """A session's name from its first prompt: 30 characters and "..." when there is more."""
    return text if len(text) <= NAME_LENGTH else text[:NAME_LENGTH] + "..."


def not_found(sid: str) -> NotFound:
    """The same words for a session that is not there and for one of somebody else."""
    return NotFound(f"there is no session {sid}", param="session_id")


def busy(sid: str, wait: float) -> SessionBusy:
    return SessionBusy(f"session {sid} is busy with another request (waited {wait:g} s); try again when that has ended",
                       param="session_id", retry_after=max(1.0, min(wait, 5.0)))


def deleted(sid: str) -> Gone:
    return Gone(f"session {sid} was deleted while this request used it", param="session_id")
