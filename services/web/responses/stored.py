"""A stored response as it is told again: the events of its answer, once more, in as few pieces as there can be."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from services.chat import responses
from services.chat.answer import replayed
from services.chat.background import Background, Cancelled
from services.chat.events import Final
from services.chat.responses import Kept
from services.chat.sessions import Sessions
from services.errors import BadRequest, ParleyError
from services.web.responses.events import Shaper
from services.web.sse import Payload

ENDS = ("stop", "length", "tool_calls", "cancelled")        # finish_reason of answers that did not fail
MOST = 100              # items on a page


def payloads(kept: Kept, status: str) -> Iterator[Payload]:
    """The events of the response, the last one with `done`. `status` is of one that is still to be answered: queued or
    in_progress; "": it is not."""
    answer = kept.answer
    shape = {**kept.about["shape"], "output": []}
    if status:
        yield {"done": True, **shape, "status": status}
        return
    at = (answer or kept.question).at
    shaper = Shaper(shape, responses.digits_of(kept.id), lambda: datetime.fromisoformat(at).timestamp())
    yield from shaper.begin()
    broken = _broken(kept)
    for event in () if answer is None else replayed(Final.replayed(answer, kept.session, shape["model"], "")):
        if broken is None or not isinstance(event, Final):
            yield from shaper.take(event)
    if broken is not None:
        yield from shaper.fail(broken)


def fold(kept: Kept, status: str) -> Payload:
    """The response itself."""
    *_, last = payloads(kept, status)
    return {name: value for name, value in last.items() if name != "done"}


def look(sessions: Sessions, background: Background, owner: str, response: str) -> tuple[Kept, str]:
    """A response, and its status where it is still to be answered, as `payloads` wants it. NotFound."""
    kept = responses.find(sessions, owner, response)
    if not kept.whole and (status := _status(sessions, background, kept)):
        return kept, status
    return (kept if kept.whole else responses.find(sessions, owner, response)), ""      # it may just have ended


def _status(sessions: Sessions, background: Background, kept: Kept) -> str:
    runs = background.runs(kept.owner, kept.id)
    if responses.held(sessions, kept) or (runs and kept.answer is not None):
        return "in_progress"
    return "queued" if runs else ""


def _broken(kept: Kept) -> ParleyError | None:
    """Why there is no whole answer; None where there is one, or as much of it as was wanted."""
    if kept.note is not None:
        if kept.note["status"] == "cancelled":
            return Cancelled("")
        error = ParleyError(kept.note.get("error", ""))
        error.status = kept.note.get("http_status", error.status)
        return error
    reason = kept.answer.finish_reason if kept.answer is not None else None
    if reason in ENDS:
        return None
    return ParleyError("the server stopped before the response was answered" if reason is None else
                       f"the answer broke off ({reason})")


def page(items: list[Payload], order: str, after: str | None, limit: int) -> Payload:
    """OpenAI's list of `items`, which are in the order of the conversation."""
    found = items if order == "asc" else items[::-1]
    if after is not None:
        place = next((at for at, item in enumerate(found, 1) if item["id"] == after), None)
        if place is None:
            raise BadRequest(f"after: there is no item {after[:80]!r} in this response", param="after")
        found = found[place:]
    shown = found[:limit]
    return {"object": "list", "data": shown, "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None, "has_more": len(found) > len(shown)}
