"""`POST /v1/messages`: Anthropic's Messages API."""

from __future__ import annotations

from dataclasses import replace

from flask import Response

from services.web import sse
from services.web.answering import Answering
from services.web.anthropic import errors, replies
from services.web.anthropic.asking import to_answer
from services.web.anthropic.bodies import MessagesBody
from services.web.anthropic.writing import Writer
from services.web.routes import op

STYLE = replace(sse.NAMED, error=errors.event)


class Messages(Answering):
    envelope = staticmethod(errors.envelope)

    @op("Go on with a conversation, as Anthropic's API does", scope="answer", body=MessagesBody,
        reply=replies.AnthropicMessage, stream=replies.AnthropicEvent, errors=(404, 409, 410, 422, 504, 507),
        retryable=True, answer=True)
    def post(self, body: MessagesBody) -> Response:
        writer = Writer(body.model, _wants_thinking(body), body.stop_sequences or [])
        return self.respond(lambda digest: [to_answer(body, digest)], writer.payloads, bool(body.stream), STYLE)


def _wants_thinking(body: MessagesBody) -> bool:
    """Only who asks for blocks of thinking expects them before the text."""
    return body.thinks and body.thinking is not None and body.thinking.display != "omitted"
