"""One profile: which model, with which settings and which prompt, and what may be said of it (S5.3)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from services.chat.localai_templates import LocalAITemplates
from services.chat.template import MAX_CHARS, SEED_TEMPLATE, SYSTEM_TEMPLATE, check, fields
from services.errors import BadRequest, ParleyError
from services.wire import Sampling

LONGEST_STAY = 31_536_000       # seconds: a year
NOT_SHOWN = {"template", "system", "stop", "verbose"}       # of a profile, to keys that may only read
Stop = Annotated[str, Field(min_length=1, max_length=200)]


class Profile(BaseModel):
    """One profile. Only `model` is required. Strict: unknown fields and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=())

    model: str = Field(min_length=1, max_length=200, description="a file of MODELS_DIR")
    n_ctx: int = Field(2048, ge=16, le=1 << 24, description="tokens of prompt and answer together")
    temperature: float = Field(0.8, ge=0, le=2, description="0 always takes the likeliest token")
    max_tokens: int = Field(256, ge=1, le=1 << 24, description="of one answer; above n_ctx: n_ctx, and a warning")
    top_p: float = Field(0.95, gt=0, le=1)
    top_k: int = Field(40, ge=0, le=1_000_000, description="0 switches it off")
    min_p: float = Field(0.0, ge=0, le=1)
    repeat_penalty: float = Field(1.0, gt=0, le=2, description="1 switches it off")
    repeat_last_n: int = Field(64, ge=0, le=1 << 20, description="tokens that the penalties look back at")
    presence_penalty: float = Field(0.0, ge=-2, le=2, description="off the logit of each token that was there")
    frequency_penalty: float = Field(0.0, ge=-2, le=2, description="the same, times how often it was there")
    seed: int | None = Field(None, ge=0, le=(1 << 32) - 1, description="none: a new one for each answer")
    stop: list[Stop] = Field([], max_length=16, description="in addition to those that the template implies")
    k: int = Field(5, ge=0, le=1000, description="earlier interactions that are sent along")
    parallel: int = Field(4, ge=1, le=64, description="answers computed at the same time")
    n_threads: int = Field(0, ge=0, le=512, description="0: the machine's cores")
    n_gpu_layers: int = Field(0, ge=-1, le=10_000, description="-1: all")
    chat_format: Literal["template", "model"] | None = Field(None, description=(     # see `text_template`
        "whose template; none: the profile's if it has one, else the model's own, else the one that ships"))
    template: str | None = Field(None, description="with {chat_history}, {input} and, where there is one, {system}")
    system: str | None = Field(None, max_length=MAX_CHARS, description="what comes first, always plain text")
    embedding: bool = Field(False, description="its model turns texts into vectors, and only that")
    document_prefix: str | None = Field(None, max_length=200, description=(     # see `embed.PREFIXES`
        "put before texts that are to be found; none: what the model is known to want"))
    query_prefix: str | None = Field(None, max_length=200, description="the same, of what is looked for")
    keep_loaded: bool | Annotated[float, Field(ge=0, le=LONGEST_STAY)] = Field(
        False, description="seconds without use; true: for ever")
    description: str | None = Field(None, max_length=2000)
    verbose: bool = Field(False, description="without effect")      # the seed's
    _go: LocalAITemplates | None = PrivateAttr(None)                # of LocalAI's files; instead of `chat_format`

    @field_validator("keep_loaded", mode="before")
    @classmethod
    def _keep_loaded(cls, value: object) -> object:
        if not isinstance(value, (bool, int, float)):
            raise ValueError("should be true (for ever), false, or seconds without use")
        if not 0 <= value <= LONGEST_STAY:
            raise ValueError(f"should be from 0 to {LONGEST_STAY} seconds, or true or false")
        return value

    @field_validator("template")
    @classmethod
    def _template(cls, text: str | None) -> str | None:
        if text is not None:
            check(text)
        return text

    @model_validator(mode="after")
    def _system_has_a_place(self) -> Profile:
        if self.system and self.template and self.chat_format != "model" and "system" not in fields(self.template):
            raise ValueError("has a system text, but its template has no {system} to put it in")
        return self

    @property
    def go(self) -> LocalAITemplates | None:
        """The Go templates that prompts are made with, where a model file of LocalAI has some."""
        return self._go

    def rendered_by(self, go: LocalAITemplates | None) -> Profile:
        """This profile with the Go templates `go`."""
        profile = self.model_copy()
        profile._go = go
        return profile

    def text_template(self, model_has_one: bool) -> str | None:
        """The text template that prompts are made with; None for the chat template in the model's own file."""
        if self.chat_format == "model" or (self.chat_format is None and not self.template and model_has_one):
            return None
        return self.template or (SEED_TEMPLATE if self.system is None else SYSTEM_TEMPLATE)

    @property
    def warnings(self) -> list[str]:
        """What is not as the file says, and why."""
        if self.max_tokens <= self.n_ctx:
            return []
        return [f"max_tokens {self.max_tokens} is more than the context of {self.n_ctx} tokens: {self.n_ctx} is used"]

    @property
    def needs(self) -> tuple[str | int, ...]:
        """What two profiles must have in common to share a runner."""
        return self.model, self.n_ctx, self.parallel, self.n_threads, self.n_gpu_layers, self.embedding

    @property
    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, min_p=self.min_p,
                        repeat_penalty=self.repeat_penalty, repeat_last_n=self.repeat_last_n,
                        presence_penalty=self.presence_penalty, frequency_penalty=self.frequency_penalty,
                        seed=self.seed)

    def overridden(self, **values: Any) -> Profile:
        """This profile with the `values` that are not None instead. Raises `BadRequest` naming the field."""
        changed = {name: value for name, value in values.items() if value is not None}
        if not changed:
            return self
        try:
            return Profile.model_validate({**self.model_dump(), **changed}).rendered_by(self._go)
        except ValidationError as error:
            name, message = _fault(error.errors(include_url=False)[0])
            raise BadRequest(f"{name}: {message}", param=name) from None

    def public(self) -> dict[str, Any]:
        """What a key that may read models is shown: no prompt texts, and `max_tokens` as it is used."""
        values = self.model_dump(exclude=NOT_SHOWN, exclude_none=True)
        values["max_tokens"] = min(self.max_tokens, self.n_ctx)
        return {**values, "warnings": self.warnings} if self.warnings else values


def validated(values: dict[str, Any], wrong: Callable[[str, str], ParleyError]) -> Profile:
    """`values` as a profile, or the error that `wrong` makes of what is wrong, and of which field."""
    try:
        return Profile.model_validate(values)
    except ValidationError as error:
        at, message = _fault(error.errors(include_url=False)[0])
        raise wrong(message, at) from None


def _fault(fault: ErrorDetails) -> tuple[str, str]:
    """(field, what is wrong with it) of a pydantic error."""
    at = str(fault["loc"][0]) if fault["loc"] else ""
    if fault["type"] == "extra_forbidden":
        return at, f"unknown field; known are: {', '.join(sorted(Profile.model_fields))}"
    if fault["type"] == "missing":
        return at, "missing; every profile needs it"
    message = fault["msg"].removeprefix("Value error, ")
    given = json.dumps(fault["input"], default=str)[:60] if not isinstance(fault["input"], dict) else ""
    return at, message[:1].lower() + message[1:] + (f", not {given}" if at and given else "")
