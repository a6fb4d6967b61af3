"""Tells a URL that a job has ended: a POST, signed, guarded like every fetch, and said again until it is heard.

By the rules of Standard Webhooks (standardwebhooks.com), so that its libraries verify them, and OpenAI's too: headers
`webhook-id`, `webhook-timestamp`, `webhook-signature: v1,<base64>`, the HMAC-SHA256 over "id.timestamp.body".
The body: `{"type": "job.success" | "job.error", "timestamp", "data": the job as GET shows it}`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time

from services.errors import BadRequest, FetchFailed, Forbidden, ParleyError
from services.jobs.executor import Later, Tell
from services.jobs.shown import moment, shown
from services.knowledge.connection import Posted
from services.knowledge.fetch import Fetcher
from services.store.jobs import ERROR, SUCCESS, Job, JobStore

DELAYS = (5.0, 30.0, 120.0, 600.0)      # seconds before the second to the last attempt
GONE = 410                              # the status by which a receiver asks never to be told again


def secret_of(store: JobStore, owner: str) -> str:
    """What a key's callbacks are signed with: shown to that key, and as Standard Webhooks' libraries take it."""
    return "whsec_" + base64.b64encode(_secret(store, owner)).decode()


def _secret(store: JobStore, owner: str) -> bytes:
    return hmac.new(store.secret(), b"callbacks/" + owner.encode(), hashlib.sha256).digest()


class Callbacks:
    """The handler of jobs of the type CALLBACK."""

    def __init__(self, store: JobStore, fetcher: Fetcher) -> None:
        self._store, self._fetcher = store, fetcher

    def __call__(self, job: Job, _tell: Tell) -> None:
        about = self._store.get(job.owner, job.payload["job"])
        if about.state not in (SUCCESS, ERROR) or about.fence != job.payload.get("fence", about.fence):
            return                          # it is tried again: its new end is told
        assert about.callback is not None
        url = about.callback["url"]
        try:
            self._deliver(job, about, url)
        except (FetchFailed, BadRequest, Forbidden) as error:
            self._failed(job, about, error)
        else:
            self._note(about, "delivered")

    def _deliver(self, job: Job, about: Job, url: str) -> None:
        now = time.time()
        told = {**shown(about), "callback": None}
        event = {"type": f"job.{about.state}", "timestamp": moment(about.end), "data": told}
        body = json.dumps(event, separators=(",", ":")).encode()
        status = self._fetcher.post(url, Posted(body, (
            ("Content-Type", "application/json"), *self._signed(job, body, int(now)))))
        if status == GONE:
            raise BadRequest(f"HTTP {status}")
        if not 200 <= status < 300:
            raise FetchFailed(f"HTTP {status}")

    def _signed(self, job: Job, body: bytes, now: int) -> tuple[tuple[str, str], ...]:
        signed = hmac.new(_secret(self._store, job.owner), f"{job.id}.{now}.".encode() + body, hashlib.sha256)
        return (("webhook-id", job.id), ("webhook-timestamp", str(now)),
                ("webhook-signature", "v1," + base64.b64encode(signed.digest()).decode()))

    def _failed(self, job: Job, about: Job, error: ParleyError) -> None:
        """Again later, or never again where that would change nothing."""
        if isinstance(error, FetchFailed) and job.attempts <= len(DELAYS):
            self._note(about, "pending", error.message)
            raise Later(DELAYS[job.attempts - 1])
        self._note(about, "failed", error.message)
        raise error

    def _note(self, about: Job, state: str, error: str | None = None) -> None:
        assert about.callback is not None
        noted = {"url": about.callback["url"], "state": state, **({"error": error} if error else {})}
        self._store.tell_callback(about, noted)
