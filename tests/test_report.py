"""What a started server says of itself: /metrics adds up, /readyz knows a hang, and what hangs is replaced."""

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import MASTER
from tests.test_serve import in_use, wait_for


def figures(server):
    """(name, label values in order of the labels' names) -> value."""
    response = server.call("GET", "/metrics")
    assert response.status_code == 200, response.text
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(response.text) for sample in family.samples}


def test_the_counters_say_what_the_answers_said(start):
    server = start().ready()
    key = server.make_key(name="counted")
    who = server.call("GET", "/auth", key).json()["id"]
    answers = [server.answer(f"!tokens {number} !sleep 0.01", number, key).json() for number in (1, 5, 9)]
    answers.append(list(server.stream("hello there", None, key, profile="two"))[-1])
    lost = [server.answer("x", None, key, profile="nobody's"), server.answer("!fail runner_crashed", None, key)]
    assert [response.status_code for response in lost] == [404, 503]
    assert server.answer("", None, key).status_code == 400

    told = figures(server)
    for name, of in (("one", answers[:3]), ("two", answers[3:])):
        usage = [answer["usage"] for answer in of]
        details = [one["prompt_tokens_details"] for one in usage]
        assert told["parley_requests_total", "stop", name] == len(of)
        assert told["parley_completion_tokens_total", name] == sum(one["completion_tokens"] for one in usage)
        for kind in ("cached", "processed"):
            assert told["parley_prompt_tokens_total", kind, name] == sum(one[f"{kind}_tokens"] for one in details)
        assert told["parley_time_to_first_token_seconds_count", name] == len(of)
        assert told["parley_queue_seconds_count", name] == len(of)
    assert told["parley_time_per_token_seconds_count", "one"] == 2, "an answer of one token has no time between two"
    assert told["parley_time_per_token_seconds_sum", "one"] >= 0.02
    assert told["parley_requests_total", lost[0].json()["error"]["code"], "none"] == 1
    assert told["parley_requests_total", "runner_crashed", "one"] == 1
    assert "nobody's" not in str(told)
    assert told["parley_key_tokens_total", who, "prompt"] == sum(a["usage"]["prompt_tokens"] for a in answers)
    used = server.call("GET", "/auth", key).json()["usage"]
    assert told["parley_key_tokens_total", who, "completion"] == used["completion_tokens"]
    assert told["parley_http_requests_total", "POST", "/answer", "200"] == 4
    assert told["parley_http_requests_total", "POST", "/answer", "400"] >= 1
    assert told["parley_runner_completion_tokens_total", "tiny.gguf"] >= 15
    assert told["parley_runners", "other.gguf", "ready"] == 1


def test_load_shows_while_it_is_there(start):
    server = start().ready()
    with ThreadPoolExecutor(6) as pool:
        held = [pool.submit(server.answer, "!wait 2 !echo done") for _ in range(6)]
        wait_for(lambda: in_use(server) == 6)
        told = wait_for(lambda: (now := figures(server))["parley_runner_waiting", "tiny.gguf"] == 2 and now)
        assert told["parley_runner_running", "tiny.gguf"] == told["parley_runner_slots", "tiny.gguf"] == 4
        assert all(answer.result().status_code == 200 for answer in held)
    assert figures(server)["parley_queue_seconds_sum", "one"] > 1


def test_a_left_answer_counts_as_cancelled(start):
    server = start().ready()
    for event in server.stream("!tokens 200 !sleep 0.05", max_tokens=200):
        if event.get("delta"):
            break
    told = wait_for(lambda: (now := figures(server)).get(("parley_requests_total", "cancelled", "one")) and now)
    assert told["parley_completion_tokens_total", "one"] >= 1


