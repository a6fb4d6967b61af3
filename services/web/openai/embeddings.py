"""`POST /v1/embeddings`: texts to vectors, in OpenAI's shape."""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Any, Literal

from flask import Response, g
from pydantic import Field, Tag

from services.chat.embed import EmbedAsk, Embedded, Embeddings
from services.web import replies, watch
from services.web.bodies import Name, Text
from services.web.frame import json_response
from services.web.openai.common import ClientBody, Ignored
from services.web.openai.tokens import TEXT_OR_TOKENS, TokenList, each
from services.web.routes import Endpoint, op, taken
from services.wire import Charge

Input = Annotated[Annotated[Text, Tag("str")]
                  | Annotated[list[Text], Field(min_length=1, max_length=2048), Tag("list[str]")]
                  | Annotated[TokenList, Tag("list[token]")]
                  | Annotated[list[TokenList], Field(min_length=1, max_length=2048), Tag("list[list[]]")],
                  TEXT_OR_TOKENS]


class EmbeddingsBody(ClientBody):
    """Texts to be turned into vectors, or their tokens; OpenAI's body."""

    input: Input
    model: Name | None = Field(None, description="an embedding profile, or the file of one; default: the first profile")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: of little-endian float32; default: float")
    dimensions: int | None = Field(None, ge=1, le=1 << 20, description="fewer than the model makes: the first ones, "
                                                                       "made a vector of length 1 again")
    user: Ignored = None


class OpenAIEmbeddings(Endpoint):
    @op("The vectors of texts, by a model that is made for it", scope="answer", body=EmbeddingsBody,
        reply=replies.Embeddings, errors=(404, 409, 422, 504), answer=True)
    def post(self, body: EmbeddingsBody) -> Response:
        ask = EmbedAsk(owner=g.key.id, texts=each(body.input), model=body.model, allowed_profiles=g.key.profiles,
                       dimensions=body.dimensions, weight=g.key.weight)
        service = Embeddings(self.room.settings, self.parts.profiles, self.parts.engine)
        over = watch.of_request(self.room.drain)
        with taken(self.room.places):
            found = service.embed(ask, over.check, lambda tokens: g.ticket.charge(Charge(key="", prompt_tokens=tokens)))
        return json_response(_reply(found, body.encoding_format == "base64"))


def _reply(found: Embedded, as_base64: bool) -> dict[str, Any]:
    return {"object": "list", "model": found.model,
            "data": [{"object": "embedding", "index": index, "embedding": _shown(vector, as_base64)}
                     for index, vector in enumerate(found.vectors)],
            "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens}}


def _shown(vector: bytes, as_base64: bool) -> str | list[float]:
    """The numbers, or their bytes; both give back exactly what the model computed."""
    return base64.b64encode(vector).decode() if as_base64 else list(struct.unpack(f"<{len(vector) // 4}f", vector))
