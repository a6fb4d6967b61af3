"""How OpenAI's routes are asked in tests: each reply, whole or in chunks, has the shape that is documented."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from pydantic import BaseModel

from tests.services.web.conftest import World


@dataclass(frozen=True)
class Family:
    """One route, the models of what it says, and what each body has unless a test says otherwise."""

    path: str
    whole: type[BaseModel]
    chunk: type[BaseModel]
    body: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def whole(scripted: World, family: Family) -> Callable[..., dict[str, Any]]:
    def send(path: str = family.path, **body: Any) -> dict[str, Any]:
        response = scripted.call("POST", path, json={**family.body, **body})
        assert response.status_code == 200, response.text
        family.whole.model_validate(response.json)
        return response.json
    return send


@pytest.fixture
def chunks(scripted: World, family: Family) -> Callable[..., list[dict[str, Any]]]:
    def send(**body: Any) -> list[dict[str, Any]]:
        response = scripted.call("POST", family.path, json={**family.body, "stream": True, **body})
        assert response.status_code == 200 and response.mimetype == "text/event-stream", response.text
        *lines, end = [line for line in response.text.split("\n\n") if line and not line.startswith(":")]
        assert end == "data: [DONE]"
        found = [json.loads(line.removeprefix("data: ")) for line in lines]
        for chunk in found:
            family.chunk.model_validate(chunk)
        return found
    return send
