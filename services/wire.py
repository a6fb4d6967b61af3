"""The words that Parley's processes say to each other, and the channel that carries them.

Three kinds of process: **serve** (the supervisor, parent of all), **web** (gunicorn) and **runner** (one per loaded
model). Each message is a msgspec struct, msgpack-encoded in one frame of `multiprocessing.connection` over a Unix
socket in a folder of mode 0700; never pickle. One connection carries one request at a time: closing it cancels.
An unknown or malformed frame raises `WireError` and ends that connection only.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client, Connection, Listener
from typing import Annotated, Any, Literal

import msgspec

MAX_KEY = 256           # bytes
MAX_FRAME = 64 * 1024 * 1024        # bytes; a longer frame is refused before it is read
HANDSHAKE = 5.0                     # seconds that whoever connects gets to say the key
log = logging.getLogger("parley.wire")


class WireError(Exception):
    """The other side is gone, or said something that is not a message."""


class Crowded(WireError):
    """The other side is there, but so many wait to be let in that there is no room for one more."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Base of all messages. `tag=True`: the class name travels with it."""


# ---------------------------------------------------------------- web -> runner

class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """Sampler settings, checked by whoever builds them. temperature 0 is greedy; top_k 0 and top_p 1 switch off."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    repeat_last_n: int = 64         # tokens looked back at by the penalties
    presence_penalty: float = 0.0   # taken off the logit of each token that was there
    frequency_penalty: float = 0.0  # the same, times how often it was there
    logit_bias: dict[int, float] = {}       # token -> what is added to its logit; -100 bans it
    seed: int | None = None         # None: a random one


class CallForm(msgspec.Struct, frozen=True, kw_only=True):
    """How a call of the tool `name` is written: `begin`, arguments that comply with `schema`, `end`. `loose`: only as
    far as a grammar can hold them to it; else a schema that it cannot is refused."""

    name: str
    begin: str
    schema: dict[str, Any]
    end: str = ""
    loose: bool = False


class Calls(msgspec.Struct, frozen=True, kw_only=True):
    """Tool calls in a completion: free text, until `trigger` is written; from there the model is held to `opening`, a
    call in one of the forms, others with `between` before each, `closing`; this ends it. So calls always parse.

    All texts may hold special tokens. `opening` and each form's `begin` together begin with `trigger`.
    """

    forms: list[CallForm]
    trigger: str
    opening: str = ""
    between: str = ""
    closing: str = ""
    leads: bool = False             # the trigger counts only where the completion begins with it
    required: bool = False          # the completion is a call, behind its thought
    many: bool = True               # others may follow the first call
    think: str = ""                 # what begins a text at the start of the completion in which nothing is a call
    thought: str = ""               # what ends it
    thinking: bool = False          # the prompt ends in such a text


class Generate(Message, frozen=True, kw_only=True):
    """Ask for a completion. Answered by `Piece`s and exactly one `Done` or `Failed`.

    `prompt` is a list of segments: each is tokenised by itself with special tokens parsed, then joined. A boundary
    inside what looks like a special token is how the sender keeps a user's text from forging one. At most one of
    `schema`, `grammar` and `calls` is given.
    """

    id: str                         # uuid4
    owner: str                      # opaque: nothing of one owner's text is reused for another
    prompt: list[str]
    max_tokens: int
    sampling: Sampling = Sampling()
    stop: list[str] = []
    schema: dict[str, Any] | None = None    # JSON Schema that the completion must comply with
    grammar: str = ""               # GBNF that the completion must comply with; root is its start
    calls: Calls | None = None      # tools that may be called
    shown: list[str] = []           # special tokens that are sent as they are spelled, as those of `calls`, not as ""
    tokens: list[int] = []          # the prompt, where the sender has tokenised it: then `prompt` is empty
    suffix: str | None = None       # what follows the completion, for models with infill; `prompt` is what precedes
    logprobs: int | None = None     # with each token its log probability, and those of so many likeliest ones
    echo: bool = False              # with `logprobs`: tell those of the prompt's tokens too
    head: int = 0                   # characters at the prompt's start that come from the profile: any owner may share
    session: str = ""               # opaque, the owner's: the conversation that `Prepare` and `Forget` speak of
    weight: float = 1.0             # the owner's share of the runner beside others
    batch: bool = False             # served after everything interactive
    stream: bool = True             # False: nobody reads along, so the text may come in large pieces


class Prepare(Message, frozen=True, kw_only=True):
    """The part of a session's next prompt that is known already: computed while nothing else is to do. No answer.

    It takes the place of what was to be prepared for the same session before.
    """

    owner: str
    session: str
    prompt: list[str]               # segments up to where the new text begins
    head: int = 0


class Forget(Message, frozen=True, kw_only=True):
    """A session is gone: nothing of it may stay in slots, in memory or on disk. No answer."""

    owner: str
    session: str


class Embed(Message, frozen=True, kw_only=True):
    """Ask for the vectors of texts, each as plain text or as its tokens. Answered by `Vectors` or `Failed`."""

    id: str
    owner: str
    texts: Sequence[str | list[int]]
    weight: float = 1.0


class Rank(Message, frozen=True, kw_only=True):
    """Ask how well each of `texts` answers `query`, of a model made for that. Answered by `Ranked` or `Failed`."""

    id: str
    owner: str
    query: str
    texts: list[str]
    weight: float = 1.0


class Count(Message, frozen=True, kw_only=True):
    """Ask how many tokens each prompt (a list of segments) has. Answered by `Counted`."""

    prompts: list[list[str]]


class Tokenize(Message, frozen=True, kw_only=True):
    """Ask for the tokens of a text. Answered by `Tokens` or `Failed`. `special`: special tokens in it are parsed.
    `around`: with the tokens that the model wants around a whole text (BOS)."""

    text: str
    special: bool = True
    around: bool = False


class Detokenize(Message, frozen=True, kw_only=True):
    """Ask for the text of tokens, the special ones as they are spelled. Answered by `Tokens` or `Failed`."""

    tokens: list[int]


class GetStats(Message, frozen=True, kw_only=True):
    """Ask a runner how it is. Answered by `Stats`."""


# ---------------------------------------------------------------- runner -> web

class Ready(Message, frozen=True, kw_only=True):
    """First word of a runner, on its standard output's pipe: the model is loaded and the socket listens."""

    model: str                      # the file's name
    architecture: str
    n_ctx: int                      # tokens that one sequence may hold, prompt and completion together
    n_ctx_train: int
    n_slots: int                    # sequences that can be held at once
    n_vocab: int
    n_threads: int
    chat_template: str | None       # the GGUF's own Jinja template
    bos: str                        # text of the BOS token, "" when there is none
    eos: str
    special_tokens: list[str]       # texts of all control tokens: what user text must not forge
    load_ms: float = 0.0
    n_embd: int = 0                 # numbers of a vector; 0: it writes, and makes none
    ranks: bool = False             # answers `Rank`
    infill: bool = False            # takes a `suffix`


