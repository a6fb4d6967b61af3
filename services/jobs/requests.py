"""Requests that are answered later, as if they came by HTTP: `POST /answer` with `async`, and the lines of batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from auth.keys import Key, Keys
from services.errors import Forbidden, from_code
from services.jobs.executor import Handler, Tell
from services.store.jobs import Job

ENDING = ("draining", "supervisor_down")    # codes of errors that say that this server stops: others may go on
ANSWER = "answer"           # the type of jobs that are one `POST /answer`


@dataclass(frozen=True)
class Request:
    """A POST of a key's. `retry`: its Idempotency-Key, where two attempts must not both count."""

    key: Key
    path: str
    body: dict[str, Any] = field(repr=False)
    retry: str = ""


@dataclass(frozen=True)
class Reply:
    """`body`: a JSON value. `retry_after`: seconds, where it says so."""

    status: int
    body: Any = field(repr=False)
    request_id: str = ""
    retry_after: float | None = None

    def value(self) -> Any:
        """The body of what went well; raises the error that it tells otherwise."""
        if self.status < 400:
            return self.body
        error = self.body["error"]
        raise from_code(error["code"], error["message"], self.retry_after)


# Answers a request; the second is called about every second and may raise to end it.
Door = Callable[[Request, Callable[[], None]], Reply]


def live(keys: Keys, owner: str) -> Key:
    """The key that asked, as it is now. `Forbidden` when it has ended (`key_ended`) or may answer no more."""
    key = keys.get(owner)
    if key.revoked_at is not None or key.ends() <= time.time():
        raise Forbidden("the key that this was asked for with has ended", code="key_ended")
    if "answer" not in key.scopes:
        raise Forbidden("the key that this was asked for with lacks the scope 'answer' now", code="missing_scope")
    return key


def retry_of(job: Job) -> str:
    """The Idempotency-Key of a job of the type ANSWER in a session."""
    return f"job-{job.id}"


def handler(keys: Keys, door: Door) -> Handler:
    """Answers jobs of the type ANSWER. In a session an attempt after one that was cut short finds its answer there."""
    def handle(job: Job, tell: Tell) -> dict[str, Any]:
        body = job.payload["body"]
        retry = retry_of(job) if "session_id" in body else ""
        asked = Request(live(keys, job.owner), "/answer", body, retry)
        answer = door(asked, lambda: tell(0, 1)).value()
        told = {name: answer.get(name) for name in ("profile", "model", "usage")}
        return {"text": answer["result"], **told, "warnings": answer.get("warnings", []), "answer": answer}
    return handle
