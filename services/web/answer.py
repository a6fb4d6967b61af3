"""`POST /answer`: a question to its answer, as JSON or as a stream. The JSON answer is the fold of the stream.

A request watches its client: one that leaves cancels its answer. With an `Idempotency-Key` the answer belongs to the
key instead: it runs to its end, and whoever sends the same request again follows it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

from flask import Response, g, request

from auth.limits import Ticket
from services.chat.events import Ask, Beat, Called, Delta, Event, Final, Reasoned, Waiting
from services.chat.idempotency import digest_of
from services.chat.sessions import parse_id
from services.web import replies, sse, watch
from services.web.bodies import AnswerBody
from services.web.frame import json_response
from services.web.measure import measured, profile_of
from services.web.routes import Endpoint, op, taken
from services.web.sse import Payload
from services.web.watch import Watch

_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed")


class Answers(Endpoint):
    @op("The caller's sessions: id to name; the master key sees everybody's", scope="answer",
        reply=replies.SessionNames)
    def get(self) -> Response:
        sessions = self.parts.sessions
        return json_response(sessions.list_all() if g.key.is_master else sessions.list(g.key.id))

    @op("Answer a question", scope="answer", body=AnswerBody, reply=replies.Answer, stream=replies.AnswerEvent,
        errors=(404, 409, 410, 422, 504, 507), retryable=True, answer=True)
    def post(self, body: AnswerBody) -> Response:
        key = request.headers.get("Idempotency-Key")
        payloads = self._alone(_ask(body)) if key is None else self._shared(body, key)
        if body.stream:
            return sse.response(payloads)
        return json_response(_folded(payloads))

    def _alone(self, ask: Ask) -> Generator[Payload, None, None]:
        return self._payloads(ask, g.ticket, watch.of_request(self.room.drain), self.room.places)

    def _shared(self, body: AnswerBody, key: str) -> Generator[Payload, None, None]:
        """The events of the first request with this key. They come from a thread of their own, without a client to
        watch, and count as one answer in parallel; each request that follows them takes a place."""
        digest = digest_of(request.method, "/answer", g.raw_body)
        ask = _ask(body, idempotency=digest_of(g.key.id, key, digest))
        counted = replace(g.key, requests_per_minute=None)      # as a request the gate has counted it already
        unwatched, mine = Watch(None, self.room.drain), watch.of_request(self.room.drain)

        def produce() -> Iterator[Payload]:
            with self.parts.admissions.admit(counted, cost=0, place=True) as ticket:
                yield from self._payloads(ask, ticket, unwatched, self.room.runs)
        with taken(self.room.places):
            for payload in self.parts.idempotency.run(g.key.id, key, digest, produce):
                if not payload.get("done"):
                    mine.check()
                yield payload

    def _payloads(self, ask: Ask, ticket: Ticket, over: Watch,
                  places: threading.Semaphore) -> Generator[Payload, None, None]:
        """What the answer consists of, as a stream tells it. Takes a place first; closing this cancels the answer."""
        profiles = self.parts.profiles
        events = measured(self.parts.chat.answer(ask), ticket, ask.spent, lambda: profile_of(profiles, ask.profile))
        with taken(places), closing(events):
            for event in events:
                if not isinstance(event, Final):
                    over.check()
                yield _payload(event)


def _ask(body: AnswerBody, idempotency: str | None = None) -> Ask:
    stop = (body.stop,) if isinstance(body.stop, str) else None if body.stop is None else tuple(body.stop)
    session_id = None if body.session_id is None else parse_id(body.session_id)
    sampling: dict[str, Any] = {name: getattr(body, name) for name in _SAMPLING}
    return Ask(owner=g.key.id, prompt=body.prompt, session_id=session_id, profile=body.profile,
               allowed_profiles=g.key.profiles, stop=stop, schema=body.schema_, stream=bool(body.stream),
               weight=g.key.weight,
               request_id=g.trace.id, idempotency=idempotency, **sampling)


def _payload(event: Event) -> Payload:
    if isinstance(event, Delta):
        return {"delta": event.text}
    if isinstance(event, Waiting):
        return {"queue": {"position": event.position, "eta_seconds": math.ceil(event.eta_seconds)}}
    if isinstance(event, Reasoned):
        return {"reasoning": event.text}
    if isinstance(event, Called):
        raise AssertionError("no tools were offered")
    return sse.BEAT if isinstance(event, Beat) else {"done": True, **event.body()}


def _folded(payloads: Generator[Payload, None, None]) -> Payload:
    """The last event is the whole answer."""
    last: Payload = {}
    with closing(payloads):
        for payload in payloads:
            last = payload
    assert last.get("done"), "an answer has an end"
    return {name: value for name, value in last.items() if name != "done"}
