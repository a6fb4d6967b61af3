"""Batches: which files are none, and how their lines are answered, slice by slice, whatever breaks off."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace

import pytest

from services.errors import BadRequest, Forbidden, Unavailable
from services.jobs import batches
from services.jobs.batches import BATCH, FAILED, FILE, OK, Counts, counted, handler, lines_of, output
from services.jobs.executor import Later
from services.jobs.requests import Reply
from services.store.jobs import MAX_DELAY, Job, JobLost
from services.store.uploads_sqlite import SqliteUploads

CHAT = "/v1/chat/completions"


def line(id, url=CHAT, **body):
    return json.dumps({"custom_id": id, "method": "POST", "url": url, "body": body or {"n": id}}).encode()


@pytest.mark.parametrize(("text", "said"), [
    (b"{", "line 1 of the file: is not JSON"), (b"[]", "should be a JSON object"),
    (b'{"body": {}}', "custom_id should be"), (b'{"custom_id": "", "body": {}}', "custom_id should be"),
    (line("a") + b"\n\n" + line("a"), "line 3 of the file: custom_id 'a' is there twice"),
    (line("a", "/v1/embeddings"), "url is '/v1/embeddings', but the batch's endpoint is '/v1/chat/completions'"),
    (b'{"custom_id": "a", "body": []}', "body should be"), (line("a", stream=True), "have no place in a batch"),
    (b'{"custom_id": "a", "method": "GET", "body": {}}', 'method should be "POST"'), (b" \n", "the file has no line")])
def test_a_file_that_is_no_batch_is_told_by_its_line(text, said):
    with pytest.raises(BadRequest) as caught:
        lines_of(text, CHAT)
    assert said in caught.value.message and caught.value.code == "bad_batch"


def test_too_many_lines_are_refused(monkeypatch):
    monkeypatch.setattr(batches, "MOST_LINES", 2)
    assert len(lines_of(line("a") + b"\n" + line("b") + b"\n", CHAT)) == 2
    with pytest.raises(BadRequest, match="has 3 lines"):
        lines_of(b"\n".join(line(id) for id in "abc"), CHAT)


class Keys:
    revoked, scopes = None, ("answer",)

    def get(self, owner):
        return SimpleNamespace(id=owner, revoked_at=self.revoked, scopes=self.scopes, ends=lambda: time.time() + 60)


class Door:
    """Answers each line with its body; `replies` says otherwise by the line's id."""

    def __init__(self):
        self.asked, self.replies, self.lock = [], {}, threading.Lock()

    def __call__(self, request, check):
        check()
        with self.lock:
            self.asked.append(request.body["n"])
        special = self.replies.get(request.body["n"])
        return special(check) if special else Reply(200, {"said": request.body["n"]}, "r1")


class House:
    def __init__(self, folder, *ids, endpoint=CHAT, **body):
        self.uploads, self.keys, self.door, self.told = SqliteUploads(folder), Keys(), Door(), []
        self.uploads.put("k1", "file-1", FILE, {"name": "in.jsonl"}, [b"\n".join(
            line(id, endpoint, n=id, **body) for id in ids)])
        self.uploads.put("k1", "batch_1", BATCH, {"input_file_id": "file-1", "endpoint": endpoint, "total": len(ids)})

    def work(self, seconds=60.0, tell=None):
        job = Job(owner="k1", type=BATCH, payload={"batch": "batch_1"}, created=time.time())
        return handler(self.uploads, self.keys, self.door, seconds)(job, tell or (lambda *told: self.told.append(told)))

    @property
    def batch(self):
        return self.uploads.get("k1", "batch_1")

    def lines(self, mark=OK):
        return [json.loads(text) for text in output(self.uploads, self.batch, mark)]


@pytest.fixture
def house(tmp_path):
    return House(tmp_path, *"abcdefghijkl")


def test_every_line_is_answered_once(house):
    assert house.work() == {"text": "12 of 12 requests were answered", "completed": 12, "failed": 0}
    assert sorted(house.door.asked) == list("abcdefghijkl") and house.told[-1] == (12, 12)
    first = min(house.lines(), key=lambda one: one["custom_id"])
    assert first["response"] == {"status_code": 200, "request_id": "r1", "body": {"said": "a"}}
    assert first["error"] is None and first["id"].startswith("batch_req_")
    assert house.batch.about["in_progress_at"] <= house.batch.about["completed_at"]
    house.uploads.pieces = lambda *_: pytest.fail("the answers are read")
    assert counted(house.uploads, house.batch) == Counts(12, 12, 0)


def test_what_is_refused_is_among_the_errors(house):
    house.door.replies["c"] = lambda check: Reply(400, {"error": {"code": "x", "message": "no"}})
    assert house.work()["failed"] == 1
    assert [one["response"]["status_code"] for one in house.lines(FAILED)] == [400] and len(house.lines()) == 11


def test_a_slice_ends_and_the_next_goes_on(house):
    slices = 0
    while True:
        try:
            house.work(seconds=0.0 if slices % 2 else 0.02)
            break
        except Later as later:
            assert not later.counted
            slices += 1
            assert slices < 30
        for id in house.door.asked:
            house.door.replies[id] = lambda check: pytest.fail("asked twice")
    assert counted(house.uploads, house.batch) == Counts(12, 12, 0) and len(house.door.asked) == 12


def test_what_was_cut_short_goes_on_without_asking_again(house):
    def lost(done, _total):
        if done >= 4:
            raise JobLost("batch_1")
    with pytest.raises(JobLost):
        house.work(tell=lost)
    before = {one["custom_id"] for one in house.lines()}
    assert 4 <= len(before) <= 12
    house.door.asked.clear()
    house.work()
    assert not before & {*house.door.asked} and len(house.lines()) == 12


