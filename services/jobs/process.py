"""The executor's process: started by `serve` or `work`, and never outliving it.

Standard input: one JSON line `{"control": address, "authkey": hex, "worker": name}`, then open for as long as the
parent lives. Logs go to standard error.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from auth.keys import Keys
from auth.limits import Admissions
from services import logs
from services import settings as settings_module
from services.chat.answer import Chat
from services.chat.grounding import Grounding
from services.chat.profiles import Profiles
from services.chat.sessions import Sessions
from services.engine.client import Engine
from services.errors import ParleyError
from services.jobs import batches, requests, summaries
from services.jobs.callbacks import Callbacks
from services.jobs.executor import STUCK, Executor, Handler, Rules
from services.settings import Settings
from services.store.jobs import CALLBACK
from services.store.opening import open_jobs, open_store, open_uploads

log = logging.getLogger("parley.jobs")
OpenDoor = Callable[[Settings, str, bytes], requests.Door]


def build(settings: Settings, control: str, authkey: bytes, worker: str, open_door: OpenDoor) -> Executor:
    """The executor of a data folder, with the engine at `control`. `open_door`: makes what answers requests."""
    profiles = Profiles(settings.data_dir / "config.json", settings)
    sessions = Sessions(open_store(settings, prepare=False))
    engine, admissions = Engine(control, authkey), Admissions(control, authkey)
    grounding = Grounding(settings, profiles, engine, admissions.count_tokens)
    chat = Chat(settings, profiles, sessions, engine, grounding)
    store = open_jobs(settings)
    keys, door = Keys(settings.data_dir, settings), open_door(settings, control, authkey)
    handlers: dict[str, Handler] = {
        **summaries.handlers(chat, keys, admissions), CALLBACK: Callbacks(store, grounding.fetcher),
        requests.ANSWER: requests.handler(keys, door),
        batches.BATCH: batches.handler(open_uploads(settings), keys, door)}
    rules = Rules(concurrency=settings.max_concurrency, timeout=settings.job_timeout,
                  untimed=frozenset({requests.ANSWER, batches.BATCH}))
    return Executor(store, handlers, worker, rules)


def work(open_door: OpenDoor) -> int:
    """Do jobs until told to end; the exit status, where it cannot begin. Runs in its own process only, and ends it:
    Python would wait for a pool's threads, also those that hang."""
    try:
        settings = settings_module.load()
        logs.setup(settings.log_level, settings.debug)
        line = json.loads(sys.stdin.buffer.readline())
        executor = build(settings, line["control"], bytes.fromhex(line["authkey"]), line["worker"],
                         open_door)
    except ParleyError as error:
        print(error, file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: executor.stop(settings.drain_timeout))
    threading.Thread(target=_end_with_parent, args=(executor,), name="parent", daemon=True).start()
    status = 0 if executor.run() else STUCK
    logging.shutdown()
    os._exit(status)


def _end_with_parent(executor: Executor) -> None:
    while os.read(0, 4096):
        pass
    log.warning("the supervisor is gone: the executor ends")
    executor.stop(0.0)
