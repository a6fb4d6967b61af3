"""The way to the runners for processes of the web: lease a runner, ask it, cancel by closing.

Nothing is shared between threads: each lease opens connections of its own. A lease is the open connection to the
supervisor; a request is the open connection to the runner. Both end when their owner ends, however that happens.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from services import wire
from services.engine.failures import error_of
from services.errors import OutOfMemory, ParleyError, RunnerCrashed, Unavailable

log = logging.getLogger("parley.engine")
Reply = TypeVar("Reply", bound=wire.Message)
BEAT = 1.0              # seconds of silence after which the caller hears of it
SECOND_TRY = 0.1        # seconds that the supervisor gets to notice a death before it is asked again


class Engine:
    def __init__(self, control_address: str, authkey: bytes) -> None:
        self._address = control_address
        self._authkey = authkey

    @contextlib.contextmanager
    def lease(self, spec: wire.RunnerSpec, select: bool = False, keep: float = 0.0,
              beat: Callable[[], None] | None = None, affinity: str = "") -> Iterator[Lease]:
        """A ready runner of `spec` for the time of the block; it is loaded if need be.

        `beat` is called about every second of waiting and may raise to give up. Raises what the supervisor says:
        `NotFound`, `BadModel`, `NoRoom`, `Unavailable` (`draining`, `models_in_use`, `runner_failed`), `RunnerCrashed`.
        """
        with self.begin(spec, select, keep, beat, affinity) as lease:
            while not lease.arrived(BEAT):
                lease.beat()
            yield lease

    def begin(self, spec: wire.RunnerSpec, select: bool = False, keep: float = 0.0,
              beat: Callable[[], None] | None = None, affinity: str = "") -> Lease:
        """A lease that has been asked for; its `arrived` tells when it is there. Whoever gets it closes it.

        `select`, `keep` and `affinity` as in `wire.Ensure`.
        """
        ensure = wire.Ensure(spec=spec, select=select, keep=keep, affinity=affinity)
        return Lease(self._connect, ensure, beat or (lambda: None))

    def forget(self, owner: str, session: str) -> None:
        """Have all runners that are loaded forget a session. Raises `Unavailable` when the supervisor is gone."""
        with supervisor(self._address, self._authkey) as channel:
            channel.send(wire.Forget(owner=owner, session=session))

    def keep(self, spec: wire.RunnerSpec, keep: float) -> None:
        """What is loaded of `spec` stays for so long, as in `wire.Ensure`; nothing is loaded. Raises `Unavailable` when
        the supervisor is gone."""
        with supervisor(self._address, self._authkey) as channel:
            channel.send(wire.Keep(spec=spec, keep=keep))

    def status(self) -> wire.StatusOf:
        with supervisor(self._address, self._authkey) as channel:
            answer = asked(channel, wire.Status())
        assert isinstance(answer, wire.StatusOf)
        return answer

    def _connect(self) -> wire.Channel:
        try:
            return wire.connect(self._address, self._authkey)
        except wire.WireError as error:
            raise supervisor_gone(error) from None


class Lease:
    """A runner in use, once it has `arrived`. One request at a time; not for use by two threads at once."""

    ready: wire.Ready

    def __init__(self, connect: Callable[[], wire.Channel], ensure: wire.Ensure, beat: Callable[[], None]) -> None:
        self._connect = connect
        self._ensure = ensure
        self.beat = beat
        self._control: wire.Channel | None = None
        self._runner: wire.Channel | None = None
        self._ask()

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def arrived(self, timeout: float) -> bool:
        """Whether the runner is there; waits up to `timeout` seconds. Raises what `Engine.lease` does."""
        assert self._control is not None
        try:
            answer = self._control.receive(timeout)
        except wire.WireError as error:
            raise supervisor_gone(error) from None
        if answer is None:
            return False
        if isinstance(answer, wire.Failed):
            raise error_of(answer)
        assert isinstance(answer, wire.RunnerAt)
        self._at, self.ready = answer, answer.ready
        return True

    def count(self, prompts: Sequence[list[str]]) -> list[int]:
        """Tokens of each prompt, a prompt being a list of segments."""
        def fits(answer: wire.Counted) -> bool:
            return len(answer.tokens) == len(prompts)
        return self._answer(wire.Count(prompts=list(prompts)), wire.Counted, fits).tokens

    def tokenize(self, text: str, special: bool = True, around: bool = False) -> wire.Tokens:
        """The tokens of a text; `special` and `around` as in `wire.Tokenize`. `ContextOverflow`: it is too long."""
        def fits(answer: wire.Tokens) -> bool:
            return answer.text == text and len(answer.tokens) == len(answer.pieces)
        return self._answer(wire.Tokenize(text=text, special=special, around=around), wire.Tokens, fits)

    def detokenize(self, tokens: Sequence[int]) -> wire.Tokens:
        """The text of tokens. `BadRequest` for what is no token of the model."""
        message = wire.Detokenize(tokens=list(tokens))

        def fits(answer: wire.Tokens) -> bool:
            return answer.tokens == message.tokens and len(answer.pieces) == len(answer.tokens)
        return self._answer(message, wire.Tokens, fits)

    def embed(self, request: wire.Embed) -> wire.Vectors:
        """The vectors of texts. Raises the runner's error, or `RunnerCrashed`; what `beat` raises cancels."""
        def fits(answer: wire.Vectors) -> bool:
            return answer.id == request.id and len(answer.vectors) == len(answer.tokens) == len(request.texts)
        return self._answer(request, wire.Vectors, fits)

    def rank(self, request: wire.Rank) -> wire.Ranked:
        """How well texts answer a query. Raises what `embed` does."""
        def fits(answer: wire.Ranked) -> bool:
            return answer.id == request.id and len(answer.scores) == len(answer.tokens) == len(request.texts)
        return self._answer(request, wire.Ranked, fits)

    def _answer(self, message: wire.Message, kind: type[Reply], fits: Callable[[Reply], bool]) -> Reply:
        """The one word with which the runner replies; `beat` is called each second of waiting."""
        channel = self._send(message)
        with self._closed_unless_done():
            while (answer := self._receive(channel)) is None:
                self.beat()
            if isinstance(answer, wire.Failed):
                raise error_of(answer)
            if not isinstance(answer, kind) or not fits(answer):
                raise foreign(answer, message)
        return answer

    def count_at_once(self, prompt: list[str]) -> int | None:
        """Tokens of a prompt, as `count`, for who cannot wait: None when this very runner does not tell in a second."""
        try:
            with self._closed_unless_done():
                answer = self._say(wire.Count(prompts=[prompt])).receive(BEAT)
                if not isinstance(answer, wire.Counted):
                    raise wire.WireError(f"expected Counted, got {type(answer).__name__}")
        except wire.WireError as error:
            log.debug("a prompt was not counted: %s", error)
            return None
        return answer.tokens[0]

    def prepare(self, message: wire.Prepare) -> None:
        """Tell the runner what comes next. It does not answer; one that is gone has nothing to prepare."""
        try:
            self._say(message)
        except wire.WireError as error:
            self._hang_up()
            log.debug("a runner was not told what to prepare: %s", error)

    def generate(self, request: wire.Generate) -> Iterator[wire.Piece | wire.Queued | wire.Done | None]:
        """The pieces of an answer, then its `Done`; None for each second without news. Closing it cancels.

        `Queued` comes before the first piece, when all slots are taken.

        Raises the runner's error, `RunnerCrashed` when it ends or speaks of another request, or `OutOfMemory` when it
        ended for want of that.
        """
        with self._closed_unless_done():
            for message in self._messages(request):
                if isinstance(message, wire.Done):
                    break
                yield self._piece(message, request)
            assert isinstance(message, wire.Done)
            if message.id != request.id:
                raise foreign(message, request)
        yield message

    def _messages(self, request: wire.Generate) -> Iterator[wire.Message | None]:
        """What the runner says. One that dies while the request is still in its queue is asked anew, once."""
        for last in (False, True):
            channel, queued = self._send(request), True
            try:
                while True:
                    message = self._receive(channel)
                    queued = queued and (message is None or isinstance(message, wire.Queued))
                    if message != wire.Piece(id=request.id, text="", tokens=0):     # that one tells: a slot was taken
                        yield message
            except (RunnerCrashed, OutOfMemory):
                if last or not queued:
                    raise
            time.sleep(SECOND_TRY)
            self.renew()

    def renew(self) -> None:
        """Ask the supervisor again for the runner: the one in hand may have died."""
        self.close()
        self._ask()
        while not self.arrived(BEAT):
            self.beat()

    def _ask(self) -> None:
        channel = self._control = self._connect()
        try:
            channel.send(self._ensure)
        except wire.WireError as error:
            raise supervisor_gone(error) from None

    def close(self) -> None:
        self._hang_up()
        if self._control:
            self._control.close()
            self._control = None

    def _hang_up(self) -> None:
        if self._runner:
            self._runner.close()
            self._runner = None

    @contextlib.contextmanager
    def _closed_unless_done(self) -> Iterator[None]:
        """An answer that was not read to its end must never be taken for the next request's."""
        try:
            yield
        except BaseException:
            self._hang_up()
            raise

    def _send(self, message: wire.Message) -> wire.Channel:
        """Send it to the runner. When that one has just died nothing was asked of it yet: once more, with a new one."""
        try:
            return self._say_when_let_in(message)
        except wire.WireError:
            time.sleep(SECOND_TRY)
            self.renew()
        try:
            return self._say_when_let_in(message)
        except wire.WireError as error:
            raise crashed(error) from None

    def _say_when_let_in(self, message: wire.Message) -> wire.Channel:
        """`beat` is called each second of waiting before the door of a runner that has many others there."""
        while True:
            try:
                return self._say(message)
            except wire.Crowded:
                self.beat()

    def _say(self, message: wire.Message) -> wire.Channel:
        channel = self._runner = self._runner or wire.connect(self._at.address, self._at.authkey, BEAT)
        channel.send(message)
        return channel

    def _receive(self, channel: wire.Channel) -> wire.Message | None:
        try:
            return channel.receive(BEAT)
        except wire.WireError as error:
            raise self._fate() or crashed(error) from None

    def _fate(self) -> ParleyError | None:
        """What the supervisor knows of the runner's end that is more than an accident: there was no memory for it."""
        assert self._control is not None
        try:
            answer = self._control.ask(wire.Fate(address=self._at.address), BEAT)
        except wire.WireError as error:
            log.debug("the end of a runner is not known: %s", error)
            return None
        return error_of(answer) if isinstance(answer, wire.Failed) and answer.code == OutOfMemory.code else None

    def _piece(self, message: wire.Message | None, request: wire.Generate) -> wire.Piece | wire.Queued | None:
        if message is None:
            return None
        if isinstance(message, wire.Failed) and message.id in ("", request.id):
            raise error_of(message)
        if isinstance(message, wire.Piece | wire.Queued) and message.id == request.id:
            return message
        raise foreign(message, request)


