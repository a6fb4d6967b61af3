"""A runner without a model: the same process, pipes and wire as the real one, with scripted answers. For tests.

A token is a whitespace-separated word, for `Count`, `n_ctx`, `max_tokens` and all figures. `schema`, `grammar` and the
sampling are not honoured; stop strings, `max_tokens`, slots, the waiting queue, owners' cancels are. Tokens have
numbers in the order in which their words were met, those below 256 are bytes; log probabilities are made up.

What it answers depends on the last thing the user said in the prompt (after the last `Human:`, `User:`, `PROMPT:`,
`<|im_start|>user`; the whole prompt when there is none). "What is my name?" is answered from the last "My name is X"
anywhere in the prompt; else it says `You said: <the user's last line>`, so that an answer shows whose it is. Before a
suffix it says `between <the prompt's last line> and <the suffix's first line>`.

Directives in it (each to the next directive or the line's end; K: after this many pieces, 0 when left out):
    !echo TEXT      answer TEXT                         !die HOW [K]    end the process: exit code or signal name
    !tokens N       answer N words: w1 w2 ...           !hang [K]       no progress from here on, the rest answers
    !bytes HEX      answer these UTF-8 bytes            !freeze [K]     the whole process stops (SIGSTOP)
    !wait S         seconds before the first piece      !garbage [K]    send a frame that is no message
    !sleep S        seconds before each further piece   !half [K]       send half a frame, then end the connection
    !fail CODE      answer Failed with this code        !huge [K]       announce a frame of 1 GB
    !close [K]      end the connection without Done     !wrongid [K]    send a piece of another request
    !prompt         answer the whole prompt
    !call NAME JSON     call the tool with these arguments, written as the request has it, behind what !echo says and
                        other calls; where a call is required and none is made it is the first tool's, with {}

A file with "rerank" in its name ranks: a text's score is its share of the query's words.

An embedding profile's vectors are sums of one for each word, made of its hash: texts with words in common are near
each other. `!fail`, `!wait` and what breaks off count in the last text of a request.

A model file that begins with `!` scripts the load, one directive a line: `!sleep S`, `!fail CODE TEXT`, `!die HOW`,
`!hang`, `!noise TEXT` (written to stdout), `!stubborn` (ignore SIGTERM), `!first DIRECTIVES` (put before each prompt's
own, the probe's too).
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
import time
from collections import deque

import msgspec

from services import wire
from services.engine.failures import failed_of
from services.engine.fake_script import FOR_EVER, Script, die, load
from services.engine.fake_words import DIMENSIONS, Words, pieces, share, split, vector
from services.errors import (
    BadModel,
    BadRequest,
    ContextOverflow,
    ParleyError,
    TooManyRequests,
    Unavailable,
    from_code,
)


class Fake:
    """Slots, queue and figures of one fake runner; each connection has a thread."""

    def __init__(self, spec: wire.RunnerSpec, limits: wire.RunnerLimits, first: str = "") -> None:
        self.spec = spec
        self.limits = limits
        self.first = first
        self.words = Words()
        self.waiting: deque[wire.Generate] = deque()
        self.prepared: dict[tuple[str, str], str] = {}      # (owner, session): what its next prompt begins with
        self.running: set[str] = set()
        self.lock = threading.Lock()
        self.moved = time.monotonic()
        self.max_batch = self.requests = self.prompt_tokens = self.completion_tokens = self.prepared_tokens = 0

    def stats(self) -> wire.Stats:
        with self.lock:
            running = len(self.running)
            return wire.Stats(running=running, waiting=len(self.waiting), slots=self.spec.parallel, slots_used=running,
                              cached_tokens=0, prompt_tokens=self.prompt_tokens, requests=self.requests,
                              completion_tokens=self.completion_tokens, max_batch=self.max_batch,
                              prepared_tokens=self.prepared_tokens, snapshots=len(self.prepared),
                              tokens_per_second=0.0, idle_seconds=time.monotonic() - self.moved)

    def serve(self, channel: wire.Channel) -> None:
        with channel:
            try:
                while message := channel.receive():
                    self.answer(channel, message)
            except wire.WireError:
                pass                            # the other side hung up: that is how a request is cancelled

    def answer(self, channel: wire.Channel, message: wire.Message) -> None:
        if isinstance(message, wire.GetStats):
            channel.send(self.stats())
        elif isinstance(message, wire.Count):
            channel.send(wire.Counted(tokens=[len("".join(prompt).split()) for prompt in message.prompts]))
        elif isinstance(message, wire.Tokenize):
            channel.send(self.words.tokenize(message.text))
        elif isinstance(message, wire.Prepare):
            with self.lock:
                self.prepared[message.owner, message.session] = text = "".join(message.prompt)
                self.prepared_tokens += len(text.split())
        elif isinstance(message, wire.Forget):
            with self.lock:
                self.prepared.pop((message.owner, message.session), None)
        else:
            try:
                self.work(channel, message)
            except ParleyError as error:
                channel.send(msgspec.structs.replace(failed_of(error), id=getattr(message, "id", "")))

    def work(self, channel: wire.Channel, message: wire.Message) -> None:
        """Do what may be refused."""
        if isinstance(message, wire.Detokenize):
            channel.send(self.words.detokenize(message.tokens))
        elif isinstance(message, wire.Generate | wire.Embed | wire.Rank):
            if not isinstance(message, takes(self.spec)):
                raise BadModel(f"this model {DOES[takes(self.spec)]}")
            self.generate(channel, message) if isinstance(message, wire.Generate) else self.embed(channel, message)
        else:
            raise BadRequest(f"a runner does not take {type(message).__name__}")

    def generate(self, channel: wire.Channel, request: wire.Generate) -> None:
        prompt = self.words.detokenize(request.tokens, "prompt").text if request.tokens else "".join(request.prompt)
        script, count = Script.read(prompt, self.first, request), len(f"{prompt} {request.suffix or ''}".split())
        if count >= self.spec.n_ctx:
            raise ContextOverflow(f"the prompt has {count} tokens; at most {self.spec.n_ctx - 1} fit",
                                  prompt_tokens=count, limit=self.spec.n_ctx - 1, n_ctx=self.spec.n_ctx)
        if script.fail:
            raise from_code(script.fail, "as the prompt asked for", 1.0)
        queued = time.monotonic()
        self.take_slot(channel, request)
        begun = time.monotonic()
        channel.send(wire.Piece(id=request.id, text="", tokens=0))
        if request.echo and request.logprobs is not None:
            told = self.words.likely_all(split(prompt), request.logprobs)
            channel.send(wire.Piece(id=request.id, text="", tokens=0, logprobs=told))
        try:
            done = self.speak(channel, request, script, count)
        finally:
            with self.lock:
                self.running.discard(request.id)
                self.requests += 1
        channel.send(msgspec.structs.replace(done, queue_ms=(begun - queued) * 1000,
                                             decode_ms=(time.monotonic() - begun) * 1000))

    def embed(self, channel: wire.Channel, request: wire.Embed | wire.Rank) -> None:
        query = request.query if isinstance(request, wire.Rank) else ""
        texts = [self.text_of(text, number) for number, text in enumerate(request.texts)]
        script = Script.read(texts[-1], self.first)
        tokens = [len(f"{query} {text}".split()) for text in texts]
        if script.fail:
            raise from_code(script.fail, "as the text asked for", 1.0)
        for number, count in enumerate(tokens):
            if count > self.spec.n_ctx:
                raise ContextOverflow(f"a text has {count} tokens; at most {self.spec.n_ctx} fit", text=number,
                                      prompt_tokens=count, limit=self.spec.n_ctx, n_ctx=self.spec.n_ctx)
        self.pause(channel, script.wait)
        self.misbehave(channel, script, 0)
        self.progress(prompt_tokens=sum(tokens))
        if isinstance(request, wire.Rank):
            channel.send(wire.Ranked(id=request.id, scores=[share(query, text) for text in texts],
                                     tokens=tokens))
        else:
            channel.send(wire.Vectors(id=request.id, dimensions=DIMENSIONS, tokens=tokens,
                                      vectors=[vector(text) for text in texts]))

    def text_of(self, text: str | list[int], number: int) -> str:
        """A text as itself or as its tokens. An error says which it is about."""
        try:
            return text if isinstance(text, str) else self.words.detokenize(text).text
        except ParleyError as error:
            error.details["text"] = number
            raise

    def take_slot(self, channel: wire.Channel, request: wire.Generate) -> None:
        """Wait for a slot in the order of arrival, told where; `WireError` when the asker goes meanwhile."""
        with self.lock:
            self.refuse_when_full(request.owner)
            self.waiting.append(request)
        told, next_word = 0, 0.0
        try:
            while position := self.position(request):
                if position != told and time.monotonic() >= next_word:
                    channel.send(wire.Queued(id=request.id, position=position, eta_seconds=float(position)))
                    told, next_word = position, time.monotonic() + 1
                self.pause(channel, 0.01)
        except wire.WireError:
            with self.lock:
                self.waiting.remove(request)
            raise

    def refuse_when_full(self, owner: str) -> None:
        free = max(0, self.spec.parallel - len(self.running))
        own = sum(waiting.owner == owner for waiting in self.waiting)
        if own >= self.limits.max_queue_per_owner + free:
            raise TooManyRequests(f"{own} requests of this key are waiting already", retry_after=1)
        if len(self.waiting) >= self.limits.max_queue + free:
            raise Unavailable(f"the model's queue is full: {len(self.waiting)} requests are waiting", retry_after=1)

    def position(self, request: wire.Generate) -> int:
        """In the queue, from 1; 0 when a slot was free and is taken now."""
        with self.lock:
            if self.waiting[0] is not request or len(self.running) >= self.spec.parallel:
                return self.waiting.index(request) + 1
            self.running.add(self.waiting.popleft().id)
            self.max_batch = max(self.max_batch, len(self.running))
            self.moved = time.monotonic()
            return 0

    def speak(self, channel: wire.Channel, request: wire.Generate, script: Script, count: int) -> wire.Done:
        cached = min(count, self.reused(request))
        self.progress(prompt_tokens=count - cached)
        self.pause(channel, script.wait)
        room = min(request.max_tokens, self.spec.n_ctx - count)
        words, reason, stop = pieces(script.answer, request.stop, room)
        for number, word in enumerate(words):
            self.misbehave(channel, script, number)
            if number:
                self.pause(channel, script.sleep)
            told = [] if request.logprobs is None else [self.words.likely(word, request.logprobs)]
            channel.send(wire.Piece(id=request.id, text=word, logprobs=told))
            self.progress(completion_tokens=1)
        self.misbehave(channel, script, len(words))
        return wire.Done(id=request.id, finish_reason=reason, prompt_tokens=count, completion_tokens=len(words),
                         cached_tokens=cached, processed_tokens=count - cached, stopped_by=stop)

    def reused(self, request: wire.Generate) -> int:
        """Tokens that the session's last `Prepare` has in common with its prompt: all or none."""
        with self.lock:
            known = self.prepared.get((request.owner, request.session), "")
        return len(known.split()) if "".join(request.prompt).startswith(known) else 0

    def progress(self, prompt_tokens: int = 0, completion_tokens: int = 0) -> None:
        with self.lock:
            self.prompt_tokens += prompt_tokens
            self.completion_tokens += completion_tokens
            self.moved = time.monotonic()

    def pause(self, channel: wire.Channel, seconds: float) -> None:
        """Sleep, but end at once in `WireError` when the asker hangs up or speaks out of turn."""
        if channel.receive(seconds) is not None:
            raise wire.WireError("a second request before the first was answered")

    def misbehave(self, channel: wire.Channel, script: Script, number: int) -> None:
        for after, fault, how in script.faults:
            if after == number:
                self.commit(fault, how, channel)

    def commit(self, fault: str, how: str, channel: wire.Channel) -> None:
        if fault == "die":
            die(how)
        elif fault == "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.1)                     # the stop may reach another thread first
        elif fault == "hang":
            self.pause(channel, FOR_EVER)
        elif fault == "garbage":
            channel.connection.send_bytes(b"\xff\x00 no message \xc1")
        elif fault == "wrongid":
            channel.send(wire.Piece(id="00000000-0000-4000-8000-000000000000", text="of another"))
        elif fault == "huge":
            os.write(channel.fileno(), struct.pack("!i", 1 << 30) + b"x" * 100)
        else:
            if fault == "half":
                os.write(channel.fileno(), struct.pack("!i", 1000) + b"x" * 100)
            raise wire.WireError("the prompt asked for this end")


