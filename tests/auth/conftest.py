"""Keys in a temporary folder, and a control server that speaks the supervisor's side of admissions."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from auth.keys import Keys
from auth.limits import Admissions, Limiter
from services import wire
from services.settings import Settings

AUTHKEY = b"control"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def clock() -> list[float]:
    """The wall clock of `open_keys`, in a list so that tests can turn it."""
    return [1_800_000_000.0]


@pytest.fixture
def open_keys(data: Path, clock: list[float]) -> Callable[..., Keys]:
    """`open_keys()` is one process's view of the data folder; keyword arguments are settings."""
    return lambda **settings: Keys(data, Settings(data_dir=data, **settings), now=lambda: clock[0])


@pytest.fixture
def keys(open_keys: Callable[..., Keys]) -> Keys:
    opened = open_keys()
    opened.ensure_master()
    return opened


class Control:
    """Answers Admit, Charge and GetUsage as the supervisor does: a place lives as long as its connection."""

    def __init__(self, address: str, limiter: Limiter) -> None:
        self.address, self.limiter = address, limiter
        self._door = wire.Door(address, AUTHKEY)
        self._thread = threading.Thread(target=self._door.serve, args=(self._talk,), daemon=True)
        self._thread.start()

    def _talk(self, channel: wire.Channel) -> None:
        held: list[str] = []
        try:
            while message := channel.receive():
                if isinstance(message, wire.Admit):
                    answer = self.limiter.admit(message)
                    held += [message.key] if isinstance(answer, wire.Admitted) else []
                    channel.send(answer)
                elif isinstance(message, wire.Charge):
                    self.limiter.charge(message.key, message.requests, message.prompt_tokens,
                                        message.completion_tokens)
                elif isinstance(message, wire.GetUsage):
                    channel.send(self.limiter.usage(message.key))
        except wire.WireError:
            pass
        finally:
            channel.close()
            for key in held:
                self.limiter.release(key)

    def close(self) -> None:
        self._door.close()
        self._thread.join()


@pytest.fixture
def limiter(tmp_path: Path) -> Iterator[Limiter]:
    limiter = Limiter(tmp_path / "limiter")
    yield limiter
    limiter.close()


@pytest.fixture
def control(tmp_path: Path, limiter: Limiter) -> Iterator[Control]:
    server = Control(str(tmp_path / "control.sock"), limiter)
    yield server
    server.close()


@pytest.fixture
def admissions(control: Control) -> Admissions:
    return Admissions(control.address, AUTHKEY)
