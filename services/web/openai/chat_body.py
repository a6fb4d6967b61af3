"""The body of `POST /v1/chat/completions`, and what it asks for.

Fields that OpenAI has and that change nothing here are taken and have no effect; those whose effect a client would miss
are refused by name. In messages, fields that are not known are passed over: clients send back what others answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from services.chat.events import Ask, Search, Spent
from services.chat.messages import Call, Message, Role, Tool, Toolbox
from services.errors import BadRequest
from services.web.bodies import MAX_SEED, MAX_TOKENS, Bases, Name, Searching
from services.web.openai import common
from services.web.openai.common import ClientBody, Content, Ignored, Refused, SamplingBody, Session, by_kind

ANY_OBJECT = {"type": "object"}
TOOL_SHAPE = '{"type": "function", "function": {"name": ..., "description": ..., "parameters": {JSON Schema}}}'


class Sent(BaseModel):
    """Base of what may have come from another server: fields that are not known are passed over."""

    model_config = ConfigDict(strict=True, frozen=True)


class SentFunction(Sent):
    name: str
    arguments: str = Field(description="JSON text")


class SentCall(Sent):
    id: str = Field(min_length=1)
    type: Literal["function"] = "function"
    function: SentFunction


class ChatMessage(Sent):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = Field(None, description="text; null in an assistant's message with tool_calls")
    tool_calls: list[SentCall] | None = Field(None, description="an assistant's")
    tool_call_id: str | None = Field(None, description="of a tool's result: which call it answers")
    name: str | None = None
    reasoning_content: str | None = Field(None, description="an assistant's")
    function_call: None = None


class FunctionTool(ClientBody):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of the arguments, an object")
    strict: bool | None = Field(None, description=common.STRICT)


class ChatTool(ClientBody):
    type: Literal["function"]
    function: FunctionTool

    @model_validator(mode="before")
    @classmethod
    def _holds_a_function(cls, value: Any) -> Any:
        if isinstance(value, dict) and "function" not in value and value.get("type", "function") == "function":
            raise PydanticCustomError("tool_shape", "should be " + TOOL_SHAPE)
        return value


class FunctionName(ClientBody):
    name: str


class NamedChoice(ClientBody):
    type: Literal["function"]
    function: FunctionName


class JsonSchema(ClientBody):
    name: str | None = Field(None, max_length=64)
    description: str | None = Field(None, description="without effect")
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="without effect: the answer always complies")


class ResponseFormat(ClientBody):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="llama.cpp's, of a json_object")

    def schema_of_answer(self) -> dict[str, Any] | None:
        """The JSON Schema that the answer is to comply with."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return self.schema_ or ANY_OBJECT
        held = self.json_schema
        if held is None or held.schema_ is None:
            missing = "response_format.json_schema" + ("" if held is None else ".schema")
            raise BadRequest(f"{missing}: Field required", param=missing)
        return held.schema_ or ANY_OBJECT


class StreamOptions(ClientBody):
    include_usage: bool | None = Field(None, description="a last chunk tells the usage")
    include_obfuscation: bool | None = Field(None, description="without effect")


class Streaming(SamplingBody):
    """What both kinds of completion have."""

    model: Name | None = Field(None, description="a profile, or a model file; default: the selected profile")
    stream: bool | None = Field(None, description="answer as text/event-stream")
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=16, description="answers to the same question; default: 1")
    grammar: str | None = Field(None, min_length=1, description="GBNF that the answer complies with, from `root` on")
    metadata: Session | None = None
    user: Ignored = None
    store: Ignored = None
    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None

    @property
    def with_usage(self) -> bool:
        """Whether a stream ends with the usage. Raises `BadRequest` for stream_options without a stream."""
        if self.stream_options and not self.stream:
            raise BadRequest("stream_options is only for streams: leave it out, or set stream to true",
                             param="stream_options")
        return bool(self.stream_options and self.stream_options.include_usage)


class TemplateOptions(ClientBody):
    """What other servers hand to a chat template."""

    enable_thinking: bool | None = Field(None, description="false: as reasoning_effort none")


class ChatBody(Streaming):
    """A conversation to go on with. Only `messages` is required; the sampling fields overrule the profile's. Without a
    session an assistant's message at the end is gone on with, as llama.cpp's server does; the answer is what follows.
    """

    messages: list[ChatMessage] = Field(min_length=1, max_length=10_000)
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="another name of max_completion_tokens")
    max_token: int | None = Field(None, ge=1, le=MAX_TOKENS, description="another name of max_completion_tokens")
    logprobs: bool | None = Field(None, description="tell each token's log probability")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="with logprobs: and those of so many likeliest")
    response_format: ResponseFormat | None = None
    tools: list[ChatTool] | None = Field(None, max_length=common.MAX_TOOLS)
    tool_choice: Annotated[Annotated[Literal["none", "auto", "required"], Tag("str")]
                           | Annotated[NamedChoice, Tag("object[]")], by_kind("str", "object[]")] | None = None
    parallel_tool_calls: bool | None = Field(None, description="whether one answer may hold several calls")
    reasoning_effort: str | None = Field(None, max_length=40, description="none: a model that thinks before it answers "
                                                                          "does not; else without effect")
    chat_template_kwargs: TemplateOptions | None = None
    knowledge: Bases | None = None
    search: Searching | None = None
    verbosity: Ignored = None
    prediction: Ignored = None
    modalities: list[Literal["text"]] | None = None
    audio: Refused = None
    web_search_options: Refused = None
    moderation: Refused = None
    functions: Refused = None
    function_call: Refused = None

    @property
    def thinking(self) -> bool:
        """Whether a model that can is to think before it answers."""
        asked = self.chat_template_kwargs and self.chat_template_kwargs.enable_thinking
        return self.reasoning_effort != "none" and asked is not False


