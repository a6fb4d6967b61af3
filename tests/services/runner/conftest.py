"""Runners that end with their module."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from functools import partial

import pytest

from tests.services.runner.child import Start, launch


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start a runner; all are ended with the module."""
    started: list[subprocess.Popen[bytes]] = []
    yield partial(launch, started, tmp_path_factory.mktemp("run"))
    for process in started:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()
