"""Stored responses: their ids, where they are found, and where a conversation goes on from them."""

from __future__ import annotations

import pytest

from services.chat import responses
from services.chat.messages import Call, Message
from services.chat.sessions import Sessions
from services.errors import Conflict, NotFound, RunnerCrashed
from services.store.files import FileStore
from services.store.memory import MemoryStore

DIGITS = ["a" * 32, "b" * 32, "c" * 32]


@pytest.fixture(params=[MemoryStore, FileStore])
def sessions(request, tmp_path):
    return Sessions(MemoryStore() if request.param is MemoryStore else FileStore(tmp_path))


def respond(sessions, digits, session=None, answer="yes", request=None, **meta):
    """A response that was answered; its id."""
    session = session or responses.session_for(digits)
    response = responses.new_id(digits, session)
    with sessions.turn("0", session, 1) as turn:
        turn.prompt(f"ask {digits[0]}", request, {"response": response})
        if answer is not None:
            turn.answer(answer, finish_reason="stop", **meta)
    return response


def test_ids_name_sessions():
    assert responses.new_id(DIGITS[0], responses.session_for(DIGITS[0])) == f"resp_{DIGITS[0]}"
    assert responses.new_id(DIGITS[0], None) == f"resp_{DIGITS[0]}"
    assert responses.new_id(DIGITS[0], "x_y-1") == f"resp_{DIGITS[0]}_x_y-1"
    assert responses.digits_of(f"resp_{DIGITS[0]}_x_y-1") == DIGITS[0]


@pytest.mark.parametrize("session", [None, "7", "my_chat-1"])
def test_found(sessions, session):
    response = respond(sessions, DIGITS[0], session)
    kept = responses.find(sessions, "0", response)
    assert (kept.about, kept.question.content, kept.answer.content) == ({"response": response}, "ask a", "yes")
    assert kept.whole and kept.end == 2 and not responses.held(sessions, kept)


@pytest.mark.parametrize("response", ["", "resp_", f"resp_{DIGITS[1]}", f"resp_{DIGITS[0]}_other", "resp_" + "A" * 32,
                                      f"resp_{DIGITS[0]}_../x", f"resp_{DIGITS[0]}_", "x" * 1000])
def test_what_is_not_found(sessions, response):
    respond(sessions, DIGITS[0])
    with pytest.raises(NotFound, match="not found") as caught:
        responses.find(sessions, "0", response)
    assert len(caught.value.message) < 200


def test_of_somebody_else(sessions):
    response = respond(sessions, DIGITS[0])
    with pytest.raises(NotFound):
        responses.find(sessions, "1", response)


def test_without_an_answer(sessions):
    response = respond(sessions, DIGITS[0], answer=None)
    kept = responses.find(sessions, "0", response)
    assert kept.answer is None and not kept.whole and kept.end == 1
    with sessions.turn("0", kept.session, 1):
        assert responses.held(sessions, kept)
    assert not responses.held(sessions, kept)
    responses.end_with(sessions, "0", response, "failed", RunnerCrashed("gone"))
    kept = responses.find(sessions, "0", response)
    assert kept.whole and (kept.note["status"], kept.note["error"], kept.note["http_status"]) == ("failed", "gone", 503)


def test_the_last_response_goes_on_in_its_session(sessions):
    first = responses.find(sessions, "0", respond(sessions, DIGITS[0]))
    session, follows = responses.go_on(sessions, first, DIGITS[1], None)
    assert (session, follows) == (first.session, first.answer.n)
    with sessions.turn("0", session, 1) as turn:
        turn.check_follows(follows, None)
        turn.prompt("between")
    with sessions.turn("0", session, 1) as turn, pytest.raises(Conflict) as caught:
        turn.check_follows(follows, None)
    assert caught.value.code == "session_moved"


def test_an_earlier_response_goes_on_in_a_branch(sessions):
    first = respond(sessions, DIGITS[0], tool_calls=[Call("c", "f", "{}").shape()])
    respond(sessions, DIGITS[1], responses.session_for(DIGITS[0]))
    kept = responses.find(sessions, "0", first)
    session, follows = responses.go_on(sessions, kept, DIGITS[2], None)
    assert (session, follows) == (responses.session_for(DIGITS[2]), None)
    assert [turn["content"] for turn in sessions.get("0", session)["turns"]] == ["ask a", "yes"]
    with pytest.raises(NotFound):       # the branch took the turn along, not the response
        responses.find(sessions, "0", f"resp_{DIGITS[0]}_{session}")
    assert responses.messages(kept) == [Message("user", "ask a"), Message("assistant", "yes", (Call("c", "f", "{}"),))]
    assert responses.calls(kept) == {"c": "f"}


def test_a_retry_goes_on_where_its_first_try_did(sessions):
    first = respond(sessions, DIGITS[0])
    session = responses.session_for(DIGITS[0])
    respond(sessions, DIGITS[1], session, answer=None, request="digest")
    kept = responses.find(sessions, "0", first)
    assert responses.go_on(sessions, kept, DIGITS[1], "digest") == (session, kept.answer.n)
    branches = [responses.go_on(sessions, kept, DIGITS[2], "other") for _ in range(2)]
    assert branches == [(responses.session_for(DIGITS[2]), None)] * 2
    with pytest.raises(Conflict):
        responses.go_on(sessions, kept, DIGITS[2], None)


def test_deleted(sessions):
    first, second = respond(sessions, DIGITS[0]), respond(sessions, DIGITS[1], responses.session_for(DIGITS[0]))
    assert not responses.delete(sessions, responses.find(sessions, "0", first))
    with pytest.raises(NotFound):
        responses.find(sessions, "0", first)
    assert responses.delete(sessions, responses.find(sessions, "0", second))
    assert sessions.list("0") == {}


def test_a_session_of_the_clients_stays(sessions):
    assert not responses.delete(sessions, responses.find(sessions, "0", respond(sessions, DIGITS[0], "mine")))
    assert list(sessions.list("0")) == ["mine"]
