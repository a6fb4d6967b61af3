"""llama.cpp's own server as a process: a `llama-server` binary, or the one inside the PyPI package xllamacpp."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from importlib.util import find_spec
from pathlib import Path

WAIT = 120.0            # seconds that a start may take
PACKAGED = "xllamacpp"


def find(given: str | None) -> str | None:
    """The `llama-server` to measure against: `given`, else the one on PATH; None: the package's. Exits without any."""
    if given:
        if not os.access(given, os.X_OK):
            sys.exit(f"--peer {given}: no program that can be started; give the path of a llama-server")
        return given
    if on_path := shutil.which("llama-server"):
        return on_path
    if find_spec(PACKAGED) is None:
        sys.exit("no llama.cpp server to measure against: give --peer PATH, put a llama-server on PATH, or install the "
                 f"package with one: {sys.executable} -m pip install -r tests/bench/requirements.txt")
    return None


def described(binary: str | None) -> str:
    """Which peer this is, with what its figures mean."""
    if binary:
        told = subprocess.run([binary, "--version"], capture_output=True, text=True).stderr.strip().splitlines()
        return f"{binary} ({told[0] if told else 'no version told'})"
    import xllamacpp
    return (f"the server in {PACKAGED} {xllamacpp.__version__} (built for AVX2, ours for this processor; a "
            "llama-server built for it can be up to 1.4 times as fast where there is AVX-512: give it with --peer)")


class PeerProcess:
    """A server of `slots` slots with `n_ctx` tokens each, prompt cache on, otherwise as it is by default."""

    def __init__(self, model: Path, slots: int, n_ctx: int, threads: int, binary: str | None) -> None:
        self.binary = binary
        self.spec = {"model": str(model), "slots": slots, "n_ctx": n_ctx * slots, "threads": threads}
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> str:
        """Its address, once it answers."""
        if self.binary is None:
            command = [sys.executable, "-m", "tests.bench.peer", json.dumps(self.spec)]
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            assert self.process.stdout
            address = next((line.split()[1] for line in self.process.stdout if line.startswith("listening ")), "")
        else:
            address = self._start_binary(self.binary)
        self._wait(address)
        return address

    def _start_binary(self, binary: str) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        spec = {name: str(value) for name, value in self.spec.items()}
        self.process = subprocess.Popen(
            [binary, "-m", spec["model"], "-c", spec["n_ctx"], "-np", spec["slots"], "-t", spec["threads"],
             "-tb", spec["threads"], "--host", "127.0.0.1", "--port", str(port)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True)
        return f"http://127.0.0.1:{port}"

    def _wait(self, address: str) -> None:
        assert self.process
        deadline = time.monotonic() + WAIT
        while True:
            try:
                with urllib.request.urlopen(address + "/health", timeout=5):
                    return
            except (OSError, ValueError):
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(f"llama.cpp's server does not answer: exit status {self.process.returncode}; "
                                       f"it was to serve {self.spec}") from None
                time.sleep(0.1)

    def stop(self) -> None:
        assert self.process
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def pids(self) -> list[int]:
        assert self.process
        return [self.process.pid]


def main() -> None:
    """Serve with the package's server until the process is ended; says where it listens."""
    import xllamacpp
    spec = json.loads(sys.argv[1])
    params = xllamacpp.CommonParams()
    params.model.path = spec["model"]
    params.n_parallel, params.n_ctx = spec["slots"], spec["n_ctx"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = spec["threads"]
    params.port, params.verbosity = 0, 0
    server = xllamacpp.Server(params)
    print("listening", server.listening_address, flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
