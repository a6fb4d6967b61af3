"""`/assistant/v1`: skynet's assistant, which answers from what each key has given it (S1.36).

What it was given is the key's knowledge base `assistant`, which `/knowledge` shows like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from flask import Response, g, request
from pydantic import BaseModel, Field

from services.chat.events import Ask
from services.chat.messages import Message
from services.errors import BadRequest, NotFound
from services.knowledge.read import kind_of
from services.knowledge.urls import parse
from services.web import answer, upload
from services.web.answering import Answering, folded
from services.web.bodies import MAX_TOKENS, Body, Name, validate
from services.web.frame import empty, json_response
from services.web.json_body import read_object
from services.web.routes import Endpoint, op, taken
from services.web.summaries.routes import Documents

BASE = "assistant"
DEPTH = 5                       # links away from an address, as in skynet
REFRESH_DAYS = 30
SYSTEM = "You are an AI assistant who provides a concise next answer in a given conversation."
ONLY = "Only respond based on the information provided in the passages."
_ERRORS = (403, 404, 409, 410, 415, 422, 507)


class RagBody(Body):
    """What the assistant is to know; in a form it may have files too. What it had before and is not named goes."""

    urls: list[Annotated[str, Field(min_length=1, max_length=2048)]] = Field([], max_length=100)
    max_depth: int = Field(DEPTH, ge=0, le=10, description="links that are followed from an address")
    system_message: str | None = Field(None, max_length=65_536, description="its system text")


class RagConfig(BaseModel):
    urls: list[str]
    files: list[str]
    max_depth: int
    system_message: str | None
    refresh_interval: int = Field(description="days after which addresses are read again")
    status: Literal["running", "success", "error"]
    error: str | None


class AssistBody(Body):
    """A question, a text that it is about, or both."""

    text: str = Field("", description="what the user gives to answer from, beside what the assistant knows")
    prompt: str | None = None
    profile: Name | None = None
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    assistant_type: Literal["search", "statistics"] = "search"
    assistant_search_top_k: int = Field(3, ge=1, le=100, description="passages, of a search")
    assistant_stats_top_k: int = Field(90, ge=1, le=1000, description="passages, of statistics")
    use_only_rag_data: bool = Field(False, description="whether only what the assistant knows counts")


class AssistReply(BaseModel):
    text: str


_FORM: dict[str, Any] = {"required": True, "content": {
    "application/json": {"schema": RagBody.model_json_schema()},
    upload.MULTIPART: {"schema": {"type": "object", "additionalProperties": False, "properties": {
        "files": {"type": "array", "maxItems": 50, "items": upload.FILE},
        "urls": {"type": "array", "maxItems": 40, "items": {"type": "string", "format": "uri"}},
        "max_depth": {"type": "integer", "minimum": 0, "maximum": 10}, "system_message": {"type": "string"}}}}}}


class AssistantRag(Endpoint):
    envelope = staticmethod(Documents.envelope)

    @op("What the assistant knows", scope="answer", reply=RagConfig, errors=(404, 409, 410))
    def get(self) -> Response:
        return json_response(_config(self, _base(self)))

    @op("Have the assistant know some addresses and files, in the background", scope="answer", files=_FORM,
        reply=RagConfig, errors=_ERRORS, answer=True)
    def post(self) -> Response:
        body, files = _read(self)
        urls = list(dict.fromkeys(str(parse(url)) for url in body.urls))
        with taken(self.room.places):
            bases, owner = self.parts.grounding.bases, g.key.id
            if _there(self) is None:
                bases.create(owner, BASE, allowed=g.key.profiles, refresh_seconds=REFRESH_DAYS * 86400)
            bases.change(owner, BASE, {"system": body.system_message or ""})
            missing = {(url, body.max_depth): url for url in urls}
            for source in bases.sources(owner, BASE):
                if missing.pop((source["name"], source["options"].get("max_depth")), None) is None:
                    bases.delete_source(owner, BASE, source["id"])
            for file in files:
                bases.add(owner, BASE, kind_of(file.name, file.media), file.name, file.data, media_type=file.media)
            for url in missing.values():
                bases.add(owner, BASE, "crawl", url, max_depth=body.max_depth)
        return json_response(_config(self, _base(self)))

    @op("Have the assistant forget all", scope="answer", status=204, errors=(403, 404, 409, 410))
    def delete(self) -> Response:
        _base(self)
        self.parts.grounding.bases.delete(g.key.id, BASE)
        return empty()


class Assist(Answering):
    envelope = staticmethod(Documents.envelope)

    @op("Ask the assistant", scope="answer", body=AssistBody, reply=AssistReply, errors=(404, 409, 410, 422, 504, 507),
        retryable=True, answer=True)
    def post(self, body: AssistBody) -> Response:
        texts = [text.strip() for text in (body.text, body.prompt or "") if text.strip()]
        if not texts:
            raise BadRequest("text and prompt are missing: give one of them", code="missing_field", param="prompt")
        base, said = _there(self), (Message("user", "\n\n".join(texts)),)
        own = (base or {}).get("system")        # the key's, and so nothing that is computed once for everybody
        system = "\n\n".join([own or SYSTEM, *([ONLY] if base and body.use_only_rag_data else [])])
        ask = Ask(owner=g.key.id, prompt=texts[-1], messages=(Message("system", system), *said) if own else said,
                  system=None if own else system, profile=body.profile, allowed_profiles=g.key.profiles,
                  max_tokens=body.max_completion_tokens, weight=g.key.weight, request_id=g.trace.id, stream=False,
                  knowledge=(f"{BASE}@{g.key.id}",) if base else (), passages=_most(body))
        return json_response({"text": folded(self.payloads(lambda _digest: [ask], answer.payloads))["result"]})


def _most(body: AssistBody) -> int:
    return body.assistant_search_top_k if body.assistant_type == "search" else body.assistant_stats_top_k


def _there(endpoint: Endpoint) -> dict[str, Any] | None:
    """The key's base; None: it has none."""
    try:
        return endpoint.parts.grounding.bases.get(g.key.id, f"{BASE}@{g.key.id}")
    except NotFound:
        return None


