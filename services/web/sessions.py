"""`/answer/<id>`: the sessions of the key that asks. Somebody else's is as absent as one that never was."""

from __future__ import annotations

from flask import Response, g

from services.chat.sessions import parse_id
from services.web import replies
from services.web.bodies import ForkBody, NameBody, RewindBody
from services.web.frame import empty, json_response
from services.web.routes import Endpoint, op

_CHANGES = (409, 410, 507)


class Session(Endpoint):
    @op("A session with all its turns", scope="answer", reply=replies.Session, errors=(410,))
    def get(self, session_id: str) -> Response:
        return json_response(self.parts.sessions.get(g.key.id, parse_id(session_id)))

    @op("Rename a session", scope="answer", body=NameBody, reply=replies.Session, errors=_CHANGES)
    def patch(self, session_id: str, body: NameBody) -> Response:
        return json_response(self.parts.sessions.rename(g.key.id, parse_id(session_id), body.name))

    @op("Delete a session", scope="answer", status=204, errors=_CHANGES)
    def delete(self, session_id: str) -> Response:
        self.parts.sessions.delete(g.key.id, parse_id(session_id))
        return empty()


class Fork(Endpoint):
    @op("A new session with this one's turns so far", scope="answer", body=ForkBody, body_optional=True,
        reply=replies.Session, errors=_CHANGES)
    def post(self, session_id: str, body: ForkBody | None) -> Response:
        at = body.at if body else None
        return json_response(self.parts.sessions.fork(g.key.id, parse_id(session_id), at))


class Rewind(Endpoint):
    @op("Drop the turns after one", scope="answer", body=RewindBody, reply=replies.Session, errors=_CHANGES)
    def post(self, session_id: str, body: RewindBody) -> Response:
        return json_response(self.parts.sessions.rewind(g.key.id, parse_id(session_id), body.to))
