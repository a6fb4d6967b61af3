"""`/knowledge`: bases of texts that answers can be grounded in. What a key may not read is absent for it."""

from __future__ import annotations

from typing import Any

from flask import Response, g, request

from services.chat import embed
from services.errors import BadRequest
from services.knowledge.read import kind_of
from services.knowledge.search import Weights
from services.store.knowledge import no_document
from services.web import upload, watch
from services.web.frame import empty, json_response
from services.web.knowledge_shapes import (
    FileQuery,
    KnowledgeBase,
    KnowledgeBases,
    KnowledgeBody,
    KnowledgeChange,
    KnowledgeDocuments,
    KnowledgeHits,
    KnowledgeSource,
    KnowledgeSources,
    ReindexBody,
    SearchBody,
    SourceBody,
    WholeDocument,
)
from services.web.routes import Endpoint, op, taken

_CHANGES = (403, 409, 410, 507)


class Knowledge(Endpoint):
    @op("The knowledge bases that the key may read", scope="answer", reply=KnowledgeBases)
    def get(self) -> Response:
        return json_response({"bases": self.parts.grounding.bases.all(g.key.id)})

    @op("Make a knowledge base", scope="answer", body=KnowledgeBody, reply=KnowledgeBase, status=201,
        errors=(404, *_CHANGES, 422))
    def post(self, body: KnowledgeBody) -> Response:
        made = self.parts.grounding.bases.create(g.key.id, body.name, profile=body.profile, allowed=g.key.profiles,
                                      chunk_tokens=body.chunk_tokens, shared=body.shared or False,
                                      refresh_seconds=body.refresh_seconds)
        return json_response(made, 201)


class OneKnowledge(Endpoint):
    @op("A knowledge base", scope="answer", reply=KnowledgeBase, errors=(409, 410))
    def get(self, name: str) -> Response:
        return json_response(self.parts.grounding.bases.get(g.key.id, name))

    @op("Share a knowledge base, or have its addresses read again", scope="answer", body=KnowledgeChange,
        reply=KnowledgeBase, errors=_CHANGES)
    def patch(self, name: str, body: KnowledgeChange) -> Response:
        changes = body.model_dump(exclude_none=True)
        if "refresh_seconds" in changes and not changes["refresh_seconds"]:
            changes["refresh_seconds"] = None
        elif changes.get("refresh_seconds", 60) < 60:
            raise BadRequest("refresh_seconds: should be 60 or more, or 0 for never", param="refresh_seconds")
        return json_response(self.parts.grounding.bases.change(g.key.id, name, changes))

    @op("Delete a knowledge base with all that is in it", scope="answer", status=204, errors=_CHANGES)
    def delete(self, name: str) -> Response:
        self.parts.grounding.bases.delete(g.key.id, name)
        return empty()


class KnowledgeDocs(Endpoint):
    @op("The documents of a knowledge base", scope="answer", reply=KnowledgeDocuments, errors=(409, 410))
    def get(self, name: str) -> Response:
        return json_response({"documents": self.parts.grounding.bases.documents(g.key.id, name)})

    @op("Add a text, an address, or pages that lead to each other; indexed in the background", scope="answer",
        body=SourceBody, reply=KnowledgeSource, status=202, errors=(*_CHANGES, 422), answer=True)
    def post(self, name: str, body: SourceBody) -> Response:
        given = [what for what in (body.text, body.url, body.crawl) if what is not None]
        if len(given) != 1:
            raise BadRequest("give one of text, url and crawl", param="text")
        with taken(self.room.places):
            return json_response(self._add(name, body), 202)

    def _add(self, name: str, body: SourceBody) -> dict[str, Any]:
        bases, owner, target = self.parts.grounding.bases, g.key.id, self.parts.grounding.fetcher.target
        if body.text is not None:
            return bases.add(owner, name, "text", body.title or "text", body.text.encode())
        if body.url is not None:
            return bases.add(owner, name, "url", str(target(body.url)))
        assert body.crawl is not None
        options = body.crawl.model_dump(exclude={"url"}, exclude_none=True)
        return bases.add(owner, name, "crawl", str(target(body.crawl.url)), **options)


