"""The executor over a SQLite store, with handlers of the test's own."""

import sqlite3
import threading
import time
from dataclasses import replace

import pytest

from services.errors import BadRequest, QuotaSpent, RunnerCrashed, SessionBusy, TooManyRequests, Unavailable
from services.jobs.executor import Executor, Later, Rules, TimedOut
from services.store.jobs import CALLBACK, CANCELLED, ERROR, HIGH, PENDING, RUNNING, SUCCESS, Job, JobLost
from services.store.jobs_sqlite import SqliteJobs

QUICK = Rules(beat=0.02, house=0.05, look=0.05, lease=5.0)
PATIENCE = 20.0


@pytest.fixture
def store(tmp_path):
    store = SqliteJobs(tmp_path)
    yield store
    store.close()


@pytest.fixture
def started(store):
    """Start executors; they are stopped at the end."""
    running = []

    def start(handlers, rules=QUICK, worker="w", over=store):
        executor = Executor(over, handlers, worker, rules)
        thread = threading.Thread(target=executor.run, daemon=True)
        thread.start()
        running.append((executor, thread))
        return executor, thread

    yield start
    for executor, _ in running:
        executor.stop(0.0)
    for _, thread in running:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def put(store, id, type="echo", **more):
    return store.put(Job(owner="k1", type=type, payload=more.pop("payload", {}), id=id, **more))


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.01)
    return found


def ended(store, id):
    def look():
        job = store.get("k1", id)
        return job if job.ended else None
    return until(look)


def test_jobs_are_done_by_the_handler_of_their_type(store, started):
    put(store, "a", payload={"text": "abc"})
    put(store, "b", "shout", payload={"text": "abc"})
    put(store, "c", "unknown")
    started({"echo": lambda job, tell: job.payload, "shout": lambda job, tell: job.payload["text"].upper()})
    assert ended(store, "a").result == {"text": "abc"} and ended(store, "b").result == "ABC"
    put(store, "later")
    assert ended(store, "later").state == SUCCESS and store.get("k1", "c").state == PENDING


def test_no_more_at_once_than_is_allowed(store, started):
    most, running, lock, gate = [0], [0], threading.Lock(), threading.Event()

    def handle(job, tell):
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        gate.wait(PATIENCE)
        with lock:
            running[0] -= 1

    for n in range(6):
        put(store, f"j{n}")
    started({"echo": handle}, Rules(concurrency=2, beat=0.02, look=0.02))
    until(lambda: running[0] == 2)
    put(store, "first", priority=HIGH)
    gate.set()
    jobs = [ended(store, id) for id in ("j0", "j1", "first", "j5")]
    assert most[0] == 2 and jobs[2].start <= jobs[3].start


def test_progress_is_seen_and_a_cancel_reaches_the_handler(store, started):
    stopped = threading.Event()

    def handle(job, tell):
        try:
            while True:
                tell(3, 7)
                time.sleep(0.005)
        finally:
            stopped.set()

    put(store, "a")
    started({"echo": handle})
    until(lambda: (store.get("k1", "a").chunks_done, store.get("k1", "a").chunks_total) == (3, 7))
    store.cancel("k1", "a")
    assert stopped.wait(PATIENCE) and ended(store, "a").state == CANCELLED


def test_the_last_progress_is_kept(store, started):
    put(store, "a")
    started({"echo": lambda job, tell: tell(7, 7)})
    assert (ended(store, "a").chunks_done, store.get("k1", "a").chunks_total) == (7, 7)


def test_an_attempt_that_takes_too_long_is_an_error(store, started):
    raised = []

    def handle(job, tell):
        try:
            while True:
                tell(0, 0)
                time.sleep(0.005)
        except JobLost as error:
            raised.append(type(error))
            raise

    put(store, "a")
    started({"echo": handle}, Rules(timeout=0.1, beat=0.02, look=0.02))
    found = ended(store, "a")
    assert (found.state, found.result, found.code) == (ERROR, "Job timed out", "job_timeout")
    assert until(lambda: raised) == [TimedOut]


def test_a_handler_that_hangs_ends_the_executor_and_gives_the_others_back(store, started):
    gate = threading.Event()
    put(store, "hangs")
    executor, thread = started({"echo": lambda job, tell: gate.wait(PATIENCE)},
                               Rules(timeout=0.05, stuck=0.1, beat=0.02, look=0.02))
    ended(store, "hangs")
    thread.join(PATIENCE)
    assert not thread.is_alive() and executor._stuck()
    gate.set()


