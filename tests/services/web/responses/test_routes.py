"""`/v1/responses` over the real rooms: what is kept where, what goes on where, and what runs on without a client."""

from __future__ import annotations

import json
import threading
from types import SimpleNamespace

import pytest

from services import wire
from services.chat import background
from services.chat.background import Background
from services.chat.events import Called, Delta, Reasoned
from services.errors import ParleyError, StorageFull
from services.web.responses import routes
from tests.services.web.conftest import FakeChat, echo, final, make_world, wait_until


def post(world, key=None, status=200, **body):
    given = {} if key is None else {"headers": {"Idempotency-Key": key}}
    response = world.call("POST", "/v1/responses", json={"input": "x", **body}, **given)
    assert response.status_code == status, response.text
    return response.json


def get(world, response, query=""):
    return world.call("GET", f"/v1/responses/{response['id']}{query}")


def events(text):
    return [json.loads(block.partition("data: ")[2]) for block in text.split("\n\n") if "data: " in block]


def sessions(world):
    return world.parts.sessions.list("0")


class Gate:
    """A script whose answers wait after their first piece until `open`."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, request):
        pieces = echo(request)
        yield next(pieces)
        self.reached.set()
        while not self.opened.wait(0.01):
            yield None
        yield from pieces


@pytest.fixture
def gate(world):
    world.parts.engine.script = gate = Gate()
    yield gate
    gate.opened.set()
    assert world.parts.idempotency.drain(20)


def test_what_is_asked(scripted):
    tool = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": None}
    key = scripted.make_key(profiles=["one"])
    response = scripted.call("POST", "/v1/responses", key=key, headers={"X-Request-Id": "r-1"}, json={
        "input": "p", "instructions": "be", "model": "one", "temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1,
        "repeat_penalty": 1.1, "max_output_tokens": 9, "stop": "x", "seed": 4, "presence_penalty": 1, "tools": [tool],
        "frequency_penalty": 0.5, "logit_bias": {"5": 1}, "top_logprobs": 2, "parallel_tool_calls": False,
        "tool_choice": "required"})
    assert response.status_code == 200, response.text
    asked = scripted.parts.chat.asked[0]
    assert (asked.request_id, asked.allowed_profiles, asked.model, asked.stop) == ("r-1", ("one",), "one", ("x",))
    assert [(message.role, message.content) for message in asked.messages] == [("system", "be"), ("user", "p")]
    assert (asked.temperature, asked.top_p, asked.top_k, asked.min_p, asked.repeat_penalty) == (0, 0.5, 3, 0.1, 1.1)
    assert (asked.max_tokens, asked.seed, asked.logprobs, asked.schema) == (9, 4, 2, None)
    assert (asked.presence_penalty, asked.frequency_penalty, asked.logit_bias) == (1, 0.5, {5: 1})
    assert asked.tools and (asked.tools.choice, asked.tools.parallel) == ("required", False)
    assert asked.session_id and asked.session_id.startswith("resp-") and asked.about["response"] == response.json["id"]


@pytest.mark.parametrize(("reasoning", "thinks"), [
    (None, True), ({"effort": "none"}, False), ({"effort": None}, True),
    ({"effort": "minimal", "summary": "auto"}, True)])
def test_a_model_thinks_unless_it_is_asked_not_to(scripted, reasoning, thinks):
    post(scripted, reasoning=reasoning)
    assert scripted.parts.chat.asked[0].thinking is thinks


@pytest.mark.parametrize("strict", [True, False, None])
def test_only_a_tool_that_says_so_is_strict(scripted, strict):
    tool = {"type": "function", "name": "f", "parameters": {"type": "object", "minProperties": 1}, "strict": strict}
    assert post(scripted, tools=[tool])["tools"] == [tool]
    assert scripted.parts.chat.asked[0].tools.tools[0].strict is (strict is True)


@pytest.mark.parametrize(("form", "schema"), [
    ({"type": "text"}, None), ({"type": "json_object"}, {"type": "object"}),
    ({"type": "json_schema", "name": "n", "schema": {"type": "array"}}, {"type": "array"})])
def test_what_the_text_must_look_like(scripted, form, schema):
    assert post(scripted, text={"format": form})["text"]["format"] == form
    assert scripted.parts.chat.asked[0].schema == schema


def test_json_is_the_end_of_the_stream(scripted):
    scripted.parts.chat.events = [Reasoned("r"), Delta("a"), Called(0, "{}", "c", "f"), final("a")]
    plain = post(scripted)
    told = events(scripted.call("POST", "/v1/responses", json={"input": "x", "stream": True}).text)
    assert told[-1]["type"] == "response.completed"

    def same(response):
        """Without what differs from request to request."""
        text = json.dumps(response).replace(response["id"][5:37], "").replace(response["id"][5:29], "")
        return {**json.loads(text), "created_at": 0, "completed_at": 0}
    assert same(told[-1]["response"]) == same(plain)
    assert [item["type"] for item in plain["output"]] == ["reasoning", "message", "function_call"]


def test_a_chain_whose_last_response_is_answered_twice_branches(world):
    first = post(world)
    second, third = (post(world, previous_response_id=first["id"]) for _ in range(2))
    assert second["session_id"] == first["session_id"] != third["session_id"]
    assert set(sessions(world)) == {first["session_id"], third["session_id"]}


def test_while_the_next_one_is_answered_others_branch(world, gate):
    gate.opened.set()
    first = post(world)
    gate.reached.clear(), gate.opened.clear()
    running = threading.Thread(target=post, args=(world,), kwargs={"previous_response_id": first["id"]})
    running.start()
    assert gate.reached.wait(20)
    world.parts.engine.script = echo
    branch = post(world, previous_response_id=first["id"])
    assert branch["session_id"] != first["session_id"]
    gate.opened.set()
    running.join(20)
    assert len(world.parts.sessions.get("0", first["session_id"])["turns"]) == 4


def test_a_turn_that_came_between_is_noticed(world):
    """Two go on from one response at the same time, and both find it the last: the second is told to try again."""
    first = post(world)
    asking = routes.Asking.make

    def late(self, digest):
        asks = asking(self, digest)
        world.call("POST", "/answer", json={"prompt": "between", "session_id": first["session_id"]})
        return asks
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(routes.Asking, "make", late)
        told = post(world, previous_response_id=first["id"], status=409)
    assert told["error"]["code"] == "session_moved"
    assert post(world, previous_response_id=first["id"])["session_id"] != first["session_id"]


@pytest.mark.parametrize("background", [False, True])
def test_a_retry_gets_the_same_response(world, background):
    first = post(world)
    post(world, previous_response_id=first["id"])
    branches = [post(world, key="k", previous_response_id=first["id"], background=background) for _ in range(3)]
    assert len({branch["id"] for branch in branches}) == 1 and len(sessions(world)) == 2
    assert world.parts.idempotency.drain(20)
    again = post(world, key="k", previous_response_id=first["id"], background=background)
    assert again["status"] == "completed" and again["id"] == branches[0]["id"] and len(sessions(world)) == 2
    assert len(world.parts.sessions.get("0", again["session_id"])["turns"]) == 4
    assert post(world, key="other")["id"] != again["id"]


def test_a_retry_goes_on_where_the_first_try_did(world):
    first = post(world)
    second = [post(world, key="k", previous_response_id=first["id"]) for _ in range(2)]
    assert second[0] == second[1] and second[0]["session_id"] == first["session_id"]
    assert len(sessions(world)) == 1


def test_what_is_being_answered(world, gate):
    session = {"X-Session-Id": "mine"}
    running = threading.Thread(target=world.call, args=("POST", "/v1/responses"),
                               kwargs={"json": {"input": "x"}, "headers": session})
    running.start()
    assert gate.reached.wait(20)
    record = world.parts.sessions.store.read("0", "mine")[1]
    response = {"id": record["about"]["response"]}
    assert get(world, response).json["status"] == "in_progress"
    assert get(world, response, "?stream=true").status_code == 400
    told = post(world, previous_response_id=response["id"], status=409)
    assert told["error"]["code"] == "response_in_progress"
    gate.opened.set()
    running.join(20)
    assert get(world, response).json["status"] == "completed"


def test_a_client_that_left(world):
    def leave(request):
        yield wire.Piece(id=request.id, text="part ")
        yield wire.Piece(id=request.id, text="of it")
        raise GeneratorExit
    world.parts.engine.script = leave
    with pytest.raises(GeneratorExit):
        post(world)
    session, = sessions(world)
    response = {"id": world.parts.sessions.store.read("0", session)[1]["about"]["response"]}
    kept = get(world, response).json
    assert (kept["status"], kept["output"][0]["content"][0]["text"]) == ("cancelled", "part of it")


def test_a_stored_response_is_told_as_a_stream(world):
    response = post(world)
    told = events(get(world, response, "?stream=true").text)
    assert told[-1]["response"] == response == get(world, response, "?stream=false").json
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    later = events(get(world, response, "?stream=true&starting_after=3").text)
    assert later == told[4:]
    for wrong in ("?stream=yes", "?stream=true&starting_after=-1"):
        assert get(world, response, wrong).status_code == 400


def test_a_rewound_response(world):
    response = post(world)
    world.call("POST", f"/answer/{response['session_id']}/rewind", json={"to": 0})
    assert get(world, response).json == response
    told = post(world, previous_response_id=response["id"], status=400)
    assert told["error"]["code"] == "previous_response_not_found"


def test_a_session_goes_with_its_last_response(world):
    first = post(world)
    branch = [post(world, previous_response_id=first["id"]) for _ in range(2)][1]
    aside = post(world, metadata={"session_id": "mine"})
    for response in (branch, aside):
        assert world.call("DELETE", f"/v1/responses/{response['id']}").json["deleted"] is True
    assert set(sessions(world)) == {first["session_id"], "mine"}
    assert world.parts.engine.forgotten == [("0", branch["session_id"])]
    world.call("POST", "/answer", json={"prompt": "x", "session_id": first["session_id"]})
    assert world.call("DELETE", f"/v1/responses/{first['id']}").status_code == 200
    assert first["session_id"] in sessions(world)


# ---------------------------------------------------------------- in the background

def test_in_the_background(world, gate):
    response = post(world, background=True)
    assert response["status"] in ("queued", "in_progress") and response["background"] is True
    assert gate.reached.wait(20)
    assert get(world, response).json["status"] == "in_progress"
    told = post(world, previous_response_id=response["id"], status=409)
    assert told["error"]["code"] == "response_in_progress"
    ticket, run = world.parts.admissions.tickets[0], world.parts.admissions.tickets[1]
    assert not ticket.open and run.open
    gate.opened.set()
    wait_until(lambda: get(world, response).json["status"] == "completed")
    wait_until(lambda: not run.open)
    assert world.parts.admissions.charged == [(2, 3)]


def test_the_same_request_twice_at_once_is_one_response(world, gate, monkeypatch):
    keep, keeping = world.parts.chat.keep_question, threading.Event()

    def slowly(ask):
        keeping.set()
        assert wait.wait(20)
        keep(ask)
    wait, told = threading.Event(), []
    monkeypatch.setattr(world.parts.chat, "keep_question", slowly)
    monkeypatch.setattr(background, "PATIENCE", 0.2)
    first = threading.Thread(target=lambda: told.append(post(world, key="k", background=True)))
    first.start()
    assert keeping.wait(20)
    assert post(world, key="k", background=True, status=503)["error"]["code"] == "idempotency_busy"
    wait.set()
    first.join(20)
    assert post(world, key="k", background=True)["id"] == told[0]["id"]
    assert len(sessions(world)) == 1 and world.parts.admissions.tickets[-1].open is False


def test_a_key_is_of_one_request(world):
    post(world, key="k", background=True, input="a")
    for more in ({"input": "b", "background": True}, {"input": "a"}):
        assert post(world, key="k", status=409, **more)["error"]["code"] == "idempotency_mismatch"
    assert world.parts.idempotency.drain(20)


def test_cancelled(world, gate):
    response = post(world, background=True)
    assert gate.reached.wait(20)
    cancelled = world.call("POST", f"/v1/responses/{response['id']}/cancel").json
    assert cancelled["status"] == "cancelled" == get(world, response).json["status"]
    assert cancelled["output"][0]["content"][0]["text"] == "you" and len(world.parts.engine.cancelled) == 1
    assert world.call("POST", f"/v1/responses/{response['id']}/cancel").json == cancelled
    following = post(world, previous_response_id=response["id"], background=True)
    assert world.call("DELETE", f"/v1/responses/{following['id']}").status_code == 200
    assert get(world, following).status_code == 404


def test_one_that_fails_says_why(world):
    world.parts.engine.fail["one.gguf"] = StorageFull("no room on the disk")
    response = post(world, background=True)
    wait_until(lambda: get(world, response).json["status"] == "failed")
    kept = get(world, response).json
    assert kept["error"] == {"code": "server_error", "message": "no room on the disk"} and kept["output"] == []
    told = events(get(world, response, "?stream=true").text)
    assert told[-1]["type"] == "response.failed" and told[-1]["response"]["error"] == kept["error"]


def test_one_that_nobody_answers_any_more(world, gate):
    """Its process was killed: nothing runs, and nothing says how it ended."""
    response = post(world, background=True)
    assert gate.reached.wait(20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Background, "runs", lambda *_: False)
        patch.setattr(routes.responses, "held", lambda *_: False)
        kept = get(world, response).json
    assert kept["status"] == "failed" and "stopped before" in kept["error"]["message"]


def test_refused_ones_leave_nothing(world):
    world.parts.admissions.refuse = None
    post(world, background=True, model="none", status=404)
    post(world, background=True, store=False, status=400)
    places = [world.app.extensions["parley"].runs.acquire(blocking=False) for _ in range(1000)]
    assert post(world, background=True, status=503)["error"]["code"] == "busy"
    for _ in filter(None, places):
        world.app.extensions["parley"].runs.release()
    assert sessions(world) == {} and not any(ticket.open for ticket in world.parts.admissions.tickets)


def test_a_stream_of_the_background_lives_on_without_its_client(world, gate):
    response = world.client.open("/v1/responses", method="POST", headers={"Authorization": world.settings.master_key},
                                 json={"input": "x", "background": True, "stream": True})
    stream = response.iter_encoded()
    first = events(next(stream).decode())[0]
    response.close()
    gate.opened.set()
    kept = first["response"]
    wait_until(lambda: get(world, kept).json["status"] == "completed")
    told = events(get(world, kept, "?stream=true").text)
    assert told[0] == first and told[-1]["response"] == get(world, kept).json


def test_errors_of_the_scripts_are_told(tmp_path):
    world = make_world(tmp_path, chat=FakeChat(events=[ParleyError("broken")]))
    assert post(world, status=500)["error"]["message"] == "broken"


def test_another_process_waits_for_the_events(world, gate):
    response = post(world, background=True)
    assert gate.reached.wait(20)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(world.parts.idempotency), "follow", lambda *_: None)
        patch.setattr(routes, "time", SimpleNamespace(sleep=lambda _: gate.opened.set()))
        found = events(get(world, response, "?stream=true").text)
    assert found[-1]["type"] == "response.completed"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    assert [event["type"] for event in found].count("response.output_text.delta") == 3


def test_who_follows_takes_a_place(world, gate):
    response = post(world, background=True)
    room = world.app.extensions["parley"]
    places = [room.places.acquire(blocking=False) for _ in range(1000)]
    assert get(world, response, "?stream=true").json["error"]["code"] == "busy"
    for _ in filter(None, places):
        room.places.release()