class KnowledgeDoc(Endpoint):
    @op("A document with its text", scope="answer", reply=WholeDocument, errors=(409, 410))
    def get(self, name: str, document_id: str) -> Response:
        return json_response(self.parts.grounding.bases.document(g.key.id, name, _number(document_id)))

    @op("Delete a document", scope="answer", status=204, errors=_CHANGES)
    def delete(self, name: str, document_id: str) -> Response:
        self.parts.grounding.bases.delete_document(g.key.id, name, _number(document_id))
        return empty()


def _number(id: str) -> int:
    """`NotFound` for what is no number that a store could hold."""
    if not (id.isascii() and id.isdigit() and len(id) <= 18):
        raise no_document(id)
    return int(id)


class KnowledgeFiles(Endpoint):
    @op("Add files: a multipart form, or one file as the body with its Content-Type and ?name=; a zip is taken apart",
        scope="answer", files=upload.FILES, query=FileQuery, reply=KnowledgeSources, status=202,
        errors=(*_CHANGES, 422), answer=True)
    def post(self, name: str, query: FileQuery) -> Response:
        files = upload.files(request, self.room.settings.max_body_bytes, query.name)
        with taken(self.room.places):
            bases = self.parts.grounding.bases
            added = [bases.add(g.key.id, name, kind_of(file.name, file.media), file.name, file.data,
                               media_type=file.media) for file in files]
        return json_response({"sources": added}, 202)


class KnowledgeSourceList(Endpoint):
    @op("What was added to a knowledge base, and how far it is", scope="answer", reply=KnowledgeSources,
        errors=(409, 410))
    def get(self, name: str) -> Response:
        return json_response({"sources": self.parts.grounding.bases.sources(g.key.id, name)})


class OneKnowledgeSource(Endpoint):
    @op("One source", scope="answer", reply=KnowledgeSource, errors=(409, 410))
    def get(self, name: str, source_id: str) -> Response:
        return json_response(self.parts.grounding.bases.source(g.key.id, name, source_id))

    @op("Delete a source with its documents", scope="answer", status=204, errors=_CHANGES)
    def delete(self, name: str, source_id: str) -> Response:
        self.parts.grounding.bases.delete_source(g.key.id, name, source_id)
        return empty()


class RefreshKnowledge(Endpoint):
    @op("Read all addresses again, and try at once what waits", scope="answer", reply=KnowledgeSources, status=202,
        errors=_CHANGES, answer=True)
    def post(self, name: str) -> Response:
        return json_response({"sources": self.parts.grounding.bases.refresh(g.key.id, name)}, 202)


class ReindexKnowledge(Endpoint):
    @op("Make all vectors anew from the stored texts, with the model of now or another one", scope="answer",
        body=ReindexBody, body_optional=True, reply=KnowledgeBase, status=202, errors=(*_CHANGES, 422), answer=True)
    def post(self, name: str, body: ReindexBody | None) -> Response:
        given = body.model_dump() if body else {}
        return json_response(self.parts.grounding.bases.reindex(g.key.id, name, allowed=g.key.profiles, **given), 202)


class SearchKnowledge(Endpoint):
    @op("Search a knowledge base by meaning and by words", scope="answer", body=SearchBody, reply=KnowledgeHits,
        errors=(409, 410, 422, 504), answer=True)
    def post(self, name: str, body: SearchBody) -> Response:
        weights = Weights(**body.weights.model_dump(exclude_none=True)) if body.weights else Weights()
        if not weights.vector and not weights.words:
            raise BadRequest("weights: both are 0, so nothing would be found", param="weights")
        check = embed.within(self.room.settings, watch.of_request(self.room.drain).check)
        with taken(self.room.places):
            hits = self.parts.grounding.bases.search(g.key.id, [name], body.query, body.top_k or 5, weights, check)
        return json_response({"results": [hit.shown() for hit in hits]})
