"""The client: beats while it waits, cancels by closing, never takes another request's words for its own."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import struct
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services import wire
from services.engine.client import Engine
from services.errors import (
    BadModel,
    BadRequest,
    ContextOverflow,
    ParleyError,
    RunnerCrashed,
    TooManyRequests,
    Unavailable,
)
from services.wire import Done, Piece, Queued
from tests.services.engine.house import AUTHKEY, SOON, House, eventually, freeze, generate, together, whole


class Left(Exception):
    """The client's own client is gone."""


def running(house: House, spec: wire.RunnerSpec) -> int:
    state = house.state(spec)
    assert state and state.stats
    return state.stats.running


def test_an_answer_is_pieces_and_one_done(house: House):
    with house.engine.lease(house.spec()) as lease:
        assert lease.ready.n_ctx == 512
        events = list(lease.generate(generate("!tokens 3")))
    assert [event.text for event in events if isinstance(event, Piece)] == ["w1", " w2", " w3"]
    done = [event for event in events if isinstance(event, Done)]
    assert done == events[-1:] and (done[0].finish_reason, done[0].completion_tokens) == ("stop", 3)


def test_counting_and_several_answers_on_one_lease(house: House):
    with house.engine.lease(house.spec()) as lease:
        assert lease.count([["one two", " three"], [""], ["four"]]) == [3, 0, 1]
        assert whole(lease, "first") == "You said: first"
        assert lease.count([["a b"]]) == [2]
        assert whole(lease, "second") == "You said: second"


def test_silence_is_told_about_every_second(house: House):
    with house.engine.lease(house.spec()) as lease:
        events = list(itertools.islice(lease.generate(generate("!wait 600")), 2))
    assert events == [None, None]


def test_closing_the_answer_cancels_it(house: House):
    spec = house.spec(parallel=1)
    with house.engine.lease(spec) as lease:
        answer = lease.generate(generate("!tokens 5 !hang 2"))
        assert isinstance(next(answer), Piece) and running(house, spec) == 1
        answer.close()                      # type: ignore[attr-defined]
        assert whole(lease, "next") == "You said: next"
    assert running(house, spec) == 0


def test_leaving_the_lease_cancels_what_waits_in_the_queue(house: House):
    spec = house.spec(parallel=1)
    with house.engine.lease(spec) as busy:
        first = busy.generate(generate("!tokens 5 !hang 1"))
        next(first)
        with house.engine.lease(spec) as lease:
            waiting = lease.generate(generate("waiting"))
            assert isinstance(next(waiting), Queued)
            state = house.state(spec)
            assert state and state.stats and state.stats.waiting == 1 and state.leases == 2
        eventually(lambda: house.state(spec).stats.waiting == 0)


def test_a_full_queue_is_an_error_that_says_when(open_house: Any):
    house = open_house(max_queue=1)
    spec = house.spec(parallel=1)
    with house.engine.lease(spec) as one, house.engine.lease(spec) as two, house.engine.lease(spec) as three:
        first = one.generate(generate("!tokens 2 !hang 1"))
        assert next(first)
        waiting = two.generate(generate("waits"))
        assert isinstance(next(waiting), Queued) and next(waiting) is None
        with pytest.raises(Unavailable) as caught:
            list(three.generate(generate("too many")))
        assert (caught.value.code, caught.value.retry_after) == ("unavailable", 1)


def test_the_runners_errors_come_as_what_they_are(house: House):
    with house.engine.lease(house.spec(n_ctx=16)) as lease:
        with pytest.raises(ContextOverflow) as caught:
            list(lease.generate(generate("word " * 40)))
        assert caught.value.details == {"prompt_tokens": 42, "limit": 15, "n_ctx": 16}
        with pytest.raises(BadRequest):
            list(lease.generate(generate("!sleep soon")))
        assert whole(lease, "still here") == "You said: still here"


def test_an_owner_with_a_full_queue_is_told_apart_from_a_full_house(open_house: Any):
    house = open_house(max_queue_per_key=1)
    spec = house.spec(parallel=1)
    with contextlib.ExitStack() as stack:
        one, two, three, four = (stack.enter_context(house.engine.lease(spec)) for _ in range(4))
        running, waiting = one.generate(generate("!tokens 2 !hang 1")), two.generate(generate("waits"))
        assert isinstance(next(running), Piece) and isinstance(next(waiting), Queued)
        with pytest.raises(TooManyRequests) as caught:
            list(three.generate(generate("too many")))
        assert (caught.value.code, caught.value.retry_after) == ("rate_limited", 1)
        assert next(four.generate(generate("of another key", owner="k2"))).position == 2