def test_errors_of_the_job_are_its_end(store, started):
    def handle(job, tell):
        if job.id == "a":
            raise BadRequest("the text is empty", code="bad_text")
        if job.id == "b":
            raise QuotaSpent("the key's tokens are spent")
        if job.id == "c":
            raise ValueError("secret detail")
        return {"not": {"json"}}

    for id in "abcd":
        put(store, id)
    started({"echo": handle})
    assert [(ended(store, id).state, ended(store, id).code) for id in "abcd"] == [
        (ERROR, "bad_text"), (ERROR, "insufficient_quota"), (ERROR, "internal_error"), (ERROR, "internal_error")]
    assert store.get("k1", "a").result == "the text is empty" and "secret" not in store.get("k1", "c").result
    assert [one.id for one in store.all(None, states=[ERROR])] == ["d", "c", "b", "a"]


@pytest.mark.parametrize("error", [
    Unavailable("busy", retry_after=0.01), TooManyRequests("busy", retry_after=0.01),
    SessionBusy("busy", retry_after=0.01)])
def test_what_has_no_room_now_is_tried_again_and_counts_no_attempt(store, started, error):
    tries = []

    def handle(job, tell):
        tries.append(job.attempts)
        if len(tries) < 8:
            raise error
        return "at last"

    put(store, "a")
    started({"echo": handle})
    assert ended(store, "a").result == "at last" and tries == [1] * 8


def test_what_never_has_room_is_given_up(store, started, monkeypatch):
    monkeypatch.setattr("services.jobs.executor.PATIENCE", 0.0)

    def handle(job, tell):
        raise Unavailable("the model does not load", code="runner_failed")

    put(store, "a")
    started({"echo": handle})
    assert (ended(store, "a").state, ended(store, "a").code) == (ERROR, "runner_failed")


def test_what_crashes_its_runner_has_so_many_attempts(store, started, monkeypatch):
    waits = []
    monkeypatch.setattr(store, "release", lambda job, delay=0.0, counted=False, back=False: (
        waits.append((delay, counted)), SqliteJobs.release(store, job, 0.0, counted=counted)))

    def handle(job, tell):
        raise RunnerCrashed("killed by SIGSEGV")

    put(store, "a")
    started({"echo": handle})
    assert ended(store, "a").code == "runner_crashed" and store.get("k1", "a").attempts == 5
    assert waits == [(2.0, True), (4.0, True), (8.0, True), (16.0, True)]


def test_a_handler_may_ask_for_another_time(store, started):
    def handle(job, tell):
        if job.attempts < 3:
            raise Later(0.01)
        return job.attempts

    put(store, "a")
    started({"echo": handle})
    assert ended(store, "a").result == 3


def test_a_handler_may_let_others_have_a_turn(store, started):
    done = []

    def handle(job, tell):
        done.append(job.id)
        if job.id == "slow" and done.count("slow") < 3:
            raise Later(0.0, counted=False, back=True)

    for id in ("slow", "a", "b"):
        put(store, id)
    started({"echo": handle}, replace(QUICK, concurrency=1))
    assert ended(store, "slow").attempts == 1
    assert done.index("a") < 3 and done[-1] == "slow"


def test_a_suspect_runs_alone(store, started):
    together, running, lock = {}, set(), threading.Lock()

    def handle(job, tell):
        with lock:
            running.add(job.id)
            for id in running:
                together.setdefault(id, set()).update(running)
        time.sleep(0.03)
        with lock:
            running.discard(job.id)

    put(store, "suspect")
    for _ in range(2):
        store.release(store.take("w", ["echo"], 5.0), counted=True)
    for n in range(6):
        put(store, f"j{n}")
    started({"echo": handle})
    for n in range(6):
        ended(store, f"j{n}")
    assert together["suspect"] == {"suspect"} and store.get("k1", "suspect").state == SUCCESS


def test_a_suspect_that_is_cancelled_while_it_waits_is_not_begun(store):
    begun, gate = [], threading.Event()

    def handle(job, tell):
        begun.append(job.id)
        gate.wait(PATIENCE)

    put(store, "long")
    executor = Executor(store, {"echo": handle}, "w", replace(QUICK, beat=0.0, stuck=0.05))
    executor.step()
    put(store, "suspect")
    for _ in range(2):
        store.release(store.take("w", ["echo"], 5.0), counted=True)
    executor.step()
    assert store.get("k1", "suspect").state == RUNNING
    store.cancel("k1", "suspect")
    executor.step()
    time.sleep(0.06)
    put(store, "next")
    gate.set()
    ended(store, "long")

    def done():
        executor.step()
        assert not executor._stuck()
        return store.get("k1", "next").state == SUCCESS
    until(done)
    assert begun == ["long", "next"]


