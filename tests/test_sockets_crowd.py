"""500 idle websockets and 50 that stream, at the same time: all of them work, and so does everything else.

What others wait for meanwhile is measured by `python -m tests.bench.bench_sockets`.
"""

from __future__ import annotations

import pytest

from tests.bench import bench_sockets
from tests.conftest import Server, make_home


@pytest.mark.slow
def test_crowd_of_websockets(tmp_path):
    server = Server(make_home(tmp_path / "home", bench_sockets.CONFIG)).start()
    try:
        figures = bench_sockets.measure(server.ready(), prompt="!tokens 60 !sleep 0.05")
    finally:
        server.end()
    assert figures.complete == bench_sockets.STREAMS and figures.pieces == 60 * bench_sockets.STREAMS
    assert figures.alive == bench_sockets.IDLE // 10 and len(figures.health) > 1