class Queued(Message, frozen=True, kw_only=True):
    """A request waits: said when its position changes, at most once a second."""

    id: str
    position: int                   # 1: the next to be served
    eta_seconds: float


class Logprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token, and how likely it was: natural logarithm, of the model's own distribution before any sampler."""

    token: int
    text: bytes
    logprob: float
    top: list[tuple[int, bytes, float]] = []    # the likeliest ones: token, text, logprob


class Piece(Message, frozen=True, kw_only=True):
    """Next text of a completion: whole UTF-8 characters, never part of a stop string."""

    id: str
    text: str
    tokens: int = 1                 # that it stands for, about: a token may be a part of a character
    logprobs: list[Logprob] = []    # of tokens whose text is in this or a later piece; of an `echo` the prompt's first


class Done(Message, frozen=True, kw_only=True):
    """A completion has ended."""

    id: str
    finish_reason: str              # "stop" | "length" | "cancelled"
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int              # prompt tokens whose KV was reused
    processed_tokens: int           # prompt tokens that were decoded for this request
    queue_ms: float = 0.0           # waiting for a slot
    prefill_ms: float = 0.0         # slot taken -> first token sampled
    decode_ms: float = 0.0          # first token -> end
    drafted_tokens: int = 0         # guessed from the text so far and checked in the batch
    accepted_tokens: int = 0        # of them, those that the model chose too
    closed: bool = False            # a JSON value was closed early, because max_tokens was about to end it
    stopped_by: str = ""            # the stop string that ended it, if one did


