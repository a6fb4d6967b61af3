"""`/answer/<id>`: the sessions of the key that asks. Somebody else's is as absent as one that never was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import Response, g, request

from services.chat.idempotency import digest_of
from services.chat.sessions import parse_id
from services.web import replies
from services.web.bodies import ForkBody, NameBody, RewindBody
from services.web.frame import empty, json_response
from services.web.routes import Endpoint, op, taken

_CHANGES = (409, 410, 507)


class Session(Endpoint):
    @op("A session with all its turns", scope="answer", reply=replies.Session, errors=(410,))
    def get(self, session_id: str) -> Response:
        return json_response(self.parts.sessions.get(g.key.id, parse_id(session_id)))

    @op("Rename a session", scope="answer", body=NameBody, reply=replies.Session, errors=_CHANGES)
    def patch(self, session_id: str, body: NameBody) -> Response:
        with taken(self.room.places):
            return json_response(self.parts.sessions.rename(g.key.id, parse_id(session_id), body.name))

    @op("Delete a session", scope="answer", status=204, errors=_CHANGES)
    def delete(self, session_id: str) -> Response:
        owner, sid = g.key.id, parse_id(session_id)
        self.parts.sessions.delete(owner, sid)
        self.parts.chat.forget(owner, sid)
        return empty()


class Fork(Endpoint):
    @op("A new session with this one's turns so far", scope="answer", body=ForkBody, body_optional=True,
        reply=replies.Session, errors=_CHANGES, retryable=True)
    def post(self, session_id: str, body: ForkBody | None) -> Response:
        owner, sid, at = g.key.id, parse_id(session_id), body.at if body else None
        with taken(self.room.places):
            return json_response(self._once(f"/answer/{sid}/fork", lambda: self.parts.sessions.fork(owner, sid, at)))

    def _once(self, path: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `make` gives; with an `Idempotency-Key` what it gave the first time. It runs in another thread then."""
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return make()
        digest = digest_of(request.method, path, g.raw_body)
        events = self.parts.idempotency.run(g.key.id, key, digest, lambda: [{"done": True, "session": make()}])
        return next(event["session"] for event in events if event.get("done"))


class Rewind(Endpoint):
    @op("Drop the turns after one", scope="answer", body=RewindBody, reply=replies.Session, errors=_CHANGES)
    def post(self, session_id: str, body: RewindBody) -> Response:
        owner, sid = g.key.id, parse_id(session_id)
        with taken(self.room.places):
            left = self.parts.sessions.rewind(owner, sid, body.to)
            self.parts.chat.forget(owner, sid)
            return json_response(left)
