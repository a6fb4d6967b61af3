"""The shapes of requests to Anthropic's Messages API, as the package `anthropic` sends them.

Beside Anthropic's fields there are `seed` and `metadata.session_id`. What needs Anthropic's own servers (images and
documents, web search, containers) is refused by its name.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, Tag
from pydantic_core import PydanticCustomError

from services.web.bodies import MAX_SEED, MAX_TOKENS, Body, Name, SessionId, Stop
from services.web.openai.common import STRICT, by_kind

NO_EFFECT = "without effect"


class CacheControl(Body):
    """A mark for Anthropic's cache of prompts. Here prompts are cached without being told."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Block(Body):
    cache_control: CacheControl | None = Field(None, description=NO_EFFECT)


class TextBlockParam(_Block):
    type: Literal["text"]
    text: str
    citations: list[dict[str, Any]] | None = Field(None, description=NO_EFFECT)

    @classmethod
    def of(cls, text: str) -> TextBlockParam:
        return cls(type="text", text=text, citations=None, cache_control=None)


class ToolUseBlockParam(_Block):
    """A tool that the model wanted called."""

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=200)
    name: str = Field(min_length=1, max_length=200)
    input: dict[str, Any]
    caller: dict[str, Any] | None = Field(None, description=NO_EFFECT)


def _only(*kinds: str) -> BeforeValidator:
    """Refuses blocks of other kinds by their name."""
    def check(value: Any) -> Any:
        kind = value.get("type") if isinstance(value, dict) else None
        if isinstance(kind, str) and kind not in kinds:
            raise PydanticCustomError("block_type", "blocks of the type {kind} are not taken, models here read text; "
                                      "taken are: {known}", {"kind": repr(kind[:80]), "known": ", ".join(kinds)})
        return value
    return BeforeValidator(check)


SystemBlock = Annotated[TextBlockParam, _only("text")]
Texts = Annotated[Annotated[str, Tag("str")] | Annotated[list[SystemBlock], Tag("list[block]")], by_kind("list[block]")]


class ToolResultBlockParam(_Block):
    """What the tool gave back."""

    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1, max_length=200)
    content: Texts | None = None
    is_error: bool | None = None


class ThinkingBlockParam(Body):
    """What the model thought before it answered."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = Field(None, description=NO_EFFECT)


class RedactedThinkingBlockParam(Body):
    """Without effect: only Anthropic can read it."""

    type: Literal["redacted_thinking"]
    data: str


Block = Annotated[
    Annotated[TextBlockParam | ToolUseBlockParam | ToolResultBlockParam | ThinkingBlockParam
              | RedactedThinkingBlockParam, Field(discriminator="type")],
    _only("text", "tool_use", "tool_result", "thinking", "redacted_thinking")]


class MessageParam(Body):
    role: Literal["user", "assistant"]
    content: Annotated[Annotated[str, Tag("str")] | Annotated[list[Block], Tag("list[block]")], by_kind("list[block]")]


def _no_tool_of_anthropics(value: Any) -> Any:
    kind = value.get("type") if isinstance(value, dict) else None
    if isinstance(kind, str) and kind != "custom":
        raise PydanticCustomError("tool_type", "{kind} is a tool of Anthropic's and not here: give the name, "
                                  "description and input_schema of one of your own", {"kind": repr(kind[:80])})
    return value


class ToolParam(Body):
    """A tool that the model may have called by the client."""

    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="JSON Schema of an object")
    cache_control: CacheControl | None = Field(None, description=NO_EFFECT)
    strict: bool | None = Field(None, description=STRICT)
    eager_input_streaming: bool | None = Field(None, description=NO_EFFECT)


class ToolChoiceParam(Body):
    type: Literal["auto", "any"]
    disable_parallel_tool_use: bool | None = None


class NamedToolChoiceParam(Body):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool | None = None


class NoToolChoiceParam(Body):
    type: Literal["none"]


class ThinkingParam(Body):
    """Whether models think that can: not when it is left out, or disabled. How much they do is theirs."""

    type: Literal["enabled", "adaptive", "between_tools", "disabled"]
    budget_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description=NO_EFFECT)
    display: Literal["summarized", "omitted"] | None = None


class JsonFormatParam(Body):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema", description="the text is JSON that complies with it")


class OutputConfigParam(Body):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = Field(None, description=NO_EFFECT)
    format: JsonFormatParam | None = None


class MetadataParam(Body):
    user_id: str | None = Field(None, max_length=256, description=NO_EFFECT)
    session_id: SessionId | None = Field(None, description="as the header X-Session-Id")


class CountTokensBody(Body):
    """What a prompt is made of."""

    unknown: ClassVar[str] = "{}: Extra inputs are not permitted"

    model: Name = Field(description="a profile, or the file of a model")
    messages: list[MessageParam] = Field(min_length=1, max_length=100_000)
    system: Texts | None = None
    tools: list[Annotated[ToolParam, BeforeValidator(_no_tool_of_anthropics)]] | None = Field(None, max_length=1000)
    tool_choice: Annotated[ToolChoiceParam | NamedToolChoiceParam | NoToolChoiceParam,
                           Field(discriminator="type")] | None = None
    thinking: ThinkingParam | None = None
    output_config: OutputConfigParam | None = None
    cache_control: CacheControl | None = Field(None, description=NO_EFFECT)

    @property
    def thinks(self) -> bool:
        """Whether a model that can is to think before it answers."""
        return self.thinking is not None and self.thinking.type != "disabled"


class MessagesBody(CountTokensBody):
    """A conversation to go on with. In a session `messages` are only what is new."""

    max_tokens: int = Field(ge=1, le=MAX_TOKENS)
    metadata: MetadataParam | None = None
    stop_sequences: list[Stop] | None = Field(None, max_length=64)
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=1)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="the same seed, the same answer")
    service_tier: Literal["auto", "standard_only"] | None = Field(None, description=NO_EFFECT)
