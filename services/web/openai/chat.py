"""`POST /v1/chat/completions`: a conversation to its next message, in OpenAI's shapes."""

from __future__ import annotations

from functools import partial

from flask import Response

from services.web import sse
from services.web.answering import Answering
from services.web.openai import common, shapes
from services.web.openai.chat_body import ChatBody, asks
from services.web.openai.shaping import ChatShaper, shaped_as
from services.web.routes import op


class ChatCompletions(Answering):
    @op("Go on with a conversation", scope="answer", body=ChatBody, reply=shapes.ChatCompletion,
        stream=shapes.ChatChunk, errors=(404, 409, 410, 422, 504, 507), retryable=True, answer=True)
    def post(self, body: ChatBody) -> Response:
        stream, (model, fingerprint) = bool(body.stream), shaped_as(self.parts.profiles, body.model)
        shaper = ChatShaper(common.new_id("chatcmpl-"), model, fingerprint, stream, body.with_usage,
                            bool(body.logprobs), body.n or 1)
        return self.respond(partial(asks, body), shaper.payloads, stream, sse.OPENAI)
