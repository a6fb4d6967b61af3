"""Sessions as conversations: what the records of a store mean, and the protocol of one turn.

A turn's prompt is durable before the model is asked, its answer before anybody hears "done". Records are only added:
an answer names the prompt it belongs to, a rewind says how many turns remain, and `unfold` makes the list of turns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from itertools import pairwise
from typing import Any

from services.chat.messages import Interaction, Message
from services.errors import BadRequest, Conflict
from services.store import base, disk
from services.store.base import Entry, Log, Record, Store

_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_DIGITS = 32                    # of an integer session id, at most
NAME_LIMIT = 200                # characters of a session's name
CHANGE_WAIT = 10.0              # seconds that a rename or rewind waits for a turn in progress
Shape = dict[str, Any]          # a session as in api.md: session_id, name, created, updated, turns


@dataclass(frozen=True)
class TurnRecord:
    """One entry of a conversation. `n`: number of its record in the log; `at`: ISO-8601, UTC."""

    role: str                   # "user" | "assistant"
    content: str
    at: str
    n: int
    extra: dict[str, Any] = field(default_factory=dict)
    request: str | None = None          # of a prompt: digest of the Idempotency-Key it came with
    finish_reason: str | None = None    # of an answer
    interrupted: bool = False           # an answer that was cut, a prompt that was never answered

    @property
    def messages(self) -> tuple[Message, ...]:
        """What was asked: of a prompt that was more than one text of the user, all of it."""
        kept = self.extra.get("messages")
        return tuple(map(Message.of_shape, kept)) if kept else (Message("user", self.content),)

    @property
    def message(self) -> Message:
        """The answer."""
        return Message.of_shape({"role": "assistant", "content": self.content, **self.extra})

    def shape(self) -> Shape:
        shape = {"role": self.role, "content": self.content, "at": self.at, **self.extra}
        if self.finish_reason is not None:
            shape["finish_reason"] = self.finish_reason
        return {**shape, "interrupted": True} if self.interrupted else shape


def parse_id(value: object) -> str:
    """The canonical session id of a JSON value or URL part: an integer, or a short name. BadRequest otherwise."""
    text = ""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10 ** _DIGITS:
        text = str(value)
    elif isinstance(value, str):
        text = value
    if not base.is_id(text):
        raise BadRequest(f"session_id {_shown(value)} is no session id: expected an integer of up to {_DIGITS} "
                         "digits, or a name of up to 64 letters, digits, '-' and '_'", code="bad_session_id",
                         param="session_id")
    return text


def _shown(value: object) -> str:
    """What was given for an id, for a message: short, whatever it is."""
    if isinstance(value, str | float | bool | None):
        return repr(value)[:80]
    return f"of more than {_DIGITS} digits" if isinstance(value, int) else f"of type {type(value).__name__}"


def shown_id(sid: str) -> int | str:
    """The id as clients see it: the integer when it is one."""
    return int(sid) if _INTEGER.fullmatch(sid) else sid


def check_text(text: str, param: str) -> None:
    """BadRequest (`bad_unicode`) for half of a surrogate pair, before anything is written."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{param} holds half of a surrogate pair at character {error.start}, which is no character",
                         code="bad_unicode", param=param) from None


def unfold(records: Sequence[Record]) -> list[TurnRecord]:
    """The turns that `records` amount to, in the order of the conversation."""
    turns = [_turn(record) for record in base.listed(records)]
    answers = [*(turn.role == "assistant" for turn in turns[1:]), False]
    return [turn if turn.role == "assistant" or answered else replace(turn, interrupted=True)
            for turn, answered in zip(turns, answers, strict=False)]


def _turn(record: Record) -> TurnRecord:
    return TurnRecord(record["type"], record["content"], record["at"], record["n"], record.get("extra", {}),
                      record.get("request"), record.get("finish_reason"), record.get("interrupted", False))


Pair = tuple[TurnRecord, TurnRecord]        # a question and its answer


def pairs(turns: Sequence[TurnRecord]) -> list[Pair]:
    """The complete interactions in `turns`, oldest first; a question without an answer is none."""
    return [(prompt, answer) for prompt, answer in pairwise(turns)
            if prompt.role == "user" and answer.role == "assistant"]


def interaction(prompt: TurnRecord, answer: TurnRecord) -> Interaction:
    """A question and its answer as parts of a conversation."""
    return Interaction(prompt.messages, answer.message)


