"""The application over real rooms wherever they run in one process, and over stand-ins for those that do not."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from auth.keys import Key, Keys
from services import wire
from services.chat.answer import Chat
from services.chat.events import Ask, Delta, Event, Final
from services.chat.grounding import Grounding
from services.chat.idempotency import Idempotency
from services.chat.personas import Personas, ensure_default
from services.chat.profiles import Profiles
from services.chat.sessions import Sessions
from services.errors import BadRequest, ContextOverflow, ParleyError, TooManyRequests
from services.settings import Settings
from services.store.kept import KeptInFiles
from services.store.memory import MemoryStore
from services.web.app import Parts, create_app
from services.web.metrics import Tally

MASTER = "test-master-key-0123456789-abcdefghij"
TEMPLATE = "{chat_history}\nHuman: {input}\n"
CONFIG = {"SelectedModel": "one", "one": {"model": "one.gguf", "n_ctx": 512, "template": TEMPLATE},
          "two": {"model": "two.gguf", "n_ctx": 1024, "template": TEMPLATE}}


class FakeTicket:
    def __init__(self, admissions: FakeAdmissions) -> None:
        self.admissions, self.headers, self.open = admissions, {"RateLimit-Limit": "9"}, True

    def charge(self, charge: wire.Charge) -> None:
        self.admissions.charges.append(charge)
        self.admissions.charged.append((charge.prompt_tokens, charge.completion_tokens))

    def close(self) -> None:
        self.open = False

    def __enter__(self) -> FakeTicket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class FakeAdmissions:
    """Lets everybody in, and remembers whom."""

    tickets: list[FakeTicket] = field(default_factory=list)
    charged: list[tuple[int, int]] = field(default_factory=list)
    charges: list[wire.Charge] = field(default_factory=list)
    refuse: ParleyError | None = None
    wrong: int = 0

    def admit(self, key: Key, cost: int = 1, place: bool = False) -> FakeTicket:
        if self.refuse:
            raise self.refuse
        self.tickets.append(FakeTicket(self))
        return self.tickets[-1]

    def usage(self, key_id: str) -> wire.Usage:
        return wire.Usage(requests=len(self.tickets))

    def usages(self, key_ids: Iterable[str]) -> dict[str, wire.Usage]:
        return {key_id: self.usage(key_id) for key_id in key_ids}

    def tell(self, charge: wire.Charge) -> None:
        self.charges.append(charge)

    def admit_source(self, address: str) -> None:
        self.wrong += 1
        if self.wrong > 100_000:
            raise TooManyRequests("too many wrong keys")


READY = wire.Ready(model="one.gguf", architecture="llama", n_ctx=512, n_ctx_train=512, n_slots=2, n_vocab=32,
                   n_threads=1, chat_template=None, bos="", eos="", special_tokens=[])


class FakeLease:
    ready = READY

    def __init__(self, engine: FakeEngine, spec: wire.RunnerSpec, select: bool) -> None:
        self.engine, self.spec, self.select = engine, spec, select

    def __enter__(self) -> FakeLease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def arrived(self, timeout: float) -> bool:
        error = self.engine.fail.get(Path(self.spec.model).name) or (self.engine.fail_select if self.select else None)
        if error:
            raise error
        if self.spec not in self.engine.loaded:
            self.engine.loaded.append(self.spec)
        if self.select:
            self.engine.selected = self.spec
        return True

    def close(self) -> None:
        pass

    def count(self, prompts: list[list[str]]) -> list[int]:
        if max(len("".join(prompt)) for prompt in prompts) > 32 * self.ready.n_ctx:
            raise ContextOverflow("the prompt is too long to be counted")       # as the real one
        return [sum(len(segment.split()) for segment in prompt) for prompt in prompts]

    def count_at_once(self, prompt: list[str]) -> int | None:
        return self.count([prompt])[0]

    def tokenize(self, text: str, special: bool = True, around: bool = False) -> wire.Tokens:
        return self.detokenize(list(text.encode()))

    def detokenize(self, tokens: list[int]) -> wire.Tokens:
        if foreign := [token for token in tokens if token > 255]:
            raise BadRequest(f"tokens has {foreign[0]}, which is no token", param="tokens")
        pieces = [bytes([token]) for token in tokens]
        return wire.Tokens(text=b"".join(pieces).decode(errors="replace"), tokens=list(tokens), pieces=pieces)

    def prepare(self, message: wire.Prepare) -> None:
        self.engine.prepared.append(message)

    def generate(self, request: wire.Generate) -> Iterator[wire.Piece | wire.Done | None]:
        self.engine.requests.append(request)
        try:
            yield from self.engine.script(request)
        except GeneratorExit:
            self.engine.cancelled.append(request.id)
            raise


def echo(request: wire.Generate) -> Iterator[wire.Piece | wire.Done | None]:
    """Says "you said: " and the last word of the prompt."""
    words = "".join(request.prompt).split()
    for text in ("you ", "said: ", words[-1] if words else ""):
        yield wire.Piece(id=request.id, text=text)
    yield wire.Done(id=request.id, finish_reason="stop", prompt_tokens=len(words), completion_tokens=3, cached_tokens=0,
                    processed_tokens=len(words))


@dataclass
class FakeEngine:
    """A supervisor and runners in a few lines. `script` makes an answer's messages; `fail` is raised by `lease`."""

    script: Callable[[wire.Generate], Iterator[Any]] = echo
    fail: dict[str, Exception] = field(default_factory=dict)        # model file -> what loading it raises
    fail_select: Exception | None = None
    selected: wire.RunnerSpec | None = None
    loaded: list[wire.RunnerSpec] = field(default_factory=list)
    requests: list[wire.Generate] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    prepared: list[wire.Prepare] = field(default_factory=list)
    forgotten: list[tuple[str, str]] = field(default_factory=list)
    down: ParleyError | None = None

    def begin(self, spec: wire.RunnerSpec, select: bool = False, keep: float = 0.0, beat: Any = None,
              affinity: str = "") -> FakeLease:
        return FakeLease(self, spec, select)

    @contextlib.contextmanager
    def lease(self, spec: wire.RunnerSpec, select: bool = False, keep: float = 0.0,
              beat: Any = None) -> Iterator[Any]:
        with self.begin(spec, select) as lease:
            assert lease.arrived(1.0)
            yield lease

    def forget(self, owner: str, session: str) -> None:
        if self.down:
            raise self.down
        self.forgotten.append((owner, session))

    def keep(self, spec: wire.RunnerSpec, keep: float) -> None:
        if self.down:
            raise self.down

    def status(self) -> wire.StatusOf:
        if self.down:
            raise self.down
        return wire.StatusOf(runners=[wire.RunnerState(spec=spec, state="ready", selected=spec == self.selected)
                                      for spec in self.loaded])


