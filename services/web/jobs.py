"""`/jobs`: what a key has asked for without waiting, whatever it is; and how `POST /answer` becomes such a job.

What the master key is shown of a job has its owner, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

from flask import Response, g
from pydantic import BaseModel, Field

from services.chat import asking
from services.chat.events import Ask
from services.chat.idempotency import mismatch
from services.errors import BadRequest, Conflict, Forbidden, NotFound
from services.jobs.batches import BATCH, cancelled
from services.jobs.callbacks import secret_of
from services.jobs.requests import ANSWER, retry_of
from services.jobs.shown import shown
from services.store.jobs import CALLBACK, CANCELLED, ERROR, NORMAL, Job, not_found
from services.web import replies
from services.web.bodies import AnswerBody, Body
from services.web.frame import json_response
from services.web.routes import Endpoint, Route, op
from services.web.summaries.shapes import JobQuery, SummaryJob

DISPATCHER = "summaries:dispatcher"     # of ENABLED_MODULES
PAGE, LONGEST_PAGE = 100, 1000
_STATES: dict[str | None, tuple[str, ...]] = {None: (), ERROR: (ERROR, CANCELLED), "failed": (ERROR,)}
_LATER = {"async_", "callback_url", "priority", "stream"}      # of a body: about the job, not about the answer


class AnyJob(SummaryJob):
    type: str       # type: ignore[assignment]
    usage: dict[str, Any] | None
    answer: replies.Answer | None = None        # of an answer: what `POST /answer` says at once
    owner: str | None = Field(None, description="the id of the key that asked; for the master key only")


class AnyJobs(BaseModel):
    jobs: list[AnyJob]
    next: int | None


class OwnerQuery(Body):
    """Whose. Ids of jobs are a key's own."""

    owner: str | None = Field(None, max_length=64, description="the id of a key, whose jobs are meant: for the master "
                                                               "key, else only the own one")


class AnyJobQuery(JobQuery, OwnerQuery):
    """Which jobs to list."""


class _Jobs(Endpoint):
    """Base of what is said of jobs."""

    def owner(self, query: OwnerQuery) -> str | None:
        """None: everybody's."""
        if query.owner and self.whose not in (None, query.owner):
            raise Forbidden("only the master key may ask for the jobs of others: leave owner out", param="owner")
        return query.owner or self.whose

    def told(self, job: Job) -> dict[str, Any]:
        return {**shown(job), **({"owner": job.owner} if self.whose is None else {})}


class OneJob(_Jobs):
    @op("A job, with its result once it has one", scope="answer", query=OwnerQuery, reply=AnyJob)
    def get(self, job_id: str, query: OwnerQuery) -> Response:
        return json_response(self.told(self.room.jobs.get(self.owner(query), job_id)))

    @op("Cancel a job that has not ended; the job as it is then", scope="answer", query=OwnerQuery, reply=AnyJob)
    def delete(self, job_id: str, query: OwnerQuery) -> Response:
        job = self.room.jobs.cancel(self.owner(query), job_id)
        if job.type == BATCH and job.state == CANCELLED:
            with suppress(NotFound):            # the batch was deleted
                cancelled(self.room.uploads, job)
        return json_response(self.told(job))


class RetryJob(_Jobs):
    @op("Try a failed job again, under its id; the job as it is then", scope="answer", query=OwnerQuery, reply=AnyJob,
        errors=(404, 409, 410, 507))
    def post(self, job_id: str, query: OwnerQuery) -> Response:
        check_taken(self)
        job = self.room.jobs.get(self.owner(query), job_id)
        if job.type == CALLBACK:
            raise not_found()
        if job.type == BATCH:
            raise Conflict("a batch is not tried again: make another one of its file with POST /v1/batches",
                           code="batch_not_retried")
        if job.state == ERROR and job.type == ANSWER:       # an answer in a session would get its error once more
            self.parts.idempotency.forget(job.owner, retry_of(job))
        return json_response(self.told(self.room.jobs.retry(job.owner, job.id)))


