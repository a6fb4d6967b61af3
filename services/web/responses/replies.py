"""The shapes of what `/v1/responses` answers, for `/openapi.json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from services.web.replies import SessionId


class ResponseUsage(BaseModel):
    input_tokens: int
    output_tokens: int
    total_tokens: int


class ResponseObject(BaseModel):
    """A response, as OpenAI has it. `session_id`: the session that it is a turn of, unless it is not kept."""

    id: str
    object: Literal["response"]
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[dict[str, Any]]
    error: dict[str, Any] | None
    incomplete_details: dict[str, Any] | None
    usage: ResponseUsage | None
    previous_response_id: str | None
    session_id: SessionId | None = None


class ResponseEvent(BaseModel):
    """One event of a stream, which is named after its `type`: response.created, response.output_text.delta, ….
    An error before the first is an HTTP status, one after it the event response.failed."""

    type: str
    sequence_number: int
    response: ResponseObject | None = None


class DeletedResponse(BaseModel):
    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(BaseModel):
    """A page of items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool
