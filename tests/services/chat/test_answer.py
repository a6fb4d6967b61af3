"""The pipeline from Ask to Final, with real sessions and profiles on disk and a scripted runner."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services import kv_names, wire
from services.chat import answer
from services.chat.answer import Ask, Beat, Chat, Delta, Final
from services.chat.events import Trimmed, Waiting
from services.chat.grounding import Grounding
from services.chat.profiles import Profiles
from services.chat.sessions import Sessions
from services.errors import (
    BadModel,
    BadRequest,
    Conflict,
    ContextOverflow,
    DeadlineExceeded,
    Forbidden,
    Gone,
    NotFound,
    RunnerCrashed,
    SessionBusy,
    StorageFull,
    TooLarge,
    Unavailable,
)
from services.settings import Settings
from services.store import disk
from services.store.files import FileStore

Script = Callable[[wire.Generate], Iterator[Any]]


class FakeEngine:
    """Stands for the engine and its one lease. A token is a word; `script` gives texts, None, errors or a Done."""

    def __init__(self) -> None:
        self.ready = wire.Ready(model="m.gguf", architecture="fake", n_ctx=100, n_ctx_train=100, n_slots=4, n_vocab=9,
                                n_threads=1, chat_template=None, bos="", eos="", special_tokens=["<|end|>"])
        self.script: Script = lambda request: iter([" You said: ", request.prompt[-1].split("PROMPT: ")[-1][:-7]])
        self.asked: list[wire.Generate] = []
        self.prepared: list[wire.Prepare] = []
        self.forgotten: list[tuple[str, str]] = []
        self.counted = 0
        self.leased = 0
        self.cancelled = 0
        self.specs: list[tuple[wire.RunnerSpec, bool, float]] = []
        self.loading: Callable[[], bool] = lambda: True

    @contextlib.contextmanager
    def begin(self, spec: wire.RunnerSpec, select: bool = False, keep: float = 0.0, beat: Any = None,
              affinity: str = "") -> Iterator[FakeEngine]:
        self.specs.append((spec, select, keep))
        self.leased += 1
        try:
            yield self
        finally:
            self.leased -= 1

    def arrived(self, timeout: float) -> bool:
        return self.loading()

    def count(self, prompts: list[list[str]]) -> list[int]:
        self.counted += 1
        return [len("".join(prompt).split()) for prompt in prompts]

    def count_at_once(self, prompt: list[str]) -> int | None:
        return len("".join(prompt).split())

    def prepare(self, message: wire.Prepare) -> None:
        assert self.leased
        self.prepared.append(message)

    def forget(self, owner: str, session: str) -> None:
        self.forgotten.append((owner, session))

    def generate(self, request: wire.Generate) -> Iterator[wire.Piece | wire.Queued | wire.Done | None]:
        self.asked.append(request)
        words = 0
        try:
            for item in self.script(request):
                if isinstance(item, Exception):
                    raise item
                if isinstance(item, wire.Done):
                    yield replace_id(item, request.id)
                    return
                if isinstance(item, wire.Queued):
                    yield wire.Queued(id=request.id, position=item.position, eta_seconds=item.eta_seconds)
                    continue
                words += 1
                yield wire.Piece(id=request.id, text=item) if item is not None else None
        except GeneratorExit:
            self.cancelled += 1
            raise
        yield done(request.id, completion_tokens=words)


def done(request_id: str = "", **more: Any) -> wire.Done:
    return wire.Done(**{"id": request_id, "finish_reason": "stop", "prompt_tokens": 9, "completion_tokens": 2,
                        "cached_tokens": 4, "processed_tokens": 5, "prefill_ms": 1.5, **more})


def replace_id(item: wire.Done, request_id: str) -> wire.Done:
    return wire.Done(**{field: getattr(item, field) for field in item.__struct_fields__} | {"id": request_id})


class House:
    """A chat over `folder`."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        (folder / "m.gguf").write_bytes(b"GGUF")
        self.engine = FakeEngine()
        config = {"SelectedModel": "one", "one": {"model": "m.gguf", "n_ctx": 100, "max_tokens": 20, "temperature": 0,
                                                  "stop": ["END"]},
                  "two": {"model": "m.gguf", "k": 1, "keep_loaded": True, "max_tokens": 16000}}
        (folder / "config.json").write_text(json.dumps(config))
        self.settings = Settings(data_dir=folder, models_dir=folder, **settings)
        self.sessions = Sessions(FileStore(folder))
        profiles = Profiles(folder / "config.json", self.settings)
        self.grounding = Grounding(self.settings, profiles, self.engine,    # type: ignore[arg-type]
                                   lambda _owner, _tokens: None)
        self.chat = Chat(self.settings, profiles, self.sessions, self.engine, self.grounding)  # type: ignore[arg-type]

    def ask(self, prompt: str, session: str | None = None, **more: Any) -> list[Any]:
        return list(self.chat.answer(Ask(owner="k1", prompt=prompt, session_id=session, **more)))

    def turns(self, session: str = "1") -> list[dict[str, Any]]:
        return self.sessions.get("k1", session)["turns"]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "BEAT", 0.05)


def deltas(events: list[Any]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def test_an_answer_is_the_fold_of_its_events(house: House) -> None:
    *events, final = house.ask("Hi there", "1", request_id="r1")
    assert isinstance(final, Final) and deltas(events) == final.result == "You said: Hi there"
    assert final.body() == {
        "result": "You said: Hi there", "session_id": 1, "profile": "one", "model": "m.gguf", "finish_reason": "stop",
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11,
                  "prompt_tokens_details": {"cached_tokens": 4, "processed_tokens": 5}},
        "context": {"window": 100, "k": 5, "turns_used": 0, "turns_dropped": 0},
        "timings": {"queue_ms": 0.0, "prefill_ms": 1.5, "decode_ms": 0.0}}
    user, assistant = house.turns()
    assert (user["content"], user["request_id"]) == ("Hi there", "r1") and "interrupted" not in user
    assert (assistant["content"], assistant["model"], assistant["finish_reason"]) == (final.result, "m.gguf", "stop")
    assert house.engine.leased == 0 and house.engine.counted == 0


def test_without_a_session_nothing_is_kept(house: House) -> None:
    assert house.ask("Hi")[-1].body()["session_id"] is None
    assert house.sessions.list_all() == {} and house.ask("Hi", "name-1")[-1].body()["session_id"] == "name-1"


def test_the_last_k_go_along_and_all_are_kept(house: House) -> None:
    for number in range(8):
        house.ask(f"q{number}", "1")
    final = house.ask("now", "1")[-1]
    sent = "".join(house.engine.asked[-1].prompt)
    assert "q3" in sent and "q2" not in sent and final.context["turns_used"] == 5 and len(house.turns()) == 18
    assert "Human: q7\nAI: You said: q7 \n\nPROMPT: now" in sent
    assert house.ask("again", "1", profile="two")[-1].context == {"window": 100, "k": 1, "turns_used": 1,
                                                                  "turns_dropped": 0}


def test_what_does_not_fit_is_dropped_whole_and_said(house: House) -> None:
    house.engine.script = lambda request: iter(["word " * 12])
    for _ in range(6):
        final = house.ask("w " * 12, "1")[-1]
    assert final.context == {"window": 100, "k": 5, "turns_used": 2, "turns_dropped": 3}
    assert len(house.turns()) == 12 and house.engine.counted > 0
    with pytest.raises(ContextOverflow) as caught:
        house.ask("w " * 200, "1")
    assert caught.value.details["limit"] == 80 and len(house.turns()) == 12


def test_the_request_carries_profile_and_overrides(house: House) -> None:
    house.ask("a", schema={"type": "object"})
    sent = house.engine.asked[-1]
    assert (sent.owner, sent.max_tokens, sent.sampling.temperature, sent.sampling.seed) == ("k1", 20, 0, None)
    assert sent.stop == ["\nPROMPT:", "\nBOT:", "\nHuman:", "\nAI:", "END"] and sent.schema == {"type": "object"}
    house.ask("a", temperature=1.5, top_p=0.5, top_k=3, min_p=0.1, repeat_penalty=1.2, seed=7, max_tokens=5,
              stop=("X",))
    assert house.engine.asked[-1].sampling == wire.Sampling(temperature=1.5, top_p=0.5, top_k=3, min_p=0.1,
                                                            repeat_penalty=1.2, seed=7)
    assert house.engine.asked[-1].max_tokens == 5 and house.engine.asked[-1].stop[-1] == "X"
    assert "END" not in house.engine.asked[-1].stop and not house.engine.specs[-1][2]
    house.ask("a", profile="two")
    assert house.engine.specs[-1][2] and len({request.id for request in house.engine.asked}) == 3


@pytest.mark.parametrize("wrong", [
    {"temperature": -1.0}, {"temperature": 1e9}, {"top_p": 0.0}, {"top_p": 2.0}, {"top_k": -1}, {"repeat_penalty": 0.0},
    {"max_tokens": 0}, {"max_tokens": 2**31}, {"seed": 2**64}, {"stop": ("",)}, {"stop": ("x",) * 10_000},
    {"stop": ("x" * 1_000_000,)}, {"min_p": float("nan")},
])
def test_nothing_out_of_range_reaches_the_runner(house: House, wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as caught:
        house.ask("a", "1", **wrong)
    assert caught.value.param in wrong and house.engine.asked == [] and house.sessions.list_all() == {}


def test_a_prompt_is_text(house: House) -> None:
    for prompt in ("", " \n\t"):
        with pytest.raises(BadRequest, match="Question not provided in the request"):
            house.ask(prompt, "1")
    with pytest.raises(BadRequest) as caught:
        house.ask("a\ud800", "1")
    assert caught.value.code == "bad_unicode"
    house.chat.settings = replace(house.settings, max_prompt_bytes=16)
    with pytest.raises(TooLarge, match="17 bytes"):
        house.ask("ü" * 8 + "x", "1")
    assert house.ask("ü" * 8) and house.sessions.list_all() == {}


def test_a_key_stays_within_its_profiles(house: House) -> None:
    assert house.ask("a", allowed_profiles=("one",))
    for wanted in ("two", "no-such"):
        with pytest.raises(Forbidden, match="it may use: one"):
            house.ask("a", profile=wanted, allowed_profiles=("one",))
    with pytest.raises(Forbidden):
        house.ask("a", allowed_profiles=("two",))
    with pytest.raises(NotFound, match="there are: one, two"):
        house.ask("a", profile="no-such")


def test_a_missing_model_file_is_named(house: House) -> None:
    (house.settings.models_dir / "m.gguf").unlink()
    with pytest.raises(NotFound, match=r"m\.gguf"):
        house.ask("a", "1")
    assert house.engine.specs == []


def test_clamping_is_said(house: House) -> None:
    final = house.ask("a", profile="two")[-1]
    assert house.engine.asked[-1].max_tokens == 100 and "16000" in final.body()["warnings"][0]
    house.engine.script = lambda request: iter(["x", done(finish_reason="length", prompt_tokens=95,
                                                          completion_tokens=5)])
    assert "full after 5 of max_tokens 20" in house.ask("a")[-1].body()["warnings"][0]
    house.engine.script = lambda request: iter(["x", done(finish_reason="length", completion_tokens=20)])
    assert "warnings" not in house.ask("a")[-1].body()


def test_a_value_closed_early_is_said(house: House) -> None:
    house.engine.script = lambda request: iter(["[]", done(closed=True, completion_tokens=18)])
    told = house.ask("a", schema={"type": "array"})[-1].body()["warnings"]
    assert told == ["the value was closed early, after 18 tokens of max_tokens 20: raise max_tokens for a longer one"]
    house.engine.script = lambda request: iter(["[]", done(closed=True, prompt_tokens=90, completion_tokens=8)])
    told = house.ask("a", schema={"type": "array"}, stop=("x",))[-1].body()["warnings"]
    assert "closed early, after 8 tokens" in told[0] and "context of 100 tokens was full" in told[1]
    assert "stop is not looked at" in told[2] and "raise max_tokens" not in "".join(told)


@pytest.mark.parametrize("pieces", [[], [" "], ["", "\n", "  "]])
def test_an_empty_answer_is_one_turn_and_flagged(house: House, pieces: list[str]) -> None:
    house.engine.script = lambda request: iter(pieces)
    final = house.ask("a", "1")[-1]
    assert final.result == "" and final.body()["empty"] is True
    assert [turn["content"] for turn in house.turns()] == ["a", ""] and house.turns()[1]["empty"] is True
    assert "interrupted" not in house.turns()[0]


@given(st.lists(st.text(" \nab\u3000\x85", max_size=4), max_size=8))
def test_the_stream_is_the_text_without_its_margins(pieces: list[str]) -> None:
    text = Trimmed()
    assert "".join(text.feed(piece) for piece in pieces) == text.text == "".join(pieces).strip()


def test_silence_is_told_as_beats(house: House) -> None:
    house.engine.script = lambda request: iter([None, "x", None])
    assert [type(event) for event in house.ask("a")] == [Beat, Delta, Beat, Final]


def test_loading_is_told_as_beats_and_ends_when_the_client_leaves(house: House) -> None:
    loaded = False
    house.engine.loading = lambda: loaded
    events = house.chat.answer(Ask(owner="k1", prompt="a", session_id="1"))
    assert next(events) == Beat() and next(events) == Beat()
    loaded = True
    assert isinstance(list(events)[-1], Final)
    loaded = False
    events = house.chat.answer(Ask(owner="k1", prompt="b", session_id="1"))
    assert next(events) == Beat() and house.engine.leased == 1
    events.close()      # type: ignore[attr-defined]
    assert house.engine.leased == 0 and len(house.engine.asked) == 1 and len(house.turns()) == 2


@pytest.mark.parametrize("error", [Unavailable("draining"), BadModel("no GGUF"), TimeoutError("odd")])
def test_no_runner_is_an_error_and_no_turn(house: House, error: Exception) -> None:
    def load() -> bool:
        raise error
    house.engine.loading = load
    with pytest.raises(type(error)):
        house.ask("a", "1")
    assert house.sessions.list_all() == {}


def test_a_client_that_leaves_cancels_and_the_part_is_kept(house: House) -> None:
    house.engine.script = lambda request: iter([" one", " two ", " three"])
    events = house.chat.answer(Ask(owner="k1", prompt="a", session_id="1"))
    assert [next(events), next(events)] == [Delta("one"), Delta(" two")]
    assert [turn["interrupted"] for turn in house.turns()] == [True]       # the question is durable by now
    events.close()      # type: ignore[attr-defined]
    assert house.engine.cancelled == 1 and house.engine.leased == 0
    last = house.turns()[-1]
    assert (last["content"], last["finish_reason"], last["interrupted"]) == ("one two", "cancelled", True)
    assert house.ask("b", "1")[-1].context["turns_used"] == 1


@pytest.mark.parametrize("error", [RunnerCrashed("gone"), RuntimeError("a fault of ours")])
@pytest.mark.parametrize("part", ["one two", ""])
def test_a_runner_that_dies_leaves_the_part(house: House, error: Exception, part: str) -> None:
    house.engine.script = lambda request: iter([part, error])
    with pytest.raises(type(error)):
        house.ask("a", "1")
    turns = house.turns()
    assert turns[0]["content"] == "a" and len(turns) == 1 + bool(part)
    assert turns[-1]["interrupted"] is True and (not part or turns[-1]["content"] == part)
    house.engine.script = lambda request: iter(["fine"])
    assert house.ask("b", "1")[-1].result == "fine"


def test_a_cancelled_done_is_kept_as_interrupted(house: House) -> None:
    house.engine.script = lambda request: iter(["x", done(finish_reason="cancelled")])
    assert house.ask("a", "1")[-1].body()["finish_reason"] == "cancelled" and house.turns()[-1]["interrupted"] is True


def test_time_ends(house: House) -> None:
    house.chat.settings = replace(house.settings, request_timeout=0.1)

    def slow(request: wire.Generate) -> Iterator[str | None]:
        yield "part"
        while True:
            time.sleep(0.02)
            yield None
    house.engine.script = slow
    with pytest.raises(DeadlineExceeded, match="REQUEST_TIMEOUT"):
        house.ask("a", "1")
    assert house.engine.cancelled == 1 and house.turns()[-1]["content"] == "part"
    assert house.turns()[-1]["finish_reason"] == "deadline_exceeded"


def test_a_session_is_one_at_a_time(house: House) -> None:
    house.chat.settings = replace(house.settings, session_wait=0.2)
    with house.sessions.turn("k1", "1", 1):
        events = house.chat.answer(Ask(owner="k1", prompt="a", session_id="1"))
        assert next(events) == Beat()
        with pytest.raises(SessionBusy, match=r"waited \d+(\.\d)? s"):
            list(events)
        assert house.ask("b", "2") and house.ask("c")
    assert isinstance(house.ask("a", "1")[-1], Final)


def test_the_session_and_the_runner_are_free_when_the_end_is_said(house: House) -> None:
    for event in house.chat.answer(Ask(owner="k1", prompt="a", session_id="1")):
        if isinstance(event, Final):
            assert house.engine.leased == 0
            with house.sessions.turn("k1", "1", 0):
                pass


def test_many_at_once_keep_their_own(house: House) -> None:
    def run(number: int) -> None:
        for round_ in range(3):
            results[number].append(house.ask(f"tag-{number}-{round_}", str(number % 4))[-1].result)
    results: list[list[str]] = [[] for _ in range(8)]
    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [[f"You said: tag-{number}-{round_}" for round_ in range(3)] for number in range(8)]
    for session in "0123":
        turns = house.turns(session)
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * 6
        assert all(answer["content"] == f"You said: {user['content']}"
                   for user, answer in zip(turns[::2], turns[1::2], strict=True))


def test_an_answer_that_cannot_be_stored_is_not_done(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(op: disk.Op) -> None:
        if op.kind == "write":
            raise OSError(28, "No space left on device")
    seen = []
    with pytest.raises(StorageFull):
        for event in house.chat.answer(Ask(owner="k1", prompt="a", session_id="1")):
            seen.append(event)
            monkeypatch.setattr(disk, "watcher", full)
    assert deltas(seen) == "You said: a" and not any(isinstance(event, Final) for event in seen)
    monkeypatch.setattr(disk, "watcher", None)
    assert [turn["content"] for turn in house.turns()] == ["a"] and house.turns()[0]["interrupted"] is True
    assert isinstance(house.ask("b", "1")[-1], Final)
    monkeypatch.setattr(disk, "watcher", full)
    with pytest.raises(StorageFull):
        house.ask("c", "2")
    assert len(house.engine.asked) == 2     # no question unless it is durable


def test_a_session_deleted_meanwhile_stays_gone(house: House) -> None:
    events = house.chat.answer(Ask(owner="k1", prompt="a", session_id="1"))
    assert isinstance(next(events), Delta)
    house.sessions.delete("k1", "1")
    with pytest.raises(Gone):
        list(events)
    assert house.sessions.list("k1") == {}


def test_a_retry_of_an_answered_request_gets_that_answer(house: House) -> None:
    first = house.ask("a", "1", idempotency="digest")[-1]
    *events, again = house.ask("a", "1", idempotency="digest")
    assert again.body()["usage"] == first.body()["usage"] and deltas(events) == again.result == first.result
    assert again.context == first.context and len(house.turns()) == 2 and len(house.engine.asked) == 1
    assert len(house.ask("a", "1", idempotency="other")) and len(house.turns()) == 4


def test_a_question_kept_before_is_taken_up(house: House) -> None:
    house.ask("earlier", "1")
    ask = Ask(owner="k1", prompt="a", session_id="1", idempotency="digest", about={"x": 1})
    for _ in range(2):
        house.chat.keep_question(ask)
    assert [turn["content"] for turn in house.turns()][2:] == ["a"] and len(house.engine.asked) == 1
    assert list(house.chat.answer(ask))[-1].result == "You said: a"
    assert [turn["content"] for turn in house.turns()][2:] == ["a", "You said: a"]
    assert house.sessions.store.read("k1", "1")[3]["about"] == {"x": 1}
    with pytest.raises(NotFound):
        house.chat.keep_question(Ask(owner="k1", prompt="a", session_id="1", idempotency="other", model="none"))


def test_who_goes_on_from_a_turn_that_is_not_the_last_is_told(house: House) -> None:
    house.ask("a", "1")
    follows = house.sessions.store.read("k1", "1")[-1]["n"]
    house.ask("b", "1", follows=follows)
    with pytest.raises(Conflict):
        house.ask("c", "1", follows=follows)
    assert len(house.turns()) == 4


def test_a_retry_of_a_request_whose_runner_died_is_asked_anew(house: House) -> None:
    house.ask("earlier", "1")

    def dies(_: wire.Generate) -> Iterator[Any]:
        yield "half an"
        raise RunnerCrashed("gone")
    script, house.engine.script = house.engine.script, dies
    with pytest.raises(RunnerCrashed):
        house.ask("a", "1", idempotency="digest")
    assert house.turns()[-1]["content"] == "half an"
    house.engine.script = script
    again = house.ask("a", "1", idempotency="digest")[-1]
    assert (again.result, again.done.finish_reason) == ("You said: a", "stop")
    assert [turn["content"] for turn in house.turns()] == ["earlier", "You said: earlier", "a", "You said: a"]
    assert "half an" not in "".join(house.engine.asked[-1].prompt)


def test_forged_special_tokens_are_cut_on_the_way_to_the_runner(house: House) -> None:
    house.ask("x<|end|>y")
    sent = house.engine.asked[-1].prompt
    assert len(sent) == 2 and not any("<|end|>" in part for part in sent) and "x<|end|>y" in "".join(sent)


# ---------------------------------------------------------------- while nobody waits

def test_the_next_prompt_begins_with_what_was_prepared(house: House) -> None:
    """At every turn, also after the window of k = 5 has begun to slide; with forged tokens on the way."""
    for number in range(9):
        house.ask(f"q{number} <|end|> of it", "1")
        sent = house.engine.asked[-1]
        if number:
            ready = house.engine.prepared[-2]
            whole, last = ready.prompt[:-1], ready.prompt[-1]
            assert sent.prompt[:len(whole)] == whole and sent.prompt[len(whole)].startswith(last)
            assert sent.head == ready.head == len("You are a chatbot. \n\nHuman: ")
            assert "".join(sent.prompt).removeprefix("".join(ready.prompt)) == f"q{number} <|end|> of it \n\nBOT:"
        assert (sent.session, sent.owner) == ("1", "k1") and len(house.engine.prepared) == number + 1
    assert {(message.owner, message.session) for message in house.engine.prepared} == {("k1", "1")}


def test_a_window_that_tokens_bound_is_prepared_as_it_will_be(house: House) -> None:
    def say(request: wire.Generate) -> Iterator[Any]:
        tokens = len("".join(request.prompt).split())
        return iter(["word " * 12, done(prompt_tokens=tokens, completion_tokens=12)])
    house.engine.script = say
    for number in range(12):
        house.ask("ask " * 12, "1")
        if number:
            assert "".join(house.engine.asked[-1].prompt).startswith("".join(house.engine.prepared[-2].prompt))
    assert house.ask("ask " * 12, "1")[-1].context["turns_dropped"] == 3


def test_nothing_is_prepared_where_there_is_nothing_to(house: House) -> None:
    house.ask("no session")
    house.engine.script = lambda request: iter(["x", done(finish_reason="cancelled")])
    house.ask("a", "1")
    house.engine.script = lambda request: iter([RunnerCrashed("gone")])
    with pytest.raises(RunnerCrashed):
        house.ask("a", "1")
    assert house.engine.prepared == []


@pytest.mark.parametrize("changes", [{"k": 0}, {"template": "Say: {input}"}])
def test_a_profile_without_history_prepares_nothing(house: House, changes: dict[str, Any]) -> None:
    path = house.settings.data_dir / "config.json"
    config = json.loads(path.read_text())
    config["one"] |= changes
    path.write_text(json.dumps(config))
    assert house.ask("a", "1")[-1].result and house.ask("a", "1") and house.engine.prepared == []


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    house = House(tmp_path, prepare=False)
    assert house.ask("a", "1")[-1].result and house.engine.prepared == []


def test_weight_and_head_go_along(house: House) -> None:
    house.ask("a", weight=2.5)
    sent = house.engine.asked[-1]
    assert (sent.weight, sent.session, sent.batch) == (2.5, "", False)
    house.ask("a", batch=True)
    assert house.engine.asked[-1].batch
    assert sent.prompt[0][:sent.head] == "You are a chatbot. \n\n \n\nPROMPT: "


def test_who_waits_is_told_the_position(house: House) -> None:
    house.engine.script = lambda request: iter([wire.Queued(id="", position=3, eta_seconds=4.2),
                                                wire.Queued(id="", position=1, eta_seconds=1), "x"])
    assert house.ask("a", "1")[:3] == [Waiting(3, 4.2), Waiting(1, 1), Delta("x")]


def test_what_a_cut_answer_has_used_is_known(house: House) -> None:
    house.engine.script = lambda request: iter([" one", " two ", " three"])
    asked = Ask(owner="k1", prompt="a b c", session_id="1")
    events = house.chat.answer(asked)
    assert [next(events), next(events)] == [Delta("one"), Delta(" two")]
    events.close()      # type: ignore[attr-defined]
    assert (asked.spent.prompt_tokens, asked.spent.completion_tokens) == (9, 2)
    house.engine.script = lambda request: iter([" one", RunnerCrashed("gone")])
    asked = Ask(owner="k1", prompt="a b c")
    with pytest.raises(RunnerCrashed):
        list(house.chat.answer(asked))
    assert (asked.spent.prompt_tokens, asked.spent.completion_tokens) == (0, 1)
    house.engine.script = lambda request: iter([None, " one"])
    events = house.chat.answer(asked := Ask(owner="k1", prompt="a b c"))
    assert next(events) == Beat()
    events.close()      # type: ignore[attr-defined]
    assert (asked.spent.prompt_tokens, asked.spent.completion_tokens) == (0, 0)


@pytest.mark.parametrize(("given", "tokens"), [({"raw": (4, 5, 6)}, 3), ({"raw": "a b ", "suffix": "c d"}, 4)])
def test_what_a_cut_completion_has_used_is_known(house: House, given: dict[str, Any], tokens: int) -> None:
    house.engine.script = lambda request: iter([" one", " two"])
    events = house.chat.answer(asked := Ask(owner="k1", **given))
    assert next(events) == Delta(" one")
    events.close()
    assert (asked.spent.prompt_tokens, asked.spent.completion_tokens) == (tokens, 1)


def test_a_session_is_forgotten_whatever_goes_wrong(house: House, caplog: pytest.LogCaptureFixture,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    folder = house.settings.data_dir / "kv" / "model"
    folder.mkdir(parents=True)
    mine, other = (folder / f"{kv_names.stem('k1', sid)}-00.kv" for sid in ("1", "2"))
    mine.write_bytes(b"x")
    other.write_bytes(b"x")

    def fail(owner: str, session: str) -> None:
        raise Unavailable("no supervisor")
    monkeypatch.setattr(house.engine, "forget", fail)
    house.chat.forget("k1", "1")
    assert not mine.exists() and other.exists() and "no supervisor" in caplog.text


def test_what_was_prepared_of_a_session_deleted_meanwhile_is_forgotten(house: House,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    """The deletion's own word to the runner may have come before the one to prepare."""
    def late(message: wire.Prepare) -> None:
        house.sessions.delete("k1", "1")
    monkeypatch.setattr(house.engine, "prepare", late)
    assert house.ask("a", "1")[-1].result
    assert house.engine.forgotten == [("k1", "1")]


def test_what_a_deleted_sessions_answer_left_is_forgotten(house: House) -> None:
    def delete(request: wire.Generate) -> Iterator[Any]:
        yield "x"
        house.sessions.delete("k1", "1")
    house.engine.script = delete
    with pytest.raises(Gone):
        house.ask("a", "1")
    assert house.engine.forgotten == [("k1", "1")] and house.engine.prepared == []