@pytest.mark.parametrize(("status", "code", "after"), [
    (429, "rate_limited", 0.01), (503, "busy", 0.01), (409, "session_busy", None)])
def test_who_is_told_to_wait_waits(house, monkeypatch, status, code, after):
    monkeypatch.setattr(batches, "BEAT", 0.01)
    tries = []

    def busy(check):
        tries.append(1)
        return Reply(status, {"error": {"code": code}}, "", after) if len(tries) < 3 else Reply(200, {})
    house.door.replies["b"] = busy
    assert house.work()["completed"] == 12 and len(tries) == 3


def test_a_line_that_waits_ends_with_its_batch(house, monkeypatch):
    monkeypatch.setattr(batches, "BEAT", 0.01)
    house.door.replies["a"] = lambda check: Reply(429, {"error": {}}, "", 50.0)

    def lost(done, _total):
        if done == 11:
            raise JobLost("batch_1")
    with pytest.raises(JobLost):
        house.work(tell=lost)
    assert len(house.lines()) == 11


def test_after_a_day_what_is_left_has_expired(house, monkeypatch):
    monkeypatch.setattr(batches, "DAY", -1.0)
    assert house.work()["failed"] == 12 and house.door.asked == []
    assert house.lines(FAILED)[0]["error"]["code"] == "batch_expired" and "expired_at" in house.batch.about


def test_a_batch_whose_file_was_deleted_says_so(house):
    house.uploads.delete("k1", "file-1")
    with pytest.raises(Forbidden, match="its input file was deleted"):
        house.work()


def test_a_batch_that_was_deleted_ends(house):
    house.uploads.delete("k1", "batch_1")
    with pytest.raises(Forbidden, match="was deleted"):
        house.work()


@pytest.mark.parametrize("code", ["draining", "supervisor_down"])
def test_a_batch_does_not_keep_a_server_from_stopping(house, code):
    house.door.replies["b"] = lambda check: Reply(503, {"error": {"code": code}}, "", 2.0)
    with pytest.raises(Later) as caught:
        house.work()
    assert caught.value.delay == 2.0 and not caught.value.counted and len(house.door.asked) <= batches.LANES + 1


def test_who_is_told_to_wait_for_long_waits_without_a_place(house):
    house.door.replies["b"] = lambda check: Reply(429, {"error": {}}, "", 20 * 3600.0)
    with pytest.raises(Later) as caught:
        house.work()
    assert caught.value.delay == MAX_DELAY and caught.value.back and not caught.value.counted
    done = len(house.lines())
    assert done == len(house.door.asked) - 1 and "completed_at" not in house.batch.about
    del house.door.replies["b"]
    assert house.work()["completed"] == 12


def test_a_line_that_kills_the_runner_is_given_up_and_others_are_not(house, monkeypatch):
    monkeypatch.setattr(batches, "BEAT", 0.01)
    running, crashed = [], []

    def innocent(name):
        def answer(check):
            running.append(name)
            deadline = time.monotonic() + 0.05
            try:
                while time.monotonic() < deadline:
                    if len(crashed) == 1 and name in crashed[0]:
                        crashed[0].remove(name)
                        return Reply(503, {"error": {"code": "runner_crashed"}}, "", 0.01)
                    time.sleep(0.005)
            finally:
                running.remove(name)
            return Reply(200, {})
        return answer

    killed = []

    def poison(check):
        killed.append(1)
        if not crashed:
            time.sleep(0.02)
            crashed.append([*running])
        return Reply(503, {"error": {"code": "runner_crashed"}}, "", 0.01)
    house.door.replies = {id: innocent(id) for id in "bcdefghijkl"} | {"a": poison}
    assert house.work() == {"text": "11 of 12 requests were answered", "completed": 11, "failed": 1}
    assert len(killed) == batches.CRASHES and house.lines(FAILED)[0]["custom_id"] == "a"


@pytest.mark.parametrize("field, value, told", [("revoked", 1.0, "has ended"), ("scopes", ("keys",), "'answer' now")])
def test_a_batch_of_a_key_that_ended_ends_at_its_next_line(house, field, value, told):
    house.door.replies["b"] = lambda check: setattr(house.keys, field, value) or Reply(200, {})
    with pytest.raises(Forbidden, match=told):
        house.work()
    assert len(house.door.asked) <= batches.LANES + 1


def test_an_outage_ends_no_batch_of_this_day(house):
    def away(check):
        raise Unavailable("Redis is away", retry_after=2)
    house.door.replies["b"] = away
    with pytest.raises(Later) as caught:
        house.work()
    assert caught.value.delay == 2 and caught.value.back and not caught.value.counted
    del house.door.replies["b"]
    assert house.work()["completed"] == 12


@pytest.mark.parametrize(("endpoint", "body", "named"), [
    ("/answer", {"session_id": 7}, True), ("/answer", {"session_id": None}, False), (CHAT, {"session_id": 7}, False)])
def test_a_turn_is_asked_for_once_whatever_breaks_off(tmp_path, endpoint, body, named):
    house, retries = House(tmp_path, "a", "b", endpoint=endpoint, **body), []
    answer = house.door.__call__
    keep = house.uploads.append

    def broken(*_):
        raise Unavailable("the disk is away", retry_after=1)
    house.door = lambda request, check: (retries.append((request.body["n"], request.retry)), answer(request, check))[1]
    house.uploads.append = broken
    with pytest.raises(Later):
        house.work()
    house.uploads.append = keep
    house.work()
    assert {len({retry for id, retry in retries if id == which}) for which in "ab"} == {1}
    assert len({retry for _, retry in retries if retry}) == (2 if named else 0)