class Turn:
    """One request's turn of a session, which it holds until its `with` block ends."""

    def __init__(self, log: Log, now: Callable[[], str]) -> None:
        self._log, self._now = log, now
        self.turns = unfold(log.records)
        self.history = pairs(self.turns)        # complete interactions before this one
        self._prompt: TurnRecord | None = None

    def before(self, request: str | None) -> list[Pair]:
        """`history` without what a cut first try of the request of this digest left in it."""
        return [pair for pair in self.history if request is None or pair[0].request != request]

    def gone(self) -> bool:
        """Whether the session was deleted meanwhile."""
        return self._log.gone()

    def check_follows(self, n: int, request: str | None) -> None:
        """Conflict unless turn `n` is the last, but for what a cut first try of the request of this digest left."""
        own = next((at for at, turn in enumerate(self.turns) if request and turn.request == request), len(self.turns))
        if not own or self.turns[own - 1].n != n:
            raise Conflict("the session went on with another request meanwhile; try again", code="session_moved")

    def answered(self, request: str) -> TurnRecord | None:
        """The whole answer that the session already holds to the request of this digest: a first try was cut late."""
        return next((answer for prompt, answer in pairwise(self.turns)
                     if prompt.request == request and answer.role == "assistant" and not answer.interrupted), None)

    def prompt(self, text: str, request: str | None = None, about: dict[str, Any] | None = None,
               **meta: Any) -> TurnRecord:
        """Saves the prompt; durable on return. A retry of a cut request (same `request`) takes up its prompt again."""
        assert self._prompt is None, "one turn has one prompt"
        check_text(text, "prompt")
        if request is not None and self.answered(request) is None:
            self._prompt = next((turn for turn in self.turns if turn.request == request and turn.content == text), None)
        if self._prompt is None:
            record: Record = {"type": "user", "at": self._now(), "content": text, "extra": meta}
            if request is not None:
                record["request"] = request
            if about is not None:
                record["about"] = about
            self._prompt = _turn(self._log.append(record))
        disk.failpoint("after_prompt_saved")
        return self._prompt

    def answer(self, text: str, *, finish_reason: str, interrupted: bool = False, **meta: Any) -> TurnRecord:
        """Saves the answer to the prompt; durable on return. `interrupted`: it was cut, by whomever."""
        assert self._prompt is not None, "an answer has a prompt"
        check_text(text, "answer")
        record: Record = {"type": "assistant", "at": self._now(), "content": text, "extra": meta,
                          "finish_reason": finish_reason, "to": self._prompt.n}
        if interrupted:
            record["interrupted"] = True
        saved = _turn(self._log.append(record))
        disk.failpoint("before_ack")
        return saved


def utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


