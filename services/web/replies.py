"""The shapes of answers, for `/openapi.json`; the tests hold every answer to them. Anything may be added to one."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from services.chat.profile import Profile

SessionId = int | str


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str
    param: str | None


class Error(BaseModel):
    """The one envelope of every error."""

    message: str
    error: ErrorDetail


class TokenDetails(BaseModel):
    cached_tokens: int = Field(description="tokens of the prompt whose state was reused")
    processed_tokens: int


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: TokenDetails


class Context(BaseModel):
    window: int = Field(description="tokens that prompt and answer share")
    k: int = Field(description="interactions of the session that are sent at most")
    turns_used: int
    turns_dropped: int


class Citation(BaseModel):
    """Where a text is from that an answer was given. Null where there is no such thing."""

    n: int = Field(description="its number, as the answer names it: [1]")
    cited: bool = Field(description="whether the answer does")
    title: str
    name: str
    url: str | None
    base: str | None
    document: int | None
    source: str | None
    section: str | None
    score: float | None
    similarity: float | None


class Answer(BaseModel):
    result: str
    session_id: SessionId | None
    profile: str
    model: str
    finish_reason: Literal["stop", "length", "cancelled"]
    usage: Usage
    context: Context
    citations: list[Citation] = Field([], description="only where knowledge or search was asked for")


class Queue(BaseModel):
    """Told about every second while the model's places are all taken, before the first piece of the text."""

    position: int = Field(description="1: the next to be served")
    eta_seconds: int = Field(description="about how long it will take, by the model's measured speed")


class AnswerEvent(BaseModel):
    """One `data:` line: the place in the queue, what is being looked up, a piece of the text, the end, or an error
    after the start."""

    queue: Queue | None = None
    step: str | None = None
    delta: str | None = None
    done: bool | None = None
    error: ErrorDetail | None = None


class Turn(BaseModel):
    role: Literal["user", "assistant"]
    content: str
    at: str


class Session(BaseModel):
    session_id: SessionId
    name: str
    created: str
    updated: str
    turns: list[Turn]


class SessionNames(BaseModel):
    """Session id: name. The master key sees everybody's, as `<key id>/<session id>`."""

    __pydantic_extra__: dict[str, str] = Field(init=False)
    model_config = {"extra": "allow"}


class ProfileReply(BaseModel):
    model: str
    n_ctx: int


class RunnerStats(BaseModel):
    """How a runner is; the figures are since it was loaded, but for what it does now."""

    running: int
    waiting: int
    slots: int
    slots_used: int
    cached_tokens: int
    prompt_tokens: int
    completion_tokens: int
    requests: int
    max_batch: int              # most sequences that shared one decode
    tokens_per_second: float
    idle_seconds: float


class LoadedModel(BaseModel):
    model: str
    profile: str | None         # one that it serves, the selected one if it does
    profiles: list[str]
    state: Literal["loading", "ready", "retiring", "crashed", "failed"]
    selected: bool
    n_ctx: int
    parallel: int
    replicas: int               # processes; the figures are of all of them together
    in_use: int                 # answers that hold it now
    users: int                  # different sessions among them
    memory_bytes: int | None    # what it takes, measured; none: not yet
    estimated_bytes: int        # what it was expected to take
    tokens_per_second: float
    unload_seconds: float | None    # until it is unloaded when nobody asks it; none: in use, or it stays
    restarts: int
    reason: str | None          # why it crashed or failed
    stats: RunnerStats | None


class Models(BaseModel):
    models: list[str]
    profiles: dict[str, ProfileReply]
    selected: str | None
    problem: str | None = Field(description="why config.json or LocalAI's files are not what is used; null: they are")
    loaded: list[LoadedModel]
    object: Literal["list"]
    data: list[dict[str, Any]] = Field(description="as at `/v1/models`, for clients that leave the version out")


class ProfileList(BaseModel):
    profiles: dict[str, str] = Field(description="those that the key may change: name to the file that it is from")
    selected: str
    defaults: dict[str, Any] = Field(description="what fields are that a profile does not give")
    fields: dict[str, Any] = Field(description="what each may be: name to JSON Schema")


class StoredProfile(BaseModel):
    name: str
    profile: dict[str, Any] = Field(description="the fields that the file gives; what may be put in their place")
    effective: Profile = Field(description="what they come to, with the defaults")
    warnings: list[str]
    selected: bool
    source: str = Field(description="the file that it is from, with its folder")
    editable: bool = Field(description="whether that is config.json: other files are not written")
    etag: str = Field(description="of its state, as in the header ETag")


class Switched(BaseModel):
    model_status: Literal[True]
    model: str
    profile: str


class TokenBudget(BaseModel):
    tokens: int
    per: Literal["day", "month", "total"]


class TokenNames(BaseModel):
    kids: list[str]
    iss: str | None = Field(description="null: whatever their iss")


class KeyRecord(BaseModel):
    """A key without its secret."""

    id: str
    name: str
    prefix: str = Field(description="of the secret, to know it by; empty for a short one")
    master: bool
    scopes: list[str]
    profiles: list[str] | None
    created: str
    expires_at: str | None
    revoked_at: str | None
    old_secret_until: str | None = Field(description="the last end of secrets of before that still work")
    requests_per_minute: int | None
    max_parallel: int | None
    tokens_per_minute: int | None
    token_budget: TokenBudget | None
    weight: float = Field(description="the key's share of a busy model beside those of other keys")
    jwt: TokenNames | None = Field(description="whose JSON Web Tokens come in as the key")


class NewKey(KeyRecord):
    key: str = Field(description="the secret; shown this once")


class Limits(BaseModel):
    requests_per_minute: int | None
    max_parallel: int | None
    tokens_per_minute: int | None
    token_budget: TokenBudget | None


class KeyUsage(BaseModel):
    """Since the key was made."""

    requests: int
    prompt_tokens: int
    completion_tokens: int


class UsedKey(KeyRecord):
    usage: KeyUsage | None = Field(description="null: not known now")


class KeyList(BaseModel):
    keys: list[UsedKey]


class Whoami(KeyRecord):
    auth: Literal[True]
    limits: Limits
    usage: KeyUsage


class Personality(BaseModel):
    name: str
    description: str | None
    intro_dialogue: str | list[str] | None
    profile: str | None = Field(description="null where what the personality names is not there")
    model: str | None


class Personalities(BaseModel):
    personalities: list[Personality]


class Embedding(BaseModel):
    object: Literal["embedding"]
    index: int
    embedding: list[float] | str = Field(description="of length 1; a string is base64 of little-endian float32")


class EmbeddingUsage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class Embeddings(BaseModel):
    object: Literal["list"]
    data: list[Embedding]
    model: str = Field(description="the model's file")
    usage: EmbeddingUsage


class RankedText(BaseModel):
    text: str


class RankedDocument(BaseModel):
    index: int = Field(description="among the documents of the request")
    relevance_score: float = Field(description="higher is better; the scale is the model's own")
    document: RankedText | None = None


class Reranked(BaseModel):
    object: Literal["list"]
    model: str = Field(description="the model's file")
    results: list[RankedDocument] = Field(description="the best one first")
    usage: EmbeddingUsage


class Health(BaseModel):
    status: Literal["ok"]


class Readiness(BaseModel):
    ready: bool
    reasons: list[str]
    warnings: list[str] = Field(description="what is wrong while the last good file goes on serving")


class QueueLength(BaseModel):
    queueSize: int


class Document(BaseModel):
    """Any JSON object."""

    model_config = {"extra": "allow"}

