"""Frames: those of multiprocessing.connection, never blocking; garbage ends the connection and nothing else."""

import socket
import struct
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runner import frames
from services.runner.frames import Peer, frame_of, take_frame
from services.wire import MAX_FRAME, Channel, Count, Done, Logprob, Message, Piece, WireError, encode

DONE = Done(id="r", finish_reason="stop", prompt_tokens=1, completion_tokens=1, cached_tokens=0, processed_tokens=1)


@pytest.fixture
def pair() -> Iterator[tuple[Peer, Channel]]:
    """The runner's end, and the other side's as the web process has it."""
    ours, theirs = socket.socketpair()
    peer, channel = Peer(Channel(Connection(ours.detach()))), Channel(Connection(theirs.detach()))
    yield peer, channel
    peer.close()
    channel.close()


def test_both_ends_understand_each_other(pair: tuple[Peer, Channel]) -> None:
    peer, channel = pair
    channel.send(Count(prompts=[["a"], ["b", "c"]]))
    assert peer.read() == [Count(prompts=[["a"], ["b", "c"]])]
    assert peer.read() == []
    for message in (Piece(id="r", text="x"), DONE):
        peer.post(message)
        assert peer.flush(0)
        assert channel.receive(5) == message


def test_a_slow_reader_blocks_nothing_and_gets_everything(pair: tuple[Peer, Channel]) -> None:
    peer, channel = pair
    words = [f"{n:06} " * 50 for n in range(5000)]
    for now, word in enumerate(words):
        peer.post(Piece(id="r", text=word))
        peer.flush(now)
    assert peer.stuck is not None and peer.stuck < 5000
    peer.post(DONE)
    got: list[Message] = []

    def read() -> None:
        while not isinstance(got[-1] if got else None, Done):
            message = channel.receive(30)
            assert message
            got.append(message)

    reader = threading.Thread(target=read)
    reader.start()
    while not peer.flush(9999):
        reader.join(0.001)
    reader.join(30)
    assert peer.stuck is None
    assert "".join(message.text for message in got if isinstance(message, Piece)) == "".join(words)
    assert len(got) < 3000, "what waits is joined"


def test_pieces_of_two_requests_are_not_joined(pair: tuple[Peer, Channel]) -> None:
    peer, channel = pair
    for message in (Piece(id="a", text="1"), DONE, Piece(id="b", text="2"), Piece(id="b", text="3")):
        peer.post(message)
    assert peer.flush(0)
    assert [channel.receive(5) for _ in range(3)] == [Piece(id="a", text="1"), DONE, Piece(id="b", text="23", tokens=2)]


def test_log_probabilities_are_joined_but_not_the_prompts_to_the_answers(
        pair: tuple[Peer, Channel], monkeypatch: pytest.MonkeyPatch) -> None:
    peer, channel = pair
    a, b, c, d = (Logprob(token=n, text=b"x", logprob=-1.0) for n in range(4))
    for message in (Piece(id="r", text="", tokens=0), Piece(id="r", text="", tokens=0, logprobs=[a]),
                    Piece(id="r", text="", tokens=0, logprobs=[b]), Piece(id="r", text="c", logprobs=[c]),
                    Piece(id="r", text="", logprobs=[d]), DONE):
        peer.post(message)
    assert peer.flush(0)
    assert [channel.receive(5) for _ in range(3)] == [Piece(id="r", text="", tokens=0, logprobs=[a, b]),
                                                      Piece(id="r", text="c", tokens=2, logprobs=[c, d]), DONE]
    monkeypatch.setattr(frames, "MOST_LOGPROBS", 6)
    for _ in range(3):
        peer.post(Piece(id="r", text="x", logprobs=[a] * 5))
    assert peer.flush(0)
    many = [channel.receive(5) for _ in range(2)]
    assert [isinstance(piece, Piece) and piece.tokens for piece in many] == [2, 1]


def test_the_other_sides_end_is_noticed(pair: tuple[Peer, Channel]) -> None:
    peer, channel = pair
    channel.close()
    with pytest.raises(WireError):
        peer.read()
    peer.post(DONE)
    with pytest.raises(WireError):
        peer.flush(0)


@pytest.mark.parametrize("garbage", [
    struct.pack("!i", MAX_FRAME + 1), struct.pack("!i", -2), struct.pack("!iQ", -1, 1 << 40), b"GET / HTTP/1.1\r\n\r\n",
    frame_of(b""), frame_of(b"\xc1"), frame_of(b"\x81\xa4type\xa4Nope"), frame_of(b"\x91" * 5000),
    frame_of(encode(DONE)[:-1]), frame_of(encode(DONE) + b"x")], ids=repr)
def test_garbage_is_refused(pair: tuple[Peer, Channel], garbage: bytes) -> None:
    peer, channel = pair
    channel.connection._send(garbage)   # type: ignore[attr-defined]
    with pytest.raises(WireError):
        peer.read()


@given(st.lists(st.binary(max_size=300), max_size=8), st.lists(st.integers(1, 50), min_size=1))
def test_frames_come_out_whole_however_they_arrive(payloads: list[bytes], sizes: list[int]) -> None:
    stream = b"".join(map(frame_of, payloads))
    buffer, got, turn = bytearray(), [], 0
    while stream:
        size = sizes[turn % len(sizes)]
        turn += 1
        buffer += stream[:size]
        stream = stream[size:]
        while (frame := take_frame(buffer)) is not None:
            got.append(frame)
    assert got == payloads and not buffer


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_an_error(data: bytes) -> None:
    buffer = bytearray(data)
    try:
        while take_frame(buffer) is not None:
            pass
    except WireError:
        return
    assert len(data) >= len(buffer)
