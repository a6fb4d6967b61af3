"""What the server adds to the runner, and what it weighs: `.venv/bin/python -m tests.bench.bench_answer`.

Overhead of one POST /answer = the client's wall time minus what the runner itself reports for it (queue, prefill,
decode). Resident memory of each process is read from /proc before the first request. Runs its own server on a free
port, on the starter model when it is there, else on a tiny random one.
"""

import argparse
import http.client
import json
import statistics
import tempfile
import time
from pathlib import Path

from tests.conftest import MASTER, STARTER, Server, command_line, descendants, make_home

ROWS = [("without a session", None, False), ("in one session", 1, False), ("streamed, in one session", 2, True)]


def resident(pid):
    """Megabytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def processes(server):
    yield "serve", server.process.pid
    for pid in descendants(server.process.pid):
        words = command_line(pid).split()
        yield (words[2] if len(words) > 2 else "?"), pid


def overheads(server, session_id, stream, count):
    """Milliseconds that each request took beyond the runner's own time; one connection, as lean as a client can be."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    headers = {"Authorization": MASTER, "Content-Type": "application/json"}
    body = json.dumps({"prompt": "Hello", "session_id": session_id, "stream": stream, "max_tokens": 8})
    found = []
    for n in range(count):
        begin = time.perf_counter()
        connection.request("POST", "/answer", body, headers)
        reply = connection.getresponse().read()
        wall = (time.perf_counter() - begin) * 1000
        final = json.loads(reply.rstrip().rpartition(b"data: ")[2])
        found.append(wall - sum(final["timings"].values()))
        if n % 20 == 19 and session_id:
            server.call("DELETE", f"/answer/{session_id}")      # so a session has 20 turns at most
    return found[5:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="requests of each kind (default 100)")
    parser.add_argument("--runner", default="llama", choices=["llama", "fake"])
    arguments = parser.parse_args()
    model = "starter.gguf" if STARTER.exists() else "tiny.gguf"
    with tempfile.TemporaryDirectory() as folder:
        config = {"SelectedModel": "p", "p": {"model": model, "n_ctx": 512, "max_tokens": 64, "temperature": 0}}
        server = Server(make_home(Path(folder) / "home", config), arguments.runner).start().ready()
        try:
            time.sleep(1)
            for name, pid in processes(server):
                print(f"{name:12} {resident(pid):6.1f} MB resident, idle")
            for name, session_id, stream in ROWS:
                found = sorted(overheads(server, session_id, stream, arguments.count))
                print(f"POST /answer {name:26} adds {statistics.median(found):5.1f} ms (median), "
                      f"{found[int(len(found) * 0.95)]:5.1f} ms (p95) to the runner's time")
        finally:
            server.stop()


if __name__ == "__main__":
    main()
