"""Sessions as conversations: ids, the protocol of a turn, what a cut turn leaves, rename, rewind, fork, lists."""

import itertools
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.chat.sessions import Sessions, TurnRecord, pairs, parse_id, unfold
from services.errors import BadRequest, Conflict, Gone, NotFound, SessionBusy
from services.store.files import FileStore
from services.store.memory import MemoryStore


@pytest.fixture(params=[MemoryStore, FileStore])
def sessions(request, tmp_path):
    return Sessions(MemoryStore() if request.param is MemoryStore else FileStore(tmp_path))


def talk(sessions, sid, *texts, owner="0"):
    for text in texts:
        with sessions.turn(owner, sid, 5) as turn:
            turn.prompt(text)
            turn.answer("to " + text, finish_reason="stop")


def said(sessions, sid, owner="0"):
    return [turn["content"] for turn in sessions.get(owner, sid)["turns"]]


@pytest.mark.parametrize(("value", "sid"), [(1, "1"), (0, "0"), (-1, "-1"), (10 ** 31, str(10 ** 31)), ("1", "1"),
                                            ("01", "01"), ("my-chat_2", "my-chat_2"), ("x" * 64, "x" * 64), ("-", "-")])
def test_ids(value, sid):
    assert parse_id(value) == sid


@pytest.mark.parametrize("value", ["Active", "../x", "1/2", "con", "NUL", ".", "", " 1", "1\n", "x" * 65, "x" * 300,
                                   1.0, True, None, [1], {}, "１", "é", "a\0", "\ud800", 10 ** 64,
                                   pytest.param(10 ** 5000, id="5001 digits"), -10 ** 32])
def test_what_is_no_id(value):
    with pytest.raises(BadRequest, match="is no session id") as caught:
        parse_id(value)
    assert caught.value.code == "bad_session_id" and len(caught.value.message) < 300


@pytest.mark.parametrize(("value", "shown"), [(10 ** 32, "of more than 32 digits"), ([1], "of type list"),
                                              ("a b", "'a b'"), (True, "True")])
def test_what_is_no_id_is_shown(value, shown):
    with pytest.raises(BadRequest, match="expected an integer of up to 32 digits, or a name of up to 64") as caught:
        parse_id(value)
    assert caught.value.message.startswith(f"session_id {shown} is no session id")


@given(st.text(max_size=80) | st.integers() | st.floats() | st.none() | st.booleans())
def test_any_id_is_parsed_or_refused(value):
    try:
        sid = parse_id(value)
    except BadRequest:
        return
    assert sid.isascii() and "/" not in sid and "." not in sid and parse_id(sid) == sid


def test_the_shape_of_a_session(sessions):
    with sessions.turn("0", "1", 1) as turn:
        prompt = turn.prompt("Hello, I would like to know more about it", profile="p")
        answer = turn.answer("Yes", finish_reason="length", usage={"total_tokens": 5})
    shape = sessions.get("0", "1")
    assert (shape["session_id"], shape["name"]) == (1, "Hello, I would like to know mo...")
    assert shape["turns"] == [
        {"role": "user", "content": "Hello, I would like to know more about it", "at": prompt.at, "profile": "p"},
        {"role": "assistant", "content": "Yes", "at": answer.at, "usage": {"total_tokens": 5},
         "finish_reason": "length"}]
    assert shape["updated"] == answer.at >= shape["created"]
    talk(sessions, "01", "x")
    assert sessions.get("0", "01")["session_id"] == "01" and said(sessions, "1") != said(sessions, "01")


def test_the_history_grows_by_whole_turns(sessions):
    talk(sessions, "1", "a", "b")
    with sessions.turn("0", "1", 1) as turn:
        assert [(record.role, record.content) for pair in turn.history for record in pair] == [
            ("user", "a"), ("assistant", "to a"), ("user", "b"), ("assistant", "to b")]


def test_a_prompt_without_an_answer_is_kept_and_left_out_of_the_history(sessions):
    talk(sessions, "1", "a")
    with pytest.raises(RuntimeError), sessions.turn("0", "1", 1) as turn:
        turn.prompt("b")
        raise RuntimeError("the model died")
    talk(sessions, "1", "c")
    turns = sessions.get("0", "1")["turns"]
    assert [(turn["content"], turn.get("interrupted", False)) for turn in turns] == [
        ("a", False), ("to a", False), ("b", True), ("c", False), ("to c", False)]
    with sessions.turn("0", "1", 1) as turn:
        assert [record.content for pair in turn.history for record in pair] == ["a", "to a", "c", "to c"]


