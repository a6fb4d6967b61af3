"""What every store of jobs must do; each back-end's tests inherit it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import pytest

from services.errors import BadRequest, Conflict, NotFound, TooManyRequests
from services.store.jobs import (
    CALLBACK,
    CANCELLED,
    ERROR,
    HIGH,
    MAX_ATTEMPTS,
    PENDING,
    RUNNING,
    SUCCESS,
    Job,
    JobLost,
    JobStore,
    Limits,
    Sizes,
)

LEASE = 30.0


def job(id: str, owner: str = "k1", **more) -> Job:
    return Job(owner=owner, type=more.pop("type", "echo"), payload=more.pop("payload", {"text": id}), id=id, **more)


def take(store: JobStore, worker: str = "w", types=("echo",)) -> Job | None:
    return store.take(worker, types, LEASE)


def taken(store: JobStore, **more) -> Iterator[str]:
    """The ids in the order in which they are taken."""
    while (found := take(store, **more)) is not None:
        yield found.id


def watched(store: JobStore, seconds: float, begin: float, most: int = MAX_ATTEMPTS) -> int:
    """How many jobs are lost when the store is watched for so long, a look every 5 seconds."""
    return sum(store.requeue_lost(begin + 5.0 * n, most) for n in range(int(seconds / 5) + 1))


class JobsContract:
    """Subclasses give the fixtures `store` and `another`, which opens the same jobs as another process would; it
    takes `limits`."""

    def test_a_job_comes_back_as_it_was_put(self, store, another):
        before = time.time()
        put = store.put(job("a", payload={"text": "ä\0\n", "n": [1, 2.5, None, True]}, chunks_total=7))
        found = another().get("k1", "a")
        assert found == put and found.payload == {"text": "ä\0\n", "n": [1, 2.5, None, True]}
        assert before <= found.created <= time.time() and found.state == PENDING and not found.ended
        assert (found.chunks_done, found.chunks_total, found.start, found.end, found.result) == (0, 7, None, None, None)
        assert (found.attempts, found.worker, found.callback, found.duration) == (0, None, None, 0.0)

    def test_ids_are_an_owners_own_and_used_once(self, store):
        store.put(job("same"))
        store.put(job("same", owner="k2", payload={"text": "other"}))
        with pytest.raises(Conflict, match="Job ID already exists") as told:
            store.put(job("same"))
        assert told.value.code == "job_exists"
        assert store.get("k1", "same").payload == {"text": "same"}
        assert store.get("k2", "same").payload == store.get(None, "same").payload == {"text": "other"}
        for owner, id in (("k3", "same"), ("k1", "none"), (None, "none")):
            with pytest.raises(NotFound, match="Job not found"):
                store.get(owner, id)
            with pytest.raises(NotFound):
                store.cancel(owner, id)
        for wrong in ("", "x" * 65, "a/b", "a b", "é", "a\n", "a:b"):
            with pytest.raises(BadRequest) as refused:
                store.put(job(wrong))
            assert refused.value.param == "job_id"

    def test_a_used_id_stays_used_until_it_is_swept(self, store):
        store.put(job("a"))
        store.finish(take(store), SUCCESS, "done")
        with pytest.raises(Conflict):
            store.put(job("a"))
        assert store.sweep(time.time() + 1e6) == 1
        store.put(job("a"))

    def test_lists_are_an_owners_newest_first_without_payload(self, store):
        for n in range(5):
            store.put(job(f"a{n}", owner=f"k{n % 2}", type="summary" if n < 4 else "echo"))
        ended = store.finish(store.take("w", ["summary"], LEASE), SUCCESS, {"text": "short"})
        assert [one.id for one in store.all(None)] == ["a4", "a3", "a2", "a1", "a0"]
        assert [one.id for one in store.all("k0")] == ["a4", "a2", "a0"]
        assert [one.id for one in store.all("k0", states=[PENDING])] == ["a4", "a2"]
        assert [one.id for one in store.all("k0", types=["summary"])] == ["a2", "a0"]
        assert [one.id for one in store.all(None, limit=2)] == ["a4", "a3"]
        third = store.get("k0", "a2")
        assert [one.id for one in store.all(None, limit=1, before=third.number)] == ["a1"]
        assert store.all(None, states=[SUCCESS]) == [replace(ended, payload={})] and store.all("none") == []

    def test_high_before_normal_and_the_oldest_first(self, store):
        for id, priority in (("a", "normal"), ("b", HIGH), ("c", "normal"), ("d", HIGH)):
            store.put(job(id, priority=priority))
        assert store.sizes() == store.sizes("k1") == Sizes(normal=2, high=2) and store.sizes("k2") == Sizes()
        assert list(taken(store)) == ["b", "d", "a", "c"]
        assert store.sizes() == Sizes(running=4)

    def test_owners_take_turns(self, store):
        for n in range(4):
            store.put(job(f"a{n}"))
        assert [take(store).id, take(store).id] == ["a0", "a1"]
        for n in range(2):
            store.put(job(f"b{n}", owner="k2"))
        store.put(job("c", owner="k3"))
        assert list(taken(store)) == ["a2", "b0", "c", "a3", "b1"]

    def test_only_the_types_that_are_asked_for_are_taken(self, store):
        store.put(job("a", type="summary"))
        store.put(job("b"))
        assert list(taken(store)) == ["b"] and take(store, types=()) is None
        assert list(taken(store, types=("x", "summary"))) == ["a"]

    def test_an_attempt_is_seen(self, store, another):
        store.put(job("a"))
        found = take(store, worker="here")
        assert (found.state, found.worker, found.attempts) == (RUNNING, "here", 1) and found.payload == {"text": "a"}
        assert another().get("k1", "a") == found
        store.renew(found, LEASE, 2, 9)
        seen = another().get("k1", "a")
        assert (seen.chunks_done, seen.chunks_total) == (2, 9)

    def test_a_job_ends_once(self, store, another):
        store.put(job("a"))
        found = take(store)
        ended = store.finish(found, SUCCESS, {"text": "short", "items": [1]})
        assert another().get("k1", "a") == replace(ended, payload={"text": "a"})
        assert ended.ended and ended.result == {"text": "short", "items": [1]} and ended.duration >= 0
        assert store.finish(found, SUCCESS, {"text": "short"}).state == SUCCESS     # its reply was lost
        for act in (lambda: store.finish(found, ERROR, "no"), lambda: store.renew(found, LEASE),
                    lambda: store.release(found)):
            with pytest.raises(JobLost):
                act()
        assert store.get("k1", "a").result == {"text": "short", "items": [1]} and take(store) is None
        assert store.cancel("k1", "a").state == SUCCESS

    def test_a_failed_job_is_a_dead_letter_with_its_reason(self, store):
        store.put(job("a"))
        store.put(job("b", owner="k2"))
        store.finish(take(store), ERROR, "the text is empty", "bad_text")
        letter, = store.all(None, states=[ERROR])
        assert (letter.id, letter.result, letter.code) == ("a", "the text is empty", "bad_text")
        assert store.all("k2", states=[ERROR]) == [] and store.sizes().dead == 1

    def test_a_failed_job_is_tried_again_as_if_asked_for_now(self, store, another):
        where = {"url": "https://hook.example/"}
        store.put(job("a", priority=HIGH, callback=where))
        failed = store.finish(take(store), ERROR, "why", "bad_text")
        store.tell_callback(failed, {**where, "state": "failed", "error": "HTTP 500"})
        store.put(job("b", priority=HIGH))
        store.put(job("c", "k2", priority=HIGH))
        again = another().retry("k1", "a")
        store.tell_callback(failed, {**where, "state": "delivered"})        # it was on its way, of the old end
        assert again == store.get("k1", "a") and again.payload == {"text": "a"} and again.priority == HIGH
        assert (again.state, again.fence, again.attempts) == (PENDING, 1, 0)
        assert again.callback == {**where, "state": PENDING}
        assert (again.result, again.code, again.start, again.end, again.expires) == (None,) * 5
        assert again.number > failed.number and store.all(None)[0].id == "a"
        assert store.all(None, states=[ERROR]) == [] and store.sizes() == Sizes(high=3)
        assert list(taken(store)) == ["b", "c", "a"]
        running = store.get("k1", "a")
        assert (running.state, running.fence, running.attempts) == (RUNNING, 2, 1)
        for act in (lambda: store.finish(failed, SUCCESS), lambda: store.renew(failed, LEASE)):
            with pytest.raises(JobLost):
                act()
        store.finish(running, SUCCESS, "well")
        told = [take(store, types=(CALLBACK,)).payload for _ in range(2)]
        assert told == [{"job": "a", "fence": 1}, {"job": "a", "fence": 2}]
        assert store.get("k1", "a").result == "well" and store.sweep(time.time() + 1900) == 1

    def test_only_a_failed_job_is_tried_again_and_once(self, store, another):
        for id in ("good", "running", "gone", "bad", "waiting"):
            store.put(job(id))
        store.finish(take(store), SUCCESS)
        take(store)
        store.cancel("k1", "gone")
        bad = store.finish(take(store), ERROR, "why")
        for id in ("good", "running", "gone", "waiting"):
            with pytest.raises(Conflict, match="only a failed job") as told:
                store.retry(None, id)
            assert told.value.code == "job_not_failed"
        for owner, id in (("k1", "none"), ("k2", "bad")):
            with pytest.raises(NotFound):
                store.retry(owner, id)
        done: list[str] = []

        def retry(mine: JobStore) -> None:
            with suppress(Conflict):
                done.append(mine.retry(None, "bad").id)

        threads = [threading.Thread(target=retry, args=(another(),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert done == ["bad"] and list(taken(store)) == ["waiting", "bad"]
        with pytest.raises(Conflict):
            store._again(replace(bad, state=PENDING))           # found failed before another tried it again

    def test_a_key_may_have_so_many_jobs_with_those_that_are_tried_again(self, another):
        store = another(limits=Limits(per_owner=1))
        store.put(job("a"))
        store.finish(take(store), ERROR, "why")
        store.put(job("b"))
        with pytest.raises(TooManyRequests):
            store.retry("k1", "a")
        assert store.get("k1", "a").result == "why" and store.all("k1", states=[ERROR])[0].id == "a"
        store.cancel("k1", "b")
        assert store.retry("k1", "a").state == PENDING

    def test_a_cancelled_job_is_not_taken_nor_ended_by_its_worker(self, store, another):
        for id in ("a", "b"):
            store.put(job(id))
        running = take(store)
        assert another().cancel("k1", "a").state == another().cancel(None, "b").state == CANCELLED
        with pytest.raises(JobLost):
            store.renew(running, LEASE)
        with pytest.raises(JobLost):
            store.finish(running, SUCCESS, "late")
        assert take(store) is None
        found = store.get("k1", "b")
        assert found.state == store.cancel("k1", "b").state == CANCELLED and found.end and found.result is None
        assert store.sizes() == Sizes()

    def test_what_is_given_back_comes_first_and_counts_no_attempt(self, store):
        for id in ("a", "b", "c"):
            store.put(job(id))
        first, second = take(store), take(store)
        store.put(job("h", priority=HIGH))
        store.release(second)
        store.release(first)
        with pytest.raises(JobLost):
            store.finish(first, SUCCESS)
        assert store.sizes() == Sizes(normal=3, high=1)
        again = take(store)
        assert (again.id, again.attempts, again.fence) == ("a", 1, 2)
        assert list(taken(store)) == ["b", "h", "c"]

    def test_what_lets_others_have_a_turn_waits_behind_them(self, store):
        for put in (job("slow"), job("own"), job("urgent", priority=HIGH), job("other", "k2")):
            store.put(put)
        urgent, slow = take(store), take(store)
        assert (urgent.id, slow.id) == ("urgent", "slow")
        store.release(slow, back=True)
        assert store.get("k1", "slow").attempts == 0
        store.release(urgent, back=True)
        assert list(taken(store)) == ["urgent", "other", "own", "slow"]

    def test_what_lets_others_have_a_turn_for_a_while_does_so_then_too(self, store):
        store.put(job("slow"))
        slow = take(store)
        store.put(job("a"))
        store.put(job("b", "k2"))
        store.release(slow, 0.05, back=True)
        time.sleep(0.06)
        assert list(taken(store)) == ["a", "b", "slow"]

    def test_another_attempt_waits_for_its_time(self, store):
        store.put(job("a"))
        store.put(job("b"))
        store.release(take(store), 600.0, counted=True)
        assert list(taken(store)) == ["b"] and store.sizes() == Sizes(normal=1, delayed=1, running=1)
        store.put(job("c"))
        store.release(take(store), 0.001, counted=True)
        deadline = time.monotonic() + 5
        while (found := take(store)) is None and time.monotonic() < deadline:
            store.wait(0.01)
        assert (found.id, found.attempts) == ("c", 2)

    def test_the_jobs_of_a_dead_executor_go_on_at_the_front(self, store, another):
        for id in ("a", "b", "c"):
            store.put(job(id))
        dead, alive = take(store), take(store)
        other = another()
        assert watched(other, LEASE - 5, 100.0) == 0
        store.renew(alive, LEASE)
        assert watched(other, LEASE - 5, 100.0 + LEASE) == 1
        with pytest.raises(JobLost):
            store.finish(dead, SUCCESS, "late")
        again = take(other)
        assert (again.id, again.attempts, again.fence) == ("a", 2, 2)
        with pytest.raises(JobLost):
            store.renew(dead, LEASE)
        assert store.finish(alive, SUCCESS).state == other.finish(again, SUCCESS).state == SUCCESS

    def test_what_kills_its_executors_is_given_up(self, store):
        store.put(job("poison"))
        for attempt in range(3):
            assert take(store).attempts == attempt + 1
            assert watched(store, LEASE, attempt * 1000.0, most=3) == 1
        letter, = store.all(None, states=[ERROR])
        assert letter.id == "poison" and letter.code == "job_lost" and "3 attempts" in letter.result
        assert take(store) is None and letter.end and letter.expires > letter.end

    def test_a_worker_that_starts_again_takes_back_what_it_had(self, store):
        store.put(job("a"))
        store.put(job("b"))
        take(store, worker="one")
        take(store, worker="two")
        assert store.busy()
        assert store.requeue_worker("one") == 1 and store.requeue_worker("one") == 0
        assert list(taken(store)) == ["a"]

    def test_clocks_that_jump_lose_no_job(self, store, monkeypatch):
        store.put(job("a"))
        store.put(job("b"))
        running = take(store)
        assert [store.requeue_lost(now) for now in (10.0, 1e6, 1e9)] == [0, 0, 0]     # the watcher slept
        store.renew(running, LEASE)
        assert store.requeue_lost(1e9) == 0
        real = time.time
        for jump in (86400.0, -86400.0, -3600.0):
            monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
            assert store.requeue_lost(1e9 + 1) == 0
            store.renew(running, LEASE)
            store.put(job(f"c{abs(jump)}{jump < 0}"))
        store.finish(running, SUCCESS)
        assert len(list(taken(store))) == 4

    def test_ended_jobs_expire_and_failed_ones_later(self, another):
        store = another(limits=Limits(kept=1800, failed_kept=9000))
        for id in ("good", "bad", "gone", "running", "waiting"):
            store.put(job(id))
        store.finish(take(store), SUCCESS)
        store.finish(take(store), ERROR, "why")
        store.cancel("k1", "gone")
        take(store)
        now = time.time()
        assert store.sweep(now + 1700) == 0 and store.sweep(now + 1900) == 2 and store.sweep(now + 9100) == 1
        assert [one.id for one in store.all(None)] == ["waiting", "running"]

    def test_a_key_may_have_so_many_jobs(self, another):
        store = another(limits=Limits(per_owner=2))
        assert not store.busy()
        store.put(job("a", callback={"url": "https://a.example"}))
        store.put(job("b"))
        with pytest.raises(TooManyRequests) as told:
            store.put(job("c"))
        assert told.value.code == "too_many_jobs"
        store.put(job("c", owner="k2"))
        store.finish(take(store), SUCCESS)
        store.put(job("c"))

    def test_a_callback_is_a_job_of_its_own_once_the_job_ended(self, store, another):
        where = {"url": "https://hook.example/?token=1"}
        for id in ("good", "bad", "gone"):
            store.put(job(id, callback=where))
        assert store.get("k1", "good").callback == {**where, "state": PENDING}
        assert take(store, types=(CALLBACK,)) is None
        first = take(store)
        store.finish(first, SUCCESS)
        store.finish(first, SUCCESS)
        store.finish(take(store), ERROR, "why")
        store.cancel("k1", "gone")
        assert [one.id for one in store.all("k1")] == ["gone", "bad", "good"]
        assert store.sizes() == Sizes(dead=1) and store.busy()
        told = [take(store, types=(CALLBACK,)) for _ in range(3)]
        assert [one and one.payload for one in told] == [{"job": "good", "fence": 1}, {"job": "bad", "fence": 1}, None]
        store.tell_callback(store.get("k1", "good"), {**where, "state": "delivered"})
        store.tell_callback(job("none"), {})
        assert another().get("k1", "good").callback == {**where, "state": "delivered"}

    def test_a_job_given_up_tells_its_callback(self, store):
        store.put(job("a", callback={"url": "https://hook.example/"}))
        take(store)
        watched(store, LEASE, 0.0, most=1)
        assert take(store, types=(CALLBACK,)).payload == {"job": "a", "fence": 1}

    def test_waiting_ends_when_there_is_work(self, store, another):
        other = another()
        store.wait(0)
        while take(store):
            pass
        began = time.monotonic()
        threading.Timer(0.05, lambda: other.put(job("a"))).start()
        while (found := take(store)) is None and time.monotonic() < began + 20:
            store.wait(20)
        assert found.id == "a" and time.monotonic() - began < 10

    def test_many_workers_share_the_jobs_and_none_twice(self, store, another):
        for n in range(60):
            store.put(job(f"j{n}", owner=f"k{n % 3}"))
        done: list[tuple[str, str]] = []

        def work(mine: JobStore, name: str) -> None:
            while (found := take(mine, worker=name)) is not None:
                mine.finish(found, SUCCESS, name)
                done.append((found.owner, found.id))

        threads = [threading.Thread(target=work, args=(another(), f"w{n}")) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(done) == len(set(done)) == 60 and store.sizes() == Sizes()