def exit_at_eof() -> None:
    """The supervisor holds the other end of stdin: its end is the supervisor's."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def say(word: wire.Message) -> None:
    sys.stdout.write(msgspec.json.encode(word).decode() + "\n")
    sys.stdout.flush()


DOES = {wire.Generate: "writes text", wire.Embed: "is for embeddings", wire.Rank: "ranks texts"}


def takes(spec: wire.RunnerSpec) -> type[wire.Message]:
    """What a runner of `spec` is asked for."""
    if not spec.embedding:
        return wire.Generate
    return wire.Rank if "rerank" in os.path.basename(spec.model) else wire.Embed


def main() -> int:
    start = msgspec.json.decode(sys.stdin.buffer.readline(), type=wire.Start)
    threading.Thread(target=exit_at_eof, daemon=True).start()
    spec = start.spec
    begun = time.monotonic()
    try:
        fake = Fake(spec, start.limits, load(spec.model))
    except ParleyError as error:
        say(failed_of(error))
        return 1
    door = wire.Door(start.address, bytes.fromhex(start.authkey))
    say(wire.Ready(model=os.path.basename(spec.model), architecture="fake", n_ctx=spec.n_ctx, n_ctx_train=spec.n_ctx,
                   n_slots=spec.parallel, n_vocab=1 << 20, n_threads=spec.n_threads or 1, chat_template=None, bos="",
                   eos="", special_tokens=[], infill=not spec.embedding, load_ms=(time.monotonic() - begun) * 1000,
                   n_embd=DIMENSIONS if spec.embedding else 0, ranks=takes(spec) is wire.Rank))
    door.serve(fake.serve)
    return 0
