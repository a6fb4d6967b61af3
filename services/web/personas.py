"""`/gpt`, `/toil`, `/describe`, `/embedding`, `/personalities`: csps-llm's routes (S4.9 to S4.24), with keys."""

from __future__ import annotations

import json
import struct
from typing import Annotated, Any, Literal

from flask import Response, g, request
from pydantic import Field, RootModel

from services.chat.embed import EmbedAsk, Embeddings
from services.chat.events import Ask
from services.chat.messages import Message
from services.chat.persona import Persona
from services.chat.sessions import parse_id
from services.errors import BadRequest, ParleyError
from services.web import answer, replies, sources, watch
from services.web.answering import SESSION_HEADER, Answering, folded
from services.web.bodies import Bases, Body, SessionId, Text
from services.web.frame import json_response
from services.web.routes import Endpoint, op, taken
from services.wire import Charge

_ERRORS = (404, 409, 410, 415, 422, 502, 504, 507)
_NAMES = "knowledge bases to answer from, in a text with commas between them; default: the personality's"
_DECIDES = "whether the model decides first whether and where to look; default: as the personality does"
Switch = Literal["true", "false", "1", "0"]
SessionName = Annotated[str, Field(description="the conversation; without one nothing is kept")]


class Question(Body):
    """What may be in the address as well as in a body."""

    prompt: Text | None = Field(None, description="the question")
    session: SessionId | None = Field(None, description="the conversation; without one nothing is kept")


class GptFields(Question):
    """A question, in the address."""

    knowledge: Text | None = Field(None, description=_NAMES)
    search: Switch | None = Field(None, description=_DECIDES)


class GptBody(Question):
    """A question, in a form or a JSON body."""

    knowledge: Text | Bases | None = Field(None, description=_NAMES)
    search: Switch | bool | None = Field(None, description=_DECIDES)


class TextFields(Body):
    """A text to embed, in the address, a form or a JSON body."""

    text: Text | None = Field(None, description="the text")


class ToilQuery(Body):
    """Where a task belongs."""

    session: SessionName | None = None


class ToilBody(Body):
    """A task whose result is one JSON value. Only `prompt` is required."""

    prompt: Text
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="a JSON Schema that the result complies with; without one it is any JSON")
    text: Text | None = Field(None, description="what the task is about, or an http(s) address where that is")
    session: SessionId | None = Field(None, description="the conversation; without one nothing is kept")


class AnyJson(RootModel[Any]):
    """Any JSON value; one that complies with the schema of the request, if it has one."""


class Vector(RootModel[list[float]]):
    """Of length 1."""


class Gpt(Answering):
    @op("Ask a personality", scope="answer", query=GptFields, reply=replies.Answer, plain=True, errors=_ERRORS,
        retryable=True, answer=True)
    def get(self, personality: str, query: GptFields) -> Response:
        return self._answer(personality, query, None)

    @op("Ask a personality", scope="answer", query=GptFields, body=GptBody, body_optional=True, form=True,
        reply=replies.Answer, plain=True, errors=_ERRORS, retryable=True, answer=True)
    def post(self, personality: str, query: GptFields, body: GptBody | None) -> Response:
        return self._answer(personality, query, body)

    def _answer(self, personality: str, query: GptFields, body: GptBody | None) -> Response:
        prompt, session = _either("prompt", query, body), _either("session", query, body)
        if prompt is None:
            raise BadRequest("prompt is missing: give it in the address (?prompt=…), in a form, or in a JSON body",
                             code="missing_field", param="prompt")
        persona, session_id = self.parts.personas.get(personality, g.key.id), _session(session)
        with taken(self.room.places):
            question, given = sources.of_question(self.room, persona, prompt, g.key.id)
        asked, grounds = persona.asked(question, given), self._grounds(persona, query, body, given is not None)
        payload = folded(self.payloads(
            lambda digest: [_ask(self, persona, prompt, asked, session_id, digest, **grounds)], answer.payloads))
        if _wants_json():
            return json_response(payload)
        return Response(payload["result"].encode("utf-8", "backslashreplace"), mimetype="text/plain")

    def _grounds(self, persona: Persona, query: GptFields, body: GptBody | None, given: bool) -> dict[str, Any]:
        """What it is answered from. A personality does not look for more where something is `given`."""
        named, search = _either("knowledge", query, body) or (), _either("search", query, body)
        names = [name.strip() for name in named.split(",")] if isinstance(named, str) else named
        wanted = search in (True, "true", "1") if search is not None else False if given else None
        return sources.grounded(self.room, persona, g.key.id, names, wanted)


class Toil(Answering):
    @op("Have a personality do a task whose result is JSON", scope="answer", query=ToilQuery, body=ToilBody,
        reply=AnyJson, errors=_ERRORS, retryable=True, answer=True)
    def post(self, personality: str, query: ToilQuery, body: ToilBody) -> Response:
        """The result is the answer as the model wrote it: digits and the order of keys stay."""
        persona, session_id = self.parts.personas.get(personality, g.key.id), _session(_either("session", query, body))
        with taken(self.room.places):
            given = body.text and sources.of_text(self.room, persona, body.text, g.key.id)
        asked = persona.asked(body.prompt, given or None)
        schema = {} if body.schema_ is None else body.schema_
        result = folded(self.payloads(lambda digest: [
            _ask(self, persona, body.prompt, asked, session_id, digest, schema=schema)], answer.payloads))["result"]
        if not _is_json(result):
            raise ParleyError("the model's answer is not JSON, although it was held to that", code="not_json")
        return Response(result.encode("utf-8"), mimetype="application/json")