def test_a_cut_answer_is_kept_and_marked(sessions):
    with sessions.turn("0", "1", 1) as turn:
        turn.prompt("a")
        turn.answer("half an", finish_reason="cancelled", interrupted=True)
    assert [turn.get("interrupted") for turn in sessions.get("0", "1")["turns"]] == [None, True]
    with sessions.turn("0", "1", 1) as turn:
        assert [record.content for pair in turn.history for record in pair] == ["a", "half an"]
        assert turn.history[0][1].interrupted


def test_a_turn_that_says_nothing_leaves_nothing(sessions):
    with sessions.turn("0", "1", 1):
        pass
    assert sessions.list("0") == {}
    with pytest.raises(NotFound):
        sessions.get("0", "1")


def test_busy_and_gone(sessions):
    with sessions.turn("0", "1", 1) as turn:
        turn.prompt("a")
        with pytest.raises(SessionBusy):
            sessions.turn("0", "1", 0.01).__enter__()
        sessions.delete("0", "1")
        with pytest.raises(Gone, match="deleted"):
            turn.answer("b", finish_reason="stop")
    assert sessions.list("0") == {}
    with pytest.raises(NotFound):
        sessions.delete("0", "1")


def test_other_owners(sessions):
    talk(sessions, "1", "mine", owner="k1")
    for act in (lambda: sessions.get("0", "1"), lambda: sessions.delete("0", "1"), lambda: sessions.fork("0", "1"),
                lambda: sessions.rename("0", "1", "x"), lambda: sessions.rewind("0", "1", 0)):
        with pytest.raises(NotFound, match="there is no session 1"):
            act()
    talk(sessions, "1", "theirs")
    assert said(sessions, "1", "k1") == ["mine", "to mine"]
    assert sessions.list("k1") == {"1": "mine"} and sessions.list_all() == {"0/1": "theirs", "k1/1": "mine"}


def test_lists_are_in_order(sessions):
    for sid in ("b", "10", "9", "a", "-1"):
        talk(sessions, sid, "x")
    assert list(sessions.list("0")) == ["-1", "9", "10", "a", "b"]


def test_lists_begin_with_what_was_used_last(sessions):
    clock = itertools.count()
    sessions = Sessions(sessions.store, lambda: f"2026-01-01T00:00:{next(clock):02}.000+00:00")
    for sid in ("b", "10", "9", "10"):
        talk(sessions, sid, "x")
    talk(sessions, "7", "x", owner="k1")
    assert list(sessions.list("0", used=True)) == ["10", "9", "b"]
    sessions.rename("0", "b", "other")
    assert list(sessions.list_all(used=True)) == ["0/b", "k1/7", "0/10", "0/9"]
    assert sessions.fork("0", "9")["session_id"] == 11 and next(iter(sessions.list("0", used=True))) == "11"


def test_rename(sessions):
    talk(sessions, "1", "a")
    assert sessions.rename("0", "1", "añ\u202e\n")["name"] == "añ\u202e\n" == sessions.list("0")["1"]
    for name in ("", "  ", "x" * 201):
        with pytest.raises(BadRequest, match="expected 1 to 200"):
            sessions.rename("0", "1", name)


def test_rewind(sessions):
    talk(sessions, "1", "a", "b", "c")
    assert [turn["content"] for turn in sessions.rewind("0", "1", 2)["turns"]] == ["a", "to a"]
    talk(sessions, "1", "d")
    assert said(sessions, "1") == ["a", "to a", "d", "to d"]
    assert sessions.rewind("0", "1", 3)["turns"][2]["interrupted"] is True
    with sessions.turn("0", "1", 1) as turn:
        assert [record.content for pair in turn.history for record in pair] == ["a", "to a"]
    for to in (-1, 4):
        with pytest.raises(BadRequest, match="this session has 3 turns, so 0 to 3"):
            sessions.rewind("0", "1", to)
    sessions.rewind("0", "1", 0)
    assert said(sessions, "1") == [] and sessions.list("0") == {"1": "a"}


def test_a_fork_with_an_id_of_its_own(sessions):
    talk(sessions, "1", "a", "b")
    assert sessions.fork("0", "1", 2, to="branch")["session_id"] == "branch"
    assert said(sessions, "branch") == ["a", "to a"]
    with pytest.raises(Conflict):
        sessions.fork("0", "1", 2, to="branch")