def asks(body: ChatBody, digest: str | None) -> list[Ask]:
    """What `body` asks for, `n` times. Raises `BadRequest` naming the field that is wrong."""
    session, n = common.session_id(body.metadata), body.n or 1
    if n > 1 and (body.knowledge or body.search):
        raise BadRequest("n can only be 1 where knowledge or search is given: each answer has citations of its own",
                         param="n")
    if session is not None and n > 1:
        raise BadRequest("n can only be 1 in a session: one answer is what the conversation goes on with", param="n")
    if body.top_logprobs is not None and not body.logprobs:
        raise BadRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    schema = body.response_format.schema_of_answer() if body.response_format else None
    tools = _tools(body)
    common.only_one_form(response_format=schema, grammar=body.grammar, tools=tools)
    most = common.one_of(max_completion_tokens=body.max_completion_tokens, max_tokens=body.max_tokens,
                         max_token=body.max_token)
    ask = common.make_ask(digest, messages=messages(body.messages, session is None), session_id=session,
                          model=body.model, stream=bool(body.stream), max_tokens=most, schema=schema,
                          grammar=body.grammar, tools=tools, thinking=body.thinking, **body.sampling(),
                          knowledge=tuple(body.knowledge or ()), search=Search() if body.search else None,
                          logprobs=(body.top_logprobs or 0) if body.logprobs else None)
    return several(ask, n)


def several(ask: Ask, n: int) -> list[Ask]:
    """`ask`, `n` times. With a seed each one after the first has another, so that the answers differ."""
    def seed(index: int) -> int | None:
        return None if ask.seed is None else (ask.seed + index) & MAX_SEED
    return [ask, *(replace(ask, seed=seed(index), spent=Spent(shares_prompt=True)) for index in range(1, n))]


def _tools(body: ChatBody) -> Toolbox | None:
    given = [tool.function for tool in body.tools or ()]
    tools = [Tool(one.name, one.description or "", one.parameters, strict=bool(one.strict)) if one.parameters else
             Tool(one.name, one.description or "") for one in given]
    named = body.tool_choice.function.name if isinstance(body.tool_choice, NamedChoice) else ""
    choice = body.tool_choice if isinstance(body.tool_choice, str) else "auto"
    return common.toolbox(tools, choice, named, body.parallel_tool_calls is not False)


def messages(given: Sequence[ChatMessage], whole: bool) -> tuple[Message, ...]:
    """`given` as the model's. `whole`: they are all there is, so what a tool's result answers is among them."""
    called: dict[str, str] = {}         # id -> name, of the calls so far
    found = []
    for index, message in enumerate(given):
        found.append(_message(message, f"messages.{index}", called, whole))
        called |= {call.id: call.name for call in found[-1].calls}
    return tuple(found)


def _message(message: ChatMessage, where: str, called: dict[str, str], whole: bool) -> Message:
    text = common.text_of(message.content, f"{where}.content")
    calls = tuple(Call(call.id, call.function.name, call.function.arguments) for call in message.tool_calls or ())
    if calls and message.role != "assistant":
        raise BadRequest(f"{where}.tool_calls: only an assistant's message has tool_calls", param=f"{where}.tool_calls")
    if message.content is None and not calls:
        raise BadRequest(f"{where}.content: should be text" + (
            ", where there are no tool_calls" if message.role == "assistant" else ""), param=f"{where}.content")
    if message.role == "tool":
        return _result(message, text, where, called, whole)
    role: Role = "system" if message.role == "developer" else message.role
    return Message(role, text, calls, reasoning=message.reasoning_content or "")


def _result(message: ChatMessage, text: str, where: str, called: dict[str, str], whole: bool) -> Message:
    answers, param = message.tool_call_id, f"{where}.tool_call_id"
    if not answers:
        raise BadRequest(f"{param}: a tool's message needs the id of the call that it answers", param=param)
    if whole and answers not in called:
        raise BadRequest(f"{param}: no message before has a tool call with the id {answers[:80]!r}", param=param)
    return Message("tool", text, call_id=answers, name=called.get(answers, message.name or ""))