def test_who_waits_hears_when_it_comes_nearer(house: House):
    spec = house.spec(parallel=1)
    with house.engine.lease(spec) as one, house.engine.lease(spec) as two, house.engine.lease(spec) as three:
        second, third = (lease.generate(generate("!tokens 3")) for lease in (two, three))
        blocked = one.generate(generate("!tokens 2 !hang 1"))
        assert next(blocked)
        assert (next(second), next(third)) != (None, None)
        blocked.close()                     # type: ignore[attr-defined]
        rest = [list(second), list(third)]
        assert all(isinstance(told[-1], Done) for told in rest)
        assert [event.position for event in rest[1] if isinstance(event, Queued)] in ([], [1])


def test_what_is_prepared_is_used_by_the_session_alone_until_it_is_forgotten(house: House):
    spec = house.spec()

    def used(session: str, owner: str = "k1") -> tuple[int, int]:
        with house.engine.lease(spec) as lease:
            done = list(lease.generate(generate("x", prompt=["Human: a b\nAI: c\n", "Human: d\nAI:"], session=session,
                                                owner=owner)))[-1]
        assert isinstance(done, Done)
        return done.cached_tokens, done.processed_tokens

    with house.engine.lease(spec) as lease:
        assert whole(lease, "first") == "You said: first"
        lease.prepare(wire.Prepare(owner="k1", session="s", prompt=["Human: a b\n"]))
        assert whole(lease, "the connection is as good as before") == "You said: the connection is as good as before"
    assert (used("s"), used("t"), used("s", "k2")) == ((3, 5), (0, 8), (0, 8))
    house.engine.forget("k1", "s")
    eventually(lambda: used("s") == (0, 8))
    assert house.state(spec).stats.prepared_tokens == 3


def test_a_runner_that_is_gone_prepares_nothing_and_nobody_is_told(house: House):
    spec = house.spec()
    with house.engine.lease(spec) as lease:
        assert whole(lease, "hello") and lease.count_at_once(["a b", " c"]) == 3
        os.kill(house.pid(spec), signal.SIGKILL)
        eventually(lambda: lease.count_at_once(["a"]) is None)
        lease.prepare(wire.Prepare(owner="k1", session="s", prompt=["a"]))
    eventually(lambda: house.state(spec) is None or house.state(spec).state != "ready")
    house.engine.forget("k1", "s")


@pytest.mark.parametrize("fault", ["garbage", "half", "huge", "close"])
def test_broken_frames_end_the_request_only(house: House, fault: str):
    spec = house.spec()
    with house.engine.lease(spec) as lease:
        with pytest.raises(RunnerCrashed):
            list(lease.generate(generate(f"!tokens 5 !{fault} 2")))
        assert whole(lease, "next") == "You said: next"
    assert house.spawns() == 1


def test_words_of_another_request_are_never_delivered(house: House):
    with house.engine.lease(house.spec()) as lease:
        heard = []
        with pytest.raises(RunnerCrashed, match="another request"):
            for event in lease.generate(generate("!tokens 5 !wrongid 2")):
                heard.append(event)
        assert [event.text for event in heard] == ["w1", " w2"]
        assert whole(lease, "next") == "You said: next"


def framed(data: bytes) -> bytes:
    return struct.pack("!i", len(data)) + data


