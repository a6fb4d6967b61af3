"""Stored responses: turns of sessions that are known by an id and may be gone on from.

The id names the session: `resp_<32 hex digits>_<session id>`, or the digits alone where the response began it. The
question's record holds the id with what the request said (`Ask.about`), so there is no second store: a response is kept
and encrypted as its session is. What became of one that has no answer, and that one was deleted, is told by notes in
the same log.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, dropwhile
from typing import Any

from services.chat.messages import Message
from services.chat.sessions import Sessions, TurnRecord, unfold
from services.errors import Conflict, NotFound, ParleyError, SessionBusy
from services.store.base import Record, is_id

_ID = re.compile(r"resp_([0-9a-f]{32})(?:_(.+))?")
_MADE = 24              # digits of the id that name a session made for a response


def session_for(digits: str) -> str:
    """The session that a response with these 32 hex digits begins."""
    return f"resp-{digits[:_MADE]}"


def new_id(digits: str, session: str | None) -> str:
    """The id of a response in `session`; of one that is not kept when None."""
    return f"resp_{digits}" if session in (None, session_for(digits)) else f"resp_{digits}_{session}"


def digits_of(response: str) -> str:
    """What `new_id` was given."""
    found = _ID.fullmatch(response)
    assert found is not None, "only what was found is told"
    return found[1]


def _session_of(response: str) -> str:
    found = _ID.fullmatch(response)
    if found is None or not (found[2] is None or is_id(found[2])):
        raise _not_found(response)
    return found[2] or session_for(found[1])


def _not_found(response: str) -> NotFound:
    return NotFound(f"Response with id '{response[:120]}' not found.", param="response_id")


@dataclass(frozen=True)
class Kept:
    """One stored response, and the session it is in."""

    id: str
    owner: str
    session: str
    about: dict[str, Any]               # as its `Ask` had it
    question: TurnRecord
    answer: TurnRecord | None
    note: dict[str, Any] | None         # what became of it, if it broke off: status, error
    turns: list[TurnRecord]             # of the session as it stands

    @property
    def whole(self) -> bool:
        """Whether nothing more can come: it is answered to its end, or a note says what became of it."""
        return self.note is not None or (self.answer is not None and not self.answer.interrupted)

    @property
    def end(self) -> int:
        """How many of `turns` the conversation up to this response has; 0: it was rewound, and is none of them."""
        last = (self.answer or self.question).n
        return next((at for at, turn in enumerate(self.turns, 1) if turn.n == last), 0)


def find(sessions: Sessions, owner: str, response: str) -> Kept:
    """NotFound for one that is not there, was deleted, or is somebody else's."""
    sid = _session_of(response)
    try:
        records = sessions.store.read(owner, sid)
    except NotFound:
        raise _not_found(response) from None
    asked = [record for record in records if record["type"] == "user" and _id_of(record) == response]
    notes = [record for record in records if record["type"] == "note" and record.get("response") == response]
    if not asked or any(note.get("deleted") for note in notes):
        raise _not_found(response)
    question = asked[-1]
    answers = [record for record in records if record["type"] == "assistant" and record.get("to") == question["n"]]
    question_turn, *answer_turns = unfold([question, *answers[-1:]])
    return Kept(response, owner, sid, question["about"], question_turn, answer_turns[0] if answer_turns else None,
                notes[-1] if notes else None, unfold(records))


def _id_of(record: Record) -> str | None:
    return record.get("about", {}).get("response")


def held(sessions: Sessions, kept: Kept) -> bool:
    """Whether its answer is being written: it has none, and its session is in use."""
    if kept.answer is not None or kept.end != len(kept.turns):
        return False
    try:
        with sessions.store.open(kept.owner, kept.session, 0):
            return False
    except SessionBusy:
        return True


def go_on(sessions: Sessions, kept: Kept, digits: str, request: str | None) -> tuple[str, int | None]:
    """The session in which the response with these `digits` goes on from `kept`, and the number of the turn that it
    must end with: the same session where `kept` is its last turn, else a branch of it. `request`: digest of the
    request, which may have begun before."""
    end = kept.end
    after = kept.turns[end:]
    if not after or (request is not None and after[0].request == request):
        return kept.session, kept.turns[end - 1].n
    branch = session_for(digits)
    try:
        sessions.fork(kept.owner, kept.session, end, to=branch)
    except Conflict:
        if request is None:         # else by the first try of the same request
            raise
    return branch, None


def messages(kept: Kept) -> list[Message]:
    """The conversation up to `kept` and with it."""
    said = [turn.messages if turn.role == "user" else (turn.message,) for turn in kept.turns[:kept.end]]
    return list(chain.from_iterable(said))


def calls(kept: Kept) -> dict[str, str]:
    """All calls of tools in that conversation, id to tool."""
    return {call.id: call.name for message in messages(kept) for call in message.calls}


def end_with(sessions: Sessions, owner: str, response: str, status: str, error: ParleyError | None = None) -> None:
    """Notes what became of a response that has no whole answer."""
    told = {} if error is None else {"error": error.message, "http_status": error.status}
    sessions.note(owner, _session_of(response), response=response, status=status, **told)


def delete(sessions: Sessions, kept: Kept) -> bool:
    """The response is not found any more. Its turn stays part of the conversation; a session that consists only of
    deleted responses goes with the last one: True then."""
    sessions.note(kept.owner, kept.session, response=kept.id, deleted=True)
    if not _only_deleted(sessions.store.read(kept.owner, kept.session), kept.session):
        return False
    sessions.delete(kept.owner, kept.session)
    return True


def _only_deleted(records: Sequence[Record], session: str) -> bool:
    """Whether nobody but responses made the session, and all of them are deleted."""
    deleted = {record.get("response") for record in records if record["type"] == "note" and record.get("deleted")}
    asked = [_id_of(record) for record in records if record["type"] == "user"]
    asked = list(dropwhile(lambda response: response is None, asked))       # what a branch took along
    made = any(response and session_for(_ID.sub(r"\1", response)) == session for response in asked)
    return made and all(response in deleted for response in asked)
