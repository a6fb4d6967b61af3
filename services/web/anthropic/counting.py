"""`POST /v1/messages/count_tokens`: how long a prompt is, without an answer to it."""

from __future__ import annotations

from flask import Response

from services.web import watch
from services.web.anthropic import errors, replies
from services.web.anthropic.asking import to_count
from services.web.anthropic.bodies import CountTokensBody
from services.web.frame import json_response
from services.web.routes import Endpoint, op, taken


class CountTokens(Endpoint):
    envelope = staticmethod(errors.envelope)

    @op("How many tokens a conversation's prompt has", scope="answer", body=CountTokensBody, reply=replies.InputTokens,
        errors=(404, 409, 410, 422, 504), answer=True)
    def post(self, body: CountTokensBody) -> Response:
        over = watch.of_request(self.room.drain)
        with taken(self.room.places):
            return json_response({"input_tokens": self.parts.chat.count(to_count(body), over.check)})
