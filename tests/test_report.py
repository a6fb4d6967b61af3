"""What a started server says of itself: /metrics adds up, /readyz knows a hang, and what hangs is replaced."""

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import MASTER, Server, make_home
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


# ---------------------------------------------------------------- hangs (rows P5, P10)

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


# ---------------------------------------------------------------- answers that do not end (rows N7, G2 to G4)

ENDLESS = {"silent": ("!hang", ""), "slow": ("!tokens 9 !sleep 100", "w1"),
           "endless": ("!tokens 100000 !sleep 0.2", "w1 w2 w3")}


@pytest.fixture(scope="module")
def hasty(tmp_path_factory):
    """A server on which an answer may take three seconds."""
    config = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 512}}
    server = Server(make_home(tmp_path_factory.mktemp("hasty") / "home", config), REQUEST_TIMEOUT="3")
    try:
        yield server.start().ready()
    finally:
        server.end()


def test_a_stream_beats_until_its_time_is_up_and_its_part_is_kept(hasty):
    def listen(name):
        began = time.monotonic()
        body = {"prompt": ENDLESS[name][0], "stream": True, "session_id": name, "max_tokens": 500}
        with hasty.call("POST", "/answer", stream=True, json=body) as response:
            lines = [line for line in response.iter_lines() if line]
        return lines, time.monotonic() - began

    with ThreadPoolExecutor(3) as pool:
        told = dict(zip(ENDLESS, pool.map(listen, ENDLESS), strict=True))
    for name, (lines, seconds) in told.items():
        *events, last = [json.loads(line[6:]) for line in lines if line.startswith(b"data: ")]
        heard, least = "".join(event["delta"] for event in events), ENDLESS[name][1]
        assert last["error"]["code"] == "deadline_exceeded" and seconds < 30
        assert heard.startswith(least) if name == "endless" else (heard == least and lines.count(b": hb") >= 2)
        _, *kept = hasty.call("GET", f"/answer/{name}").json()["turns"]
        assert [(turn["content"], turn["interrupted"]) for turn in kept] == ([(heard, True)] if heard else [])


def test_without_a_stream_it_is_a_504_and_the_part_is_kept(hasty):
    late = hasty.answer("!tokens 9 !sleep 100", "whole")
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
    _, part = hasty.call("GET", "/answer/whole").json()["turns"]
    assert (part["content"], part["finish_reason"]) == ("w1", "deadline_exceeded") and part["interrupted"]
    assert in_use(hasty) == 0 and hasty.answer("next", "whole").status_code == 200


def test_an_answer_that_does_not_end_ends_at_max_tokens(hasty):
    """The default one, and one that is more than the context leaves room for, which is told."""
    ended = hasty.answer("!tokens 100000").json()
    assert ended["finish_reason"] == "length" and 1 < ended["usage"]["completion_tokens"] < 512
    asked = hasty.answer("!tokens 100000", max_tokens=100_000).json()
    usage = asked["usage"]
    assert (asked["finish_reason"], usage["prompt_tokens"] + usage["completion_tokens"]) == ("length", 512)
    assert "100000" in asked["warnings"][0] and "512" in asked["warnings"][0]
