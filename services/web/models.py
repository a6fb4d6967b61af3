"""`/models`: what there is, what is loaded, and the switch from one model to another while both can answer."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from flask import Response, g

from services import wire
from services.chat.profiles import Config
from services.engine import catalog
from services.engine.client import Engine, Lease
from services.errors import BadRequest, Forbidden, NoRoom, NotFound
from services.store import disk
from services.web import replies, watch
from services.web.bodies import SwitchBody
from services.web.frame import json_response
from services.web.openai import listing
from services.web.profiles import let_go
from services.web.routes import Endpoint, op, taken
from services.web.watch import Watch

_PROBE = wire.Sampling(temperature=0)


class Models(Endpoint):
    @op("The model files, the profiles, and what is loaded", scope="models:read", reply=replies.Models)
    def get(self) -> Response:
        config = self.parts.profiles.current()
        mine = {name: profile for name, profile in config.profiles.items() if g.key.may_use(name)}
        runners = self.parts.engine.status().runners
        return json_response({
            "models": catalog.list_models(self.room.settings.models_dir),
            "profiles": {name: profile.public() for name, profile in mine.items()},
            "selected": config.selected, "problem": self.parts.profiles.problem,
            "object": "list", "data": listing.entries(self),
            "loaded": [self._loaded(spec, [runner for runner in runners if runner.spec == spec], config)
                       for spec in dict.fromkeys(runner.spec for runner in runners)]})

    def _loaded(self, spec: wire.RunnerSpec, replicas: list[wire.RunnerState], config: Config) -> dict[str, Any]:
        """One model with its runners, of which those that serve come first."""
        names = [name for name, profile in config.profiles.items()
                 if g.key.may_use(name) and self._spec_of(profile) == spec]
        profile = config.selected if config.selected in names else next(iter(names), None)
        first, stats = replicas[0], [runner.stats for runner in replicas if runner.stats]
        return {"model": os.path.basename(spec.model), "profile": profile, "profiles": names,
                "state": first.state, "selected": first.selected, "n_ctx": spec.n_ctx, "parallel": spec.parallel,
                "replicas": len(replicas), "in_use": sum(runner.leases for runner in replicas), "users": first.users,
                "memory_bytes": sum(runner.memory_bytes for runner in replicas) or None,
                "estimated_bytes": sum(runner.estimated_bytes for runner in replicas),
                "tokens_per_second": sum(one.tokens_per_second for one in stats),
                "unload_seconds": first.unload_seconds,
                "restarts": sum(runner.restarts for runner in replicas), "reason": first.reason,
                "stats": msgspec.structs.asdict(stats[0]) if len(stats) == 1 else _together(stats)}

    def _spec_of(self, profile: Any) -> wire.RunnerSpec | None:
        try:
            return self.parts.profiles.spec(profile, self.room.settings.models_dir)
        except (NotFound, BadRequest):
            return None     # its file is not there: no runner can be its


class Switch(Endpoint):
    @op("Serve another model; the one before goes on until this one has answered", scope="models:switch",
        body=SwitchBody, reply=replies.Switched, errors=(404, 409, 422, 504, 507))
    def post(self, body: SwitchBody) -> Response:
        name, model = body.model_config_, body.model
        if not g.key.may_use(name):
            raise Forbidden(f"this key may not use the profile {name[:80]!r}", param="model_config")
        over = watch.of_request(self.room.drain)
        with taken(self.room.places), _one_at_a_time(self.room.settings.data_dir, over.check):
            self._switch(name, model, over)
        return json_response({"model_status": True, "model": model, "profile": name})

    def _switch(self, name: str, model: str, over: Watch) -> None:
        """Beside the old one until the new one has answered; `select` makes the file and the supervisor agree."""
        profiles, engine = self.parts.profiles, self.parts.engine
        profile = profiles.candidate(name, model)
        spec, keep = profiles.spec(profile, self.room.settings.models_dir), profiles.current().keep(profile)
        with _beside(engine, spec, keep, over.check) as lease:
            _probe(lease, over)
            before = profiles.current()
            profiles.select(name, model)
            with _undone_on_error(lambda: self._restore(before, name)), engine.lease(spec, select=True, keep=keep):
                pass
        let_go(self, before.profiles[name])

    def _restore(self, before: Config, name: str) -> None:
        self.parts.profiles.select(name, before.profiles[name].model)
        self.parts.profiles.select(before.selected)


@contextlib.contextmanager
def _beside(engine: Engine, spec: wire.RunnerSpec, keep: float, beat: Callable[[], None]) -> Iterator[Lease]:
    """The new runner beside the old one. Where MAX_LOADED leaves no room it takes the one place more of a selection."""
    with ExitStack() as held:
        try:
            lease = held.enter_context(engine.lease(spec, keep=keep, beat=beat))
        except NoRoom:
            lease = held.enter_context(engine.lease(spec, select=True, keep=keep, beat=beat))
        yield lease


def _together(stats: list[wire.Stats]) -> dict[str, Any] | None:
    """The figures of several replicas as one's: sums, the largest batch, the time since the last progress of any."""
    if not stats:
        return None
    figures = [msgspec.structs.asdict(one) for one in stats]
    return {**{name: sum(one[name] for one in figures) for name in figures[0]},
            "max_batch": max(one.max_batch for one in stats), "idle_seconds": min(one.idle_seconds for one in stats)}


def _probe(lease: Lease, over: Watch) -> None:
    """One token, of nobody's text: what loads but cannot answer is not switched to."""
    request = wire.Generate(id=str(uuid.uuid4()), owner="probe", prompt=["Hello"], max_tokens=1, sampling=_PROBE)
    for _ in lease.generate(request):
        over.check()


@contextlib.contextmanager
def _undone_on_error(undo: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        undo()
        raise


@contextlib.contextmanager
def _one_at_a_time(data_dir: Path, beat: Callable[[], None]) -> Iterator[None]:
    """Switches wait for each other, in whichever worker they are; `beat` is called while waiting and may give up."""
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(disk.locked(data_dir / "switch", 1.0))
                break
            except TimeoutError:
                beat()
        yield
