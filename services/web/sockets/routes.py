"""`WS /gpt-socket/<personality>`: the handshake. What follows it is `talk`'s."""

from __future__ import annotations

import uuid
from typing import Literal

from flask import Response, current_app, g, request
from pydantic import Field

from services.chat.sessions import parse_id
from services.errors import Unprocessable
from services.web.bodies import Body, Text
from services.web.routes import Endpoint, op
from services.web.sockets import handshake
from services.web.sockets.talk import Talk, Wish


class SocketQuery(Body):
    """How a socket is to talk."""

    session: Text | None = Field(None, description="the conversation to go on with; else it ends with the socket")
    end: Literal["session"] | None = Field(
        None, description="an answer ends with `<END id>`, the conversation's id, with which another socket goes on")
    status: Literal["0", "1"] | None = Field(
        None, description="0: nothing but answers; else frames before an answer may tell what is being done")


class GptSocket(Endpoint):
    @op("Talk with a personality over a websocket", scope="answer", query=SocketQuery, status=101, late=True,
        errors=(404, 422, 426))
    def get(self, personality: str, query: SocketQuery) -> Response:
        """The key may come in the first frame, since browsers can set no header here."""
        handshake.check(request, self.room.settings.allowed_origins)
        sock = request.environ.get("gunicorn.socket")
        if sock is None:
            raise Unprocessable("websockets need the server that `main.py serve` starts", code="no_websockets")
        talk = Talk(current_app._get_current_object(),     # type: ignore[attr-defined]
                    self.room, _wish(personality, query), g.trace, request.environ.get("REMOTE_ADDR") or "local")
        if g.key is not None:
            self.parts.personas.get(personality, g.key.id)
            secret = request.headers.get("Authorization") or request.headers.get("X-API-Key")
            talk.known(g.key, secret or self.parts.keys.local_secret or "")
        self.room.sockets.reserve(talk, talk.owner)
        self.room.sockets.expect(sock, talk)
        return handshake.response(request)


def _wish(personality: str, query: SocketQuery) -> Wish:
    named = query.end == "session"
    session = parse_id(query.session) if query.session else uuid.uuid4().hex if named else None
    return Wish(personality, session, named, query.status != "0")
