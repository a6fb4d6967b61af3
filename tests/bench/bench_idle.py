"""What a server takes while no model is loaded: `python tests/bench/bench_idle.py` prints each process's share.

A server is started with LOAD_ON_FLY=true in a folder of its own, asked for /readyz and one answer, and left alone until
the model is gone again. PSS: what processes map together is divided by their number, so the sum is what ending all of
them would free.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conftest import Server, command_line, descendants, make_home

MOST = 120          # MB: S3.2 of the source systems claims it
REST = 3.0          # seconds


def share(pid: int) -> dict[str, float]:
    """Its memory in MB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(size) / 1000 * 1.024 for name, size in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.M)}


def measure(asked: bool) -> list[tuple[str, dict[str, float]]]:
    """(name, memory) of each process of an idle server, after an answer or before the first."""
    with tempfile.TemporaryDirectory() as folder:
        home = make_home(Path(folder) / "home")
        (home / "data" / "config.json").unlink()        # as on a fresh machine: the starter model's profiles
        server = Server(home, "llama", LOAD_ON_FLY="true").start()
        try:
            server.ready()
            if asked:
                assert server.answer("hello", 1).status_code == 200, server.log
            deadline = time.monotonic() + 60
            while server.children(" runner"):
                assert time.monotonic() < deadline, "the model stays"
                time.sleep(0.1)
            time.sleep(REST)
            assert server.process is not None
            pids = [server.process.pid, *descendants(server.process.pid)]
            names = ["supervisor", *("gunicorn" if server.process.pid == parent(pid) else "web worker"
                                     for pid in pids[1:])]
            assert all(command_line(pid) for pid in pids)
            return [(name, share(pid)) for name, pid in zip(names, pids, strict=True)]
        finally:
            server.end()


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def main() -> int:
    for asked in (False, True):
        rows = measure(asked)
        print(f"\n{'after one answer' if asked else 'just started'}, no model loaded{'PSS':>16}{'RSS':>8}  MB")
        for name, memory in rows:
            print(f"{name:44}{memory['Pss']:6.1f}{memory['Rss']:8.1f}")
        total = sum(memory["Pss"] for _, memory in rows)
        print(f"{'together':44}{total:6.1f}")
    return int(total > MOST)


if __name__ == "__main__":
    sys.exit(main())
