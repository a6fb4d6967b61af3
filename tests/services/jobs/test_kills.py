"""Rows P and X2 over the queue: executors killed, paused and cut off from their store; each job ends exactly once."""

import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from services.jobs.executor import Executor
from services.store.jobs import RUNNING, SUCCESS, Job
from tests import redis_server
from tests.conftest import ROOT
from tests.redis_server import needs_redis
from tests.services.jobs import killing

PATIENCE = 60.0


@pytest.fixture
def redis():
    with redis_server.running() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=needs_redis)])
def place(request, tmp_path):
    """Where the jobs are, as `killing` takes it."""
    return str(tmp_path) if request.param == "sqlite" else request.getfixturevalue("redis").url


def run(*words):
    return subprocess.Popen([sys.executable, "-m", "tests.services.jobs.killing", *map(str, words)], cwd=ROOT,
                            stdout=subprocess.PIPE, text=True)


def check(place, ledger, jobs):
    """Each job is done, and by one attempt alone."""
    lines = [line.split() for line in ledger.read_text().splitlines()]
    ends = Counter(id for word, id, _ in lines if word == "end")
    assert max(ends.values()) == 1
    by = {id: int(fence) for word, id, fence in lines if word == "end"}
    found = killing.store_at(place).all(None, limit=1000)
    assert len(found) == jobs and {job.state for job in found} == {SUCCESS}
    for job in found:
        assert job.result == job.fence == by.get(job.id, job.fence)     # none: killed before it could write its line
    return len(lines) - sum(ends.values())


def test_executors_killed_at_random_end_each_job_once(place, tmp_path):
    ledger = tmp_path / "ledger"
    assert run(place, ledger, 100, 50).wait(PATIENCE) == 0
    assert check(place, ledger, 100) > 100, "no kill hit a job at work"


@needs_redis
def test_a_redis_killed_at_work_ends_each_job_once(redis, tmp_path):
    ledger = tmp_path / "ledger"
    working = run(redis.url, ledger, 100, 0)
    assert working.stdout.readline() == "killed\n"
    for _ in range(3):
        time.sleep(0.2)
        redis.kill()
        redis.start()
    assert working.wait(PATIENCE) == 0
    check(redis.url, ledger, 100)


def test_a_paused_worker_cannot_end_what_another_did(place, tmp_path):
    ledger = tmp_path / "ledger"
    store = killing.store_at(place)
    store.put(Job(owner="k1", type="tiny", payload={"seconds": 1.0}, id="j0"))
    paused = run(place, ledger, "paused")
    try:
        while store.get("k1", "j0").state != RUNNING:
            assert paused.poll() is None
            time.sleep(0.01)
        paused.send_signal(signal.SIGSTOP)
        other = Executor(store, {"tiny": lambda job, tell: "the other's"}, "other", killing.RULES)
        while store.busy():
            other.step()
    finally:
        paused.send_signal(signal.SIGCONT)
        time.sleep(0.2)
        paused.terminate()
        assert paused.wait(PATIENCE) == 0
    found = store.get("k1", "j0")
    assert (found.result, found.attempts, found.worker) == ("the other's", 2, "other")
    assert "end" not in ledger.read_text()
