"""`POST /v1/rerank`: texts in the order of how well they answer a query, in the shape of Jina's and llama.cpp's API."""

from __future__ import annotations

from typing import Annotated, Any

from flask import Response, g
from pydantic import Field, Tag

from services.chat.rerank import RerankAsk, Reranked, Reranking
from services.web import replies, watch
from services.web.bodies import Body, Name, Text
from services.web.frame import json_response
from services.web.openai.common import by_kind
from services.web.routes import Endpoint, op, taken
from services.wire import Charge


class DocumentBody(Body):
    text: Text


class RerankBody(Body):
    """A query, and the texts that may answer it."""

    query: Text
    documents: list[Annotated[Annotated[Text, Tag("str")] | Annotated[DocumentBody, Tag("document[]")],
                              by_kind("document[]")]] = Field(min_length=1, max_length=2048)
    model: Name | None = Field(None, description="a profile that ranks, or the file of one; default: the first profile")
    top_n: int | None = Field(None, ge=1, le=1 << 31, description="of the best ones; default: all")
    return_documents: bool | None = Field(None, description="the texts with their scores; default: false")


class Rerank(Endpoint):
    @op("Which texts answer a query best, by a model that is made for it", scope="answer", body=RerankBody,
        reply=replies.Reranked, errors=(404, 409, 422, 504), answer=True)
    def post(self, body: RerankBody) -> Response:
        texts = [one if isinstance(one, str) else one.text for one in body.documents]
        ask = RerankAsk(owner=g.key.id, query=body.query, texts=texts, model=body.model,
                        allowed_profiles=g.key.profiles, weight=g.key.weight)
        service = Reranking(self.room.settings, self.parts.profiles, self.parts.engine)
        over = watch.of_request(self.room.drain)
        with taken(self.room.places):
            found = service.rank(ask, over.check, lambda tokens: g.ticket.charge(Charge(key="", prompt_tokens=tokens)))
        return json_response(_reply(found, body.top_n, texts if body.return_documents else None))


def _reply(found: Reranked, most: int | None, texts: list[str] | None) -> dict[str, Any]:
    best = sorted(range(len(found.scores)), key=lambda index: -found.scores[index])[:most]
    results: list[dict[str, Any]] = [{"index": index, "relevance_score": found.scores[index]} for index in best]
    if texts is not None:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    return {"object": "list", "model": found.model, "results": results,
            "usage": {"prompt_tokens": found.tokens, "total_tokens": found.tokens}}
