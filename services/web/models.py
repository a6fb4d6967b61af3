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
from services.errors import BadRequest, Forbidden, NotFound, Unavailable
from services.store import disk
from services.web import replies, watch
from services.web.bodies import SwitchBody
from services.web.frame import json_response
from services.web.routes import Endpoint, op, taken
from services.web.watch import Watch

_PROBE = wire.Sampling(temperature=0)


class Models(Endpoint):
    @op("The model files, the profiles, and what is loaded", scope="models:read", reply=replies.Models)
    def get(self) -> Response:
        config = self.parts.profiles.current()
        mine = {name: profile for name, profile in config.profiles.items() if _may_use(name)}
        runners = self.parts.engine.status().runners
        return json_response({
            "models": catalog.list_models(self.room.settings.models_dir),
            "profiles": {name: profile.public() for name, profile in mine.items()},
            "selected": config.selected,
            "loaded": [self._loaded(runner, config) for runner in runners]})

    def _loaded(self, runner: wire.RunnerState, config: Config) -> dict[str, Any]:
        names = [name for name, profile in config.profiles.items()
                 if _may_use(name) and self._spec_of(profile) == runner.spec]
        first = config.selected if config.selected in names else next(iter(names), None)
        return {"model": os.path.basename(runner.spec.model), "profile": first, "profiles": names,
                "state": runner.state, "selected": runner.selected, "n_ctx": runner.spec.n_ctx,
                "parallel": runner.spec.parallel, "in_use": runner.leases, "restarts": runner.restarts,
                "reason": runner.reason, "stats": msgspec.structs.asdict(runner.stats) if runner.stats else None}

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
        if not _may_use(name):
            raise Forbidden(f"this key may not use the profile {name[:80]!r}", param="model_config")
        over = watch.of_request(self.room.drain)
        with taken(self.room.places), _one_at_a_time(self.room.settings.data_dir, over.check):
            self._switch(name, model, over)
        return json_response({"model_status": True, "model": model, "profile": name})

    def _switch(self, name: str, model: str, over: Watch) -> None:
        """Beside the old one until the new one has answered; `select` makes the file and the supervisor agree."""
        profiles, engine = self.parts.profiles, self.parts.engine
        spec = profiles.spec(profiles.candidate(name, model), self.room.settings.models_dir)
        with _beside(engine, spec, over.check) as lease:
            _probe(lease, over)
            before = profiles.current()
            profiles.select(name, model)
            with _undone_on_error(lambda: self._restore(before, name)), engine.lease(spec, select=True):
                pass

    def _restore(self, before: Config, name: str) -> None:
        self.parts.profiles.select(name, before.profiles[name].model)
        self.parts.profiles.select(before.selected)


@contextlib.contextmanager
def _beside(engine: Engine, spec: wire.RunnerSpec, beat: Callable[[], None]) -> Iterator[Lease]:
    """The new runner beside the old one. Where MAX_LOADED leaves no room it takes the one place more of a selection."""
    with ExitStack() as held:
        try:
            lease = held.enter_context(engine.lease(spec, beat=beat))
        except Unavailable as error:
            if error.code != "no_room":
                raise
            lease = held.enter_context(engine.lease(spec, select=True, beat=beat))
        yield lease


def _may_use(profile: str) -> bool:
    return g.key.profiles is None or profile in g.key.profiles


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
