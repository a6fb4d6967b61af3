"""Several models behind one real server: on the fly, replicas, a budget; and a runner that stands still (P10)."""

from __future__ import annotations

import os
import signal

import pytest

from tests.conftest import Server
from tests.test_serve import wait_for


def loaded(server: Server) -> list[dict]:
    return server.call("GET", "/models").json()["loaded"]


def test_on_the_fly_a_model_is_there_for_its_requests_only(start):
    server = start(LOAD_ON_FLY="true").ready()
    assert server.children("fake-runner") == [] and loaded(server) == []
    assert server.answer("first").json()["result"] == "You said: first"
    assert server.answer("second", profile="two").json()["model"] == "other.gguf"
    wait_for(lambda: not server.children("fake-runner"))
    assert server.call("GET", "/readyz").status_code == 200
    events = server.stream("!tokens 3 !sleep 1", 1)
    assert next(events)["delta"] == "w1"
    (one,) = loaded(server)
    assert (one["state"], one["in_use"], one["users"], one["unload_seconds"]) == ("ready", 1, 1, None)
    assert list(events)[-1]["done"]


def test_replicas_share_a_models_requests(start):
    server = start(NUM_WORKERS="2").ready()
    wait_for(lambda: [one["replicas"] for one in loaded(server)] == [2])
    (one,) = wait_for(lambda: [one for one in loaded(server) if one["stats"]["slots"] == 8 and one["memory_bytes"]])
    assert one["memory_bytes"] > 1 << 20 and one["estimated_bytes"] > 1 << 20 and one["unload_seconds"] is None
    assert server.answer("hello", 1).json()["result"] == "You said: hello"


@pytest.mark.parametrize("path", ["/answer", "/models/model"])
def test_what_does_not_fit_is_a_409_that_says_what_would(start, path):
    server = start(MEMORY_BUDGET=str(160 << 20)).ready()
    server.call("GET", "/models")
    config = server.data / "config.json"
    config.write_text(config.read_text().replace('"n_ctx": 512,\n    "max_tokens": 128\n  }\n}',
                                                 '"n_ctx": 262144,\n    "max_tokens": 128\n  }\n}'))
    body = {"prompt": "x", "profile": "two"} if path == "/answer" else {"model": "other.gguf",
                                                                            "model_config": "two"}
    refused = server.call("POST", path, json=body)
    assert refused.status_code == 409, refused.text
    error = refused.json()["error"]
    assert error["code"] == "no_room" and error["needed"] > error["budget"] > 0 and error["n_ctx"] < 262144
    assert f"n_ctx {error['n_ctx']}" in error["message"] and "tiny.gguf" in error["message"]
    config.write_text(config.read_text().replace("262144", str(error["n_ctx"])))
    assert server.call("POST", path, json=body).status_code == 200


def test_a_runner_that_stands_still_is_a_504_and_no_double_turn(start):
    server = start(REQUEST_TIMEOUT="3", STALL_TIMEOUT="0").ready()
    assert server.answer("before", 1).status_code == 200
    (pid,) = server.children("fake-runner")
    os.kill(pid, signal.SIGSTOP)
    late = server.answer("during", 1)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    os.kill(pid, signal.SIGCONT)
    after = server.answer("after", 1)
    assert after.status_code == 200 and server.children("fake-runner") == [pid]
    turns = server.call("GET", "/answer/1").json()["turns"]
    assert [turn["content"] for turn in turns if turn["content"].startswith("You said")] \
        == ["You said: before", "You said: after"]
    assert next(turn["content"] for turn in turns if turn["role"] == "user") == "before"
    assert sum(turn["content"] == "during" for turn in turns) <= 1
