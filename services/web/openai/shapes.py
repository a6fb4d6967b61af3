"""The shapes of this family's answers, for `/openapi.json`. They are OpenAI's; what is not theirs says so."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import BaseModel, Field

from services.web.replies import ErrorDetail, SessionId

Reason = Literal["stop", "length", "tool_calls", "cancelled"]


class Function(BaseModel):
    name: str | None = None
    arguments: str = Field(description="JSON text")


class ToolCall(BaseModel):
    id: str
    type: Literal["function"]
    function: Function


class ToolCallPiece(BaseModel):
    """The first of a call has its id, type and name."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: Function


class LikelyToken(BaseModel):
    token: str
    bytes: list[int]
    logprob: float


class TokenLogprob(LikelyToken):
    top_logprobs: list[LikelyToken]


class Logprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


class ChatMessage(BaseModel):
    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: list[ToolCall] | None = None
    reasoning_content: str | None = Field(None, description="what a reasoning model thought")


class ChatChoice(BaseModel):
    index: int
    message: ChatMessage
    logprobs: Logprobs | None
    finish_reason: Reason


class CachedTokens(BaseModel):
    cached_tokens: int = Field(description="tokens of the prompt whose state was reused")


class CompletionUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Timings(BaseModel):
    """Milliseconds."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float


class Extras(BaseModel):
    """What is said beside OpenAI's fields."""

    session_id: SessionId | None = None
    warnings: list[str] | None = None
    timings: Timings | None = Field(None, description="of one answer")


class ChatCompletion(Extras):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str = Field(description="the profile's name")
    system_fingerprint: str = Field(description="the same as long as the profile is")
    choices: list[ChatChoice]
    usage: CompletionUsage


class ChatDelta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallPiece] | None = None


class ChatChunkChoice(BaseModel):
    index: int
    delta: ChatDelta
    logprobs: Logprobs | None
    finish_reason: Reason | None


class ChatChunk(Extras):
    """One `data:` line. An error after the start is a line with `error` instead."""

    END: ClassVar[str] = "[DONE]"

    id: str | None = None
    object: Literal["chat.completion.chunk"] | None = None
    created: int | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    choices: list[ChatChunkChoice] | None = None
    usage: CompletionUsage | None = None
    error: ErrorDetail | None = None


class TextLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float | None] = Field(description="null for a prompt's first")
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(BaseModel):
    text: str
    index: int
    logprobs: TextLogprobs | None
    finish_reason: Reason | None


class Completion(Extras):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str = Field(description="the profile's name")
    system_fingerprint: str = Field(description="the same as long as the profile is")
    choices: list[TextChoice]
    usage: CompletionUsage


class CompletionChunk(Extras):
    """One `data:` line. An error after the start is a line with `error` instead."""

    END: ClassVar[str] = "[DONE]"

    id: str | None = None
    object: Literal["text_completion"] | None = None
    created: int | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    choices: list[TextChoice] | None = None
    usage: CompletionUsage | None = None
    error: ErrorDetail | None = None


class Model(BaseModel):
    id: str = Field(description="a profile's name, or a file that no profile uses")
    object: Literal["model"]
    created: int = Field(description="when its file was written")
    owned_by: Literal["parley"]
    file: str
    loaded: bool
    embedding: bool = Field(description="whether it makes vectors, or ranks texts, and writes none")
    n_ctx: int


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


class Piece(BaseModel):
    id: int
    piece: str | list[int] = Field(description="its text, or its bytes where they are no whole characters")


class Tokens(BaseModel):
    tokens: list[int] | list[Piece]


class Detokenized(BaseModel):
    content: str
