"""`POST /v1/embeddings`: texts to vectors, in OpenAI's shape."""

from __future__ import annotations

import base64
import struct
from typing import Annotated, Any, Literal

from flask import Response, g
from pydantic import Discriminator, Field, Tag

from services.chat.embed import EmbedAsk, Embedded, Embeddings
from services.web import replies, watch
from services.web.bodies import Name, Text
from services.web.frame import json_response
from services.web.openai.common import ClientBody, Ignored
from services.web.openai.tokens import Token
from services.web.routes import Endpoint, op, taken
from services.wire import Charge


def _kind(value: Any) -> str:
    """The branch of `input` that a value's own type means, so that only that one's faults are told."""
    if isinstance(value, str):
        return "str"
    first = value[0] if isinstance(value, list) and value else None
    return "list[list[]]" if isinstance(first, list) else "list[token]" if isinstance(first, int) else "list[str]"


Tokens = Annotated[list[Token], Field(min_length=1, max_length=1 << 20)]
Input = Annotated[Annotated[Text, Tag("str")]
                  | Annotated[list[Text], Field(min_length=1, max_length=2048), Tag("list[str]")]
                  | Annotated[Tokens, Tag("list[token]")]
                  | Annotated[list[Tokens], Field(min_length=1, max_length=2048), Tag("list[list[]]")],
                  Discriminator(_kind)]


class EmbeddingsBody(ClientBody):
    """Texts to be turned into vectors, or their tokens; OpenAI's body."""

    input: Input
    model: Name | None = Field(None, description="an embedding profile, or the file of one; default: the first profile")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="base64: of little-endian float32; default: float")
    dimensions: int | None = Field(None, ge=1, le=1 << 20, description="fewer than the model makes: the first ones, "
                                                                       "made a vector of length 1 again")
    user: Ignored = None

    @property
    def texts(self) -> list[str | list[int]]:
        """One or several, each as text or as its tokens."""
        several = isinstance(self.input, list) and not isinstance(self.input[0], int)
        return list(self.input) if several else [self.input]    # type: ignore[arg-type, list-item]


class OpenAIEmbeddings(Endpoint):
    @op("The vectors of texts, by a model that is made for it", scope="answer", body=EmbeddingsBody,
        reply=replies.Embeddings, errors=(404, 409, 422, 504), answer=True)
    def post(self, body: EmbeddingsBody) -> Response:
        ask = EmbedAsk(owner=g.key.id, texts=body.texts, model=body.model, allowed_profiles=g.key.profiles,
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
