"""`/summaries/v1`: skynet's routes (S1.11–S1.18) on our keys. A job belongs to the key that made it; for other keys,
but the master, it is not there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flask import Response, g

from services.chat.asking import profile_of
from services.chat.events import Ask
from services.errors import ParleyError, Unprocessable
from services.jobs import prompts
from services.jobs.asking import TYPES
from services.jobs.shown import shown
from services.store.jobs import NORMAL, Job, not_found
from services.web.frame import json_response
from services.web.jobs import callback_of, check_taken, listed
from services.web.routes import Endpoint, Route, op
from services.web.summaries.shapes import DocumentBody, JobId, JobQuery, SummaryJob, SummaryJobs

_MADE: dict[str, Any] = {"scope": "answer", "body": DocumentBody, "reply": JobId, "errors": (404, 409, 422, 507)}


class Documents(Endpoint):
    """Base of what skynet's clients ask: errors have `detail` too, as theirs (FastAPI's)."""

    @staticmethod
    def envelope(error: ParleyError) -> dict[str, Any]:
        return {"detail": error.message, **error.envelope()}

    def add(self, type: str, body: DocumentBody) -> Response:
        """Put a job into the queue."""
        check_taken(self)
        self._check(type, body)
        callback = callback_of(self, body.callback_url)
        job = Job(owner=g.key.id, type=type, payload=body.payload(), priority=body.priority or NORMAL,
                  callback=callback)
        job = job if body.job_id is None else replace(job, id=body.job_id)
        return json_response({"id": self.room.jobs.put(job).id})

    def _check(self, type: str, body: DocumentBody) -> None:
        """Refuses now what would fail later."""
        settings = self.room.settings
        least = settings.live_summary_minimum if body.is_live_summary else settings.summary_minimum
        if type == prompts.PROCESS and not (body.prompt or "").strip():
            raise Unprocessable("Prompt is required", code="prompt_required", param="prompt")
        if len(body.text.strip()) < max(least, 1):
            raise Unprocessable("Payload is too short", code="payload_too_short", param="text")
        profile_of(Ask(owner=g.key.id, profile=body.profile, allowed_profiles=g.key.profiles), self.parts.profiles)


class Summary(Documents):
    @op("Have a text summarised; the job's id", **_MADE)
    def post(self, body: DocumentBody) -> Response:
        return self.add(prompts.SUMMARY, body)


class ActionItems(Documents):
    @op("Have the action items of a text listed; the job's id", **_MADE)
    def post(self, body: DocumentBody) -> Response:
        return self.add(prompts.ACTION_ITEMS, body)


class TableOfContents(Documents):
    @op("Have a table of contents made of a text; the job's id", **_MADE)
    def post(self, body: DocumentBody) -> Response:
        return self.add(prompts.CONTENTS, body)


class ProcessText(Documents):
    @op("Have a text worked on as `prompt` says, which is required; the job's id", **_MADE)
    def post(self, body: DocumentBody) -> Response:
        return self.add(prompts.PROCESS, body)


class SummaryJobOne(Documents):
    @op("A job, with its result once it has one", scope="answer", reply=SummaryJob)
    def get(self, job_id: str) -> Response:
        return json_response(shown(self._job(job_id)))

    @op("Cancel a job that has not ended; the job as it is then", scope="answer", reply=SummaryJob)
    def delete(self, job_id: str) -> Response:
        job = self._job(job_id)
        return json_response(shown(self.room.jobs.cancel(job.owner, job.id)))

    def _job(self, id: str) -> Job:
        job = self.room.jobs.get(self.whose, id)
        if job.type not in TYPES:
            raise not_found()
        return job


class SummaryJobList(Documents):
    @op("The key's jobs, the newest first; the master key sees everybody's", scope="answer", query=JobQuery,
        reply=SummaryJobs)
    def get(self, query: JobQuery) -> Response:
        return json_response(listed(self, query, TYPES, self.whose))


ROUTES = (
    Route("/summaries/v1/summary", Summary, "summaries"),
    Route("/summaries/v1/action-items", ActionItems, "summaries"),
    Route("/summaries/v1/table-of-contents", TableOfContents, "summaries"),
    Route("/summaries/v1/process-text", ProcessText, "summaries"),
    Route("/summaries/v1/job/<string:job_id>", SummaryJobOne, "summaries", alias="/summaries/v1/jobs/<string:job_id>"),
    Route("/summaries/v1/jobs", SummaryJobList, "summaries"),
)