class Vectors(Message, frozen=True, kw_only=True):
    """The vectors of an `Embed`, each of `dimensions` little-endian float32, of length 1."""

    id: str
    dimensions: int
    vectors: list[bytes]
    tokens: list[int]               # of each text


class Failed(Message, frozen=True, kw_only=True):
    """A request has ended without a result. `code` is one of `services.errors`' codes."""

    code: str
    message: str
    id: str = ""
    retry_after: float | None = None
    details: dict[str, Any] = {}


class Ranked(Message, frozen=True, kw_only=True):
    """Scores of a `Rank`'s texts, higher is better, and how many tokens each took with the query."""

    id: str
    scores: list[float]
    tokens: list[int]


class Counted(Message, frozen=True, kw_only=True):
    tokens: list[int]


class Tokens(Message, frozen=True, kw_only=True):
    """A text and its tokens; `pieces` are the bytes of each."""

    text: str
    tokens: list[int]
    pieces: list[bytes]


class Stats(Message, frozen=True, kw_only=True):
    """How a runner is. Counts are since its start."""

    running: int                    # sequences in decode or prefill
    waiting: int
    slots: int
    slots_used: int                 # slots that hold any tokens
    cached_tokens: int              # tokens held in slots
    prompt_tokens: int              # of prompts, decoded for requests
    completion_tokens: int          # sampled
    requests: int                   # ended
    max_batch: int                  # most sequences that shared one decode
    tokens_per_second: float        # sampled, over the last seconds of work
    idle_seconds: float             # since the last progress (a token processed or sampled)
    reused_tokens: int = 0          # of prompts, whose KV was there
    prepared_tokens: int = 0        # decoded for `Prepare`
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    preempted: int = 0              # sequences that gave their slot to another owner for a while
    restored_tokens: int = 0        # brought back from snapshots
    snapshots: int = 0              # held in memory and on disk
    snapshot_memory_bytes: int = 0
    snapshot_disk_bytes: int = 0
    threads: int = 0                # in use for decoding now
    memory_bytes: int = 0           # resident, of the process


# ---------------------------------------------------------------- web -> supervisor and back

class RunnerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a runner is started with; equal specs share a runner. `model` is an absolute path."""

    model: str
    n_ctx: int
    parallel: int = 4               # slots
    n_threads: int = 0              # 0: as many as the machine has cores
    n_gpu_layers: int = 0
    embedding: bool = False         # answers `Embed` instead of `Generate`


class RunnerLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What bounds a runner besides its model. `kv_key`: 32 bytes as hex, "" writes snapshots in the clear."""

    max_queue: int = 512            # requests that wait, of all owners
    max_queue_per_owner: int = 128
    kv_folder: str = ""             # of this data folder's snapshots; "" keeps none on disk
    kv_key: str = ""
    kv_memory_bytes: int = 0        # snapshots in memory
    kv_disk_bytes: int = 0          # snapshots on disk, of all models
    log_level: str = "INFO"


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """The line on standard input that a runner starts with."""

    address: str
    authkey: str                    # hex
    spec: RunnerSpec
    limits: RunnerLimits = RunnerLimits()


class Ensure(Message, frozen=True, kw_only=True):
    """Ask for a ready runner. The answer is `RunnerAt` or `Failed`; the open connection is the lease on it.

    `select`: from now on this is the runner to keep alive; the one selected before is retired once its leases end.
    `keep`: seconds that it stays loaded after its last use, also when it is not selected; infinite: for ever;
    0: as long as the supervisor likes. `affinity`: opaque; the replica that served the same one last is preferred.
    """

    spec: RunnerSpec
    select: bool = False
    keep: float = 0.0
    affinity: str = ""


class Keep(Message, frozen=True, kw_only=True):
    """Change for how long what is loaded of `spec` stays, since nobody may ask for it any more. No answer."""

    spec: RunnerSpec
    keep: float


class RunnerAt(Message, frozen=True, kw_only=True):
    address: str
    authkey: bytes
    ready: Ready


class Fate(Message, frozen=True, kw_only=True):
    """Ask how the runner at `address` (of `RunnerAt`) ended. The answer is `Failed`."""

    address: str


class Status(Message, frozen=True, kw_only=True):
    """Ask the supervisor what is loaded. Answered by `StatusOf`."""


