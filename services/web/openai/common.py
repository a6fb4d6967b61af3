"""What the routes for chat clients have in common: fields of their bodies, what those mean to an `Ask`, ids, usage."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, ClassVar

from flask import g, request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationInfo

from services.chat.events import Ask, Final
from services.chat.messages import Tool, Toolbox
from services.chat.sessions import parse_id, shown_id
from services.errors import BadRequest
from services.web.answering import SESSION_HEADER
from services.web.bodies import MAX_SEED, Body, Stop
from services.wire import Logprob

MAX_TOOLS = 128
STRICT = "true: refuse a schema that no grammar can hold all of; else what cannot be held is passed over"
TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
LEAST_TOP_P = 1e-6          # what 0 is taken as: the likeliest token alone
LEAST_LOGPROB = -9999.0     # what OpenAI says for a token that cannot be
_INSTEAD = {"functions": "use tools", "function_call": "use tool_choice"}       # of OpenAI's first version of both
_TOKEN = re.compile(r"[0-9]{1,9}")


def _refuse(value: Any, info: ValidationInfo) -> None:
    if value is not None:
        advice = _INSTEAD.get(info.field_name or "", "leave it out")
        raise BadRequest(f"{info.field_name} is not supported by this server: {advice}",
                         code="unsupported_parameter", param=info.field_name)


Refused = Annotated[None, BeforeValidator(_refuse)]     # a field whose effect clients count on, and which has none here
Ignored = Annotated[Any, Field(description="without effect")]
Session = Annotated[dict[str, Any], Field(description="`session_id` in it names the conversation, as the header "
                                                      "X-Session-Id does; else without effect")]


def by_kind(of_list: str, of_object: str = "") -> Discriminator:
    """Of a union's branches tagged "str", `of_list` and `of_object` (of lists unless it is given), the one that a
    value's own type means, so that only this one's faults are told."""
    def kind(value: Any) -> str:
        return "str" if isinstance(value, str) else of_object if of_object and isinstance(value, dict) else of_list
    return Discriminator(kind)


Stops = Annotated[Annotated[Stop, Tag("str")] | Annotated[list[Stop], Field(max_length=16), Tag("list[str]")],
                  by_kind("list[str]")]


class ClientBody(Body):
    """Base of bodies whose unknown fields are refused in OpenAI's words."""

    unknown: ClassVar[str] = "Unrecognized request argument supplied: {}"
    unknown_code: ClassVar[str] = "unknown_parameter"


class SamplingBody(ClientBody):
    """How tokens are chosen: OpenAI's fields, and llama.cpp's. They overrule the profile's."""

    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token")
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1_000_000, description="0 or -1 switches it off")
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=2, description="1 switches it off")
    repetition_penalty: float | None = Field(None, gt=0, le=2, description="another name of repeat_penalty")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        None, max_length=1024, description="token -> added to its logit; -100 bans it")
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: Stops | None = None

    def sampling(self) -> dict[str, Any]:
        """These fields as an `Ask` has them."""
        stop = (self.stop,) if isinstance(self.stop, str) else None if self.stop is None else tuple(self.stop)
        return {"temperature": self.temperature, "min_p": self.min_p, "presence_penalty": self.presence_penalty,
                "frequency_penalty": self.frequency_penalty, "stop": stop, "logit_bias": self._biases(),
                "repeat_penalty": one_of(repeat_penalty=self.repeat_penalty,
                                         repetition_penalty=self.repetition_penalty),
                "top_p": None if self.top_p is None else max(self.top_p, LEAST_TOP_P),
                "top_k": None if self.top_k is None else max(self.top_k, 0),
                "seed": None if self.seed is None else self.seed & MAX_SEED}

    def _biases(self) -> dict[int, float] | None:
        if self.logit_bias is None:
            return None
        for token in self.logit_bias:
            if not _TOKEN.fullmatch(token):
                raise BadRequest(f"logit_bias: {token[:40]!r} is no token; keys are token ids, as /tokenize tells them",
                                 param="logit_bias")
        return {int(token): bias for token, bias in self.logit_bias.items()}


class Part(BaseModel):
    """One part of a message's content. Only text can be read; `type` says what it is."""

    model_config = ConfigDict(strict=True, frozen=True)

    type: str = Field(min_length=1, max_length=100)
    text: str | None = None


Content = Annotated[Annotated[str, Tag("str")] | Annotated[list[Part], Tag("list[part]")], by_kind("list[part]")]


