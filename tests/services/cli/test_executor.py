"""The executor's process, as the supervisor looks after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.cli.executor import Work
from services.jobs.executor import STUCK
from services.settings import Settings


class Ended:
    """A process that has ended."""

    def __init__(self, status: int) -> None:
        self.status = status

    def wait(self) -> int:
        return self.status


def test_executors_that_hang_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forced: list[int] = []
    work = Work(Settings(data_dir=tmp_path), "", b"", lambda: forced.append(1))
    statuses = [STUCK, 1, -9, STUCK, 0]

    def start() -> Ended:
        if len(statuses) == 1:
            work.stop()
        return Ended(statuses.pop(0))
    monkeypatch.setattr(work, "_await_work", lambda: None)
    monkeypatch.setattr(work, "_start", start)
    monkeypatch.setattr("services.cli.executor.PAUSES", (0.0,))
    work.watch()
    assert len(forced) == 2
