"""The runner process: one loaded model, answering over a local socket until its parent is gone.

Threads: the main one runs the loop (decode, sample); `post` owns the sockets; `door` accepts connections, each of which
shakes hands in a thread of its own; `lifeline` ends the process when standard input closes (the parent is gone) or
SIGTERM comes, also in the middle of a decode.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec

from services import logs
from services.errors import BadModel
from services.runner import embedding
from services.runner.draft import Drafter
from services.runner.embedder import Embedder
from services.runner.embedding import EmbedScheduler
from services.runner.intake import ahead, count, prepare
from services.runner.kvdisk import model_fingerprint
from services.runner.llama import VERSION, LoadFailed
from services.runner.loop import Loop
from services.runner.model import Model
from services.runner.scheduler import Event, Scheduler
from services.runner.sequence import Sequence
from services.runner.slots import Slots
from services.runner.snapshots import Snapshots
from services.runner.vocabulary import tokens_of
from services.wire import (
    Count,
    Counted,
    Detokenize,
    Door,
    Embed,
    Failed,
    Forget,
    Generate,
    Message,
    Prepare,
    Rank,
    Ready,
    RunnerLimits,
    RunnerSpec,
    Start,
    Stats,
    Tokenize,
    Tokens,
)

log = logging.getLogger("parley.runner")
SWITCH = 2e-4           # seconds after which a thread must let another go on: the loop never waits long for the post
LAST_SAVE = 2.0         # seconds that saving may take at the end


class Runner(Loop[Scheduler]):
    """A model that writes. While nothing is to do, what slots hold of sessions is saved."""

    def __init__(self, model: Model, limits: RunnerLimits) -> None:
        self.model = model
        self.shelf = Snapshots(limits, model_fingerprint(model.path, VERSION, model.flash), model.rewindable)
        self.slots = Slots(model.n_slots, model, model.rewindable, self.shelf)
        super().__init__(Scheduler(model, self.slots, limits))

    def rest(self) -> None:
        """Save one slot, or settle what was saved."""
        if not self.slots.save_one():
            self.shelf.settle()

    def leave(self) -> None:
        """The process ends: tell those who wait, then save what slots hold of sessions. Called in another thread."""
        super().leave()
        saved = threading.Event()
        self.inbox.put(lambda: self._save_all(saved))
        if saved.wait(LAST_SAVE):
            self.shelf.flush(LAST_SAVE)

    def _save_all(self, saved: threading.Event) -> list[Event]:
        while self.slots.save_one():
            pass
        saved.set()
        return []

    # ------------------------------------------------------------ the post's desk: called in its thread

    def prepare(self, message: Generate | Embed | Rank) -> Sequence:
        if not isinstance(message, Generate):
            what = "ranks nothing" if isinstance(message, Rank) else "makes no embeddings"
            raise BadModel(f"{self.model.name} writes text and {what}: take one that is made for that, in a profile "
                           "with \"embedding\": true")
        sequence = prepare(self.model, message)
        if self.model.rewindable:
            sequence.drafter = Drafter(self.scheduler.payoff, sequence.sampler.draft)
        return sequence

    def count(self, message: Count) -> Counted:
        return count(self.model, message)

    def tokens(self, message: Tokenize | Detokenize) -> Tokens:
        return tokens_of(self.model, message)

    def stats(self) -> Stats:
        """As after the last step; with what else is to be told of this process."""
        return msgspec.structs.replace(super().stats(), threads=self.model.threads, **self.shelf.stats())

    def ahead(self, message: Prepare) -> None:
        if sequence := ahead(self.model, message):
            self.inbox.put(partial(self.scheduler.prepare, sequence))

    def forget(self, message: Forget) -> None:
        self.inbox.put(partial(self.scheduler.forget, message.owner, message.session))


class EmbedRunner(Loop[EmbedScheduler]):
    """A model that turns texts into vectors, or ranks them."""

    def __init__(self, model: Embedder, limits: RunnerLimits) -> None:
        self.model = model
        super().__init__(EmbedScheduler(model, limits))

    def prepare(self, message: Generate | Embed | Rank) -> embedding.Job:
        return embedding.prepare(self.model, message)

    def count(self, message: Count) -> Counted:
        return embedding.count(self.model, message)

    def tokens(self, message: Tokenize | Detokenize) -> Tokens:
        return tokens_of(self.model, message)

    def stats(self) -> Stats:
        return msgspec.structs.replace(super().stats(), threads=self.model.n_threads)


def main() -> int:
    """Serve the model that the line on standard input names; 1 when it cannot be loaded."""
    stdout = os.dup(1)
    os.dup2(2, 1)           # whatever a library prints must not stand between the parent and `Ready`
    start = msgspec.json.decode(sys.stdin.buffer.readline(), type=Start)
    logs.setup(start.limits.log_level)
    sys.setswitchinterval(SWITCH)
    lifeline = Lifeline()
    began = time.monotonic()
    try:
        runner = load(start.spec, start.limits)
    except LoadFailed as error:
        _say(stdout, Failed(code=error.code, message=str(error)))
        return 1
    runner.post.start()
    lifeline.farewell = runner.leave
    door = Door(start.address, bytes.fromhex(start.authkey))
    threading.Thread(target=door.serve, args=(runner.post.adopt,), name="door", daemon=True).start()
    _say(stdout, _ready(runner.model, start.spec, (time.monotonic() - began) * 1000))
    runner.run()
    return 0


def load(spec: RunnerSpec, limits: RunnerLimits) -> Runner | EmbedRunner:
    """The runner of `spec`. `LoadFailed` says why there can be none."""
    if spec.embedding:
        return EmbedRunner(Embedder(spec.model, n_ctx=spec.n_ctx, n_threads=spec.n_threads,
                                    n_gpu_layers=spec.n_gpu_layers), limits)
    model = Model(spec.model, n_ctx=spec.n_ctx, n_slots=spec.parallel, n_threads=spec.n_threads,
                  n_gpu_layers=spec.n_gpu_layers)
    if spec.n_ctx > model.n_ctx_train:
        log.warning("n_ctx is %d, but %s was trained on %d tokens: beyond them it may write nonsense", spec.n_ctx,
                    Path(spec.model).name, model.n_ctx_train)
    return Runner(model, limits)


class Lifeline:
    """A thread that ends the process with status 0 when the parent is gone or SIGTERM comes. Ctrl-C is the parent's."""

    def __init__(self) -> None:
        self.farewell: Callable[[], None] = lambda: None
        self._signals, wake = socket.socketpair()
        wake.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())     # written in C at once, even while the main thread is in a decode
        self._wake = wake
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select([0, self._signals.fileno()], [], [])
            if 0 not in ready or not os.read(0, 4096):
                self.farewell()
                os._exit(0)


def _ready(model: Model | Embedder, spec: RunnerSpec, load_ms: float) -> Ready:
    return Ready(model=Path(spec.model).name, architecture=model.architecture, n_ctx=model.n_ctx,
                 n_ctx_train=model.n_ctx_train, n_slots=model.n_slots, n_vocab=model.n_vocab,
                 n_threads=model.n_threads, chat_template=model.chat_template, bos=model.bos, eos=model.eos,
                 special_tokens=model.special_tokens, load_ms=load_ms,
                 infill=isinstance(model, Model) and model.infill,
                 n_embd=model.n_embd if isinstance(model, Embedder) else 0,
                 ranks=isinstance(model, Embedder) and model.ranks)


def _say(stdout: int, message: Message) -> None:
    os.write(stdout, msgspec.json.encode(message) + b"\n")