class RunnerState(msgspec.Struct, frozen=True, kw_only=True):
    spec: RunnerSpec
    state: str                      # "loading" | "ready" | "retiring" | "crashed" | "failed"
    selected: bool
    pid: int | None = None
    leases: int = 0
    restarts: int = 0
    reason: str | None = None       # why it crashed or failed
    stats: Stats | None = None
    replica: int = 0                # of the runners with this spec; `users` and `unload_seconds` are of all of them
    users: int = 0                  # different ones that hold a lease now
    memory_bytes: int = 0           # its share of the machine's memory, measured; 0: not yet
    estimated_bytes: int = 0        # what it was expected to take
    unload_seconds: float | None = None     # until it is unloaded, if nobody asks for it; None: not by itself
    stalled_seconds: float = 0.0    # without progress, though it has work, or without a word; 0 when all is well


class StatusOf(Message, frozen=True, kw_only=True):
    runners: list[RunnerState]
    draining: bool = False


class TokenBudget(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Tokens, prompts' and completions', that a key may use in a day or month of UTC, or in all."""

    tokens: Annotated[int, msgspec.Meta(ge=1)]
    per: Literal["day", "month", "total"]


class Admit(Message, frozen=True, kw_only=True):
    """Ask whether `key` may start a request now. `Admitted` holds a place until it closes, else `Failed`.

    None means no limit. `cost` 0 asks without counting a request. Tokens are counted by `Charge`, so limits on them
    hold from the next request on.
    """

    key: str
    requests_per_minute: int | None = None
    max_parallel: int | None = None
    tokens_per_minute: int | None = None
    token_budget: TokenBudget | None = None
    cost: int = 1


class Admitted(Message, frozen=True, kw_only=True):
    limit: int | None = None        # requests per minute
    remaining: int | None = None
    reset: float | None = None      # seconds until the window frees a request


class Charge(Message, frozen=True, kw_only=True):
    """Add to what `key` has used. No answer. With an `outcome` it ends one request for text, and tells how it went."""

    key: str
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    outcome: str = ""                   # a finish_reason, "cancelled" or an error's code
    profile: str = ""                   # "" when the request named none that exists
    cached_tokens: int = 0              # of the prompt's
    processed_tokens: int = 0           # of the prompt's
    queue_seconds: float | None = None  # None: it never came to that
    first_seconds: float | None = None  # from its arrival to its first text
    token_seconds: float | None = None  # between two tokens, on average
    seconds: float = 0.0                # from its arrival to its end


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """How many HTTP requests ended alike."""

    route: str
    method: str
    status: int
    count: int
    seconds: float = 0.0                # that they took, all together


class Worked(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt at a job of summaries ended. Seconds: until it was begun, of the attempt, since it was asked."""

    type: str
    outcome: str                        # "success" or an error's code
    length: int                         # characters of the text
    chunks: int = 1                     # that it was cut in
    queue_seconds: float = 0.0
    seconds: float = 0.0
    full_seconds: float = 0.0


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """How many messages of a bound chat platform ended alike."""

    platform: str
    outcome: str                        # "answered", "undelivered" or the code of an error that was told
    count: int


class Report(Message, frozen=True, kw_only=True):
    """What ended in a process since its last word: HTTP requests, messages of chat platforms, jobs. No answer."""

    served: list[Served] = []
    bound: list[Bound] = []
    worked: list[Worked] = []


class QueueSize(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs that wait and run. `redis`: whether Redis answers; None where none is used."""

    pending: int = 0
    running: int = 0
    redis: bool | None = None


class GetMetrics(Message, frozen=True, kw_only=True):
    """Ask the supervisor for all figures, with those of the queue that only the asker can see. Answered by
    `Metrics`."""

    queue: QueueSize = QueueSize()


class Metrics(Message, frozen=True, kw_only=True):
    text: str                       # in Prometheus' text format


class GetUsage(Message, frozen=True, kw_only=True):
    key: str


class Usage(Message, frozen=True, kw_only=True):
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


ANY = (Generate | Prepare | Forget | Embed | Rank | Count | Tokenize | Detokenize | GetStats
       | Ready | Queued | Piece | Done | Vectors | Ranked | Failed | Counted | Tokens | Stats
       | Ensure | Keep | RunnerAt | Fate | Status | StatusOf | Admit | Admitted | Charge | GetUsage | Usage
       | Report | GetMetrics | Metrics)
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ANY)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(frame: bytes) -> Message:
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"not a message: {error}") from None


class Channel:
    """One connection, speaking `Message`s. Not for use by two threads at once."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, message: Message) -> None:
        try:
            self.connection.send_bytes(encode(message))
        except (OSError, ValueError) as error:
            raise WireError(f"the other side is gone: {error}") from None

    def receive(self, timeout: float | None = None) -> Message | None:
        """The next message; None when `timeout` seconds pass without one. `WireError` when the other side is gone."""
        try:
            if not self.connection.poll(timeout):
                return None
            return decode(self.connection.recv_bytes(MAX_FRAME))
        except (EOFError, OSError) as error:
            raise WireError(f"the other side is gone: {error}") from None

    def ask(self, message: Message, patience: float = 30.0) -> Message:
        """Send and wait for the one answer, at most `patience` seconds. A `Failed` is returned, not raised."""
        self.send(message)
        answer = self.receive(patience)
        if answer is None:
            raise WireError(f"no answer within {patience:g} s")
        return answer

    def speaks(self) -> bool:
        """Whether the other side has said something that was not received yet, or is gone. Does not wait."""
        try:
            return self.connection.poll()
        except OSError:
            return True

    def fileno(self) -> int:
        return self.connection.fileno()

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _knows(connection: Connection, authkey: bytes, patience: float) -> bool:
    """Whether the other side's first frame is the key. A silent one (a stopped process, say) is given up on."""
    try:
        return connection.poll(patience) and hmac.compare_digest(connection.recv_bytes(MAX_KEY), authkey)
    except (OSError, EOFError):
        return False


def connect(address: str, authkey: bytes, patience: float = 0.0) -> Channel:
    """A channel to the listener at `address`; `WireError` when there is none. `Crowded` when it lets nobody in, and so
    many wait already that this one found no room among them in `patience` seconds; 0: waits for as long as it takes.

    The key is the first frame, without a challenge: the socket stands in a folder of mode 0700, so whoever listens
    there runs as this user, and four frames less make every request some tenths of a millisecond quicker.
    """
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            _send_within(sock, patience)
            sock.connect(address)
            _send_within(sock, 0.0)
            connection = Connection(sock.detach())
        connection.send_bytes(authkey)
    except BlockingIOError:
        raise Crowded(f"nobody is let in at {address}") from None
    except OSError as error:
        raise WireError(f"nobody answers at {address}: {error}") from None
    return Channel(connection)


def _send_within(sock: socket.socket, seconds: float) -> None:
    """How long the kernel waits for `connect` and `send`; 0: without end. (A socket's own timeout would have a local
    `connect` give up at once.)"""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(seconds % 1 * 1e6)))


