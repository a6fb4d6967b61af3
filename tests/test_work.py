"""`main.py work`: a gateway that only takes jobs, and an executor of another data folder, over one Redis."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.settings import Settings
from services.store.opening import open_jobs
from tests import redis_server
from tests.conftest import ROOT, Server, descendants, make_home
from tests.redis_server import needs_redis

pytestmark = needs_redis
SLOW = "!sleep 0.05 !tokens 40"         # 2 s
PATIENCE = 60.0


class Worker:
    """`main.py work` of a folder of its own."""

    def __init__(self, home, environment):
        self.environment = {**environment, "DATA_DIR": str(home / "data"), "MODELS_DIR": str(home / "models"),
                            "DRAIN_TIMEOUT": "0.2"}
        self.process = None

    def start(self):
        self.process = subprocess.Popen([sys.executable, str(ROOT / "main.py"), "work"], env=self.environment,
                                        stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline().startswith("Parley does jobs from Redis")
        return self

    def stop(self, number=signal.SIGTERM):
        children = descendants(self.process.pid)
        self.process.send_signal(number)
        status = self.process.wait(PATIENCE)
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
        return status


@pytest.fixture(scope="module")
def redis():
    with redis_server.running() as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory, redis):
    server = Server(make_home(tmp_path_factory.mktemp("gateway") / "home"), ENABLED_MODULES="summaries:dispatcher",
                    REDIS_URL=redis.url, STORE="redis", SUMMARY_MINIMUM_PAYLOAD_LENGTH="1").start().ready()
    yield server
    server.end()


@pytest.fixture(scope="module")
def worker(tmp_path_factory, server):
    worker = Worker(make_home(tmp_path_factory.mktemp("worker") / "home"), server.environment).start()
    yield worker
    if worker.process.poll() is None:
        worker.stop()


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
    return found


def post(server, text, key):
    reply = server.call("POST", "/summaries/v1/process-text", key, json={"text": text, "prompt": "Say it."})
    assert reply.status_code == 200, reply.text
    return reply.json()["id"]


def job(server, id, key):
    return server.call("GET", f"/summaries/v1/job/{id}", key).json()


def ended(server, id, key):
    return until(lambda: (found := job(server, id, key))["status"] in ("success", "error") and found)


def test_a_gateways_jobs_are_done_by_a_worker(server, worker, redis):
    key = server.make_key()
    id = post(server, "!echo what was said", key)
    assert ended(server, id, key)["result"] == "what was said" and server.children("executor") == []
    found = open_jobs(Settings(redis_url=redis.url)).get(None, id)
    assert found.worker == (Path(worker.environment["DATA_DIR"]) / "worker").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_ends_leaves_its_jobs_to_the_next(server, worker, number):
    key = server.make_key()
    id = post(server, SLOW, key)
    until(lambda: job(server, id, key)["status"] == "running")
    status, left = worker.stop(number), job(server, id, key)["status"]
    worker.start()
    assert (status, left) == ((0, "pending") if number == signal.SIGTERM else (-9, left)) and left != "success"
    assert ended(server, id, key)["status"] == "success"


def test_a_redis_that_was_killed_is_found_again(server, worker, redis):
    key = server.make_key()
    id = post(server, SLOW, key)
    until(lambda: job(server, id, key)["status"] == "running")
    redis.kill()
    reply = server.call("POST", "/summaries/v1/process-text", json={"text": "!echo a", "prompt": "Say it."})
    assert reply.status_code == 503 and reply.headers["Retry-After"]
    redis.start()
    done = ended(server, id, key)
    assert done["status"] == "success", done
    assert ended(server, post(server, "!echo after", key), key)["result"] == "after"


def test_without_redis_there_is_nothing_to_work_for(tmp_path):
    clean = {name: value for name, value in os.environ.items() if name != "DATA_KEY"}
    done = subprocess.run([sys.executable, str(ROOT / "main.py"), "work"], capture_output=True, text=True, timeout=60,
                          env={**clean, "DATA_DIR": str(tmp_path)})
    assert done.returncode == 1 and "set REDIS_URL and STORE=redis" in done.stderr