@dataclass
class FakeChat:
    """Events as a test scripts them; remembers what was asked and whether it was closed early."""

    events: list[Any] = field(default_factory=lambda: [Delta("yes"), final("yes")])
    asked: list[Ask] = field(default_factory=list)
    closed_early: int = 0

    def answer(self, ask: Ask) -> Iterator[Event]:
        self.asked.append(ask)
        return self._events(ask)

    def _events(self, ask: Ask) -> Iterator[Event]:
        try:
            for event in self.events:
                if isinstance(event, Exception):
                    raise event
                if callable(event):
                    event()
                else:
                    ask.spent.completion_tokens += isinstance(event, Delta)
                    yield event
        except GeneratorExit:
            self.closed_early += 1
            raise


def final(result: str = "", session_id: str | None = None) -> Final:
    done = wire.Done(id="x", finish_reason="stop", prompt_tokens=7, completion_tokens=2, cached_tokens=3,
                     processed_tokens=4)
    return Final(result=result, session_id=session_id, profile="one", model="one.gguf", done=done,
                 context={"window": 512, "k": 5, "turns_used": 0, "turns_dropped": 0})


@dataclass
class World:
    """An application with its parts, and a client that holds the master key."""

    settings: Settings
    parts: Parts
    app: Any = None

    def __post_init__(self) -> None:
        self.app = create_app(self.settings, self.parts)
        self.client = self.app.test_client()

    def call(self, method: str, path: str, key: str | None = MASTER, **kwargs: Any) -> Any:
        headers = {**({"Authorization": key} if key else {}), **kwargs.pop("headers", {})}
        return self.client.open(path, method=method, headers=headers, **{"buffered": True, **kwargs})

    def make_key(self, **wish: Any) -> str:
        return self.parts.keys.create(**wish)[0]

    def events(self, **body: Any) -> list[dict[str, Any]]:
        response = self.call("POST", "/answer", json={"stream": True, **body})
        assert response.status_code == 200, response.text
        return [json.loads(block[6:]) for block in response.text.split("\n\n") if block.startswith("data: ")]


def make_world(folder: Path, chat: Any = None, **changes: Any) -> World:
    data, models = folder / "data", folder / "models"
    for path in (data, models):
        path.mkdir(parents=True, exist_ok=True)
    (data / "config.json").write_text(json.dumps(CONFIG))
    for name in ("one.gguf", "two.gguf", "three.gguf"):
        (models / name).write_bytes(b"GGUF")
    settings = replace(Settings(data_dir=data, models_dir=models, master_key=MASTER, session_wait=0.3), **changes)
    keys = Keys(data, settings)
    keys.ensure_master()
    profiles, sessions, engine = Profiles(data / "config.json", settings), Sessions(MemoryStore()), FakeEngine()
    with engine.lease(profiles.spec(profiles.current().get()[1], models), select=True):
        pass
    grounding = Grounding(settings, profiles, engine, lambda _owner, _tokens: None)     # type: ignore[arg-type]
    real = Chat(settings, profiles, sessions, engine, grounding)                        # type: ignore[arg-type]
    parts = Parts(keys=keys, admissions=FakeAdmissions(), profiles=profiles,    # type: ignore[arg-type]
                  personas=Personas(ensure_default(data)), sessions=sessions,
                  engine=engine, grounding=grounding, chat=chat or real,             # type: ignore[arg-type]
                  idempotency=Idempotency(KeptInFiles(data / "idempotency")),
                  tally=Tally(str(folder / "control.sock"), b"k" * 32))
    return World(settings, parts)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One for all tests of a file, each with a `key` of its own."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def key(shared: World) -> str:
    return shared.make_key(scopes=["answer"])


@pytest.fixture
def scripted(tmp_path: Path) -> World:
    """A world whose answers a test scripts: `scripted.parts.chat.events`."""
    return make_world(tmp_path, chat=FakeChat())


def wait_until(true: Callable[[], Any], seconds: float = 20) -> None:
    """A generous deadline: it means "did not hang"."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)
