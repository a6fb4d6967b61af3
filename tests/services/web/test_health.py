"""`/healthz` and `/readyz`: a lie here costs an operator a night (row P5)."""

from __future__ import annotations

import json
import os

import pytest

from services import wire
from services.errors import Unavailable
from tests.services.web.conftest import make_world


def ready(world):
    return world.call("GET", "/readyz")


def runner(world, state="ready", selected=True, reason=None, stalled=0.0):
    spec = world.parts.engine.loaded[0]
    return wire.RunnerState(spec=spec, state=state, selected=selected, reason=reason, stalled_seconds=stalled)


def test_healthz_needs_no_key_and_no_model(world):
    world.parts.engine.down = Unavailable("gone")
    assert world.call("GET", "/healthz", key=None).json == {"status": "ok"}


def test_ready(world):
    assert ready(world).json == {"ready": True, "reasons": [], "warnings": []}


@pytest.mark.parametrize("state, reason", [("loading", None), ("crashed", "signal 9"), ("failed", "no GGUF")])
def test_a_model_that_does_not_answer_is_told(world, monkeypatch, state, reason):
    status = wire.StatusOf(runners=[runner(world, state, True, reason)])
    monkeypatch.setattr(world.parts.engine, "status", lambda: status)
    response = ready(world)
    assert response.status_code == 503 and response.headers["Retry-After"]
    assert state in response.json["message"] and (reason or "") in response.json["message"]
    assert response.json["error"]["reasons"]


@pytest.mark.parametrize("status", [wire.StatusOf(runners=[]), wire.StatusOf(runners=[], draining=True)])
def test_no_model_or_stopping_is_told(world, monkeypatch, status):
    monkeypatch.setattr(world.parts.engine, "status", lambda: status)
    assert ready(world).status_code == 503


@pytest.mark.parametrize("timeout, limit", [(30, 15), (8, 4), (0, 15)])
def test_a_model_that_makes_no_progress_is_told(tmp_path, monkeypatch, timeout, limit):
    world = make_world(tmp_path, stall_timeout=timeout)

    def told(*runners):
        monkeypatch.setattr(world.parts.engine, "status", lambda: wire.StatusOf(runners=list(runners)))
        return ready(world)

    assert told(runner(world, stalled=limit - 0.1)).status_code == 200
    stalled = told(runner(world, stalled=limit + 0.1))
    assert stalled.status_code == 503 and f"no progress for {limit} s" in stalled.json["message"]
    assert told(runner(world, stalled=limit), runner(world)).status_code == 200, "the other one answers"
    assert told(runner(world, "crashed"), runner(world)).status_code == 200
    assert told(runner(world, "loading"), runner(world, "crashed", reason="exit 1")).status_code == 503


def test_no_supervisor_is_told(world):
    world.parts.engine.down = Unavailable("gone")
    assert "supervisor" in ready(world).json["message"]


def test_a_broken_config_is_told_while_the_last_good_one_serves(world):
    (world.settings.data_dir / "config.json").write_text("{broken")
    world.parts.profiles.current()
    response = ready(world)
    assert response.status_code == 200 and "config.json" in response.json["warnings"][0]


def test_broken_keys_are_told(world):
    (world.settings.data_dir / "api_keys.json").write_text("{broken")
    assert "api_keys.json" in ready(world).json["warnings"][0]


def test_a_store_that_takes_nothing_is_told(world, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written" in ready(world).json["message"]
    monkeypatch.undo()
    monkeypatch.setattr("services.web.health.MIN_FREE", 1 << 62)
    assert "full" in ready(world).json["message"]
    assert json.dumps(ready(world).json)
