"""One runner's process: spawned with its parameters on stdin, watched through its stdout, ended by signals.

Owned by one thread of the supervisor (`start` to `bury`); `alive`, `pid`, `stats`, `tell`, `terminate` and `kill` may
be called from any thread. Its stdin stays open as long as the supervisor lives: its end tells the runner to exit.
"""

from __future__ import annotations

import logging
import os
import secrets
import select
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from services import wire
from services.engine.failures import error_of
from services.engine.machine import oom_kills
from services.errors import OutOfMemory
from services.settings import ROOT, runner_environment

log = logging.getLogger("parley.engine")
LONGEST_LINE = 64 * 1024 * 1024         # bytes of a runner's first line; vocabularies are part of it
_first_word = msgspec.json.Decoder(wire.Ready | wire.Failed)


class Died(Exception):
    """The process ended, or had to be ended, by itself. The text says how: "killed by SIGKILL", "exit 134"; `code` is
    that of the error its callers get."""

    def __init__(self, how: str, code: str = "runner_crashed") -> None:
        super().__init__(how)
        self.code = code


class RunnerProcess:
    def __init__(self, command: Sequence[str], spec: wire.RunnerSpec, folder: Path,
                 limits: wire.RunnerLimits = wire.RunnerLimits()) -> None:
        self.command = list(command)
        self.address = str(folder / f"{uuid.uuid4().hex[:12]}.sock")
        self.authkey = secrets.token_bytes(32)
        self.verdict: str | None = None         # why it was killed, when it was
        self.ended_at: float | None = None      # when it was told to end
        self._parameters = wire.Start(address=self.address, authkey=self.authkey.hex(), spec=spec, limits=limits)
        self._popen: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._ranks = False                     # as its first word says
        self._oom_kills = oom_kills()

    # ------------------------------------------------------------ from any thread

    @property
    def pid(self) -> int | None:
        return self._popen.pid if self._popen else None

    def alive(self) -> bool:
        return self._popen is not None and self._popen.poll() is None

    def stats(self, patience: float = wire.HANDSHAKE) -> wire.Stats | None:
        """How it is; None when it does not say so within `patience` seconds."""
        try:
            with wire.connect(self.address, self.authkey, patience) as channel:
                channel.send(wire.GetStats())
                answer = channel.receive(patience)
        except wire.WireError:
            return None
        return answer if isinstance(answer, wire.Stats) else None

    def tell(self, message: wire.Message) -> None:
        """Say what needs no answer; one that is gone does not need to hear it."""
        try:
            with wire.connect(self.address, self.authkey) as channel:
                channel.send(message)
        except wire.WireError as error:
            log.debug("%s was not told a %s: %s", self.address, type(message).__name__, error)

    def terminate(self) -> None:
        self.ended_at = time.monotonic()
        self._signal(signal.SIGTERM)

    def kill(self, verdict: str | None = None) -> None:
        self.verdict = self.verdict or verdict
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self._popen is not None:
            self._popen.send_signal(number)     # does nothing once the process was waited for

    # ------------------------------------------------------------ its life, by the owner

    def start(self) -> None:
        """Spawn it. In a session of its own, so that a terminal's Ctrl-C is left to the supervisor. Raises OSError."""
        self._popen = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
                                       env=runner_environment(), cwd=ROOT, start_new_session=True)
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(msgspec.json.encode(self._parameters) + b"\n")
        except BrokenPipeError:
            pass                                # it is dead already: `wait_ready` says how

    def wait_ready(self, deadline: float) -> wire.Ready:
        """Its first word, `deadline` in monotonic seconds. `Died`, or the ParleyError that the runner named."""
        try:
            word = _first_word.decode(self._line(deadline))
        except msgspec.DecodeError as error:
            raise Died(f"it said something else than Ready: {error}") from None
        if isinstance(word, wire.Failed):
            raise error_of(word)
        self._ranks = word.ranks
        return word

    def probe(self, deadline: float) -> None:
        """One token or one text, through its socket. `Died`, or the ParleyError that the runner named."""
        request = self._probe()
        try:
            with wire.connect(self.address, self.authkey) as channel:
                channel.send(request)
                while not isinstance(word := channel.receive(max(0.0, deadline - time.monotonic())),
                                     wire.Done | wire.Vectors | wire.Ranked):
                    if isinstance(word, wire.Failed):
                        raise error_of(word)
                    if word is None:
                        raise Died("it did not answer the probe in time")
        except wire.WireError as error:
            gone = self.wait(1.0)
            raise (self.death() if gone else Died(f"it broke off at the probe: {error}")) from None

    def _probe(self) -> wire.Message:
        id = str(uuid.uuid4())
        if self._ranks:
            return wire.Rank(id=id, owner="", query="Hello", texts=["Hello"])
        if self._parameters.spec.embedding:
            return wire.Embed(id=id, owner="", texts=["Hello"])
        return wire.Generate(id=id, owner="", prompt=["Hello"], max_tokens=1, sampling=wire.Sampling(temperature=0))

    def wait(self, timeout: float) -> bool:
        """Whether it ended within `timeout` seconds. What it still writes to stdout is thrown away."""
        assert self._popen is not None and self._popen.stdout is not None
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0 and self._readable(left):
            if not os.read(self._popen.stdout.fileno(), 65536):
                break
        try:
            self._popen.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        return True

    def death(self) -> Died:
        """How it ended. It must have ended."""
        assert self._popen is not None
        status = self._popen.wait()
        if self.verdict is None and status == -signal.SIGKILL and oom_kills() > self._oom_kills:
            return Died("killed by the kernel, for want of memory: lower n_ctx or parallel, or MEMORY_BUDGET",
                        OutOfMemory.code)
        return Died(self.verdict or describe(status))

    def bury(self) -> None:
        """Make sure that it is gone and nothing of it is left."""
        if self._popen is None:
            return
        self.kill()
        self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            assert pipe is not None
            pipe.close()
        Path(self.address).unlink(missing_ok=True)

    def _readable(self, timeout: float) -> bool:
        assert self._popen is not None and self._popen.stdout is not None
        poll = select.poll()
        poll.register(self._popen.stdout.fileno(), select.POLLIN)
        return bool(poll.poll(timeout * 1000))

    def _line(self, deadline: float) -> bytes:
        assert self._popen is not None and self._popen.stdout is not None
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0 or len(self._rest) > LONGEST_LINE or not self._readable(left):
                raise Died("it did not say Ready in time")
            data = os.read(self._popen.stdout.fileno(), 65536)
            if not data:
                raise self.death() if self.wait(1.0) else Died("it closed its output and said nothing")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line


def describe(status: int) -> str:
    """A process's exit status in words, as `Popen` gives it: negative for a signal."""
    if status >= 0:
        return f"exit {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
