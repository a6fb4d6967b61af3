"""One websocket: framing, and what floods, stalls or leaves (row N9). The client is `websockets`' own protocol."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from websockets.frames import Close, Frame, Opcode
from websockets.protocol import Protocol, Side

from services.web.sockets import line as lines
from services.web.sockets.line import Limits, Line
from services.web.watch import ClientGone

LIMITS = Limits(message_bytes=1000, frames_per_minute=50, message=5.0, unread=0.3, ping=10.0, closing=2.0)


class Client:
    """The other end. `pump` carries what both have to say."""

    def __init__(self, limits: Limits = LIMITS, rest: bytes = b"") -> None:
        self.sock, server = socket.socketpair()
        self.sock.setblocking(False)
        self.protocol = Protocol(Side.CLIENT)
        self.line = Line(server, rest, limits)
        self.heard: list[str] = []
        self.frames: list[Frame] = []

    def send(self, *texts: str) -> None:
        for text in texts:
            self.protocol.send_text(text.encode())
        self.pump()

    def pump(self) -> None:
        for data in self.protocol.data_to_send():
            if data:
                self.raw(data)
        self.read()

    def raw(self, data: bytes) -> None:
        """Bytes as they are, as far as the line reads them."""
        while data and not self.line.gone:
            try:
                data = data[self.sock.send(data):]
            except BlockingIOError:
                pass
            except OSError:
                return
            self.read()

    def read(self) -> None:
        if not self.line.gone:
            self.heard += self.line.read()
        try:
            while data := self.sock.recv(1 << 16):
                self.protocol.receive_data(data)
        except BlockingIOError:
            pass
        self.frames += self.protocol.events_received()

    def texts(self) -> list[str]:
        return [frame.data.decode() for frame in self.frames if frame.opcode is Opcode.TEXT]

    @property
    def closed(self) -> int | None:
        found = [Close.parse(frame.data).code for frame in self.frames if frame.opcode is Opcode.CLOSE]
        return found[0] if found else None


@pytest.fixture
def client():
    made = Client()
    yield made
    made.line.close()
    made.sock.close()


def test_texts_go_both_ways(client):
    client.send("one", "two é")
    client.line.say("three")
    client.line.say("\ud800")
    client.read()
    assert client.heard == ["one", "two é"] and client.texts() == ["three", "\\ud800"]


def test_what_came_with_the_handshake_is_read_first():
    early = Protocol(Side.CLIENT)
    early.send_text(b"early")
    client = Client(rest=b"".join(early.data_to_send()))
    client.send("later")
    client.read()
    assert client.heard == ["early", "later"]
    client.line.close()


def test_message_in_parts_is_one_text(client):
    client.protocol.send_text("a é"[:2].encode(), fin=False)
    client.protocol.send_ping(b"x")
    client.protocol.send_continuation("é".encode(), fin=True)
    client.pump()
    client.pump()
    assert client.heard == ["a é"]
    assert [frame.opcode for frame in client.frames] == [Opcode.PONG]


@pytest.mark.parametrize(("opcode", "data", "code"), [
    (Opcode.TEXT, b"x" * 1001, 1009), (Opcode.TEXT, b"x" * 10_000_000, 1009), (Opcode.BINARY, b"x", 1003),
    (Opcode.TEXT, b"\xff", 1007)])
def test_message_that_cannot_be_is_refused(client, opcode, data, code):
    client.raw(Frame(opcode, data).serialize(mask=True))
    client.pump()
    assert client.closed == code and client.heard == [] and not client.line.open


def test_parts_that_are_too_many_bytes_together(client):
    client.protocol.send_text(b"x" * 900, fin=False)
    client.protocol.send_continuation(b"x" * 200, fin=False)
    client.pump()
    client.pump()
    assert client.closed == 1009


def test_compressed_frame_is_refused(client):
    whole = bytearray(Frame(Opcode.TEXT, b"\x4a\x04\x00").serialize(mask=True))
    whole[0] |= 0x40
    client.raw(bytes(whole))
    client.pump()
    assert client.closed == 1002


@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.PING])
def test_flood_of_frames_ends_it(client, opcode):
    client.raw(Frame(opcode, b"").serialize(mask=True) * 100_000)
    client.pump()
    assert client.closed == 1008 and len(client.heard) <= 50
    assert len([frame for frame in client.frames if frame.opcode is Opcode.PONG]) < 1000


def test_part_that_is_never_followed(client):
    client.protocol.send_text(b"x", fin=False)
    client.pump()
    client.line.tick(time.monotonic() + 4)
    assert client.line.open
    client.line.tick(time.monotonic() + 6)
    client.read()
    assert client.closed == 1008


def test_frame_that_never_ends(client):
    client.raw(Frame(Opcode.TEXT, b"x" * 100).serialize(mask=True)[:50])
    client.line.tick(time.monotonic() + 6)
    client.read()
    assert client.closed == 1008


def test_message_that_is_complete_is_timed_no_more(client):
    whole = Frame(Opcode.TEXT, b"x" * 100).serialize(mask=True)
    client.raw(whole[:50])
    client.raw(whole[50:])
    client.line.tick(time.monotonic() + 6)
    assert client.line.open and len(client.heard) == 1


def test_client_that_leaves_properly(client):
    client.protocol.send_close(1000, "bye")
    client.pump()
    client.pump()
    assert client.closed == 1000 and not client.line.open and client.line.close_code == 1000
    client.sock.close()
    assert list(client.line.read()) == [] and client.line.gone


@pytest.mark.parametrize("reset", [False, True])
def test_client_that_is_gone(client, reset):
    if reset:
        client.line.say("unread")
    client.sock.close()
    assert list(client.line.read()) == []
    assert client.line.gone and client.line.close_code == 1006
    with pytest.raises(ClientGone):
        client.line.say("x")
    with pytest.raises(ClientGone):
        client.line.check()


def test_ending_is_told_and_then_waited_for(client):
    client.line.say("last words")
    client.line.end(1008, "reason " * 50)
    client.line.end(1001, "too late")
    client.read()
    assert client.texts() == ["last words"] and client.closed == 1008
    client.line.tick(time.monotonic() + 1)
    assert not client.line.gone
    client.line.tick(time.monotonic() + 3)
    assert client.line.gone


def test_reader_that_is_slow_is_waited_for(client):
    done = threading.Event()

    def speak():
        for _ in range(200):
            client.line.say("x" * 10_000)
        done.set()
    threading.Thread(target=speak, daemon=True).start()
    deadline = time.monotonic() + 20
    while not done.is_set() and time.monotonic() < deadline:
        time.sleep(0.01)
        client.read()
    client.read()
    client.line.tick(time.monotonic())
    client.read()
    assert done.is_set() and len(client.texts()) == 200


def test_reader_that_does_not_read_ends_the_work(client):
    began = time.monotonic()
    with pytest.raises(ClientGone):
        while time.monotonic() < began + 20:
            client.line.say("x" * 10_000)
    assert not client.line.open


def test_pongs_that_nobody_reads_do_not_pile_up(client):
    client.line._limits = Limits(message_bytes=1000, frames_per_minute=10_000_000)
    ping = Frame(Opcode.PING, b"x" * 120).serialize(mask=True) * 100
    client.sock.setblocking(True)
    for _ in range(200):
        if client.line.gone:
            break
        client.sock.sendall(ping)
        assert list(client.line.read()) == []
    assert client.line.gone and len(client.line._out) < 400_000


def test_silent_client_is_asked_and_given_up(client):
    now = time.monotonic()
    client.line.tick(now + 11)
    client.read()
    assert [frame.opcode for frame in client.frames] == [Opcode.PING] and client.line.open
    client.line.tick(now + 21)
    assert client.line.gone


def test_client_that_replies_is_kept(client, monkeypatch):
    now = time.monotonic()
    client.line.tick(now + 11)
    client.read()
    monkeypatch.setattr(lines.time, "monotonic", lambda: now + 12)
    client.pump()
    client.line.tick(now + 21)
    assert client.line.open
