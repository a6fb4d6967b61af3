"""The executor's process as `serve` and `work` look after it: started with the first job, watched, started again."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from services.errors import ParleyError
from services.settings import ROOT, Settings, environment_with

log = logging.getLogger("parley.serve")
EXECUTOR = "summaries:executor"     # of ENABLED_MODULES
PAUSES = (0.1, 1.0, 5.0)            # seconds before it is started again, then the last for ever ...
STEADY = 60.0                       # ... unless it lived so many seconds
LOOK = 1.0                          # seconds between two looks for a first job
GRACE = 3.0                         # seconds that a stopped one has beyond DRAIN_TIMEOUT


class Work:
    """`forced` is called when one ended because a job of it hung."""

    def __init__(self, settings: Settings, control: str, authkey: bytes, forced: Callable[[], None]) -> None:
        self._settings, self._forced = settings, forced
        self._fixed = {"DATA_DIR": str(settings.data_dir), "MODELS_DIR": str(settings.models_dir)}
        self._parameters = {"control": control, "authkey": authkey.hex()}
        self._stopping = threading.Event()
        self._lock = threading.Lock()           # guards the process, so that none is started after `stop`
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self) -> None:
        """Keep one alive until `stop`. Until there is a job none is needed, which saves its memory."""
        from services.jobs.executor import STUCK
        self._await_work()
        attempt = 0
        while not self._stopping.is_set():
            began = time.monotonic()
            process = self._start()
            status = process.wait() if process else 0
            if self._stopping.is_set():
                return
            if status == STUCK:
                self._forced()
            attempt = 0 if time.monotonic() - began > STEADY else attempt
            log.error("the executor ended with status %s; starting it again", status)
            self._stopping.wait(PAUSES[min(attempt, len(PAUSES) - 1)])
            attempt += 1

    def _await_work(self) -> None:
        from services.store.opening import open_jobs
        store, told = open_jobs(self._settings), False
        while not self._stopping.is_set():
            try:
                if store.busy():
                    break
                store.wait(LOOK)
            except ParleyError as error:
                if not told:
                    log.error("the queue of jobs does not work: %s", error.message)
                told = True
                self._stopping.wait(LOOK)
        store.close()

    def _start(self) -> subprocess.Popen[bytes] | None:
        name = worker_name(self._settings.data_dir)
        with self._lock:
            if self._stopping.is_set():
                return None
            process = subprocess.Popen([sys.executable, str(ROOT / "main.py"), "executor"], stdin=subprocess.PIPE,
                                       start_new_session=True, env=environment_with(self._fixed))
            self._process = process
        assert process.stdin is not None
        with suppress(BrokenPipeError):         # it ended already; wait() tells how
            process.stdin.write(json.dumps({**self._parameters, "worker": name}).encode() + b"\n")
            process.stdin.flush()               # stays open: its end tells the child that this process is gone
        return process

    def stop(self) -> None:
        """Let running jobs end, for DRAIN_TIMEOUT at most; the others go back into the queue."""
        with self._lock:
            self._stopping.set()
            if self._process is not None and self._process.poll() is None:
                self._process.terminate()

    def end(self) -> None:
        """`stop`, and wait until it has ended."""
        self.stop()
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(self._settings.drain_timeout + GRACE)
            self.kill()

    def kill(self) -> None:
        """At once. Its jobs go on when there is an executor again."""
        self._stopping.set()
        if self._process is not None and self._process.poll() is None:
            self._process.kill()


def worker_name(data_dir: Path) -> str:
    """The executor's of a data folder: the same after each start, and no other folder's."""
    from services.store import disk
    path = data_dir / "worker"
    try:
        return disk.read_bytes(path).decode()
    except FileNotFoundError:
        name = f"{socket.gethostname()[:40]}-{os.urandom(6).hex()}"
        disk.write_atomic(path, name.encode())
        return name
