"""`POST /answer`: JSON is the fold of the stream; leaving cancels; retries follow; nothing runs past the drain."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from services.chat.events import Beat, Delta, Waiting
from services.errors import BadRequest, DeadlineExceeded, RunnerCrashed, StorageFull, Unavailable
from services.web.routes import taken
from tests.services.web.conftest import FakeChat, final, make_world, wait_until

ANSWER = [Delta("a"), Beat(), Delta("\n\nb"), final("a\n\nb", "7")]


def ask(world, **body):
    return world.call("POST", "/answer", json={"prompt": "x", **body})


def test_json_is_the_fold_of_the_stream(scripted):
    scripted.parts.chat.events = ANSWER
    *deltas, done = scripted.events(prompt="x")
    assert "".join(event["delta"] for event in deltas) == done["result"]
    assert done.pop("done") is True
    assert ask(scripted).json == done


def test_the_answer_as_the_interface_fixes_it(scripted):
    scripted.parts.chat.events = ANSWER
    answer = ask(scripted, session_id=7).json
    assert answer["result"] == "a\n\nb" and answer["session_id"] == 7 and answer["finish_reason"] == "stop"
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9,
                               "prompt_tokens_details": {"cached_tokens": 3, "processed_tokens": 4}}
    assert set(answer["context"]) == {"window", "k", "turns_used", "turns_dropped"}
    assert (answer["profile"], answer["model"]) == ("one", "one.gguf")


def test_what_is_asked(scripted):
    key = scripted.make_key(profiles=["one"])
    scripted.call("POST", "/answer", key=key, headers={"X-Request-Id": "r-1"}, json={
        "prompt": "p", "session_id": "s", "profile": "one", "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1,
        "repeat_penalty": 1.1, "max_tokens": 9, "stop": "x", "seed": 4, "schema": {"type": "object"}})
    asked = scripted.parts.chat.asked[0]
    owner = scripted.parts.keys.list()[1].id
    assert (asked.owner, asked.request_id, asked.allowed_profiles) == (owner, "r-1", ("one",))
    assert (asked.prompt, asked.session_id, asked.profile, asked.stop) == ("p", "s", "one", ("x",))
    assert (asked.temperature, asked.top_p, asked.top_k, asked.min_p) == (0, 0.5, 3, 0.1)
    assert (asked.repeat_penalty, asked.max_tokens, asked.seed, asked.schema) == (1.1, 9, 4, {"type": "object"})


def test_tokens_are_charged_once_and_the_ticket_is_closed(scripted):
    for stream in (False, True):
        scripted.parts.admissions.charged.clear()
        ask(scripted, stream=stream)
        assert scripted.parts.admissions.charged == [(7, 2)]
        assert not scripted.parts.admissions.tickets[-1].open


@pytest.mark.parametrize("error, status", [(BadRequest("x"), 400), (Unavailable("x", retry_after=2.2), 503),
                                           (RunnerCrashed("x"), 503), (DeadlineExceeded("x"), 504),
                                           (StorageFull("x"), 507), (KeyError("x"), 500)])
@pytest.mark.parametrize("stream", [False, True])
def test_errors_before_the_start(scripted, error, status, stream):
    scripted.parts.chat.events = [error]
    response = ask(scripted, stream=stream)
    assert response.status_code == status and response.json["error"]["message"]
    if status == 503:
        assert int(response.headers["Retry-After"]) >= 1
    assert not scripted.parts.admissions.tickets[-1].open


def test_retry_after_is_rounded_up(scripted):
    scripted.parts.chat.events = [Unavailable("x", retry_after=2.2)]
    assert ask(scripted).headers["Retry-After"] == "3"


def test_errors_after_the_start_are_events(scripted):
    scripted.parts.chat.events = [Delta("a"), RunnerCrashed("it died", retry_after=1)]
    events = scripted.events(prompt="x")
    assert events[0] == {"delta": "a"}
    assert events[1]["error"]["code"] == "runner_crashed" and len(events) == 2
    assert ask(scripted).status_code == 503, "without a stream it is a status"


def test_slow_starts_send_heartbeats(scripted, monkeypatch):
    monkeypatch.setattr("services.web.sse.PATIENCE", 0)
    scripted.parts.chat.events = [Beat(), Beat(), Delta("a"), final("a")]
    text = ask(scripted, stream=True).text
    assert text.startswith(": hb\n\n: hb\n\ndata: ")


def test_the_place_in_the_queue_is_told_in_streams_alone(scripted):
    scripted.parts.chat.events = [Waiting(3, 4.2), Waiting(1, 0.5), Delta("a"), final("a")]
    assert scripted.events(prompt="x")[:3] == [{"queue": {"position": 3, "eta_seconds": 5}},
                                               {"queue": {"position": 1, "eta_seconds": 1}}, {"delta": "a"}]
    assert ask(scripted).json["result"] == "a" and "queue" not in ask(scripted).json


# ---------------------------------------------------------------- the client leaves, the server stops

@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["close", "half-close"])
def test_a_client_that_leaves_cancels_its_answer(scripted, stream, how):
    ours, theirs = socket.socketpair()
    leave = theirs.close if how == "close" else lambda: theirs.shutdown(socket.SHUT_WR)
    scripted.parts.chat.events = [Delta("a"), leave, Beat(), Delta("never"), final("never")]
    response = scripted.call("POST", "/answer", json={"prompt": "x", "stream": stream},
                             environ_overrides={"gunicorn.socket": ours})
    assert scripted.parts.chat.closed_early == 1
    assert "never" not in response.text
    assert scripted.parts.admissions.charged == [(0, 1)], "the piece that it got"
    assert not scripted.parts.admissions.tickets[-1].open
    ours.close()
    theirs.close()


def test_a_client_that_left_after_the_end_has_its_answer(scripted):
    ours, theirs = socket.socketpair()
    scripted.parts.chat.events = [Delta("a"), theirs.close, final("a")]
    response = scripted.call("POST", "/answer", json={"prompt": "x"}, environ_overrides={"gunicorn.socket": ours})
    assert response.status_code == 200 and scripted.parts.chat.closed_early == 0
    ours.close()


def test_closing_the_response_cancels(scripted):
    scripted.parts.chat.events = [Delta("a"), Delta("b"), final("ab")]
    response = scripted.call("POST", "/answer", json={"prompt": "x", "stream": True}, buffered=False)
    assert next(response.response) == b'data: {"delta":"a"}\n\n'
    response.close()
    assert scripted.parts.chat.closed_early == 1


def drain_of(world):
    return world.app.extensions["parley"].drain


def test_a_draining_server_takes_nothing_new(scripted):
    drain_of(scripted).begin(10)
    response = ask(scripted)
    assert (response.status_code, response.json["error"]["code"]) == (503, "draining")
    assert response.headers["Retry-After"] and scripted.parts.chat.asked == []
    assert scripted.call("GET", "/readyz").status_code == 503
    assert scripted.call("GET", "/healthz").status_code == 200, "it still answers"


@pytest.mark.parametrize("stream", [False, True])
def test_a_running_answer_is_cut_when_the_drain_is_over(scripted, stream):
    scripted.parts.chat.events = [Delta("a"), lambda: drain_of(scripted).begin(0), Delta("b"), final("ab")]
    response = ask(scripted, stream=stream)
    assert '"code":"draining"' in response.text and scripted.parts.chat.closed_early == 1
    assert response.status_code == (200 if stream else 503)


def test_a_running_answer_may_finish_within_the_drain(scripted):
    scripted.parts.chat.events = [Delta("a"), lambda: drain_of(scripted).begin(60), Delta("b"), final("ab")]
    assert ask(scripted).json["result"] == "ab"


def test_a_full_house_says_so(tmp_path):
    world = make_world(tmp_path, chat=FakeChat(), threads=9)        # one place
    inner = []
    world.parts.chat.events = [lambda: inner.append(ask(world, prompt="second")), final("x")]
    assert ask(world).status_code == 200
    assert (inner[0].status_code, inner[0].json["error"]["code"]) == (503, "busy")
    world.parts.chat.events = [final("x")]
    assert ask(world).status_code == 200, "the place is free again"


@pytest.mark.parametrize("method, path, body", [
    ("POST", "/answer", {"prompt": "x"}), ("PATCH", "/answer/1", {"name": "n"}), ("POST", "/answer/1/fork", {}),
    ("POST", "/answer/1/rewind", {"to": 0}), ("POST", "/models/model", {"model": "two.gguf", "model_config": "two"})])
def test_what_may_wait_leaves_threads_for_the_rest(tmp_path, method, path, body):
    world = make_world(tmp_path, threads=9)         # one place
    ask(world, session_id=1)
    with taken(world.app.extensions["parley"].places):
        for headers in ({}, {"Idempotency-Key": "k"}):
            response = world.call(method, path, json=body, headers=headers)
            assert (response.status_code, response.json["error"]["code"]) == (503, "busy")
        assert world.call("GET", "/answer/1").status_code == 200
    assert world.call(method, path, json=body, headers={"Idempotency-Key": "k"}).status_code == 200


# ---------------------------------------------------------------- Idempotency-Key

def retry(world, key="k1", **body):
    return world.call("POST", "/answer", json={"prompt": "x", **body}, headers={"Idempotency-Key": key})


@pytest.mark.parametrize("stream", [False, True])
def test_a_retry_gets_the_first_one_s_answer(scripted, stream):
    first, second = retry(scripted, stream=stream), retry(scripted, stream=stream)
    assert first.text.replace(": hb\n\n", "") == second.text.replace(": hb\n\n", "") and first.status_code == 200
    assert len(scripted.parts.chat.asked) == 1
    assert scripted.parts.admissions.charged == [(7, 2)]
    wait_until(lambda: not any(ticket.open for ticket in scripted.parts.admissions.tickets))


def test_a_retry_attaches_while_the_first_runs(scripted):
    go = threading.Event()
    scripted.parts.chat.events = [Delta("a"), lambda: go.wait(20), final("a")]
    got = []
    threads = [threading.Thread(target=lambda: got.append(retry(scripted).json)) for _ in range(2)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(scripted.parts.admissions.tickets) == 3)      # two requests, one answer
    go.set()
    for thread in threads:
        thread.join(20)
    assert got[0] == got[1] and got[0]["result"] == "a"
    assert len(scripted.parts.chat.asked) == 1


def test_an_answer_with_a_key_outlives_its_client_and_holds_its_place(scripted):
    ours, theirs = socket.socketpair()
    go = threading.Event()
    scripted.parts.chat.events = [theirs.close, Delta("a"), lambda: go.wait(20), final("a")]
    scripted.call("POST", "/answer", json={"prompt": "x"}, headers={"Idempotency-Key": "k"},
                  environ_overrides={"gunicorn.socket": ours})
    asked, answer = scripted.parts.admissions.tickets
    assert scripted.parts.chat.closed_early == 0 and answer.open and not asked.open
    go.set()
    wait_until(lambda: not answer.open)
    assert retry(scripted, "k").json["result"] == "a" and len(scripted.parts.chat.asked) == 1
    ours.close()


def test_a_key_belongs_to_one_body_and_one_owner(scripted):
    retry(scripted)
    assert retry(scripted, prompt="other").json["error"]["code"] == "idempotency_mismatch"
    other = scripted.call("POST", "/answer", key=scripted.make_key(), json={"prompt": "x"},
                          headers={"Idempotency-Key": "k1"})
    assert other.status_code == 200 and len(scripted.parts.chat.asked) == 2


@pytest.mark.parametrize("key", ["", "x" * 201, "é"])
def test_a_bad_idempotency_key_is_400(scripted, key):
    assert retry(scripted, key).status_code == 400


# ---------------------------------------------------------------- through the real pipeline

def test_a_session_keeps_its_turns_and_no_session_keeps_nothing(world):
    ask(world, prompt="hello", session_id=1)
    ask(world, prompt="again", session_id="1")
    ask(world, prompt="alone")
    assert world.call("GET", "/answer").json == {"0/1": "hello"}
    turns = world.call("GET", "/answer/1").json["turns"]
    assert [turn["content"] for turn in turns] == ["hello", "you said: hello", "again", "you said: again"]


def test_ids_are_told_as_the_interface_fixes_them(world):
    for given, told in [(1, 1), ("1", 1), ("01", "01"), (-5, -5), ("name", "name"), (None, None)]:
        assert ask(world, session_id=given).json["session_id"] == told


TEXTS = ["\0\x01\x1f", "\x7f\x85\x9f", "\u202eabc\u202c", "👩\u200d👩\u200d👧", "é", "e\u0301", "\u2028\u2029",
         "a\r\nb", "\ufeffx", "\U0010ffff"]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_any_text_comes_back_byte_equal(world, text):
    """Row U2."""
    raw = json.dumps({"prompt": "x" + text, "session_id": 1}, ensure_ascii=False).encode() \
        if text.isprintable() else json.dumps({"prompt": "x" + text, "session_id": 1}).encode()
    assert world.call("POST", "/answer", data=raw, content_type="application/json").status_code == 200
    assert world.call("GET", "/answer/1").json["turns"][0]["content"] == "x" + text
