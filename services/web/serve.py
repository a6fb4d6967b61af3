"""The web process: gunicorn over the application, started by the supervisor and never outliving it.

Standard input: one JSON line `{"control": address, "authkey": hex}`, then open for as long as the parent lives.
Standard output: one JSON line `{"listening": "http://host:port"}` once a worker answers. Logs go to standard error.
"""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

from flask import Flask
from gunicorn.app.base import BaseApplication

from services import logs
from services import settings as settings_module
from services.chat import forms
from services.errors import ConfigError, ParleyError
from services.settings import Settings
from services.web.app import build_parts, create_app
from services.web.drain import Drain
from services.web.worker import Arbiter, Logger, SharedFlag, Worker

log = logging.getLogger("parley.web")
PORT_IN_USE = 3             # exit status
BIND_PATIENCE = 3.0         # seconds that a worker left behind by a killed predecessor may hold the port
_MARGIN = 5                 # seconds between the last answer's cut and the kill
_RELOAD_PAUSE = 1.0         # seconds before a worker that could not load is forked again


class Application(BaseApplication):
    """gunicorn's view of Parley. `stopping` and `announced` are shared by the arbiter and its workers."""

    def __init__(self, settings: Settings, control: str, authkey: bytes, listener: socket.socket) -> None:
        self.settings = settings
        self.stopping = SharedFlag()
        self.announced = SharedFlag()
        self.drain = Drain()                # each worker's own, from its fork on
        self._control, self._authkey = control, authkey
        self._url = url_of(settings.host, listener)
        self._fd = listener.detach()        # the arbiter's from now on
        super().__init__()

    def load_config(self) -> None:
        settings = self.settings
        options: dict[str, Any] = {
            "bind": f"fd://{self._fd}", "workers": settings.web_workers, "threads": settings.threads,
            "worker_class": Worker, "worker_connections": settings.threads + 1000 + settings.max_sockets,
            "backlog": 1024, "keepalive": 15, "timeout": int(settings.request_timeout) + 60,
            "graceful_timeout": int(settings.drain_timeout) + _MARGIN,
            "limit_request_line": 8190, "limit_request_fields": 100, "limit_request_field_size": 8190,
            "forwarded_allow_ips": "", "control_socket_disable": True, "logger_class": Logger,
            "loglevel": "debug" if settings.debug else "warning", "proc_name": "parley",
            "when_ready": self._watch_parent, "post_fork": _post_fork, "post_worker_init": self._announce}
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Flask:
        """Called in each worker, after its fork."""
        try:
            parts = build_parts(self.settings, self._control, self._authkey)
            app = create_app(self.settings, parts, self.drain)
            parts.grounding.go_on()
            return app
        except ParleyError as error:
            log.error("the web process cannot start: %s", error)
            if not self.announced:
                sys.exit(Arbiter.APP_LOAD_ERROR)        # which ends the arbiter too
            time.sleep(_RELOAD_PAUSE)
            sys.exit(1)                                 # which makes it try again, and leaves other workers alone

    def run(self) -> None:
        """Serve until a signal; ends in SystemExit."""
        try:
            Arbiter(self).run()
        except SystemExit as end:
            if end.code == Arbiter.WORKER_BOOT_ERROR:
                sys.exit(Arbiter.APP_LOAD_ERROR)        # the other one is our PORT_IN_USE
            raise

    def _watch_parent(self, _arbiter: Arbiter) -> None:
        threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()

    def _announce(self, worker: Worker) -> None:
        if worker.age == 1:
            self.announced.set()
            os.write(1, json.dumps({"listening": self._url}).encode() + b"\n")


def _end_with_parent() -> None:
    """In the arbiter. Signals reach its main thread, which ends the workers; nothing is locked while this waits."""
    while os.read(0, 4096):
        pass
    log.warning("the supervisor is gone: the web process ends")
    os.kill(os.getpid(), signal.SIGQUIT)


def _post_fork(_arbiter: Arbiter, _worker: Worker) -> None:
    """A worker has no business with the arbiter's parent."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def bind(host: str, port: int, patience: float = BIND_PATIENCE) -> socket.socket:
    """A listening socket. `ConfigError` that names host and port; waits up to `patience` for a port in use."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError(f"HOST={host!r}: {error.strerror}; expected an address of this machine") from None
    family, address = found[0][0], found[0][4]
    deadline = time.monotonic() + patience
    while True:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(1024)
            return listener
        except OSError as error:
            listener.close()
            if error.errno != errno.EADDRINUSE or time.monotonic() >= deadline:
                raise _unbindable(host, port, error) from None
            time.sleep(0.1)


def _unbindable(host: str, port: int, error: OSError) -> ConfigError:
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"port {port} on {host} is in use by another program; end that one or set PORT",
                           code="port_in_use")
    return ConfigError(f"HOST={host!r} PORT={port}: {error.strerror}; set HOST to an address of this machine and PORT "
                       "to a port that may be opened")


def url_of(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


def preload() -> None:
    """Import before the fork what every worker needs, so that they share its memory and a new one is there at once.

    Frozen, since the garbage collector writes to what it looks at, and what a worker writes to becomes its own.
    """
    forms.warm()
    gc.collect()
    gc.freeze()


def main() -> int:
    """Serve until told to end; the exit status. Runs in its own process only."""
    try:
        settings = settings_module.load()
        logs.setup(settings.log_level, settings.debug)
        line = json.loads(sys.stdin.buffer.readline())
        listener = bind(settings.host, settings.port)
    except ParleyError as error:
        print(error, file=sys.stderr)
        return PORT_IN_USE if error.code == "port_in_use" else 1
    preload()
    Application(settings, line["control"], bytes.fromhex(line["authkey"]), listener).run()
    return 0
