"""Websockets of a started server, by the `websockets` client: conversations, who may, limits, the end (row N9)."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.sync.client import connect

from tests.conftest import MASTER, make_home, serving

CONFIG = {"SelectedModel": "one",
          "one": {"model": "tiny.gguf", "n_ctx": 2048, "max_tokens": 1000, "parallel": 2, "k": 3},
          "bare": {"model": "tiny.gguf", "n_ctx": 2048, "parallel": 2, "template": "{system} {chat_history} {input}"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    home = make_home(tmp_path_factory.mktemp("sockets") / "home", CONFIG)
    with serving(home, MAX_SOCKETS_PER_KEY="20", ALLOWED_ORIGINS="https://page.example",
                 MAX_PROMPT_BYTES="100000") as server:
        bare = {"bare": {"profile": "bare", "imperative": "Be seen."}}
        (home / "data" / "personalities.d" / "20.json").write_text(json.dumps(bare))
        yield server.ready()


@contextmanager
def opened(server, query="", key=MASTER, personality="assistant", **more):
    headers = {**({"Authorization": key} if key else {}), **more.pop("headers", {})}
    address = f"{server.url.replace('http', 'ws')}/gpt-socket/{personality}{query}"
    with connect(address, additional_headers=headers, **more) as ws:
        yield ws


def answer(ws, prompt):
    """The frames up to the end of an answer."""
    ws.send(prompt)
    frames = [ws.recv(timeout=30)]
    while not frames[-1].startswith("<END"):
        frames.append(ws.recv(timeout=30))
    return frames


def refused(server, status, **how):
    with pytest.raises(InvalidStatus) as error, opened(server, **how):
        pass
    assert error.value.response.status_code == status
    return json.loads(error.value.response.body)


def closed(ws, code):
    """The frames up to the close, which has `code`."""
    frames = []
    with pytest.raises(ConnectionClosed) as error:
        while True:
            frames.append(ws.recv(timeout=30))
    assert error.value.rcvd is not None and error.value.rcvd.code == code, error.value
    return frames


# ---------------------------------------------------------------- conversations

def test_frames_in_are_prompts_and_frames_out_pieces(server):
    with opened(server) as ws:
        assert answer(ws, "hello there") == ["You", " said:", " hello", " there", "<END>"]


def test_further_frames_are_further_turns(server):
    with opened(server) as ws:
        answer(ws, "my name is Ada")
        assert "".join(answer(ws, "what is my name?")) == "Your name is Ada.<END>"
    with opened(server) as ws:
        assert "".join(answer(ws, "what is my name?")) == "You have not told me your name.<END>"


def test_only_the_last_turns_are_sent_along(server):
    with opened(server) as ws:
        answer(ws, "my name is Ada")
        for _ in range(3):
            answer(ws, "and so on")
        assert "Ada" not in "".join(answer(ws, "what is my name?"))


def test_personality_tells_the_model_who_it_is(server):
    with opened(server, personality="bare") as ws:
        text = "".join(answer(ws, "!prompt"))
        assert text.startswith("Be seen.") and "Today's date is " in text


def test_frames_sent_at_once_are_answered_in_order(server):
    with opened(server) as ws:
        for number in range(4):
            ws.send(f"number {number}")
        text = "".join(ws.recv(timeout=30) for _ in range(20))
    assert text == "".join(f"You said: number {number}<END>" for number in range(4))


def test_session_is_kept_and_goes_on_on_another_socket(server):
    with opened(server, "?end=session") as ws:
        end = answer(ws, "my name is Bo")[-1]
    session = end.removeprefix("<END ").removesuffix(">")
    turns = server.call("GET", f"/answer/{session}").json()["turns"]
    assert [turn["content"] for turn in turns] == ["my name is Bo", "You said: my name is Bo"]
    with opened(server) as ws:
        asked = f"|SESSION|urn:uuid:{session}|/SESSION|what is my name?"
        assert "".join(answer(ws, asked)) == "Your name is Bo.<END>"
        assert "".join(answer(ws, "what is my name?")) == "Your name is Bo.<END>"
    with opened(server, f"?session={session}") as ws:
        assert "".join(answer(ws, "what is my name?")) == "Your name is Bo.<END>"


def test_somebody_elses_session_is_not_found(server):
    with opened(server, "?session=mine") as ws:
        answer(ws, "my name is Bo")
    with opened(server, "?session=mine", key=server.make_key()) as ws:
        assert "Bo" not in "".join(answer(ws, "what is my name?"))


@pytest.mark.parametrize(("query", "told"), [("", ["Reading the provided context..."]), ("?status=0", [])])
def test_context_stands_before_the_question(server, query, told):
    with opened(server, query, personality="bare") as ws:
        *frames, end = answer(ws, "|CONTEXT|The sky is green.|/CONTEXT| !prompt")
        assert frames[:1] == told or not told
        assert "following content: The sky is green. Given the preceding content, " in " ".join("".join(frames).split())
        assert end == "<END>"


def test_place_in_the_queue_is_told(server):
    with opened(server) as one, opened(server) as two, opened(server) as three:
        for ws in (one, two):
            ws.send("!wait 2 !echo done")
        time.sleep(0.5)
        first, *frames = answer(three, "hello")
        assert first.startswith("(Currently helping other users: you are number 1 in the queue")
        assert "".join(frames) == "You said: hello<END>"


@pytest.mark.parametrize(("frame", "told"), [
    ("|CONTEXT|x", "Error: |CONTEXT| is not closed"), ("|RAG|a|/RAG|x", "Error: there is no place 'a' to look in"),
    ("!fail bad_model", "Error: "), ("|SESSION|../x|/SESSION|y", "Error: session_id '../x' is no session id"),
    ("  ", "Error: Question not provided"), ("|KEY|x|/KEY|y", "Error: the key is known already")])
def test_errors_are_told_and_the_socket_stays(server, frame, told):
    with opened(server) as ws:
        text, end = answer(ws, frame)
        assert text.startswith(told) and end == "<END>"
        assert answer(ws, "hello")[-1] == "<END>"


# ---------------------------------------------------------------- who may

@pytest.mark.parametrize("first", ["|KEY|{}|/KEY|", '{{"key": "{}"}}'])
def test_key_in_the_first_frame(server, first):
    with opened(server, key=None) as ws:
        ws.send(first.format(server.make_key()))
        assert answer(ws, "hello")[-1] == "<END>"


def test_key_and_question_in_one_frame(server):
    with opened(server, key=None, headers={"Origin": "https://page.example"}) as ws:
        assert "".join(answer(ws, f"|KEY|{MASTER}|/KEY|hello")) == "You said: hello<END>"


@pytest.mark.parametrize("first", ["hello", "|KEY|wrong|/KEY|", '{"key": "wrong"}', "|KEY|" + "x" * 50_000 + "|/KEY|"])
def test_no_key_in_the_first_frame(server, first):
    with opened(server, key=None) as ws:
        ws.send(first)
        assert closed(ws, 4401) == []


def test_wrong_key_is_refused_before_accepting(server):
    assert refused(server, 401, key="wrong")["error"]["code"] == "unauthorized"
    refused(server, 401, key=None, headers={"X-API-Key": "wrong"})
    refused(server, 403, key=server.make_key(scopes=["models:read"]))


def test_page_from_elsewhere_is_refused_before_accepting(server):
    for origin in ("http://evil.example", "http://localhost.evil", "null"):
        assert refused(server, 403, headers={"Origin": origin})["error"]["code"] == "origin_forbidden"
    with opened(server, headers={"Origin": server.url}) as ws:
        assert answer(ws, "hello")[-1] == "<END>"


def test_unknown_personality(server):
    assert "translator" in refused(server, 404, personality="nobody")["message"]
    with opened(server, key=None, personality="nobody") as ws:
        ws.send(f"|KEY|{MASTER}|/KEY|hello")
        assert closed(ws, 1008) == []


def test_key_in_the_address_is_refused(server):
    refused(server, 400, query=f"?key={MASTER}")


def test_revoked_key_is_refused_at_the_next_turn(server):
    key = server.make_key()
    with opened(server, key=key) as ws:
        answer(ws, "hello")
        key_id = server.call("GET", "/auth", key).json()["id"]
        server.call("DELETE", f"/auth/keys/{key_id}")
        ws.send("hello")
        assert closed(ws, 4401) == []


def test_each_question_counts_as_a_request(server):
    key = server.make_key(requests_per_minute=3)
    with opened(server, key=key) as ws:
        assert "".join(answer(ws, "a") + answer(ws, "b")) == "You said: a<END>You said: b<END>"
        assert "requests_per_minute" in answer(ws, "c")[0]
    usage = server.call("GET", "/auth", MASTER).json()["usage"]
    assert usage["completion_tokens"] > 0


def test_plain_request_is_told_how(server):
    assert server.call("GET", "/gpt-socket/assistant").status_code == 426


# ---------------------------------------------------------------- limits

def raw(ws, data):
    """Bytes past the client's own framing."""
    ws.socket.sendall(data)