class Describe(Endpoint):
    @op("How a personality is made", scope="answer", reply=replies.Document)
    def get(self, personality: str) -> Response:
        return json_response(self.parts.personas.get(personality, g.key.id).described())


class Personalities(Endpoint):
    @op("The personalities that this key may ask", scope="answer", reply=replies.Personalities)
    def get(self) -> Response:
        return json_response({"personalities": [self._shown(name, persona) for name, persona
                                                in self.parts.personas.allowed(g.key.id).items()]})

    def _shown(self, name: str, persona: Persona) -> dict[str, Any]:
        """`profile` and `model` are null where what the personality names is not there."""
        try:
            asked = persona.fields(self.room.settings.models_dir)
            named, config = asked["model"], self.parts.profiles.current()
            profile, found = (self.parts.profiles.named(named, g.key.profiles) if named
                              else config.for_text(asked["profile"]))
            model: str | None = found.model
        except ParleyError:
            profile, model = None, None
        return {"name": name, "description": persona.description, "intro_dialogue": persona.intro_dialogue,
                "profile": profile, "model": model}


class EmbeddingBase(Endpoint):
    """A text to its vector. `kind`: what the text is, which some models want told."""

    kind: Literal["document", "query"]

    def answer(self, query: TextFields, body: TextFields | None) -> Response:
        text = _either("text", query, body)
        if text is None:
            raise BadRequest("text is missing: give it in the address (?text=…), in a form, or in a JSON body",
                             code="missing_field", param="text")
        service = Embeddings(self.room.settings, self.parts.profiles, self.parts.engine)
        ask = EmbedAsk(owner=g.key.id, texts=[text], allowed_profiles=g.key.profiles, weight=g.key.weight,
                       kind=self.kind)
        over = watch.of_request(self.room.drain)
        with taken(self.room.places):
            found = service.embed(ask, over.check, lambda tokens: g.ticket.charge(Charge(key="", prompt_tokens=tokens)))
        return json_response(struct.unpack(f"<{found.dimensions}f", found.vectors[0]))


class EmbeddingDocument(EmbeddingBase):
    kind = "document"

    @op("The vector of a text that is to be found", scope="answer", query=TextFields, reply=Vector,
        errors=(404, 409, 422, 504), answer=True)
    def get(self, query: TextFields) -> Response:
        return self.answer(query, None)

    @op("The vector of a text that is to be found", scope="answer", query=TextFields, body=TextFields,
        body_optional=True, form=True, reply=Vector, errors=(404, 409, 422, 504), answer=True)
    def post(self, query: TextFields, body: TextFields | None) -> Response:
        return self.answer(query, body)


class EmbeddingQuery(EmbeddingBase):
    kind = "query"

    @op("The vector of a text to find others with", scope="answer", query=TextFields, reply=Vector,
        errors=(404, 409, 422, 504), answer=True)
    def get(self, query: TextFields) -> Response:
        return self.answer(query, None)

    @op("The vector of a text to find others with", scope="answer", query=TextFields, body=TextFields,
        body_optional=True, form=True, reply=Vector, errors=(404, 409, 422, 504), answer=True)
    def post(self, query: TextFields, body: TextFields | None) -> Response:
        return self.answer(query, body)


def _ask(endpoint: Endpoint, persona: Persona, prompt: str, asked: tuple[Message, ...], session_id: str | None,
         digest: str | None, **more: Any) -> Ask:
    return Ask(owner=g.key.id, prompt=prompt, messages=asked, session_id=session_id,
               allowed_profiles=g.key.profiles, weight=g.key.weight, request_id=g.trace.id, idempotency=digest,
               stream=False, **persona.fields(endpoint.room.settings.models_dir), **more)


def _is_json(text: str) -> bool:
    """Also with integers that are longer than Python's, and where it is nested more deeply than Python follows."""
    try:
        json.loads(text, parse_int=str)
    except RecursionError:
        return True
    except ValueError:
        return False
    return True


def _session(given: int | str | None) -> str | None:
    """The conversation that the request names, or its header does."""
    value = request.headers.get(SESSION_HEADER) if given is None else given
    return None if value is None else parse_id(value)


def _either(name: str, query: Body, body: Body | None) -> Any:
    """What the address or the body gives. `BadRequest` when both do, and differ."""
    given = [value for source in (query, body) if (value := getattr(source, name, None)) is not None]
    if len({str(value) for value in given}) > 1:
        raise BadRequest(f"{name} is given in the address and in the body, and differs: give it once", param=name)
    return given[0] if given else None


def _wants_json() -> bool:
    return request.accept_mimetypes.best_match(["text/plain", "application/json"], "text/plain") == "application/json"
