"""`main.py work`: an executor with an engine of its own, for the jobs of servers on other machines."""

from __future__ import annotations

import logging
import signal
import threading

import click

from services.cli.core import Core, check_models_dir
from services.cli.signals import Signals
from services.errors import ConfigError
from services.settings import Settings
from services.store import redis_client

log = logging.getLogger("parley.work")


class Worker(Core):
    """The supervisor, its runners and the executor."""

    def run(self) -> int:
        Signals(self.on_signal).start()
        try:
            self.supervisor.start()
            print("Parley does jobs from Redis (stop with Ctrl-C)", flush=True)
            self.work.watch()
            return 0
        finally:
            self.supervisor.stop(0)
            self.close()

    def on_signal(self, number: int) -> None:
        """The first one lets running jobs end, the second one gives them back at once; SIGHUP means nothing here."""
        if number == signal.SIGHUP:
            return
        if self.stopping.is_set():
            self.supervisor.kill()
            self.work.kill()
            return
        self.stopping.set()
        log.info("stopping: running jobs get %g s", self.settings.drain_timeout)
        threading.Thread(target=self.work.end, name="drain", daemon=True).start()


@click.command()
@click.pass_obj
def work(settings: Settings) -> int:
    """Do the jobs of servers on other machines, with the models of this one.

    Both name the same Redis (REDIS_URL), and the servers have their keys there too (STORE=redis). DATA_DIR and its
    config.json are this machine's own. SIGTERM or Ctrl-C gives back what does not end in DRAIN_TIMEOUT seconds.
    """
    if not redis_client.configured(settings) or settings.store != "redis":
        raise ConfigError("main.py work does the jobs of servers on other machines: set REDIS_URL and STORE=redis, "
                          "here and there. A server does its own jobs by itself")
    check_models_dir(settings.models_dir)
    try:
        return Worker(settings).run()
    except OSError as error:
        raise ConfigError(f"the executor cannot start: {error}") from None
