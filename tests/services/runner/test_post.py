"""The post: answers go to the connection that asked; who is gone, stuck or wrong costs nobody else anything."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import BadRequest
from services.runner.post import LUMP, PATIENCE, Post
from services.runner.sequence import Sequence
from services.runner.text import Text
from services.wire import (
    Channel,
    Count,
    Counted,
    Detokenize,
    Done,
    Failed,
    Generate,
    GetStats,
    Message,
    Piece,
    Stats,
    Tokenize,
    Tokens,
    WireError,
    encode,
)
from tests.services.runner.fakes import FakeBackend, FakeClock, FakeSampler

SOON = 30.0
STATS = Stats(running=0, waiting=0, slots=1, slots_used=0, cached_tokens=0, prompt_tokens=0, completion_tokens=0,
              requests=0, max_batch=0, tokens_per_second=0, idle_seconds=0)


class FakeDesk:
    """Notes what the post asks of it."""

    def __init__(self) -> None:
        self.begun: list[Sequence] = []
        self.cancelled: list[Sequence] = []

    def prepare(self, message: Generate) -> Sequence:
        if message.prompt == ["refuse"]:
            raise BadRequest("no", param="prompt")
        if message.prompt == ["break"]:
            raise RuntimeError("a bug")
        return Sequence(id=message.id, owner="o", prompt=[1], max_tokens=5, text=Text(),
                        sampler=FakeSampler(FakeBackend()))

    def count(self, message: Count) -> Counted:
        return Counted(tokens=[len(message.prompts)])

    def tokens(self, message: Tokenize | Detokenize) -> Tokens:
        return Tokens(text="ab", tokens=[1], pieces=[b"ab"])

    def stats(self) -> Stats:
        return STATS

    def begin(self, sequence: Sequence) -> None:
        self.begun.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        self.cancelled.append(sequence)


class Office:
    def __init__(self) -> None:
        self.desk, self.clock = FakeDesk(), FakeClock()
        self.post = Post(self.desk, self.clock)
        self.channels: list[Channel] = []
        self.post.start()

    def connect(self) -> Channel:
        ours, theirs = socket.socketpair()
        self.post.adopt(Channel(Connection(ours.detach())))
        self.channels.append(Channel(Connection(theirs.detach())))
        return self.channels[-1]

    def close(self) -> None:
        self.post.finish()
        for channel in self.channels:
            channel.close()

    def begin(self, channel: Channel, stream: bool = True) -> Sequence:
        count = len(self.desk.begun)
        channel.send(Generate(id="same", owner="o", prompt=["x"], max_tokens=5, stream=stream))
        wait_for(lambda: len(self.desk.begun) > count)
        return self.desk.begun[-1]


@pytest.fixture
def office() -> Iterator[Office]:
    office = Office()
    yield office
    office.close()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def piece(text: str) -> Piece:
    return Piece(id="same", text=text)


def hear(channel: Channel) -> Message:
    message = channel.receive(SOON)
    assert message
    return message


def test_answers_follow_the_connection_not_the_id(office: Office) -> None:
    first, second = office.connect(), office.connect()
    one, two = office.begin(first), office.begin(second)
    office.post.tell([(two, piece("two")), (one, piece("one")), (two, two.done("stop", 0)), (one, one.done("stop", 0))])
    assert [hear(first), hear(second)] == [piece("one"), piece("two")]
    assert isinstance(hear(first), Done) and isinstance(hear(second), Done)


def test_a_late_answer_of_a_cancelled_request_reaches_nobody(office: Office) -> None:
    gone, stays = office.connect(), office.connect()
    old = office.begin(gone)
    gone.close()
    wait_for(lambda: old in office.desk.cancelled)
    new = office.begin(stays)
    office.post.tell([(old, piece("old")), (new, piece("new")), (old, old.done("cancelled", 0))])
    assert hear(stays) == piece("new")
    office.post.tell([(new, new.done("stop", 0)), (new, piece("after the end"))])
    assert isinstance(hear(stays), Done)
    assert stays.ask(GetStats()) == STATS


NOISE = st.one_of(st.binary(min_size=1, max_size=40), st.builds(
    lambda message, at: encode(message)[:at] + b"\xc1" + encode(message)[at + 1:],
    st.sampled_from([Generate(id="same", owner="o", prompt=["x"], max_tokens=5), Count(prompts=[["a"]]), GetStats()]),
    st.integers(0, 30)))
FRAMES = st.one_of(NOISE, NOISE.map(lambda noise: struct.pack("!i", len(noise)) + noise),
                   st.sampled_from([struct.pack("!i", 500) + b"half", struct.pack("!i", 1 << 30), b"\0\0"]))
STEPS = st.lists(st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 3)), st.tuples(st.just("say"), st.integers(0, 3)),
    st.tuples(st.just("close"), st.integers(0, 3)), st.tuples(st.just("noise"), st.integers(0, 3), FRAMES),
    st.tuples(st.just("tell"), st.integers(0, 99)), st.tuples(st.just("end"), st.integers(0, 99))), max_size=40)


class Crowd:
    """Four connections of which some are replaced now and then, and whose words each of them heard."""

    def __init__(self, office: Office) -> None:
        self.office = office
        self.channels = [office.connect() for _ in range(4)]
        self.asked: list[tuple[Channel, Sequence]] = []

    def do(self, what: str, number: int, *noise: bytes) -> None:
        if what in ("tell", "end") and self.asked:
            _, sequence = self.asked[number % len(self.asked)]
            tag = piece(f"<{number % len(self.asked)}>")
            self.office.post.tell([(sequence, tag if what == "tell" else sequence.done("stop", 0))])
        elif what == "ask":
            self.channels[number] = self.office.connect()
            self.asked.append((self.channels[number], self.office.begin(self.channels[number])))
        elif what in ("say", "noise", "close"):
            with contextlib.suppress(OSError, WireError):
                if what == "say":
                    self.channels[number].send(GetStats())
                elif what == "noise":
                    os.write(self.channels[number].fileno(), noise[0])
                else:
                    self.channels[number].connection.close()

    def check(self) -> None:
        for channel in {id(channel): channel for channel, _ in self.asked}.values():
            own = {f"<{n}>" for n, (whose, _) in enumerate(self.asked) if whose is channel}
            with contextlib.suppress(WireError):
                ended = 0
                while message := channel.receive(0):
                    if isinstance(message, Piece):
                        assert not ended and set(re.findall("<[0-9]+>", message.text)) <= own
                    ended += isinstance(message, Done)
                assert ended <= len(own)


@settings(deadline=None, max_examples=150)
@given(STEPS)
def test_whatever_is_said_no_word_goes_to_another(steps: list[tuple[str, int]]) -> None:
    """Row P9: noise, half frames, cancels, ends; and the loop speaks of any request, of those that are gone too."""
    office = Office()
    with contextlib.ExitStack() as stack:
        stack.callback(office.close)
        crowd = Crowd(office)
        for step in steps:
            crowd.do(*step)
        witness = office.connect()
        assert [witness.ask(GetStats()) for _ in range(2)] == [STATS] * 2, "all of it is behind the post"
        crowd.check()
        sequence = office.begin(witness)
        office.post.tell([(sequence, piece("mine")), (sequence, sequence.done("stop", 0))])
        assert hear(witness) == piece("mine") and isinstance(hear(witness), Done)


def test_anything_said_during_a_request_cancels_it(office: Office) -> None:
    channel = office.connect()
    sequence = office.begin(channel)
    channel.send(Count(prompts=[]))
    wait_for(lambda: sequence in office.desk.cancelled)
    office.post.tell([(sequence, sequence.done("cancelled", 0))])
    assert isinstance(hear(channel), Done)
    assert channel.ask(Count(prompts=[["a"]])) == Counted(tokens=[1])


def test_what_cannot_be_prepared_fails_and_the_connection_goes_on(office: Office) -> None:
    channel = office.connect()
    for prompt, code in (("refuse", "invalid_request"), ("break", "internal_error")):
        failed = channel.ask(Generate(id="r", owner="o", prompt=[prompt], max_tokens=1))
        assert isinstance(failed, Failed) and (failed.code, failed.id) == (code, "r")
    office.begin(channel)


def test_a_reader_that_takes_nothing_is_given_up(office: Office) -> None:
    deaf, other = office.connect(), office.connect()
    stuck, fine = office.begin(deaf), office.begin(other)
    office.post.tell([(stuck, piece("x" * 5_000_000)), (fine, piece("hello"))])
    assert hear(other) == piece("hello")
    assert stuck not in office.desk.cancelled
    office.clock.now += PATIENCE + 1
    office.post.tell([(fine, piece("again"))])
    wait_for(lambda: stuck in office.desk.cancelled)
    assert hear(other) == piece("again") and fine not in office.desk.cancelled


def test_who_does_not_read_along_is_woken_seldom(office: Office) -> None:
    channel = office.connect()
    patient = office.begin(channel, stream=False)
    office.post.tell([(patient, piece("a"))])
    assert hear(channel) == piece("a")
    wait_for(lambda: patient.reply.flushed == office.clock.now)     # noted just after it was sent
    office.post.tell([(patient, piece("b")), (patient, piece("c"))])
    assert channel.receive(0.1) is None
    office.clock.now += LUMP
    office.post.tell([(patient, piece("d"))])
    assert hear(channel) == Piece(id="same", text="bcd", tokens=3)
    office.post.tell([(patient, piece("e")), (patient, patient.done("stop", 0))])
    assert hear(channel) == piece("e") and isinstance(hear(channel), Done)


def test_nor_is_the_post_woken_for_those_alone(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    channel, other = office.connect(), office.connect()
    patient, reader = office.begin(channel, stream=False), office.begin(other)
    office.post.tell([(patient, piece("a"))])
    assert hear(channel) == piece("a")
    wait_for(lambda: patient.reply.flushed == office.clock.now)     # noted just after it was sent
    rings: list[None] = []
    ring = office.post._ring
    monkeypatch.setattr(office.post, "_ring", lambda: (rings.append(None), ring()))
    office.post.tell([])
    office.post.tell([(patient, piece("b"))])
    assert not rings
    office.post.tell([(patient, piece("c")), (reader, piece("d"))])
    assert hear(other) == piece("d") and len(rings) == 1
    office.clock.now += LUMP
    office.post.tell([(patient, piece("e"))])
    assert hear(channel) == Piece(id="same", text="bce", tokens=3) and len(rings) == 2


def test_a_word_that_is_not_for_a_runner_ends_the_connection(office: Office) -> None:
    channel = office.connect()
    channel.send(STATS)
    with pytest.raises(WireError):
        channel.receive(SOON)


def test_the_end_is_told_to_those_who_wait(office: Office) -> None:
    busy, idle = office.connect(), office.connect()
    office.begin(busy)
    assert idle.ask(GetStats()) == STATS
    office.post.finish()
    failed = hear(busy)
    assert isinstance(failed, Failed) and failed.code == "unavailable" and failed.retry_after