class Sessions:
    """The sessions of all owners (key ids). What is not the owner's own is NotFound, like what is not there."""

    def __init__(self, store: Store, now: Callable[[], str] = utc_now) -> None:
        self.store = store
        self._now = now

    @contextmanager
    def turn(self, owner: str, sid: str, wait: float) -> Iterator[Turn]:
        """Holds a session for one turn; makes it when it is not there. SessionBusy after `wait` seconds.

        A turn that ends without `answer` leaves its prompt, shown as interrupted. Gone from `prompt` and `answer` when
        the session was deleted meanwhile; then nothing of it comes back.
        """
        with self.store.open(owner, sid, wait, base.new_head(self._now())) as log:
            yield Turn(log, self._now)

    def get(self, owner: str, sid: str) -> Shape:
        return _shape(sid, self.store.read(owner, sid))

    def delete(self, owner: str, sid: str) -> None:
        self.store.delete(owner, sid)

    def rename(self, owner: str, sid: str, name: str) -> Shape:
        check_text(name, "name")
        if not name.strip() or len(name) > NAME_LIMIT:
            raise BadRequest(f"name has {len(name)} characters: expected 1 to {NAME_LIMIT}, not all of them blank",
                             param="name")
        return self._add(owner, sid, lambda turns: {"type": "rename", "name": name})

    def rewind(self, owner: str, sid: str, to: int) -> Shape:
        """Keeps the first `to` of the turns as `get` lists them. The log keeps all."""
        def record(turns: list[TurnRecord]) -> Record:
            _check_place("to", to, len(turns))
            return {"type": "rewind", "to": to}
        return self._add(owner, sid, record)

    def note(self, owner: str, sid: str, **fields: Any) -> None:
        """Adds a note, which changes nothing of the conversation. Waits for a turn in progress."""
        self._add(owner, sid, lambda turns: {"type": "note", **fields})

    def _add(self, owner: str, sid: str, make: Callable[[list[TurnRecord]], Record]) -> Shape:
        with self.store.open(owner, sid, CHANGE_WAIT) as log:
            log.append({**make(unfold(log.records)), "at": self._now()})
            return _shape(sid, log.records)

    def fork(self, owner: str, sid: str, at: int | None = None, to: str | None = None) -> Shape:
        """A new session with the first `at` turns (all when None) of this one, as `get` lists them. `to`: its id;
        Conflict when that is taken."""
        records = self.store.read(owner, sid)
        turns = unfold(records)
        _check_place("at", len(turns) if at is None else at, len(turns))
        described = base.describe(records)
        assert described is not None
        head = base.new_head(self._now(), described.name, forked_from=sid)
        kept = _copies(turns[:at])
        new = self.store.create(owner, lambda used: to or _next_id(sid, used), [head, *kept])
        return self.get(owner, new)

    def add(self, owner: str, sid: str | None, name: str | None, turns: Sequence[TurnRecord]) -> Shape:
        """A session made of `turns` from elsewhere. Conflict when `sid` is taken; None: the next free integer."""
        for turn in turns:
            check_text(turn.content, "content")
        head = base.new_head(turns[0].at if turns else self._now(), "" if name is None and not turns else name)
        new = self.store.create(owner, lambda used: sid or _next_id("0", used), [head, *_copies(turns)])
        return self.get(owner, new)

    def entries(self, owner: str | None = None, used: bool = False) -> dict[str, Entry]:
        """What lists show, by `"<owner>/<session id>"`; of all owners when None. Damaged ones too. Integers come first,
        or with `used` what was changed last, whosever it is."""
        owners = self.store.owners() if owner is None else [owner]
        found = {f"{who}/{sid}": entry for who in owners
                 for sid, entry in sorted(self.store.index(who).items(), key=lambda item: _order(item[0]))}
        return dict(sorted(found.items(), key=lambda item: item[1].updated, reverse=True)) if used else found

    def list_all(self, used: bool = False) -> dict[str, str]:
        """`{"<owner>/<session id>": name}` of everybody, ordered as `entries`."""
        return {key: entry.name for key, entry in self.entries(used=used).items()}

    def list(self, owner: str, used: bool = False) -> dict[str, str]:
        """`{"<session id>": name}` of one owner, ordered as `entries`."""
        return {key.partition("/")[2]: entry.name for key, entry in self.entries(owner, used).items()}


def _shape(sid: str, records: Sequence[Record]) -> Shape:
    entry = base.describe(records)
    assert entry is not None
    return {"session_id": shown_id(sid), "name": entry.name, "created": entry.created, "updated": entry.updated,
            "turns": [turn.shape() for turn in unfold(records)]}


def _check_place(param: str, value: int, turns: int) -> None:
    if not 0 <= value <= turns:
        raise BadRequest(f"{param} {value} is out of range: this session has {turns} turns, so 0 to {turns}",
                         param=param)


def _copies(turns: Sequence[TurnRecord]) -> Sequence[Record]:
    """Records of a new log for `turns`. Answers follow their prompts, so they need not name them."""
    records: Sequence[Record] = [{"type": turn.role, "at": turn.at, "content": turn.content, "extra": turn.extra}
                                 for turn in turns]
    for turn, record in zip(turns, records, strict=True):
        if turn.role == "assistant":
            record.update(finish_reason=turn.finish_reason)
            if turn.interrupted:
                record.update(interrupted=True)
    return records


def _next_id(sid: str, used: Collection[str]) -> str:
    """The id of a fork of `sid`: the integer after the largest in use, or its name with the first free -2, -3, …"""
    if _INTEGER.fullmatch(sid):
        largest = max((int(other) for other in used if _INTEGER.fullmatch(other)), default=0)
        if largest + 1 >= 10 ** _DIGITS:
            raise Conflict(f"there is no integer session id after {largest}")
        return str(max(largest, 0) + 1)
    taken = set(used)
    stem = re.sub(r"-[0-9]{1,6}$", "", sid)[:56] or sid[:56]
    return next(name for n in range(2, len(taken) + 4) if (name := f"{stem}-{n}") not in taken)


def _order(sid: str) -> tuple[int, int, str]:
    return (0, int(sid), "") if _INTEGER.fullmatch(sid) else (1, 0, sid)