def test_notes_change_nothing_of_a_conversation(sessions):
    talk(sessions, "1", "a")
    before = sessions.get("0", "1")
    sessions.note("0", "1", response="r", deleted=True)
    talk(sessions, "1", "b")
    assert said(sessions, "1") == ["a", "to a", "b", "to b"] and sessions.get("0", "1")["name"] == before["name"]
    note, = [record for record in sessions.store.read("0", "1") if record["type"] == "note"]
    assert note["response"] == "r" and note["deleted"] is True


def test_what_a_question_carries_is_for_its_maker(sessions):
    with sessions.turn("0", "1", 5) as turn:
        turn.prompt("a", about={"x": 1})
        turn.answer("b", finish_reason="stop")
    assert sessions.store.read("0", "1")[1]["about"] == {"x": 1}
    assert not any("about" in turn or "x" in turn for turn in sessions.get("0", "1")["turns"])


def test_what_follows_what(sessions):
    talk(sessions, "1", "a")
    with sessions.turn("0", "1", 5) as turn:
        last = turn.turns[-1].n
        turn.check_follows(last, None)
        with pytest.raises(Conflict):
            turn.check_follows(last - 1, None)
        turn.prompt("b", request="digest")
    with sessions.turn("0", "1", 5) as turn:
        turn.check_follows(last, "digest")      # its own first try, which was cut
        for other in (None, "other"):
            with pytest.raises(Conflict, match="try again"):
                turn.check_follows(last, other)
    with sessions.turn("0", "new", 5) as turn, pytest.raises(Conflict):
        turn.check_follows(0, None)


def test_fork(sessions):
    talk(sessions, "1", "a", "b")
    talk(sessions, "7", "x")
    with sessions.turn("0", "1", 1) as turn:
        turn.prompt("c")
        turn.answer("cut", finish_reason="cancelled", interrupted=True)
    whole = sessions.get("0", "1")
    fork = sessions.fork("0", "1")
    assert fork["session_id"] == 8 and fork["turns"] == whole["turns"] and fork["name"] == "a"
    assert fork["updated"] >= fork["created"] >= whole["updated"]
    assert [turn["content"] for turn in sessions.fork("0", "1", 2)["turns"]] == ["a", "to a"]
    assert sessions.fork("0", "1", 1)["turns"][0]["interrupted"] is True
    talk(sessions, "8", "more")
    assert sessions.get("0", "1") == whole
    assert sessions.fork("0", "1", 0)["turns"] == []
    with pytest.raises(BadRequest, match="at 7 is out of range"):
        sessions.fork("0", "1", 7)
    talk(sessions, "chat", "x")
    talk(sessions, "01", "x")
    assert [sessions.fork("0", sid)["session_id"] for sid in ("chat", "chat", "chat-2", "01")] == [
        "chat-2", "chat-3", "chat-4", "01-2"]
    talk(sessions, "n" * 64, "x")
    assert sessions.fork("0", "n" * 64)["session_id"] == "n" * 56 + "-2"


def test_a_fork_beyond_the_largest_integer(sessions):
    talk(sessions, "9" * 32, "x")
    with pytest.raises(Conflict):
        sessions.fork("0", "9" * 32)


def test_half_surrogates_write_nothing(sessions):
    talk(sessions, "1", "a")
    before = sessions.store.read("0", "1")
    with sessions.turn("0", "1", 1) as turn:
        for act in (lambda: turn.prompt("x\ud800"), lambda: sessions.rename("0", "1", "\udfff"),
                    lambda: turn.prompt("x", note="\ud800")):
            with pytest.raises((BadRequest, SessionBusy)) as caught:
                act()
            assert caught.value.code in ("bad_unicode", "session_busy")
    assert sessions.store.read("0", "1") == before
    with pytest.raises(BadRequest) as caught:
        sessions.rename("0", "1", "\udfff")
    assert caught.value.code == "bad_unicode"


TEXT = st.text(st.characters(), max_size=20) | st.text(st.sampled_from("\0\n\r\u2028\u2029\u202e\u200d😀é\u0301\ud800"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, TEXT), max_size=4))
def test_texts_come_back_as_they_went(tmp_path_factory, turns):
    sessions = Sessions(FileStore(tmp_path_factory.mktemp("data")))
    talk(sessions, "1", "first")
    kept = said(sessions, "1")
    for prompt, answer in turns:
        if re.search("[\ud800-\udfff]", prompt + answer):
            with pytest.raises(BadRequest), sessions.turn("0", "1", 1) as turn:
                turn.prompt(prompt + answer)
            continue
        with sessions.turn("0", "1", 1) as turn:
            turn.prompt(prompt)
            turn.answer(answer, finish_reason="stop")
        kept += [prompt, answer]
    assert said(sessions, "1") == kept


