"""The shapes of request bodies. What validates is what `/openapi.json` shows: there is no second description.

Strict: nothing is coerced, unknown fields are refused, null means "not given". `validate` turns the first fault into
a `BadRequest` that names the field.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from services.errors import BadRequest

SCOPES = ("answer", "models:read", "models:switch", "keys", "admin")
MAX_TOKENS = 1 << 20
MAX_SEED = (1 << 32) - 1

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"\S")]
Stop = Annotated[str, Field(min_length=1, max_length=200)]
Text = Annotated[str, Field(pattern=r"\S")]
Scope = Literal["answer", "models:read", "models:switch", "keys", "admin"]
SessionId = Annotated[
    int | str, Field(description="any whole number, or a short name of letters, digits, '-' and '_'")]
Bases = Annotated[list[Name], Field(min_length=1, max_length=16, description="knowledge bases to answer from: their "
                                    "best passages go along with the question, and the answer has citations")]
Searching = Annotated[bool, Field(description="the model decides first whether and where to look something up: in the "
                                  "bases of `knowledge` (default: those that the key may read, its own first, 16 at "
                                  "most), feeds and wikis")]


class Body(BaseModel):
    """Base of all request bodies."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    unknown: ClassVar[str] = "unknown field {!r}"      # what is said of one, and its code
    unknown_code: ClassVar[str] = "unknown_field"


class AnswerBody(Body):
    """One question. Only `prompt` is required; the sampling fields overrule the profile's."""

    prompt: str = Field(pattern=r"\S", description="the question; not blank")
    session_id: SessionId | None = Field(None, description="the conversation; without one nothing is kept")
    profile: Name | None = Field(None, description="a profile of config.json; default: the selected one")
    personality: Name | None = Field(None, description="who answers, in the place of a profile; see /personalities")
    stream: bool | None = Field(None, description="answer as text/event-stream")
    temperature: float | None = Field(None, ge=0, le=2, description="0 always takes the likeliest token")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1_000_000, description="0 switches it off")
    min_p: float | None = Field(None, ge=0, le=1)
    repeat_penalty: float | None = Field(None, gt=0, le=2, description="1 switches it off")
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    schema_: dict[str, Any] | None = Field(
        None, alias="schema", description="a JSON Schema; the answer is JSON that complies with it")
    knowledge: Bases | None = None
    search: Searching | None = None
    async_: bool | None = Field(None, alias="async", description="be answered later, as a job: 202 with its id")
    callback_url: str | None = Field(None, min_length=1, max_length=2048,
                                     description="with async: is sent the job when it has ended")
    priority: Literal["normal", "high"] | None = Field(None, description="with async: high before normal")


class NameBody(Body):
    """A session's new name."""

    name: Name


class ForkBody(Body):
    """Where to fork."""

    at: int | None = Field(None, ge=0, le=1 << 31, description="turns to take along; default: all")


class RewindBody(Body):
    """Where to go back to."""

    to: int = Field(ge=0, le=1 << 31, description="turns to keep")


class SwitchBody(Body):
    """Which model file is to serve, with which profile."""

    model: str = Field(pattern=r"\S", description="a file of MODELS_DIR")
    model_config_: str = Field(alias="model_config", pattern=r"\S", description="a profile of config.json")


class Budget(Body):
    """Tokens that a key may use in a period."""

    tokens: int = Field(ge=1, le=1 << 53)
    per: Literal["day", "month", "total"]


KeyName = Annotated[str, Field(min_length=1, max_length=80, pattern=r"\S")]
Scopes = Annotated[list[Scope], Field(min_length=1, max_length=len(SCOPES))]
Profiles = Annotated[list[Name], Field(min_length=1, max_length=1000)]
Seconds = Annotated[int, Field(ge=1, le=100 * 365 * 86400)]
Rate = Annotated[int, Field(ge=1, le=1_000_000)]
Parallel = Annotated[int, Field(ge=1, le=100_000, description="answers at the same time")]
TokenRate = Annotated[int, Field(ge=1, le=1 << 53)]
Weight = Annotated[float, Field(ge=0.1, le=100, description="share of a busy model beside other keys' 1")]


