"""Disks that fail on purpose: `failing(nth, errno, for_ever)` makes the nth call through the seam fail."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from services.errors import ParleyError
from services.store import disk


@dataclass
class Fault:
    """Installed in `disk.watcher` while its block runs. `short`: cut writes to so many bytes instead of failing."""

    nth: int
    code: int
    for_ever: bool = False
    kind: str | None = None
    short: int | None = None
    count: int = 0
    hits: int = 0
    ops: list[disk.Op] = field(default_factory=list)

    def __call__(self, op: disk.Op) -> int | None:
        if self.kind not in (None, op.kind):
            return None
        self.count += 1
        self.ops.append(op)
        if self.count == self.nth or (self.for_ever and self.count > self.nth):
            self.hits += 1
            if self.short is not None:
                return self.short if op.kind == "write" else None
            raise OSError(self.code, "on purpose")
        return None

    def hit_by(self, act: Callable[[], object]) -> bool:
        """Runs `act`; whether the fault was met. An error reaches the caller only as a ParleyError of 503 or 507."""
        try:
            act()
        except ParleyError as error:
            assert error.status in (503, 507), error
        return self.hits > 0

    def __enter__(self) -> "Fault":
        disk.watcher = self
        return self

    def __exit__(self, *_: object) -> None:
        disk.watcher = None


@pytest.fixture
def failing():
    yield Fault
    disk.watcher = None