def test_what_waited_for_long_in_the_queue_is_not_given_up_for_that(store, started):
    tries = []

    def handle(job, tell):
        tries.append(1)
        if len(tries) < 3:
            raise Unavailable("busy", retry_after=0.01)

    put(store, "a")
    with sqlite3.connect(store.path) as db:
        db.execute("UPDATE jobs SET created = created - 7200")
    started({"echo": handle})
    assert ended(store, "a").state == SUCCESS


def test_a_stop_gives_the_running_jobs_back_at_once_and_uncounted(store, started):
    working = threading.Event()

    def handle(job, tell):
        working.set()
        while True:
            tell(1, 2)
            time.sleep(0.005)

    put(store, "a")
    put(store, "b")
    executor, thread = started({"echo": handle}, Rules(concurrency=1, beat=0.02, look=0.02))
    assert working.wait(PATIENCE)
    executor.stop(0.0)
    thread.join(PATIENCE)
    again = store.take("other", ["echo"], 5.0)
    assert (again.id, again.attempts, again.fence) == ("a", 1, 2)


def test_a_stop_waits_for_what_is_about_to_end(store):
    began, gate = threading.Event(), threading.Event()

    def handle(job, tell):
        began.set()
        gate.wait(PATIENCE)
        return "done"

    put(store, "a")
    executor = Executor(store, {"echo": handle}, "w", QUICK)
    thread = threading.Thread(target=executor.run)
    thread.start()
    began.wait(PATIENCE)
    executor.stop(PATIENCE)
    threading.Timer(0.05, gate.set).start()
    thread.join(PATIENCE)
    assert store.get("k1", "a").result == "done"


def test_a_store_that_is_away_loses_no_result(store, started, monkeypatch):
    away = threading.Event()
    real = SqliteJobs._transaction

    def failing(self):
        if away.is_set():
            raise Unavailable("the store is away", code="store_failed")
        return real(self)

    working, gate = threading.Event(), threading.Event()

    def handle(job, tell):
        working.set()
        gate.wait(PATIENCE)
        return "kept"

    put(store, "a")
    started({"echo": handle})
    assert working.wait(PATIENCE)
    monkeypatch.setattr(SqliteJobs, "_transaction", failing)
    away.set()
    gate.set()
    time.sleep(0.2)
    assert store.get("k1", "a").state == RUNNING
    away.clear()
    assert ended(store, "a").result == "kept"


def test_what_a_dead_executor_had_goes_on_at_once_when_it_starts_again(store, started):
    put(store, "a")
    store.take("w", ["echo"], 1000.0)
    started({"echo": lambda job, tell: "done"}, worker="w")
    assert ended(store, "a").attempts == 2


def test_two_executors_share_a_store(store, started, tmp_path):
    names = []
    for n in range(40):
        put(store, f"j{n}")
    for name in ("one", "two"):
        started({"echo": lambda job, tell: names.append((job.id, job.worker))}, worker=name, over=SqliteJobs(tmp_path))
    for n in range(40):
        assert ended(store, f"j{n}").state == SUCCESS
    assert len({id for id, _ in names}) == len(names) == 40


def test_callbacks_do_not_wait_for_jobs(store, started):
    gate = threading.Event()
    put(store, "a", callback={"url": "https://hook.example"})
    store.finish(store.take("w", ["echo"], 5.0), SUCCESS)
    for n in range(3):
        put(store, f"j{n}")
    told = []
    started({"echo": lambda job, tell: gate.wait(PATIENCE), CALLBACK: lambda job, tell: told.append(job.payload)},
            Rules(concurrency=1, beat=0.02, look=0.02))
    until(lambda: told == [{"job": "a", "fence": 1}])
    gate.set()


def test_an_engine_that_ends_with_the_executor_costs_no_attempt(store, started):
    working, gate = threading.Event(), threading.Event()

    def handle(job, tell):
        working.set()
        gate.wait(PATIENCE)
        raise RunnerCrashed("the engine stops")

    put(store, "a")
    executor, thread = started({"echo": handle})
    assert working.wait(PATIENCE)
    executor.stop(PATIENCE)
    gate.set()
    thread.join(PATIENCE)
    assert (store.get("k1", "a").state, store.get("k1", "a").attempts) == (PENDING, 0)