class KeyBody(Body):
    """What a new key may do; all fields may be left out."""

    name: KeyName | None = None
    scopes: Scopes | None = None
    profiles: Profiles | None = Field(None, description="default: all")
    expires_in: Seconds | None = Field(None, description="seconds; default: never")
    requests_per_minute: Rate | None = None
    max_parallel: Parallel | None = None
    tokens_per_minute: TokenRate | None = None
    token_budget: Budget | None = None
    weight: Weight | None = None


def _left_out() -> Any:
    """Shows no default in /openapi.json: a field that is left out is not one that is null."""
    return None


class KeyEdit(Body):
    """What changes of a key, as a JSON merge patch (RFC 7396): a field that is left out stays as it is, and unlike in
    other bodies null is a value: no limit, all profiles, no end."""

    name: KeyName = Field(default_factory=_left_out)
    scopes: Scopes = Field(default_factory=_left_out, description="all that the key may do from now on")
    profiles: Profiles | None = Field(default_factory=_left_out, description="null: all")
    expires_in: Seconds | None = Field(default_factory=_left_out, description="seconds from now; null: never")
    requests_per_minute: Rate | None = Field(default_factory=_left_out, description="null: no limit")
    max_parallel: Parallel | None = Field(default_factory=_left_out, description="null: no limit")
    tokens_per_minute: TokenRate | None = Field(default_factory=_left_out, description="null: no limit")
    token_budget: Budget | None = Field(default_factory=_left_out, description="null: no limit; what was used counts")
    weight: Weight | None = Field(default_factory=_left_out, description="null: 1")


class RotateBody(Body):
    """How long the old secret goes on to work."""

    grace_seconds: int | None = Field(None, ge=0, le=30 * 86400)


AnyBody = TypeVar("AnyBody", bound=Body)

# What the seed says, word for word, when one of these is missing or blank.
_SEED_WORDS = {
    (AnswerBody, "prompt"): "Question not provided in the request",
    (SwitchBody, "model"): "No model name provided",
    (SwitchBody, "model_config"): "No model config name provided",
}


def validate(shape: type[AnyBody], value: dict[str, Any]) -> AnyBody:
    """`value` as a `shape`, or `BadRequest` naming the first wrong field in `param`."""
    try:
        return shape.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        raise _bad_request(shape, sorted(faults, key=lambda fault: _order(shape, fault))) from None


def _order(shape: type[Body], fault: ErrorDetails) -> int:
    """Missing fields first, then unknown ones, so that a misspelt name is told as what it is."""
    if _seed_words(shape, fault):
        return 0
    return 1 if fault["type"] == "extra_forbidden" else 2


def _seed_words(shape: type[Body], fault: ErrorDetails) -> str | None:
    missing = fault["type"] in ("missing", "string_pattern_mismatch") or fault["input"] is None
    return _SEED_WORDS.get((shape, str(fault["loc"][0]))) if missing else None


def _bad_request(shape: type[Body], faults: list[ErrorDetails]) -> BadRequest:
    first = faults[0]
    param = _path(first)
    if words := _seed_words(shape, first):
        return BadRequest(words, code="missing_field", param=param)
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(field.alias or name for name, field in shape.model_fields.items()
                                 if field.annotation is not type(None)))      # which is one that is refused
        more = f"; known are: {known}" if len(first["loc"]) == 1 else ""
        return BadRequest(shape.unknown.format(param[:80]) + more, code=shape.unknown_code, param=param[:200])
    told = dict.fromkeys(_words(fault) for fault in faults if _path(fault) == param)
    return BadRequest(f"{param}: {', or '.join(told)}", param=param)


def _words(fault: ErrorDetails) -> str:
    if fault["msg"] == r"String should match pattern '\S'":
        return "should not be blank"
    if fault["type"] in ("dict_type", "model_type"):
        return "should be an object"
    return fault["msg"].removeprefix("Input ").removeprefix("String ").removeprefix("List ").replace(
        " after validation", "")


def _path(fault: ErrorDetails) -> str:
    """`stop.0` for `("stop", "list[constrained-str]", 0)`: pydantic names the branch of a union in the path."""
    first, *rest = fault["loc"]
    return ".".join(str(part) for part in (first, *(p for p in rest if isinstance(p, int) or _is_field(p))))


def _is_field(part: str) -> bool:
    return part not in ("str", "int", "constrained-str") and "[" not in part