# ---------------------------------------------------------------- retries

def test_a_retry_takes_up_the_prompt_that_was_cut(sessions):
    with sessions.turn("0", "1", 1) as turn:
        first = turn.prompt("a", request="r1")
    talk(sessions, "1", "between")
    with sessions.turn("0", "1", 1) as turn:
        assert turn.answered("r1") is None
        assert turn.prompt("a", request="r1").n == first.n
        turn.answer("to a", finish_reason="stop")
    assert said(sessions, "1") == ["between", "to between", "a", "to a"]
    with sessions.turn("0", "1", 1) as turn:
        assert [record.content for pair in turn.history for record in pair] == ["between", "to between", "a", "to a"]
        assert turn.answered("r1").content == "to a" and turn.answered("r2") is None
        turn.prompt("a", request="r2")
    assert said(sessions, "1")[-1] == "a" and len(said(sessions, "1")) == 5


def test_a_retry_takes_the_place_of_the_part_that_was_cut(sessions):
    talk(sessions, "1", "earlier")
    with sessions.turn("0", "1", 1) as turn:
        turn.prompt("never answered")
    with sessions.turn("0", "1", 1) as turn:
        turn.prompt("a", request="r1")
        turn.answer("to", finish_reason="runner_crashed", interrupted=True)
    talk(sessions, "1", "between")
    for answered in (False, True):
        with sessions.turn("0", "1", 1) as turn:
            assert [asked.content for asked, _ in turn.before("r1")] == ["earlier", "between"]
            assert turn.before(None) == turn.history and len(turn.history) == 3
            assert (turn.answered("r1") is not None) == answered
            if not answered:
                turn.prompt("a", request="r1")
                turn.answer("to a", finish_reason="stop")
    assert said(sessions, "1") == ["earlier", "to earlier", "never answered", "between", "to between", "a", "to a"]
    assert said(sessions, str(sessions.fork("0", "1")["session_id"])) == said(sessions, "1")


# A model of the conversation beside the real one: each step is a turn, a cut turn, a rewind or a fork.
STEPS = st.lists(st.sampled_from(["turn", "cut", "lost", "rewind", "fork"]), max_size=12)


@settings(max_examples=60, deadline=None)
@given(STEPS, st.data())
def test_any_series_of_steps(steps, data):
    sessions, model, sid = Sessions(MemoryStore()), [], "1"
    talk(sessions, sid, "first")
    model += ["first", "to first"]
    for number, step in enumerate(steps):
        if step == "rewind":
            to = data.draw(st.integers(0, len(model)))
            sessions.rewind("0", sid, to)
            del model[to:]
        elif step == "fork":
            at = data.draw(st.integers(0, len(model)))
            sid = str(sessions.fork("0", sid, at)["session_id"])
            del model[at:]
        else:
            with sessions.turn("0", sid, 1) as turn:
                roles = [record.role for pair in turn.history for record in pair]
                assert roles == ["user", "assistant"] * (len(roles) // 2)
                turn.prompt(f"p{number}")
                model.append(f"p{number}")
                if step != "lost":
                    turn.answer(f"a{number}", finish_reason="stop", interrupted=step == "cut")
                    model.append(f"a{number}")
        assert said(sessions, sid) == model
        assert sessions.entries("0")[f"0/{sid}"].turns == len(model)


def test_answers_without_a_prompt_are_listed_but_no_history():
    turns = unfold([{"type": "head", "n": 0}, {"type": "assistant", "n": 1, "at": "", "content": "x"},
                    {"type": "user", "n": 2, "at": "", "content": "y"},
                    {"type": "assistant", "n": 3, "at": "", "content": "z"}])
    assert [turn.content for turn in turns] == ["x", "y", "z"] and pairs(turns) == [(turns[1], turns[2])]


def test_add(sessions):
    turns = [TurnRecord("user", "a", "2020", 0, {"k": 1}), TurnRecord("assistant", "b", "2021", 1, {}, None, "stop")]
    assert sessions.add("0", None, "n", turns)["session_id"] == 1
    made = sessions.add("0", "x", None, turns)
    assert (made["name"], made["created"], made["turns"][0]["k"], made["turns"][1]["finish_reason"]) == ("a", "2020", 1,
                                                                                                        "stop")
    assert sessions.add("0", "empty", None, [])["turns"] == []
    with pytest.raises(Conflict):
        sessions.add("0", "x", None, turns)
