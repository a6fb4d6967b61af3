"""A supervisor with fake runners, short of patience, and what tests of the engine share."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from services import wire
from services.engine.client import Engine, Lease
from services.engine.states import Timing
from services.engine.supervisor import Supervisor
from services.metrics import Figures
from services.settings import Settings

FAKE = [sys.executable, "-c", "from services.engine.fake import main; raise SystemExit(main())"]
AUTHKEY = b"a key for tests only, 32 bytes.."
QUICK = Timing(first_pause=0.05, longest_pause=0.4, room=5.0, grace=1.0, watch=0.2, load=30.0)
SOON = 30.0             # a deadline that means "did not hang", on a busy machine too


def eventually(condition: Callable[[], Any], what: str = "it") -> Any:
    """The first true value of `condition`; fails when there is none for a long time."""
    deadline = time.monotonic() + SOON
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.02)
    return value


def gone(pid: int) -> bool:
    """Whether process `pid` runs no more (one that nobody has waited for yet counts as gone)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def freeze(pid: int) -> None:
    """Stop process `pid`; it stands still when this returns."""
    os.kill(pid, signal.SIGSTOP)
    tasks = [task / "stat" for task in Path(f"/proc/{pid}/task").iterdir()]
    eventually(lambda: all(task.read_text().rpartition(")")[2].split()[0] == "T" for task in tasks))


class Nobody:
    """An admission that admits all and writes down what it hears."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self.charged: list[tuple[str, int, int, int]] = []

    def admit(self, request: wire.Admit) -> wire.Admitted | wire.Failed:
        if request.max_parallel is not None and self.places.count(request.key) >= request.max_parallel:
            return wire.Failed(code="rate_limited", message="too many at once", retry_after=1)
        self.places.append(request.key)
        return wire.Admitted(limit=request.requests_per_minute)

    def release(self, key: str) -> None:
        self.places.remove(key)

    def charge(self, key: str, requests: int, prompt_tokens: int, completion_tokens: int) -> None:
        if key == "broken":
            raise RuntimeError("a fault of the admission's own")
        self.charged.append((key, requests, prompt_tokens, completion_tokens))

    def usage(self, key: str) -> wire.Usage:
        return wire.Usage(requests=len(self.charged))


class House:
    """One supervisor, its client, and a folder of model files that script their loads."""

    def __init__(self, folder: Path, timing: Timing = QUICK, precheck: Any = None, needs: Any = None,
                 **settings: Any) -> None:
        self.folder = folder
        self.run_dir = tempfile.TemporaryDirectory(prefix="parley-")
        self.admission = Nobody()
        self.spawned = folder / "spawned"
        count = f"open({str(self.spawned)!r}, 'a').write('x')"
        command = [FAKE[0], "-c", f"{count}; {FAKE[2]}"]
        self.supervisor = Supervisor(Settings(**settings), Path(self.run_dir.name), AUTHKEY, self.admission,
                                     Figures(10), precheck, needs, command=command, timing=timing)
        self.engine = Engine(self.supervisor.address, AUTHKEY)
        self.supervisor.start()

    def spec(self, name: str = "a.gguf", script: str = "", **fields: Any) -> wire.RunnerSpec:
        path = self.folder / name
        if script or not path.exists():
            path.write_text(script)
        return wire.RunnerSpec(model=str(path), **{"n_ctx": 512, **fields})

    def spawns(self) -> int:
        return len(self.spawned.read_text()) if self.spawned.exists() else 0

    def state(self, spec: wire.RunnerSpec) -> wire.RunnerState | None:
        return next((runner for runner in self.supervisor.status().runners if runner.spec == spec), None)

    def states(self, spec: wire.RunnerSpec) -> list[wire.RunnerState]:
        """Of all its replicas."""
        return [runner for runner in self.supervisor.status().runners if runner.spec == spec]

    def pid(self, spec: wire.RunnerSpec) -> int:
        state = self.state(spec)
        assert state and state.pid
        return state.pid

    def say(self, spec: wire.RunnerSpec, text: str = "hello", **lease: Any) -> str:
        """The whole answer to one prompt."""
        with self.engine.lease(spec, **lease) as held:
            return whole(held, text)

    def close(self) -> None:
        self.supervisor.stop(0)
        self.run_dir.cleanup()


def generate(text: str, **fields: Any) -> wire.Generate:
    return wire.Generate(**{"id": str(uuid.uuid4()), "owner": "k1", "prompt": [f"Human: {text}\nAI:"],
                            "max_tokens": 10_000, **fields})


def whole(lease: Lease, text: str, **fields: Any) -> str:
    return "".join(event.text for event in lease.generate(generate(text, **fields)) if isinstance(event, wire.Piece))


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What `work(0) ... work(count - 1)` gave, each in a thread of its own, exceptions included."""
    results: list[Any] = [None] * count

    def one(number: int) -> None:
        try:
            results[number] = work(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON * 2)
        assert not thread.is_alive(), "a caller hangs"
    return results


def runners_of(parent: int) -> list[int]:
    """Process ids of `parent`'s children that are fake runners."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if entry.name.isdigit() and b"services.engine.fake" in (entry / "cmdline").read_bytes():
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[1]) == parent and fields[0] != "Z":
                    found.append(int(entry.name))
    return found
