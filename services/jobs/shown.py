"""A job as its key may see it, over HTTP and in callbacks."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from services.store.jobs import CANCELLED, ERROR, SUCCESS, Job


def shown(job: Job) -> dict[str, Any]:
    """A cancelled one is an error: skynet's clients know no other end."""
    done = job.result if job.state == SUCCESS and isinstance(job.result, dict) else {}
    cancelled = job.state == CANCELLED
    return {
        "id": job.id, "type": job.type, "status": ERROR if cancelled else job.state,
        "result": "Job cancelled" if cancelled else done.get("text") if job.state == SUCCESS else job.result,
        "duration": job.duration, "processor": "LOCAL", "code": CANCELLED if cancelled else job.code,
        "data": done.get("data"), "language": done.get("language"), "profile": done.get("profile"),
        "model": done.get("model"), "usage": done.get("usage"), "warnings": done.get("warnings", []),
        "chunks_done": job.chunks_done, "chunks_total": job.chunks_total, "priority": job.priority,
        "created": moment(job.created), "started": moment(job.start), "ended": moment(job.end),
        "callback": job.callback, **({"answer": done["answer"]} if "answer" in done else {})}


def moment(seconds: float | None) -> str | None:
    """ISO 8601 in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