class JobList(_Jobs):
    @op("The key's jobs, the newest first; the master key sees everybody's", scope="answer", query=AnyJobQuery,
        reply=AnyJobs)
    def get(self, query: AnyJobQuery) -> Response:
        return json_response(listed(self, query, (), self.owner(query), self.told))


def listed(endpoint: Endpoint, query: JobQuery, types: tuple[str, ...], owner: str | None,
           told: Callable[[Job], dict[str, Any]] = shown) -> dict[str, Any]:
    """A page of jobs; () are those of all types, None are everybody's."""
    limit = min(max(int(query.limit or PAGE), 1), LONGEST_PAGE)
    jobs = endpoint.room.jobs.all(owner, states=_STATES.get(query.status, (query.status or "",)), types=types,
                                  limit=limit, before=int(query.before) if query.before else None)
    return {"jobs": [told(job) for job in jobs], "next": jobs[-1].number if len(jobs) == limit else None}


class CallbackSecret(BaseModel):
    secret: str = Field(description="`whsec_` and Base64, as the libraries of Standard Webhooks take it")


class CallbackSecrets(Endpoint):
    @op("What the calls to this key's `callback_url` are signed with", scope="answer", reply=CallbackSecret)
    def get(self) -> Response:
        return json_response({"secret": secret_of(self.room.jobs, g.key.id)})


def callback_of(endpoint: Endpoint, url: str | None) -> dict[str, Any] | None:
    """What a job keeps of its `callback_url`. `BadRequest` for what is no URL that can be called, `Forbidden` where
    none is."""
    if url is None:
        return None
    try:
        return {"url": str(endpoint.parts.grounding.fetcher.target(url))}
    except (BadRequest, Forbidden) as error:
        raise type(error)(f"callback_url: {error.message}", code=error.code, param="callback_url") from None


def check_taken(endpoint: Endpoint) -> None:
    """`NotFound` (`jobs_off`) where this server takes no jobs."""
    if DISPATCHER not in endpoint.room.settings.modules:
        raise NotFound(f"this server takes no jobs: its ENABLED_MODULES has no {DISPATCHER}", code="jobs_off")


class AcceptedJob(BaseModel):
    """The job that answers, for `GET /jobs/<job_id>`."""

    job_id: str
    status: Literal["pending", "running", "success", "error"]


def accept(endpoint: Endpoint, body: AnswerBody, ask: Ask, digest: str | None) -> Response:
    """202: `body` is answered later, as a job. `ask`: what it comes to, which is checked as far as it can be now.
    `digest`: of its Idempotency-Key, by which a retry gets the same job."""
    check_taken(endpoint)
    if body.stream:
        raise BadRequest("async answers are not streamed: leave stream out", param="stream",
                         code="conflicting_parameters")
    asking.check(ask, endpoint.room.settings)
    asking.profile_of(ask, endpoint.parts.profiles)
    callback = callback_of(endpoint, body.callback_url)
    payload = {"body": body.model_dump(by_alias=True, exclude_none=True, exclude=_LATER)}
    job = Job(owner=g.key.id, type=ANSWER, payload=payload, priority=body.priority or NORMAL, callback=callback)
    if digest is None:
        made = endpoint.room.jobs.put(job)
    else:
        named = replace(job, id=f"answer-{digest[:40]}")
        try:
            made = endpoint.room.jobs.put(named)
        except Conflict:
            made = endpoint.room.jobs.get(g.key.id, named.id)
            if made.payload != json.loads(json.dumps(payload)):
                raise mismatch() from None
    return json_response({"job_id": made.id, "status": shown(made)["status"]}, 202)


ROUTES = (
    Route("/jobs", JobList, "jobs"),
    Route("/jobs/<string:job_id>", OneJob, "jobs"),
    Route("/jobs/<string:job_id>/retry", RetryJob, "jobs"),
    Route("/callbacks/secret", CallbackSecrets, "jobs"),
)