class Door:
    """A listening socket of mode 0600. Whoever connects says the key to a thread of its own: who is silent, or stops
    in the middle of a word, holds up nobody else."""

    def __init__(self, address: str, authkey: bytes, backlog: int = 4096) -> None:
        if os.path.exists(address):
            os.unlink(address)
        self._address, self._authkey = address, authkey
        self._listener = Listener(address, family="AF_UNIX", backlog=backlog)
        self._closed = False
        os.chmod(address, 0o600)

    def serve(self, adopt: Callable[[Channel], None]) -> None:
        """Take connections until `close`; `adopt` is called with each that knows the authkey, in that one's thread."""
        try:
            while not self._closed:
                try:
                    connection = self._listener.accept()
                except (OSError, EOFError):
                    time.sleep(0.01)        # out of file descriptors, perhaps: they may come back
                else:
                    self._greet(connection, adopt)
        finally:
            self._listener.close()

    def close(self) -> None:
        """From another thread: `serve` takes no more connections. Those that are open live as long as their owners."""
        self._closed = True
        with contextlib.suppress(OSError):
            Client(self._address, family="AF_UNIX").close()     # wakes the accepting thread

    def _greet(self, connection: Connection, adopt: Callable[[Channel], None]) -> None:
        def talk() -> None:
            if _knows(connection, self._authkey, HANDSHAKE):
                adopt(Channel(connection))
            else:
                connection.close()

        try:
            threading.Thread(target=talk, name="talk", daemon=True).start()
        except RuntimeError as error:       # no more threads: this caller is told off, the next may be luckier
            log.error("a connection is refused: %s", error)
            connection.close()
