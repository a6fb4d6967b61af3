"""`POST /answer`: a question to its answer, as JSON or as a stream. The JSON answer is the fold of the stream."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

from flask import Response, g, request
from pydantic import Field

from services.chat.events import Ask, Beat, Called, Delta, Event, Reasoned, Search, Waiting
from services.chat.idempotency import check_key, digest_of
from services.chat.sessions import parse_id
from services.chat.several import Indexed
from services.errors import BadRequest
from services.knowledge.choose import Step
from services.web import jobs, replies, sources, sse
from services.web.answering import Answering
from services.web.bodies import AnswerBody, Body
from services.web.frame import json_response
from services.web.routes import Endpoint, op, taken
from services.web.sse import Payload

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed")


class OrderQuery(Body):
    """How a list is ordered."""

    order: Literal["id", "used"] = Field("id", description="`used`: the last changed first")


class Answers(Answering):
    @op("The caller's sessions: id to name; the master key sees everybody's", scope="answer", query=OrderQuery,
        reply=replies.SessionNames)
    def get(self, query: OrderQuery) -> Response:
        sessions, used = self.parts.sessions, query.order == "used"
        return json_response(sessions.list_all(used) if g.key.is_master else sessions.list(g.key.id, used))

    @op("Answer a question", scope="answer", body=AnswerBody, reply=replies.Answer, stream=replies.AnswerEvent,
        accepted=jobs.AcceptedJob, errors=(404, 409, 410, 422, 504, 507), retryable=True, answer=True)
    def post(self, body: AnswerBody) -> Response:
        if body.async_:
            key = request.headers.get("Idempotency-Key")
            digest = None if key is None else digest_of(g.key.id, check_key(key))
            return jobs.accept(self, body, _ask(self, body, None), digest)
        if body.callback_url or body.priority:
            raise BadRequest("callback_url and priority are for answers with async: set async to true, or leave them "
                             "out", param="callback_url" if body.callback_url else "priority")
        return self.respond(lambda digest: [_ask(self, body, digest)], payloads, bool(body.stream))


def _ask(endpoint: Endpoint, body: AnswerBody, idempotency: str | None) -> Ask:
    stop = (body.stop,) if isinstance(body.stop, str) else None if body.stop is None else tuple(body.stop)
    session_id = None if body.session_id is None else parse_id(body.session_id)
    sampling: dict[str, Any] = {name: getattr(body, name) for name in _SAMPLING}
    return Ask(owner=g.key.id, prompt=body.prompt, session_id=session_id, allowed_profiles=g.key.profiles, stop=stop,
               schema=body.schema_, stream=bool(body.stream), weight=g.key.weight, request_id=g.trace.id,
               idempotency=idempotency, **_who(endpoint, body), **sampling)


def _who(endpoint: Endpoint, body: AnswerBody) -> dict[str, Any]:
    """Who answers, and from what, as fields of an `Ask`."""
    if body.personality is None:
        return {"profile": body.profile, "knowledge": tuple(body.knowledge or ()),
                "search": Search() if body.search else None}
    if body.profile is not None:
        raise BadRequest("profile and personality cannot be combined: a personality has a profile; give one of them",
                         code="conflicting_parameters", param="profile")
    room, persona = endpoint.room, endpoint.parts.personas.get(body.personality, g.key.id)
    with taken(room.places):
        question, given = sources.of_question(room, persona, body.prompt, g.key.id)
    search = body.search if body.search is not None or given is None else False
    return {"messages": persona.asked(question, given), **persona.fields(room.settings.models_dir),
            **sources.grounded(room, persona, g.key.id, body.knowledge or (), search)}


def payloads(events: Iterator[Indexed]) -> Iterator[Payload]:
    for _, event in events:
        yield _payload(event)


def _payload(event: Event) -> Payload:
    if isinstance(event, Delta):
        return {"delta": event.text}
    if isinstance(event, Reasoned):
        return {"reasoning": event.text}
    if isinstance(event, Step):
        return {"step": event.status}
    if isinstance(event, Waiting):
        return {"queue": {"position": event.position, "eta_seconds": math.ceil(event.eta_seconds)}}
    assert not isinstance(event, Called), "no tools were offered"
    return sse.BEAT if isinstance(event, Beat) else {"done": True, **event.body()}
