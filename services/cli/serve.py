"""`main.py serve`: the supervisor process. Its children are the runners and gunicorn; it outlives and restarts both."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import click

from services.cli.core import Core, check_models_dir
from services.cli.executor import EXECUTOR
from services.cli.signals import Signals
from services.errors import ConfigError, NotFound, ParleyError
from services.settings import ROOT, Settings, environment_with

if TYPE_CHECKING:
    from services.chat.profiles import Profile

log = logging.getLogger("parley.serve")
FOLLOW = 1.0                # seconds between two looks at config.json
AT_ONCE = 3.0               # seconds between a second SIGTERM and the end
RESTART_PAUSES = (0.1, 0.5, 1.0)    # seconds before gunicorn is started again, then the last for ever ...
STEADY = 60.0                       # ... unless it lived so many seconds


class Web:
    """The gunicorn child: started, watched, started again."""

    def __init__(self, settings: Settings, control: str, authkey: bytes) -> None:
        # What stays as it is for as long as this process lives, whatever .env says by the next start.
        self.fixed = {"DATA_DIR": str(settings.data_dir), "MODELS_DIR": str(settings.models_dir)}
        self.parameters = json.dumps({"control": control, "authkey": authkey.hex()})
        self.process: subprocess.Popen[bytes] | None = None
        self.address: str | None = None
        self.listening = threading.Event()      # set once it was seen to listen

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, str(ROOT / "main.py"), "web"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, start_new_session=True,
                                        env=environment_with(self.fixed))
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(self.parameters.encode() + b"\n")
            self.process.stdin.flush()          # stays open: its end tells the child that this process is gone
        except BrokenPipeError:
            pass                                # it ended already; wait() tells why
        threading.Thread(target=self._announce, args=(self.process,), name="web-stdout", daemon=True).start()

    def _announce(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.address = json.loads(line)["listening"]
            self.fixed["PORT"] = self.address.rpartition(":")[2]        # also when PORT=0 chose it
            first = not self.listening.is_set()
            self.listening.set()
            if first:
                try:
                    print(f"Parley answers at {self.address} (stop with Ctrl-C)", flush=True)
                except OSError as error:
                    log.warning("Parley answers at %s; standard output cannot be written: %s", self.address, error)

    def reload(self) -> None:
        """Have gunicorn take fresh workers. Before it first listened there is nothing to reload, and it would end."""
        if self.listening.is_set():
            self.signal(signal.SIGHUP)

    def signal(self, number: int) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(number)

    def wait(self, seconds: float) -> None:
        """Until it has ended, but at most so long."""
        with suppress(subprocess.TimeoutExpired):
            if self.process:
                self.process.wait(seconds)

    def kill(self) -> None:
        """End the arbiter and its workers at once."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)


