"""Jobs through the whole server: `main.py serve` with the fake runner, whose executor is killed, stopped and left."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from services.cli.executor import worker_name
from services.store.jobs_sqlite import SqliteJobs
from tests.conftest import Server, command_line, make_home

SLOW = "!sleep 0.05 !tokens 40"         # 2 s
SHORT = {"SUMMARY_MINIMUM_PAYLOAD_LENGTH": "1"}
PATIENCE = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(make_home(tmp_path_factory.mktemp("jobs") / "home"), DRAIN_TIMEOUT="0.2", **SHORT).start().ready()
    yield server
    server.end()


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
    return found


def post(server, text, **more):
    body = {"text": text, "prompt": "Say it.", **more}
    reply = server.call("POST", "/summaries/v1/process-text", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()["id"]


def job(server, id):
    return server.call("GET", f"/summaries/v1/job/{id}").json()


def running(server, text=SLOW):
    """A job that an executor works on; its id and the executor's process."""
    id = post(server, text)
    until(lambda: job(server, id)["status"] == "running")
    executor, = server.children("executor")
    return id, executor


def ended(server, id):
    return until(lambda: (found := job(server, id))["status"] in ("success", "error") and found)


def stored(server, id):
    return SqliteJobs(server.data).get(None, id)


def gone(pid):
    return "executor" not in command_line(pid)


def test_an_executor_is_there_from_the_first_job_on(server):
    assert server.children("executor") == []
    id = post(server, "!echo what was said")
    assert ended(server, id)["result"] == "what was said"
    executor, = server.children("executor")
    assert Path(f"/proc/{executor}").exists() and stored(server, id).worker == worker_name(server.data)


def test_a_killed_executors_job_is_done_by_the_next(server):
    id, executor = running(server)
    os.kill(executor, signal.SIGKILL)
    assert ended(server, id)["status"] == "success"
    assert stored(server, id).attempts == 2 and server.children("executor") != [executor]


def test_a_job_whose_runner_dies_is_tried_again(server):
    id, _ = running(server)
    runner, = server.children("fake-runner")
    os.kill(runner, signal.SIGKILL)
    assert ended(server, id)["status"] == "success"         # in the same attempt, if the runner was not asked yet


def test_a_cancelled_job_is_let_go(server):
    id, executor = running(server, "!sleep 0.1 !tokens 1000")
    assert server.call("DELETE", f"/summaries/v1/job/{id}").json()["code"] == "cancelled"
    assert ended(server, post(server, "!echo next"))["result"] == "next"
    assert job(server, id)["code"] == "cancelled" and server.children("executor") == [executor]


def test_a_stop_gives_jobs_back_and_a_start_has_them_done(server):
    id, executor = running(server)
    assert server.stop() == 0 and gone(executor)
    found = stored(server, id)
    assert (found.state, found.attempts) == ("pending", 0)
    server.start().ready()
    assert ended(server, id)["status"] == "success" and stored(server, id).attempts == 1


def test_an_executor_does_not_outlive_its_server(server):
    id, executor = running(server)
    server.stop(signal.SIGKILL)
    until(lambda: gone(executor))
    server.start().ready()
    assert ended(server, id)["status"] == "success"


def test_a_server_may_only_take_jobs(tmp_path):
    server = Server(make_home(tmp_path / "home"), ENABLED_MODULES="summaries:dispatcher", **SHORT).start().ready()
    try:
        id = post(server, "!echo a")
        time.sleep(0.5)
        assert job(server, id)["status"] == "pending" and server.children("executor") == []
    finally:
        server.end()


def test_a_failed_answer_is_tried_again_once_what_was_wrong_is_mended(server):
    """In a session, where an attempt finds what became of the one before it."""
    config = server.data / "config.json"
    small = json.loads(config.read_text())
    asked = {"prompt": "!echo " + "word " * 600, "session_id": "talk", "async": True}
    id = server.call("POST", "/answer", json=asked).json()["job_id"]
    failed = until(lambda: (found := server.call("GET", f"/jobs/{id}").json())["status"] == "error" and found)
    assert failed["code"] == "context_length_exceeded"
    config.write_text(json.dumps({**small, "one": {**small["one"], "n_ctx": 4096}}))
    until(lambda: server.call("GET", "/models").json()["profiles"]["one"]["n_ctx"] == 4096)
    assert server.call("POST", f"/jobs/{id}/retry").json()["status"] == "pending"
    done = until(lambda: (found := server.call("GET", f"/jobs/{id}").json())["ended"] and found)
    assert done["status"] == "success", done
    turns = server.call("GET", "/answer/talk").json()["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
