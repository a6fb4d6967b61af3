"""`/healthz`: does this process answer. `/readyz`: can it serve, and if not, why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from flask import Response

from auth.gate import ANY_KEY, PUBLIC
from services import wire
from services.errors import ParleyError, Unavailable
from services.web import replies
from services.web.frame import json_response
from services.web.routes import Endpoint, op

MIN_FREE = 1024 * 1024      # bytes of disk below which a turn may not fit
SERVING = ("ready", "retiring")
STALLED = 15.0              # seconds that count as a stall where STALL_TIMEOUT is 0; else it is half of that


class Healthz(Endpoint):
    @op("Whether the web process answers", scope=PUBLIC, reply=replies.Health)
    def get(self) -> Response:
        return json_response({"status": "ok"})


class Readyz(Endpoint):
    @op("Whether questions can be answered, and why not", scope=ANY_KEY, reply=replies.Readiness)
    def get(self) -> Response:
        """200 with `warnings` where the last good file goes on serving; 503 with `reasons` where nothing is served."""
        reasons = [*self._model(), *_store(self.room.settings.data_dir)]
        if problem := self.parts.sessions.store.problem():
            reasons.append(problem)
        if self.room.drain.begun:
            reasons.append("the server is stopping")
        told = (self.parts.profiles, self.parts.personas, self.parts.grounding.feeds, self.parts.keys,
                self.room.desk.bindings)
        warnings = [problem for one in told if (problem := one.problem)] + [*self.room.settings.warnings]
        if reasons:
            raise Unavailable("not ready: " + "; ".join(reasons), code="not_ready", retry_after=2,
                              reasons=reasons, warnings=warnings)
        return json_response({"ready": True, "reasons": [], "warnings": warnings})

    def _model(self) -> Iterator[str]:
        """Why the selected profile cannot answer: the file as it is now, then its runner."""
        try:
            profile = self.parts.profiles.current().get()[1]
            spec = self.parts.profiles.spec(profile, self.room.settings.models_dir)
        except ParleyError as error:
            yield error.message
            return
        try:
            status = self.parts.engine.status()
        except ParleyError as error:
            yield f"the supervisor does not answer ({error})"
            return
        if status.draining:
            yield "the server is stopping"
        if not self.room.settings.load_on_fly or any(runner.spec == spec for runner in status.runners):
            limit = self.room.settings.stall_timeout / 2 or STALLED
            yield from _runner(status.runners, spec, profile.model, limit)


def _runner(runners: list[wire.RunnerState], spec: wire.RunnerSpec, model: str, limit: float) -> Iterator[str]:
    """Judged is by progress: a socket that answers says nothing. One of several runners of the model is enough.

    A model that is being loaded beside another one is no reason: questions wait for it, nobody is turned away.
    """
    mine = [runner for runner in runners if runner.spec == spec]
    serving = [runner for runner in mine if runner.state in SERVING]
    broken = [runner for runner in mine if runner.state not in (*SERVING, "loading")]
    if serving:
        if (stalled := min(runner.stalled_seconds for runner in serving)) >= limit:
            yield f"the model {model} has work, but has made no progress for {stalled:.0f} s"
    elif broken:
        why = f": {broken[0].reason}" if broken[0].reason else ""
        yield f"the model {model} is {broken[0].state}{why}"
    elif not any(runner.state in SERVING for runner in runners):
        yield f"the model {model} is {'loading' if mine else 'not loaded yet'}"


def _store(data_dir: Path) -> Iterator[str]:
    if not os.access(data_dir, os.W_OK | os.X_OK):
        yield "the data folder cannot be written"
    elif shutil.disk_usage(data_dir).free < MIN_FREE:
        yield "the disk of the data folder is full"