def test_all_workers_tell_one_place(start):
    server = start(NUM_WORKERS="2", WEB_WORKERS="2").ready()
    with ThreadPoolExecutor(8) as pool:
        assert {answer.status_code for answer in pool.map(lambda _: server.answer("hello"), range(24))} == {200}
    told = wait_for(lambda: (now := figures(server)).get(("parley_http_requests_total", "POST", "/answer", "200")) == 24
                    and now)
    assert told["parley_requests_total", "stop", "one"] == 24


def test_no_secret_in_the_figures(start):
    """Row O1."""
    server = start().ready()
    key = server.make_key(name="secret-name")
    for said in (key, MASTER, "ply_" + "x" * 36):
        server.answer(said, said[:20], key, profile=said)
        server.call("GET", f"/answer/{said}", said)
        server.call("GET", f"/{said}?key={said}")
    text = server.call("GET", "/metrics").text
    assert MASTER not in text and not re.search("ply_|xxx|secret-name", text)


@pytest.mark.model
@pytest.mark.parametrize("level, told", [("INFO", True), ("ERROR", False)])
def test_a_runner_s_lines_follow_the_log_level(start, home, level, told):
    (home / "data" / "config.json").write_text(json.dumps({"SelectedModel": "a", "a": {"model": "tiny.gguf",
                                                                                       "n_ctx": 4096}}))
    server = start(runner="llama", LOG_LEVEL=level).ready()
    assert ("but tiny.gguf was trained on" in server.log) == told, server.log


# ---------------------------------------------------------------- hangs (rows P5, P10, N7)

def test_a_hang_is_told_and_ended(start):
    server = start(STALL_TIMEOUT="3").ready()
    assert server.answer("!tokens 9 !sleep 0.3").status_code == 200     # long enough to be seen to move
    before = server.children("fake-runner")
    with ThreadPoolExecutor(1) as pool:
        hung = pool.submit(server.answer, "!tokens 5 !hang 2", 1)
        refused = wait_for(lambda: [r for r in [server.call("GET", "/readyz")] if r.status_code == 503])[0]
        assert "no progress" in refused.json()["message"] and "Retry-After" in refused.headers
        assert server.call("GET", "/healthz").status_code == 200
        assert figures(server)["parley_runner_stalled_seconds", "tiny.gguf"] >= 1.5
        assert hung.result().json()["error"]["code"] == "runner_crashed"
    assert server.answer("again", 1).status_code == 200
    assert server.ready().children("fake-runner") != before
    told = figures(server)
    assert told["parley_runner_restarts_total", "tiny.gguf"] == 1
    assert told["parley_requests_total", "runner_crashed", "one"] == 1
    assert "no progress for 3 s with work to do (STALL_TIMEOUT)" in server.log


def test_a_stopped_runner_is_waited_for_no_longer_than_an_answer_may_take(start):
    server = start(REQUEST_TIMEOUT="2", STALL_TIMEOUT="0").ready()
    [runner] = server.children("fake-runner")
    with ThreadPoolExecutor(2) as pool:
        frozen = pool.submit(server.answer, "!tokens 5 !freeze 2", 1)
        other = pool.submit(server.answer, "hello", 2)
        assert frozen.result().status_code == 504 and other.result().status_code in (200, 504)
    os.kill(runner, signal.SIGCONT)
    assert wait_for(lambda: server.answer("again", 1).status_code == 200)
    turns = [turn["content"] for turn in server.call("GET", "/answer/1").json()["turns"]]
    assert turns.count("!tokens 5 !freeze 2") == 1 and turns[-2:] == ["again", "You said: again"]
    assert server.children("fake-runner") == [runner]


def test_a_silent_stream_beats_until_its_time_is_up(start):
    server = start(REQUEST_TIMEOUT="3").ready()
    body = {"prompt": "!hang", "stream": True}
    began = time.monotonic()
    with server.call("POST", "/answer", stream=True, json=body) as response:
        lines = [line for line in response.iter_lines() if line]
    assert lines.count(b": hb") >= 2 and b"deadline_exceeded" in lines[-1]
    assert time.monotonic() - began < 30