def test_long_frame_is_refused(server):
    with opened(server) as ws:
        try:
            ws.send("x" * 10_000_000)
        except ConnectionClosed:
            pass
        assert closed(ws, 1009) == []


def test_flood_of_tiny_frames_ends_the_socket_and_disturbs_nobody(server):
    with opened(server, key=server.make_key()) as ws, opened(server) as other:
        frame = Frame(Opcode.PING, b"").serialize(mask=True)
        flood = threading.Thread(target=lambda: [suppressed(raw, ws, frame * 1000) for _ in range(100)])
        flood.start()
        began = time.monotonic()
        assert answer(other, "hello")[-1] == "<END>" and time.monotonic() - began < 10
        flood.join(30)
        closed(ws, 1008)


def suppressed(act, *args):
    try:
        act(*args)
    except OSError:
        pass


def test_many_prompts_at_once_are_too_many(server):
    with opened(server) as ws:
        for number in range(12):
            ws.send(f"!tokens 200 !sleep 0.05 {number}")
        closed(ws, 1008)


def test_sockets_of_a_key_are_counted(server):
    key = server.make_key()
    with ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(opened(server, key=key))
        assert refused(server, 429, key=key)["error"]["code"] == "rate_limited"
        with opened(server, key=None) as ws:
            ws.send(f"|KEY|{key}|/KEY|")
            closed(ws, 1008)
        with opened(server) as ws:
            assert answer(ws, "hello")[-1] == "<END>"
    deadline = time.monotonic() + 10
    while True:
        try:
            with opened(server, key=key) as ws:
                break
        except InvalidStatus:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def running(server):
    models = server.call("GET", "/models").json()["loaded"]
    return sum(model["stats"]["running"] for model in models if model["stats"])


