"""The bodies and replies of `/summaries`: skynet's (S1.14–S1.18), and what there is besides."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from services.jobs import asking
from services.web.bodies import MAX_TOKENS, Body, Name

Status = Literal["pending", "running", "success", "error"]


class DocumentBody(Body):
    """A text, and what is to be made of it. Only `text` is required."""

    text: str = Field(description="at least SUMMARY_MINIMUM_PAYLOAD_LENGTH characters")
    hint: asking.Hint | None = Field(None, description="the kind of text; default: meeting")
    prompt: str | None = Field(None, max_length=100_000, description="in place of the built-in prompt")
    preferred_locale: asking.Locale | None = Field(None, description="the language to answer in; default: the text's")
    max_completion_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="default: the profile's "
                                                                                     "max_tokens")
    priority: Literal["normal", "high"] | None = Field(None, description="high: before those that are normal")
    job_id: str | None = Field(None, description="up to 64 letters, digits, '.', '_' and '-'; default: a new one")
    is_live_summary: bool | None = Field(None, description="then LIVE_SUMMARY_MINIMUM_PAYLOAD_LENGTH counts")
    callback_url: str | None = Field(None, min_length=1, max_length=2048, description="is sent the job when it has "
                                                                                     "ended")
    profile: Name | None = Field(None, description="a profile of config.json; default: the selected one")

    def payload(self) -> dict[str, Any]:
        """What a job of it keeps for its work, the fields of `asking.Work`."""
        wanted = self.model_dump(include={"text", "hint", "preferred_locale", "max_completion_tokens", "profile"},
                                 exclude_none=True)
        return wanted | ({"prompt": self.prompt} if self.prompt and self.prompt.strip() else {})


class JobQuery(Body):
    """Which jobs to list."""

    status: Literal["pending", "running", "success", "error", "failed", "cancelled"] | None = Field(
        None, description="error: failed, the dead letters, or cancelled")
    limit: str | None = Field(None, pattern=r"^[0-9]{1,4}$", description="at most 1000; default: 100")
    before: str | None = Field(None, pattern=r"^[0-9]{1,18}$", description="`next` of the page before")


class JobId(BaseModel):
    id: str


class ActionItem(BaseModel):
    task: str
    owner: str | None
    due: str | None


class Callback(BaseModel):
    url: str
    state: Literal["pending", "delivered", "failed"]
    error: str | None = None


class SummaryJob(BaseModel):
    """A job. The first fields are skynet's."""

    id: str
    type: asking.Type
    status: Status
    result: str | None = Field(description="the text; of an error its reason")
    duration: float = Field(description="seconds from start to end; 0.0 until then")
    processor: Literal["LOCAL"]
    code: str | None = Field(description="of an error; `cancelled` for one that was cancelled")
    data: list[ActionItem] | None = Field(description="action items as data")
    language: str | None = Field(description="that the result was asked to be in")
    profile: str | None
    model: str | None
    usage: dict[str, int] | None
    warnings: list[str]
    chunks_done: int
    chunks_total: int
    priority: Literal["normal", "high"]
    created: str
    started: str | None
    ended: str | None
    callback: Callback | None


class SummaryJobs(BaseModel):
    jobs: list[SummaryJob] = Field(description="the newest first")
    next: int | None = Field(description="for `before`: where the next page begins; null at the end")