OWN, FOREIGN = {"id": "mine"}, {"id": "another's"}
ENDS = {"finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 0, "processed_tokens": 1}
WORDS = [wire.Piece(**OWN, text="own "), wire.Piece(**FOREIGN, text="foreign "), Done(**OWN, **ENDS),
         Done(**FOREIGN, **ENDS), wire.Queued(**OWN, position=1, eta_seconds=1), wire.Failed(**FOREIGN, code="x",
         message="foreign"), wire.Failed(**OWN, code="unavailable", message="own"), wire.Counted(tokens=[1]),
         wire.Piece(**OWN, text=""), wire.GetStats()]
SPEECH = st.lists(st.one_of(
    st.sampled_from(WORDS).map(lambda word: framed(wire.encode(word))), st.just(framed(wire.encode(WORDS[0]))),
    st.binary(max_size=30).map(framed), st.binary(max_size=30),
    st.sampled_from([struct.pack("!i", 1 << 30), struct.pack("!iQ", -1, 1 << 62), struct.pack("!i", 99) + b"half"])),
    max_size=8)


def test_whatever_a_runner_says_only_ones_own_words_are_heard(house: House, monkeypatch: pytest.MonkeyPatch):
    """Row P9, from the side of the web: a runner that speaks of others, in halves, or nonsense."""
    monkeypatch.setattr("services.engine.client.SECOND_TRY", 0)
    speech: list[bytes] = []

    def talk(channel: wire.Channel) -> None:
        with channel, contextlib.suppress(wire.WireError, OSError):
            channel.receive(SOON)
            for data in speech:
                os.write(channel.fileno(), data)

    address = f"{house.run_dir.name}/evil"
    door = wire.Door(address, AUTHKEY)
    threading.Thread(target=door.serve, args=(talk,), daemon=True).start()

    @settings(deadline=None, max_examples=300)
    @given(SPEECH)
    def hear(words: list[bytes]) -> None:
        speech[:] = words
        heard = []
        with house.engine.lease(spec) as lease:
            lease._at = msgspec.structs.replace(lease._at, address=address, authkey=AUTHKEY)
            with contextlib.suppress(ParleyError):
                for event in lease.generate(generate("real", **OWN)):
                    heard.append(event)
        assert all(event is None or event.id == "mine" for event in heard)
        assert not any("foreign" in event.text for event in heard if isinstance(event, Piece))

    spec = house.spec()
    house.say(spec, select=True)
    hear()
    door.close()


def test_two_hundred_answers_are_each_their_own(house: House):
    spec = house.spec(parallel=8)

    def talk(number: int) -> list[str]:
        with house.engine.lease(spec) as lease:
            return [whole(lease, f"{number}.{turn}") for turn in range(10)]

    assert together(20, talk) == [[f"You said: {n}.{turn}" for turn in range(10)] for n in range(20)]


def test_a_beat_may_end_the_wait_for_a_load(house: House):
    spec, beats = house.spec(script="!sleep 4"), []

    def beat() -> None:
        beats.append(1)
        raise Left

    with pytest.raises(Left), house.engine.lease(spec, beat=beat):
        raise AssertionError("the lease was not given yet")
    assert beats == [1]


def test_a_beat_may_end_the_wait_for_a_count(house: House):
    spec, armed = house.spec(), []

    def beat() -> None:
        if armed:
            raise Left

    with house.engine.lease(spec, beat=beat) as lease:
        assert lease.count([["a"]]) == [1]
        armed.append(1)
        freeze(house.pid(spec))
        with pytest.raises(Left):
            lease.count([["b"]])


def test_who_waits_at_a_crowded_door_is_let_in_later_or_leaves(house: House, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch):
    """As where a thousand ask at once: the kernel lets only so many wait."""
    monkeypatch.setattr("services.engine.client.BEAT", 0.1)
    door = wire.Door(str(tmp_path / "s"), AUTHKEY, backlog=1)
    waiting = [wire.connect(str(tmp_path / "s"), AUTHKEY) for _ in range(2)]
    beats = []

    def beat() -> None:
        beats.append(1)
        if len(beats) == 2:
            raise Left
        if len(beats) == 4:
            threading.Thread(target=door.serve, args=(answer,), daemon=True).start()

    def answer(channel: wire.Channel) -> None:
        with channel, contextlib.suppress(wire.WireError):
            if channel.receive(SOON):
                channel.send(wire.Counted(tokens=[7]))

    with house.engine.lease(house.spec(), beat=beat) as lease:
        lease._at = msgspec.structs.replace(lease._at, address=str(tmp_path / "s"), authkey=AUTHKEY)
        with pytest.raises(Left):
            lease.count([["a"]])
        assert lease.count([["a"]]) == [7] and len(beats) >= 4
    door.close()
    for channel in waiting:
        channel.close()


def test_a_runner_that_died_before_it_was_asked_is_replaced_unseen(house: House):
    spec = house.spec()
    with house.engine.lease(spec) as lease:
        assert lease.count([["a b c"]]) == [3]
        pid = house.pid(spec)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: (state := house.state(spec)) and state.pid != pid)
        assert whole(lease, "hello") == "You said: hello"
    assert house.spawns() == 2


