"""Does what `build` made do what an image has to: start as nobody special, be healthy, answer, keep its data, stop."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.in_root.container import Container, volume
from deploy.in_root.dockerfile import Refused

SOON = 15.0             # seconds in which an idle server has to be gone after SIGTERM
_PATIENCE = 120.0       # seconds that one answer may take


def check(folder: Path, env: Mapping[str, str]) -> int:
    """Prints a line for each thing that holds; `Refused` at the first one that does not."""
    root = (folder / "root").resolve()
    told("size", f"{part(root, '')}; of them {part(root, 'opt/venv')} Python packages, {part(root, 'app')} Parley")
    key = "ply-check-" + os.urandom(16).hex()
    with tempfile.TemporaryDirectory(prefix="parley-check-", dir=folder) as place:
        asked = {"MASTER_KEY": key, "PORT": str(free_port()), **env}
        binds = [volume(folder, f"{place}/{name}", f"/{name}", "rw") for name in ("data", "models")]
        for turn in (_first, _second):
            with Container(folder, asked, binds, stdout=sys.stderr) as container:
                began = time.monotonic()
                expect(container.healthy(), f"HEALTHCHECK says healthy, not: {container.unhealthy}")
                told("healthy", f"after {time.monotonic() - began:.1f} s")
                turn(container, int(asked["PORT"]), key)
                _stop(container)
    return 0


def _first(container: Container, port: int, key: str) -> None:
    users = {line.split()[1] for process in _processes(container)
             for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("Uid:")}
    expect(users == {container.image.user.split(":")[0]}, f"every process is the image's user, not {users}")
    told("user", f"{len(_processes(container))} processes, all of uid {users.pop()}")
    written = container.execute(["python", "-c", "open('/app/x', 'w')"])
    expect("Read-only file system" in written.stderr, "nothing can be written but /data, /models and /tmp")
    told("root", "read-only but for /data, /models and /tmp")
    told("answer", answer(port, key, "What is the capital of France?"))
    answer(port, key, "My name is Ada.", 7)


def _second(_container: Container, port: int, key: str) -> None:
    text = answer(port, key, "What is my name?", 7)
    expect("Ada" in text, f"a session outlives the container, but the answer is {text!r}")
    told("after a restart", text)


def _stop(container: Container) -> None:
    began = time.monotonic()
    container.signal(signal.Signals[container.image.stop_signal])
    try:
        status = container.process.wait(SOON)
    except subprocess.TimeoutExpired:
        raise Refused(f"it still runs {SOON:g} s after {container.image.stop_signal}") from None
    expect(status == 0, f"it stops with status 0, not {status}")
    told("stopped", f"{time.monotonic() - began:.1f} s after {container.image.stop_signal}, status {status}")


def answer(port: int, key: str, prompt: str, session: int | None = None) -> str:
    """What POST /answer says."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    body = {"prompt": prompt, "temperature": 0} | ({"session_id": session} if session is not None else {})
    connection.request("POST", "/answer", json.dumps(body),
                       {"Authorization": key, "Content-Type": "application/json"})
    response = connection.getresponse()
    found: dict[str, Any] = json.loads(response.read())
    connection.close()
    expect(response.status == 200, f"POST /answer is 200, not {response.status}: {found}")
    return str(found["result"])


def _processes(container: Container) -> list[int]:
    """Those below the container's first one, and that one."""
    found = [container.first or 0]
    for process in found:
        for task in Path(f"/proc/{process}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def part(root: Path, name: str) -> str:
    counted = subprocess.run(["du", "-s", "--block-size=1", root / name], check=True, capture_output=True, text=True)
    return f"{int(counted.stdout.split()[0]) / 1e6:.0f} MB"


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise Refused(f"check failed: {what}")


def told(name: str, value: str) -> None:
    print(f"{name:<16} {value}", flush=True)
