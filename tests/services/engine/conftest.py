"""Supervisors for tests; every process that they start is gone when the test is over."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.engine.house import House, eventually, runners_of


@pytest.fixture
def open_house(tmp_path: Path) -> Iterator[Callable[..., House]]:
    with contextlib.ExitStack() as stack:
        def begin(**options: Any) -> House:
            house = House(tmp_path, **options)
            stack.callback(house.close)
            return house
        yield begin


@pytest.fixture
def house(open_house: Callable[..., House]) -> House:
    return open_house()


@pytest.fixture(autouse=True)
def no_runner_is_left() -> Iterator[None]:
    yield
    eventually(lambda: not runners_of(os.getpid()), "the end of all runners")
