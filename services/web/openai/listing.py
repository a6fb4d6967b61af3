"""`GET /v1/models`: what may be asked for as `model`, in OpenAI's shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flask import Response, g

from services.chat.profiles import Profile
from services.engine import catalog
from services.errors import NotFound
from services.web.frame import json_response
from services.web.openai import shapes
from services.web.routes import Endpoint, op


class ModelList(Endpoint):
    @op("What may be asked for as `model`: the profiles, and the files that none of them uses", scope="models:read",
        reply=shapes.ModelList)
    def get(self) -> Response:
        return json_response({"object": "list", "data": entries(self)})


class OneModel(Endpoint):
    @op("One of them", scope="models:read", reply=shapes.Model)
    def get(self, model: str) -> Response:
        there = entries(self)
        for field in ("id", "file"):
            for entry in there:
                if entry[field] == model:
                    return json_response(entry)
        raise NotFound(f"no model {model[:80]!r}; there are: {', '.join(entry['id'] for entry in there)}",
                       code="model_not_found", param="model")


def entries(endpoint: Endpoint) -> list[dict[str, Any]]:
    """The profiles that the key may use and whose file is there, the selected one first; then, for a key that may use
    all of them, the files of no profile."""
    config, settings = endpoint.parts.profiles.current(), endpoint.room.settings
    ready = {runner.spec for runner in endpoint.parts.engine.status().runners if runner.state == "ready"}
    files = catalog.list_models(settings.models_dir)
    names = sorted(config.profiles, key=lambda name: name != config.selected)

    def entry(name: str, profile: Profile) -> dict[str, Any]:
        spec = endpoint.parts.profiles.spec(profile, settings.models_dir)
        return {"id": name, "object": "model", "created": _written(Path(spec.model)), "owned_by": "parley",
                "file": profile.model, "loaded": spec in ready, "embedding": profile.embedding,
                "n_ctx": profile.n_ctx}
    mine = [entry(name, config.profiles[name]) for name in names
            if config.profiles[name].model in files and g.key.may_use(name)]
    used = {profile.model for profile in config.profiles.values()}
    free = [name for name in files if name not in used and g.key.profiles is None]
    return mine + [entry(*endpoint.parts.profiles.any_named(name)) for name in free]


def _written(path: Path) -> int:
    """When; 0 for a file that has just gone."""
    try:
        return int(path.stat().st_mtime)
    except FileNotFoundError:
        return 0