def _base(endpoint: Endpoint) -> dict[str, Any]:
    if (base := _there(endpoint)) is None:
        raise NotFound("RAG database not found", code="knowledge_not_found")
    return base


def _config(endpoint: Endpoint, base: dict[str, Any]) -> dict[str, Any]:
    sources = endpoint.parts.grounding.bases.sources(g.key.id, BASE)
    crawls = [source for source in sources if source["kind"] == "crawl"]
    errors = [f"{source['name']}: {source['error']}" for source in sources if source["state"] == "error"]
    busy = any(source["state"] in ("queued", "running") for source in sources)
    return {"urls": [source["name"] for source in crawls],
            "files": [source["name"] for source in sources if source["kind"] != "crawl"],
            "max_depth": crawls[0]["options"]["max_depth"] if crawls else DEPTH,
            "system_message": base.get("system"), "refresh_interval": REFRESH_DAYS,
            "status": "running" if busy else "error" if errors else "success", "error": "; ".join(errors) or None}


def _read(endpoint: Endpoint) -> tuple[RagBody, list[upload.File]]:
    """What was sent, as JSON or as a form."""
    most = endpoint.room.settings.max_body_bytes
    if request.mimetype != upload.MULTIPART:
        g.raw_body, value = read_object(request, most)
        return validate(RagBody, value or {}), []
    form = upload.read_form(request, most)
    g.raw_body = form.raw
    return validate(RagBody, dict(_fields(form))), list(form.files)


def _fields(form: upload.Form) -> Iterator[tuple[str, Any]]:
    """The texts of a form as JSON would have them."""
    names = [name.removesuffix("[]") for name, _ in form.texts]
    for name in dict.fromkeys(names):
        texts = [text for (_, text), called in zip(form.texts, names, strict=True) if called == name]
        if name == "urls":
            yield name, [text for text in texts if text]
        elif len(texts) > 1:
            raise BadRequest(f"the form has {name[:80]!r} twice", param=name[:200])
        elif name == "max_depth" and texts[0].isascii() and texts[0].isdigit() and len(texts[0]) < 9:
            yield name, int(texts[0])
        else:
            yield name, texts[0]
