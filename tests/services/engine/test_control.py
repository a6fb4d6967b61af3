"""The control socket: what a connection holds ends with it, and nothing that is said there brings it down."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from services import wire
from tests.services.engine.house import AUTHKEY, SOON, House, eventually

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


def connect(house: House) -> wire.Channel:
    return wire.connect(house.supervisor.address, AUTHKEY)


def leases(house: House, spec: wire.RunnerSpec) -> int:
    state = house.state(spec)
    return state.leases if state else 0


def test_the_connection_is_the_lease(house: House):
    spec = house.spec()
    with connect(house) as channel:
        answer = channel.ask(wire.Ensure(spec=spec, select=True))
        assert isinstance(answer, wire.RunnerAt) and answer.ready.model == "a.gguf"
        assert leases(house, spec) == 1
    eventually(lambda: leases(house, spec) == 0)


HOLDER = """
import sys, time
from services import wire
channel = wire.connect(sys.argv[1], bytes.fromhex(sys.argv[2]))
channel.ask(wire.Ensure(spec=wire.RunnerSpec(model=sys.argv[3], n_ctx=512)))
channel.ask(wire.Admit(key="k1"))
print("held", flush=True)
time.sleep(600)
"""


def test_what_a_killed_process_held_is_free_again(house: House):
    spec = house.spec()
    arguments = [house.supervisor.address, AUTHKEY.hex(), spec.model]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, *arguments], stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdout.readline() == "held\n"
    assert leases(house, spec) == 1 and house.admission.places == ["k1"]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    holder.stdout.close()
    eventually(lambda: leases(house, spec) == 0 and not house.admission.places)


def test_places_charges_and_usage(house: House):
    with connect(house) as first, connect(house) as second:
        admit = wire.Admit(key="k1", requests_per_minute=60, max_parallel=1)
        assert first.ask(admit) == wire.Admitted(limit=60)
        refused = second.ask(admit)
        assert isinstance(refused, wire.Failed) and (refused.code, refused.retry_after) == ("rate_limited", 1)
        first.send(wire.Charge(key="k1", requests=1, prompt_tokens=5, completion_tokens=7))
        assert first.ask(wire.GetUsage(key="k1")) == wire.Usage(requests=1)
        assert house.admission.charged == [("k1", 1, 5, 7)]
        first.close()
        eventually(lambda: not house.admission.places)
        assert isinstance(second.ask(admit), wire.Admitted)


def test_a_charge_may_come_alone(house: House):
    with connect(house) as channel:
        channel.send(wire.Charge(key="k2", prompt_tokens=3))
    eventually(lambda: house.admission.charged == [("k2", 0, 3, 0)])


def test_what_was_told_is_in_the_figures(house: House):
    house.say(house.spec(), select=True)
    with connect(house) as channel:
        channel.send(wire.Charge(key="k1", outcome="stop", profile="one", completion_tokens=7))
        channel.send(wire.Report(served=[wire.Served(route="/answer", method="POST", status=200, count=2)]))
        told = channel.ask(wire.GetMetrics())
    assert isinstance(told, wire.Metrics)
    assert 'parley_completion_tokens_total{profile="one"} 7.0' in told.text
    assert 'parley_http_requests_total{method="POST",route="/answer",status="200"} 2.0' in told.text
    assert 'parley_runners{model="a.gguf",state="ready"} 1.0' in told.text


def test_a_load_that_fails_is_told_with_its_code(house: House):
    with connect(house) as channel:
        answer = channel.ask(wire.Ensure(spec=house.spec(script="!fail bad_model cut short")))
        assert isinstance(answer, wire.Failed) and (answer.code, answer.message) == ("bad_model", "cut short")
        assert isinstance(channel.ask(wire.Status()), wire.StatusOf)


def test_a_message_for_somebody_else_is_refused(house: House):
    with connect(house) as channel:
        answer = channel.ask(wire.GetStats())
        assert isinstance(answer, wire.Failed) and "GetStats" in answer.message


def test_a_fault_in_the_house_does_not_show_and_does_not_spread(house: House, caplog: pytest.LogCaptureFixture):
    with connect(house) as channel:
        answer = channel.ask(wire.Charge(key="broken"))
        assert isinstance(answer, wire.Failed) and answer.code == "internal_error" and "fault" not in answer.message
        assert isinstance(channel.ask(wire.Status()), wire.StatusOf)
    assert "a fault of the admission's own" in caplog.text


@pytest.mark.parametrize("raw", [
    b"", b"GET / HTTP/1.1\r\n\r\n", struct.pack("!i", 1 << 30), struct.pack("!iQ", -1, 1 << 60),
    struct.pack("!i", 5) + b"hi", b"\0" * 4096])
def test_strangers_get_nothing_and_break_nothing(house: House, raw: bytes):
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(house.supervisor.address)
        stranger.sendall(raw)
        stranger.shutdown(socket.SHUT_WR)
        stranger.settimeout(SOON)
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(4096):
                pass
    assert house.say(house.spec()) == "You said: hello"


def test_a_wrong_key_is_refused(house: House):
    for key in (b"another key", b"", AUTHKEY[:-1], b"x" * 5000):
        with wire.connect(house.supervisor.address, key) as stranger, pytest.raises(wire.WireError):
            stranger.ask(wire.Status())
    assert isinstance(house.engine.status(), wire.StatusOf)


def test_silent_strangers_keep_nobody_out(house: House):
    spec = house.spec()
    house.say(spec, select=True)
    doors = [house.supervisor.address, *map(str, Path(house.supervisor.address).parent.glob("*.sock"))]
    assert len(doors) >= 2
    with contextlib.ExitStack() as held:
        for door, raw in itertools.product(doors, (b"", b"", b"\0", struct.pack("!i", 20) + b"half a word")):
            stranger = held.enter_context(socket.socket(socket.AF_UNIX))
            stranger.connect(door)
            stranger.sendall(raw)
        with wire.connect(house.supervisor.address, AUTHKEY) as channel:
            assert isinstance(channel.ask(wire.Status()), wire.StatusOf)
        assert house.say(spec) == "You said: hello"


def test_a_stranger_who_stays_silent_is_sent_away(house: House, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wire, "HANDSHAKE", 0.2)
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.connect(house.supervisor.address)
        stranger.settimeout(SOON)
        while stranger.recv(4096):
            pass


def test_frames_that_are_no_messages_end_their_connection_only(house: House):
    chance = random.Random(5)
    good = wire.encode(wire.Ensure(spec=wire.RunnerSpec(model="/x", n_ctx=8)))
    with connect(house) as witness:
        for _ in range(1500):
            frame = bytearray(good if chance.random() < 0.5 else chance.randbytes(chance.randrange(1, 80)))
            frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
            with connect(house) as channel:
                channel.connection.send_bytes(bytes(frame))
        for tail in (struct.pack("!i", 1000) + b"half", struct.pack("!i", 1 << 30)):
            with connect(house) as channel:
                os.write(channel.fileno(), tail)
        assert isinstance(witness.ask(wire.Status()), wire.StatusOf)
    assert house.say(house.spec()) == "You said: hello"


def test_three_hundred_connections_at_once(house: House):
    spec = house.spec()
    house.say(spec, select=True)
    channels = [connect(house) for _ in range(300)]
    try:
        for channel in channels:
            channel.send(wire.Ensure(spec=spec))
        assert all(isinstance(channel.receive(SOON), wire.RunnerAt) for channel in channels)
        assert leases(house, spec) == 300
        assert house.say(spec) == "You said: hello"
    finally:
        for channel in channels:
            channel.close()
    eventually(lambda: leases(house, spec) == 0)


def test_after_stop_nobody_answers(house: House):
    house.supervisor.stop(0)
    with pytest.raises(wire.WireError):
        connect(house)
    house.supervisor.stop(0)