class Server(Core):
    """Everything that `serve` starts. `stopping` is set by the first SIGTERM or SIGINT; a second one ends at once."""

    status = 0              # what the process ends with after a signal

    def __init__(self, settings: Settings) -> None:
        from auth.keys import Keys
        from services.chat import personas
        from services.engine.model_jobs import wanted_at_start
        check_models_dir(settings.models_dir)
        self.wanted = wanted_at_start(settings)
        super().__init__(settings)
        personas.ensure_default(settings.data_dir)
        keys = Keys(settings.data_dir, settings)
        show_master_key(keys.ensure_master(), settings)
        if settings.bypass_authorization:
            keys.ensure_local()
        self.web = Web(settings, self.supervisor.address, self.authkey)

    def run(self) -> int:
        Signals(self.on_signal).start()
        try:
            self.supervisor.start()
            if self.wanted:
                from services.engine.model_jobs import jobs_of, preload
                preload(jobs_of(self.settings, self.wanted), self.wanted)
            if not self.settings.load_on_fly:
                threading.Thread(target=self.follow_selection, name="follow-selection", daemon=True).start()
            if EXECUTOR in self.settings.modules:
                threading.Thread(target=self.work.watch, name="work", daemon=True).start()
            return self.watch()
        finally:
            self.supervisor.stop(0)
            self.web.kill()
            self.close()

    def on_signal(self, number: int) -> None:
        """SIGHUP: fresh web workers. The others: the first one drains, the second one ends at once."""
        if number == signal.SIGHUP:
            self.web.reload()
        elif self.stopping.is_set():
            self.end_now(128 + number)
        else:
            self.stopping.set()
            threading.Thread(target=self.drain, name="drain", daemon=True).start()

    def end_now(self, status: int) -> None:
        """The runners end at once; gunicorn gets AT_ONCE seconds to tell the clients and to keep what was written."""
        self.status = status
        self.supervisor.kill()
        self.work.kill()
        for _ in range(2):
            self.web.signal(signal.SIGTERM)
            self.web.wait(AT_ONCE / 2)
        self.web.kill()

    def drain(self) -> None:
        """New work gets 503 while running answers end; then gunicorn lets its last bytes out and ends."""
        log.info("stopping: running answers get %g s", self.settings.drain_timeout)
        self.work.stop()
        self.supervisor.stop(self.settings.drain_timeout)
        self.web.signal(signal.SIGTERM)

    def follow_selection(self) -> None:
        """Load the selected profile's model before somebody asks, at the start and when config.json selects another.

        A failure is told here once, in /readyz and by /answer. Not before the port is ours: a start that fails there
        says so in one line and nothing else. With LOAD_ON_FLY nothing is loaded before somebody asks.
        """
        self.web.listening.wait()
        seen = None
        while not self.stopping.is_set():
            if (selection := self.selection()) not in (None, seen):
                seen = selection
                self.load(*selection)
            self.stopping.wait(FOLLOW)

    def selection(self) -> tuple[str, Profile] | None:
        """None where the selected profile is one of LocalAI's whose file was wrong at the start: /readyz tells."""
        try:
            return self.profiles.current().get()
        except NotFound:
            return None

    def load(self, name: str, profile: Profile) -> None:
        try:
            keep = self.profiles.current().keep(profile)
            self.supervisor.ensure(self.profiles.spec(profile, self.settings.models_dir), select=True, keep=keep)
            log.info("profile %s is ready: %s", name, profile.model)
        except ParleyError as error:
            log.error("profile %s cannot answer: %s", name, error.message)

    def watch(self) -> int:
        """Keep gunicorn alive until it is told to stop; the exit status."""
        attempt = 0
        while not self.stopping.is_set():
            began = time.monotonic()
            self.web.start()
            if self.stopping.is_set():          # `drain` may have come too early to find this one
                self.web.signal(signal.SIGTERM)
            assert self.web.process is not None
            status = self.web.process.wait()
            if self.stopping.is_set():
                break
            if not self.web.listening.is_set():
                return 1                        # it said why, the port in use for one
            attempt = 0 if time.monotonic() - began > STEADY else attempt
            log.error("the web process ended with status %s; starting it again", status)
            self.stopping.wait(RESTART_PAUSES[min(attempt, len(RESTART_PAUSES) - 1)])
            attempt += 1
        return self.status


def show_master_key(key: str | None, settings: Settings) -> None:
    """Show a master key that was just made: on a terminal, else in a file of mode 0600 named in the log."""
    if key is None:
        return
    if sys.stdout.isatty():
        print(f"Your master key, shown this once (only its hash is kept):\n\n    {key}\n", flush=True)
        return
    from services.store import disk
    path = settings.data_dir / "master_key.txt"
    disk.write_atomic(path, f"{key}\n".encode(), mode=0o600)
    log.warning("a master key was made; it is in %s: note it and delete that file", path)


@click.command()
@click.pass_obj
def serve(settings: Settings) -> int:
    """Start the server: a supervisor, one runner for each loaded model, and gunicorn.

    SIGTERM or Ctrl-C lets running answers finish (DRAIN_TIMEOUT seconds); a second one ends at once.
    """
    for name in settings.without_effect:
        log.warning("%s is set, but has no effect in this version", name)
    for text in settings.warnings:
        log.warning("%s", text)
    try:
        return Server(settings).run()
    except OSError as error:
        raise ConfigError(f"the server cannot start: {error}") from None