@pytest.mark.parametrize("how", ["closes", "cut"])
def test_client_that_leaves_stops_the_work(server, how):
    with opened(server) as ws:
        ws.send("!tokens 1000 !sleep 0.1")
        assert ws.recv(timeout=30)
        assert running(server) == 1
        if how == "cut":
            ws.socket.shutdown(socket.SHUT_RDWR)
        else:
            ws.close()
        deadline = time.monotonic() + 20
        while running(server):
            assert time.monotonic() < deadline, "the work goes on"
            time.sleep(0.1)


# ---------------------------------------------------------------- beginning and end

@pytest.fixture
def working(home):
    (home / "data" / "config.json").write_text(json.dumps(CONFIG))
    with serving(home) as server:
        yield server.ready()


def let_go_at(number, server):
    """The signal closes quiet sockets at once, and a busy one after its answer."""
    with opened(server) as quiet, opened(server) as busy:
        busy.send("!tokens 30 !sleep 0.1")
        assert busy.recv(timeout=30) == "w1"
        server.process.send_signal(number)
        assert closed(quiet, 1001) == []
        assert closed(busy, 1001)[-1] == "<END>"


def test_sockets_are_closed_and_answers_end_when_the_server_stops(working):
    let_go_at(signal.SIGTERM, working)
    assert working.process.wait(30) == 0


def test_fresh_workers_let_sockets_go_and_answers_end(working):
    let_go_at(signal.SIGHUP, working)
    assert requests.get(working.url + "/healthz", timeout=10).status_code == 200
    with opened(working) as ws:
        assert answer(ws, "hello")[-1] == "<END>"