def text_of(content: str | Sequence[Part] | None, where: str, kinds: Collection[str] = ("text",)) -> str:
    """The text of a message's content; parts of one of `kinds` are joined by line breaks. `where`: the field that
    holds it. Raises `BadRequest` (`unsupported_content`) naming the first part that is no text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for index, part in enumerate(content):
        param = f"{where}.{index}"
        if part.type not in kinds:
            raise BadRequest(f"{param} is of type {part.type[:40]!r}, and this model reads only text", param=param,
                             code="unsupported_content")
        if part.text is None:
            raise BadRequest(f"{param}.text: Field required", param=f"{param}.text")
        texts.append(part.text)
    return "\n".join(texts)


def one_of(**values: Any) -> Any:
    """The value that is given under one of several names. `BadRequest` when two differ."""
    given = {name: value for name, value in values.items() if value is not None}
    if len(set(given.values())) > 1:
        raise BadRequest(f"{' and '.join(given)} are given, and differ: give one of them", param=list(given)[-1])
    return next(iter(given.values()), None)


def toolbox(tools: Sequence[Tool], choice: str = "auto", named: str = "", parallel: bool = True,
            name: Callable[[int], str] = "tools.{}.function.name".format) -> Toolbox | None:
    """The tools that are offered; None without any, and for `choice` "none". `named`: the one that must be called.

    `name`: the field that holds the name of a tool. Raises `BadRequest` for names that are none, or are there twice,
    and for a choice among tools that are not there.
    """
    seen: set[str] = set()
    for index, tool in enumerate(tools):
        if not TOOL_NAME.fullmatch(tool.name):
            raise BadRequest(f"{name(index)}: {tool.name[:80]!r} is no name for a tool; use 1 to 64 letters, digits, "
                             "'_' and '-'", param=name(index))
        if tool.name in seen:
            raise BadRequest(f"{name(index)}: there are two tools called {tool.name!r}", param=name(index))
        if tool.parameters.get("type", "object") != "object":
            raise BadRequest(f"tools.{index}: the parameters of {tool.name!r} should be of type object: they are a "
                             "tool's arguments by name", param=f"tools.{index}")
        seen.add(tool.name)
    if named and named not in seen:
        raise BadRequest(f"tool_choice names {named[:80]!r}, which is none of the tools", param="tool_choice")
    if choice == "required" and not tools:
        raise BadRequest("tool_choice wants a tool to be called, but there are no tools", param="tool_choice")
    if choice == "none" or not tools:
        return None
    return Toolbox(tuple(tools), "required" if choice == "required" or named else "auto", named, parallel)


def only_one_form(**forms: Any) -> None:
    """Refuses two fields that each say what an answer must look like; keywords are their names."""
    given = [name for name, form in forms.items() if form]
    if len(given) > 1:
        raise BadRequest(f"{' and '.join(given)} cannot be combined: each says what the answer must look like; give "
                         "one of them", code="conflicting_parameters", param=given[-1])


def session_id(metadata: dict[str, Any] | None = None) -> str | None:
    """The session that a request is part of: the header's or that of its `metadata`; None: nothing is kept.
    `BadRequest` when these differ."""
    given = (metadata or {}).get("session_id")
    inner = None if given is None else parse_id(given)
    if SESSION_HEADER not in request.headers:
        return inner
    session = parse_id(request.headers[SESSION_HEADER])
    if inner not in (None, session):
        raise BadRequest(f"{SESSION_HEADER} names the session {session!r}, and metadata.session_id {inner!r}: give one "
                         "of them", param="metadata.session_id")
    return session


def make_ask(digest: str | None, **fields: Any) -> Ask:
    """An `Ask` of the key that this request came with. `digest`: as `Answering.respond` hands it on."""
    return Ask(owner=g.key.id, allowed_profiles=g.key.profiles, weight=g.key.weight, request_id=g.trace.id,
               idempotency=digest, **fields)


def new_id(prefix: str) -> str:
    """`chatcmpl-` becomes `chatcmpl-<32 hex digits>`."""
    return prefix + uuid.uuid4().hex


def usage(finals: Sequence[Final], n: int = 1) -> dict[str, Any]:
    """OpenAI's usage. `n`: answers to each prompt, one after the other; a prompt counts once."""
    asked, done = [final.done for final in finals[::n]], [final.done for final in finals]
    prompt, completion = sum(one.prompt_tokens for one in asked), sum(one.completion_tokens for one in done)
    searched = sum(final.search_tokens for final in finals)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in asked)},
            **({"search_tokens": searched} if searched else {})}


def logprob_shape(one: Logprob) -> dict[str, Any]:
    """As in OpenAI's `logprobs.content`."""
    top = [_likely(text, logprob) for _, text, logprob in one.top]
    return {**_likely(one.text, one.logprob), "top_logprobs": top}


def _likely(text: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text.decode(errors="replace"), "bytes": list(text), "logprob": max(logprob, LEAST_LOGPROB)}


def extras(finals: Sequence[Final]) -> dict[str, Any]:
    """What an answer says beside OpenAI's fields: session_id, warnings; of one answer its citations, and its timings in
    milliseconds."""
    warnings = list(dict.fromkeys(warning for final in finals for warning in final.warnings))
    more: dict[str, Any] = {"warnings": warnings} if warnings else {}
    first = finals[0]
    if first.session_id is not None:
        more["session_id"] = shown_id(first.session_id)
    if len(finals) == 1:
        more |= {"timings": first.timings, **first.cited}
    return more