def test_without_a_supervisor_it_says_so(house: House):
    engine = Engine(house.supervisor.address + ".none", AUTHKEY)
    with pytest.raises(Unavailable), engine.lease(house.spec()):
        raise AssertionError("nobody gave a lease")
    with pytest.raises(Unavailable):
        engine.status()


def test_status_has_the_figures(house: House):
    spec = house.spec()
    house.say(spec, "!tokens 4", select=True)
    status = house.engine.status()
    assert not status.draining and len(status.runners) == 1
    runner = status.runners[0]
    assert (runner.spec, runner.state, runner.selected, runner.restarts) == (spec, "ready", True, 0)
    assert runner.stats and runner.stats.requests == 2 and runner.stats.completion_tokens >= 4


def embed(*texts: str) -> wire.Embed:
    return wire.Embed(id="e", owner="k1", texts=list(texts))


def test_texts_become_vectors_on_an_embedding_runner(house: House):
    with house.engine.lease(house.spec(embedding=True)) as lease:
        found = lease.embed(embed("the cat", "The cat!", "a dog"))
        assert found.tokens == [2, 2, 2] and found.dimensions == lease.ready.n_embd > 0
        assert found.vectors[0] == found.vectors[1] != found.vectors[2]
        with pytest.raises(BadRequest, match="as the text asked for"):
            lease.embed(embed("!fail invalid_request"))
        with pytest.raises(ContextOverflow) as refused:
            lease.embed(embed("fine", "x " * 600))
        assert refused.value.details["text"] == 1
        assert len(lease.embed(embed("again")).vectors) == 1


def test_texts_are_ranked_on_a_runner_that_ranks(house: House):
    request = wire.Rank(id="r", owner="k1", query="the cat", texts=["a dog", "the Cat!", "the dog"])
    with house.engine.lease(house.spec("reranker.gguf", embedding=True)) as lease:
        found = lease.rank(request)
        assert (lease.ready.ranks, found.scores, found.tokens) == (True, [0.0, 1.0, 0.5], [4, 4, 4])
        with pytest.raises(BadModel, match="ranks texts"):
            lease.embed(embed("hello"))
    with house.engine.lease(house.spec(embedding=True)) as lease, pytest.raises(BadModel, match="for embeddings"):
        lease.rank(request)


def test_each_kind_of_runner_refuses_the_others_requests(house: House):
    with house.engine.lease(house.spec(embedding=True)) as lease, pytest.raises(BadModel, match="for embeddings"):
        list(lease.generate(generate("hello")))
    with house.engine.lease(house.spec()) as lease, pytest.raises(BadModel, match="writes text"):
        lease.embed(embed("hello"))


def test_a_beat_may_end_the_wait_for_vectors(house: House):
    armed: list[int] = []

    def beat() -> None:
        if armed:
            raise Left

    with house.engine.lease(house.spec(embedding=True), beat=beat) as lease:
        armed.append(1)
        with pytest.raises(Left):
            lease.embed(embed("!wait 600"))
        armed.clear()
        assert len(lease.embed(embed("again")).vectors) == 1


def test_a_runner_that_dies_while_it_embeds_is_told_as_crashed(house: House):
    with house.engine.lease(house.spec(embedding=True)) as lease, pytest.raises(RunnerCrashed):
        lease.embed(embed("!die SIGKILL"))


VECTOR = b"\0\0\x80\x3f"


@pytest.mark.parametrize("reply", [
    wire.Counted(tokens=[1]), wire.Piece(id="e", text="x"), wire.Vectors(id="e", dimensions=1, vectors=[], tokens=[]),
    wire.Vectors(id="other", dimensions=1, vectors=[VECTOR] * 2, tokens=[1, 1]),
    wire.Vectors(id="e", dimensions=1, vectors=[VECTOR] * 2, tokens=[1])])
def test_a_reply_to_something_else_is_a_runner_that_crashed(house: House, monkeypatch: pytest.MonkeyPatch, reply: Any):
    with house.engine.lease(house.spec(embedding=True)) as lease:
        monkeypatch.setattr(lease, "_receive", lambda _channel: reply)
        for ask in (lambda: lease.count([["a"], ["b"]]), lambda: lease.embed(embed("a", "b"))):
            with pytest.raises(RunnerCrashed, match="dropped") as told:
                ask()
            assert told.value.retry_after
        monkeypatch.undo()
        assert lease.count([["a"]]) == [1], "a fresh connection"
