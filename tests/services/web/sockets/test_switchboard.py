"""How many websockets there may be, and whose."""

from __future__ import annotations

import socket

import pytest

from services.errors import TooManyRequests, Unavailable
from services.settings import Settings
from services.web.drain import Drain
from services.web.sockets.line import GOING_AWAY
from services.web.sockets.switchboard import MOST_KEYLESS, Switchboard
from tests.services.web.conftest import wait_until


class FakeCall:
    busy = False

    def __init__(self):
        self.line, self.texts, self.ended = None, [], False

    def begin(self, line):
        self.line = line

    def heard(self, text):
        self.texts.append(text)
        if text == "fail":
            raise ValueError(text)

    def over(self):
        self.ended = True

    def tick(self, now):
        pass


@pytest.fixture
def board():
    return Switchboard(Settings(max_sockets=150, max_sockets_per_key=3), Drain())


def test_sockets_of_a_key_are_counted(board):
    for _ in range(3):
        board.reserve(FakeCall(), "1")
    with pytest.raises(TooManyRequests):
        board.reserve(FakeCall(), "1")
    board.reserve(FakeCall(), "2")


def test_socket_gets_its_key_later(board):
    calls = [FakeCall() for _ in range(4)]
    for call in calls:
        board.reserve(call, "")
    for call in calls[:3]:
        board.claim(call, "1")
    with pytest.raises(TooManyRequests):
        board.claim(calls[3], "1")
    for call in calls:
        board._free(call)
    assert not board._places and not board._owners.total()
    board.claim(calls[0], "1")          # gone before its key was looked at
    assert not board._owners.total()


def test_sockets_in_all_and_those_without_a_key_are_bounded(board):
    for _ in range(MOST_KEYLESS):
        board.reserve(FakeCall(), "")
    with pytest.raises(Unavailable):
        board.reserve(FakeCall(), "")
    for number in range(50):
        board.reserve(FakeCall(), str(number))
    with pytest.raises(Unavailable):
        board.reserve(FakeCall(), "x")


def opened(board):
    """(client's end, call, list that gets an entry once the connection is gone)"""
    client, server = socket.socketpair()
    call, gone = FakeCall(), []
    board.reserve(call, "1")
    board.expect(server, call)
    assert board.adopt(server, lambda: b"", lambda: gone.append(True))
    wait_until(lambda: call.line)
    return client, call, gone


def test_connection_that_is_no_websocket_is_left_alone(board):
    assert not board.adopt(socket.socketpair()[0], lambda: b"", lambda: None)


def test_failure_of_one_is_no_others_trouble(board):
    (one, failing, gone), (other, well, _) = opened(board), opened(board)
    one.sendall(b"\x81\x84\0\0\0\0fail")
    wait_until(lambda: gone and failing.ended)
    other.sendall(b"\x81\x82\0\0\0\0ok")
    wait_until(lambda: well.texts == ["ok"])
    assert len(board._places) == 1


def test_who_leaves_gives_the_place_back(board):
    client, call, gone = opened(board)
    client.close()
    wait_until(lambda: gone and call.ended and not board._places)


def test_leaving_worker_closes_what_is_idle_and_waits_for_what_is_not(board):
    (_one, idle, _), (_other, busy, _) = opened(board), opened(board)
    busy.busy = True
    board.leave()
    wait_until(lambda: idle.line.close_code == GOING_AWAY)
    assert busy.line.open
    busy.busy = False
    board.wake()
    wait_until(lambda: not busy.line.open)
