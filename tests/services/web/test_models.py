"""`/models` and the switch: on any error the old model goes on, in the file and in the supervisor (row M3)."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from services import wire
from services.errors import BadModel, RunnerCrashed, Unavailable


def switch(world, model="two.gguf", profile="two", **kwargs):
    return world.call("POST", "/models/model", json={"model": model, "model_config": profile}, **kwargs)


def state(world):
    config = json.loads((world.settings.data_dir / "config.json").read_text())
    return config["SelectedModel"], config["two"]["model"], world.parts.engine.selected


def test_the_list(world):
    models = world.call("GET", "/models").json
    assert models["models"] == ["one.gguf", "three.gguf", "two.gguf"] and models["selected"] == "one"
    assert models["profiles"]["two"]["model"] == "two.gguf" and models["profiles"]["two"]["n_ctx"] == 1024
    assert [(one["model"], one["profile"], one["state"]) for one in models["loaded"]] == [("one.gguf", "one", "ready")]


def test_a_profile_that_names_a_missing_file_is_listed_all_the_same(world):
    (world.settings.models_dir / "two.gguf").unlink()
    assert "two" in world.call("GET", "/models").json["profiles"]


def test_a_key_sees_and_switches_to_its_own_profiles_only(world):
    key = world.make_key(profiles=["two"])
    assert list(world.call("GET", "/models", key=key).json["profiles"]) == ["two"]
    assert switch(world, key=key).status_code == 200
    assert switch(world, "one.gguf", "one", key=key).status_code == 403


def test_a_switch(world):
    response = switch(world, "three.gguf")
    assert response.status_code == 200 and response.json["model_status"] is True
    selected, model, spec = state(world)
    assert (selected, model) == ("two", "three.gguf") and spec.model.endswith("three.gguf")
    assert world.parts.engine.requests, "it was asked something before it was chosen"


@pytest.mark.parametrize("model, profile, status, names", [
    ("absent.gguf", "two", 404, "one.gguf"), ("two.gguf", "absent", 404, "one, two"),
    ("../one.gguf", "two", 400, "model"), ("/etc/passwd", "two", 400, "model"),
    ("config.json", "two", 404, "one.gguf")])
def test_unknown_names_are_told_with_those_there_are(world, model, profile, status, names):
    before = state(world)
    response = switch(world, model, profile)
    assert response.status_code == status and names in response.json["message"]
    assert state(world) == before


def crash(request):
    yield None
    raise RunnerCrashed("it died")


@pytest.mark.parametrize("fault, status", [
    (lambda engine: engine.fail.update({"two.gguf": BadModel("no GGUF")}), 422),
    (lambda engine: engine.fail.update({"two.gguf": Unavailable("no room")}), 503),
    (lambda engine: setattr(engine, "script", crash), 503),
    (lambda engine: setattr(engine, "fail_select", Unavailable("stopping")), 503),
    (lambda engine: setattr(engine, "fail_select", RuntimeError("surprise")), 500)])
def test_on_any_error_the_old_one_goes_on(world, fault, status):
    before = state(world)
    fault(world.parts.engine)
    response = switch(world, "two.gguf")
    assert response.status_code == status and response.json["error"]["message"]
    assert state(world) == before


def test_a_config_that_cannot_be_written_leaves_the_old_one(world):
    before = world.parts.engine.selected
    (world.settings.data_dir / "config.json").write_text("{broken")
    assert switch(world).status_code in (409, 503, 507)
    assert world.parts.engine.selected == before


def test_a_client_that_leaves_gives_the_switch_up(world):
    ours, theirs = socket.socketpair()

    def leave(request):
        theirs.close()
        yield None
        yield wire.Done(id=request.id, finish_reason="stop", prompt_tokens=1, completion_tokens=1, cached_tokens=0,
                        processed_tokens=1)
    before = state(world)
    world.parts.engine.script = leave
    switch(world, environ_overrides={"gunicorn.socket": ours})
    assert state(world) == before
    ours.close()


def test_switches_wait_for_each_other(world):
    inside, most = [], []
    release = threading.Event()

    def slow(request):
        inside.append(request)
        most.append(len(inside))
        release.wait(20)
        yield wire.Done(id=request.id, finish_reason="stop", prompt_tokens=1, completion_tokens=1, cached_tokens=0,
                        processed_tokens=1)
        inside.remove(request)
    world.parts.engine.script = slow
    got = []
    threads = [threading.Thread(target=lambda p=p: got.append(switch(world, f"{p}.gguf", p).status_code))
               for p in ("one", "two")]
    for thread in threads:
        thread.start()
    release.set()
    for thread in threads:
        thread.join(30)
    assert got == [200, 200] and max(most) == 1


def test_the_supervisor_gone_is_a_503(world):
    world.parts.engine.down = Unavailable("the supervisor is gone")
    assert world.call("GET", "/models").status_code == 503