def foreign(message: wire.Message, request: wire.Message) -> RunnerCrashed:
    log.error("a request (%s) was told a %s of %s", getattr(request, "id", type(request).__name__),
              type(message).__name__, getattr(message, "id", "nobody"))
    return RunnerCrashed("the model's process answered with words of another request; they were dropped: ask again",
                         retry_after=1)


def crashed(error: wire.WireError) -> RunnerCrashed:
    log.warning("a runner broke off: %s", error)
    return RunnerCrashed("the model's process ended while it was asked; it is being started again: ask again",
                         retry_after=1)


@contextlib.contextmanager
def supervisor(address: str, authkey: bytes) -> Iterator[wire.Channel]:
    """A connection to the supervisor. Raises `Unavailable` when it is gone, also in the middle of the block."""
    try:
        with wire.connect(address, authkey) as channel:
            yield channel
    except wire.WireError as error:
        raise supervisor_gone(error) from None


def asked(channel: wire.Channel, message: wire.Message) -> wire.Message:
    """The answer to `message`, or the error that it is."""
    answer = channel.ask(message)
    if isinstance(answer, wire.Failed):
        raise error_of(answer)
    return answer


def supervisor_gone(error: wire.WireError) -> Unavailable:
    log.error("the supervisor does not answer: %s", error)
    return Unavailable("the server is stopping or starting: ask again in a moment")
