"""`/v1/batches`: many requests in one file, answered when nobody waits for anything else. OpenAI's shapes."""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Literal, get_args

from flask import Response, g
from pydantic import BaseModel, Field

from services.errors import Conflict, NotFound
from services.jobs.batches import BATCH, DAY, ENDPOINTS, FILE, cancelled, counted, lines_of
from services.store.jobs import CANCELLED, ERROR, PENDING, Job
from services.store.uploads import Upload, not_found
from services.web.bodies import Body
from services.web.frame import json_response
from services.web.jobs import check_taken
from services.web.openai.files import ERRORS, OUTPUT, PageQuery, output_id, page
from services.web.routes import Endpoint, Route, op

Where = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/answer"]
Status = Literal["validating", "failed", "in_progress", "completed", "expired", "cancelled"]
assert get_args(Where) == ENDPOINTS
_TIMES = ("in_progress_at", "completed_at", "failed_at", "expired_at", "cancelled_at")


class BatchBody(Body):
    """What is to be answered, and where each line goes."""

    input_file_id: str = Field(min_length=1, max_length=200, description="of `POST /v1/files` with purpose batch")
    endpoint: Where
    completion_window: Literal["24h"] = "24h"
    metadata: dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None = Field(
        None, max_length=16)


class RequestCounts(BaseModel):
    total: int
    completed: int
    failed: int


class Fault(BaseModel):
    code: str
    message: str
    line: int | None
    param: str | None


class Faults(BaseModel):
    object: Literal["list"]
    data: list[Fault]


class Batch(BaseModel):
    id: str
    object: Literal["batch"]
    endpoint: Where
    errors: Faults | None
    input_file_id: str
    completion_window: str
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int = Field(description="seconds since 1970, as the other times")
    in_progress_at: int | None
    expires_at: int
    finalizing_at: None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None


class BatchList(BaseModel):
    object: Literal["list"]
    data: list[Batch]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Batches(Endpoint):
    @op("The key's batches; the master key sees everybody's", scope="answer", query=PageQuery, reply=BatchList,
        errors=(404,))
    def get(self, query: PageQuery) -> Response:
        return json_response(page(self, BATCH, query, lambda batch: _shown(self, batch)))

    @op("Have the requests in a file answered", scope="answer", body=BatchBody, reply=Batch, errors=(404, 507))
    def post(self, body: BatchBody) -> Response:
        check_taken(self)
        uploads, owner = self.room.uploads, g.key.id
        if uploads.get(owner, body.input_file_id).kind != FILE:
            raise not_found(body.input_file_id)
        lines = lines_of(b"".join(uploads.pieces(owner, body.input_file_id)), body.endpoint)
        about = {**body.model_dump(), "total": len(lines)}
        batch = uploads.put(owner, f"batch_{uuid.uuid4().hex}", BATCH, about)
        try:
            self.room.jobs.put(Job(owner=owner, type=BATCH, payload={"batch": batch.id}, id=batch.id,
                                   chunks_total=len(lines)))
        except BaseException:
            uploads.delete(owner, batch.id)
            raise
        return json_response(_shown(self, batch))


class OneBatch(Endpoint):
    @op("A batch, and how far it is", scope="answer", reply=Batch)
    def get(self, batch_id: str) -> Response:
        return json_response(_shown(self, _batch(self, batch_id)))


class CancelBatch(Endpoint):
    @op("Cancel a batch; what was answered stays", scope="answer", reply=Batch, errors=(409,))
    def post(self, batch_id: str) -> Response:
        batch = _batch(self, batch_id)
        if "completed_at" in batch.about:
            raise Conflict("the batch is complete", code="batch_complete")
        if "cancelled_at" not in batch.about:
            if _status(batch, _job(self, batch), False)[0] == "failed":
                raise Conflict("the batch has failed", code="batch_failed")
            job = self.room.jobs.cancel(batch.owner, batch.id)
            batch = cancelled(self.room.uploads, job) if job.state == CANCELLED else _batch(self, batch_id)
        return json_response(_shown(self, batch))


def _batch(endpoint: Endpoint, id: str) -> Upload:
    try:
        found = endpoint.room.uploads.get(endpoint.whose, id)
    except NotFound:
        raise _no_batch(id) from None
    if found.kind != BATCH:
        raise _no_batch(id)
    return found


def _no_batch(id: str) -> NotFound:
    return NotFound(f"there is no batch {id[:80]!r}", code="batch_not_found", param="batch_id")


def _shown(endpoint: Endpoint, batch: Upload) -> dict[str, Any]:
    about, counts = batch.about, counted(endpoint.room.uploads, batch)
    job = _job(endpoint, batch)
    status, fault = _status(batch, job, bool(counts.completed or counts.failed))
    over = status not in ("validating", "in_progress")
    shown = {name: about.get(name) for name in _TIMES}
    if status == "failed":
        shown["failed_at"] = int(job.end) if job is not None and job.end else None
    return {"id": batch.id, "object": "batch", "endpoint": about["endpoint"], "input_file_id": about["input_file_id"],
            "errors": {"object": "list", "data": [fault]} if fault else None, "status": status, **shown,
            "completion_window": about["completion_window"], "metadata": about["metadata"],
            "created_at": int(batch.created), "expires_at": int(batch.created + DAY), "finalizing_at": None,
            "cancelling_at": None, "output_file_id": output_id(batch, OUTPUT) if over and counts.completed else None,
            "error_file_id": output_id(batch, ERRORS) if over and counts.failed else None,
            "request_counts": {"total": counts.total, "completed": counts.completed, "failed": counts.failed}}


def _job(endpoint: Endpoint, batch: Upload) -> Job | None:
    """None where the record tells all, or there is no job any more."""
    if batch.about.keys() & {"completed_at", "cancelled_at"}:
        return None
    try:
        return endpoint.room.jobs.get(batch.owner, batch.id)
    except NotFound:
        return None


def _status(batch: Upload, job: Job | None, begun: bool) -> tuple[str, dict[str, Any] | None]:
    """What has become of it, and why it failed."""
    about = batch.about
    if "completed_at" in about:
        return "expired" if "expired_at" in about else "completed", None
    if "cancelled_at" in about:
        return "cancelled", None
    if job is None:
        return "failed", _fault("job_lost", "its job is gone")
    if job.state == CANCELLED:
        return "cancelled", None
    if job.state == ERROR:
        return "failed", _fault(job.code or "error", str(job.result))
    return ("in_progress" if begun or "in_progress_at" in about or job.state != PENDING else "validating"), None


def _fault(code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "line": None, "param": None}


ROUTES = (
    Route("/v1/batches", Batches, "openai", alias="/batches"),
    Route("/v1/batches/<string:batch_id>", OneBatch, "openai", alias="/batches/<string:batch_id>"),
    Route("/v1/batches/<string:batch_id>/cancel", CancelBatch, "openai", alias="/batches/<string:batch_id>/cancel"),
)
