"""Texts to vectors: which profile, which runner, and portions that leave room for others between them."""

from __future__ import annotations

import math
import struct
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from services.chat.profiles import Profile, Profiles
from services.engine import catalog
from services.engine.client import Engine, Lease
from services.errors import BadRequest, DeadlineExceeded, Forbidden, NotFound, ParleyError, Unprocessable
from services.settings import Settings
from services.wire import Embed, Ranked, Ready, Vectors

PORTION_TEXTS, PORTION_CHARS = 256, 1 << 18     # that a runner is sent at once
Reply = TypeVar("Reply", Vectors, Ranked)
Part = TypeVar("Part", str, str | list[int])    # a text, or its tokens
# Part of a model file's name -> what such models are trained to see before a text (from their makers' cards).
PREFIXES = {
    "nomic-embed": {"document": "search_document: ", "query": "search_query: "},
}


@dataclass(frozen=True)
class EmbedAsk:
    """Texts to embed, and for whom."""

    owner: str                                          # key id
    texts: Sequence[str | Sequence[int]]                # at least one, none of them blank; some may be tokens
    model: str | None = None                            # an embedding profile, or the file of one; None: the first
    allowed_profiles: Sequence[str] | None = None       # None: all
    dimensions: int | None = None                       # of each vector; None: as the model makes them
    weight: float = 1.0                                 # the owner's share of the runner beside others
    kind: Literal["", "document", "query"] = ""         # what the texts are, for models that want it told


@dataclass(frozen=True)
class Embedded:
    """What became of some texts."""

    profile: str
    model: str                  # the file's name
    dimensions: int
    vectors: list[bytes]        # little-endian float32, each of length 1, in the texts' order
    tokens: int                 # of all texts


class Embeddings:
    """What embedding needs, shared by all requests. Any thread may use it."""

    def __init__(self, settings: Settings, profiles: Profiles, engine: Engine) -> None:
        self.settings = settings
        self.profiles = profiles
        self.engine = engine

    def embed(self, ask: EmbedAsk, beat: Callable[[], None] = lambda: None,
              charge: Callable[[int], None] = lambda _tokens: None) -> Embedded:
        """The vectors of the texts. `beat` is called about every second and may raise to give up; `charge` hears of
        tokens as they are computed.

        An error that is about one text names it in `param` ("input.3"; "input" when it is the only one). Raises
        `NotFound`, `Forbidden`, `Unprocessable`, `ContextOverflow`, `BadRequest`, `DeadlineExceeded`, and what a lease
        raises.
        """
        config = self.profiles.current()
        name, profile = chosen(self.profiles, self.settings.models_dir, ask.model, ask.allowed_profiles)
        spec = self.profiles.spec(profile, self.settings.models_dir)
        check = within(self.settings, beat)
        with self.engine.lease(spec, keep=config.keep(profile), beat=check) as lease:
            _check_dimensions(ask.dimensions, lease.ready)
            vectors, tokens = _vectors(lease, ask, prefix(profile, ask.kind), check, charge)
            wanted = ask.dimensions or lease.ready.n_embd
            if wanted < lease.ready.n_embd:
                vectors = [shortened(vector, wanted) for vector in vectors]
            return Embedded(profile=name, model=lease.ready.model, dimensions=wanted, vectors=vectors, tokens=tokens)


def within(settings: Settings, beat: Callable[[], None]) -> Callable[[], None]:
    """`beat`, which gives up when the time of a request is over."""
    until = time.monotonic() + settings.request_timeout

    def check() -> None:
        beat()
        if time.monotonic() >= until:
            raise DeadlineExceeded(f"the texts took more than {settings.request_timeout:g} seconds (REQUEST_TIMEOUT)")
    return check


def prefix(profile: Profile, kind: str) -> str:
    """What is put before a text of this `kind` ("": nothing): the profile's, else what its model is known to want."""
    if not kind:
        return ""
    given = profile.query_prefix if kind == "query" else profile.document_prefix
    known = next((pair for name, pair in PREFIXES.items() if name in profile.model.lower()), {})
    return known.get(kind, "") if given is None else given


def _vectors(lease: Lease, ask: EmbedAsk, before: str, check: Callable[[], None],
             charge: Callable[[int], None]) -> tuple[list[bytes], int]:
    """The vectors of the texts, with `before` before each that is no tokens, and the tokens of all."""
    def one(number: int) -> str:
        return "input" if len(ask.texts) == 1 else f"input.{number}"

    def send(portion: list[str | list[int]]) -> Vectors:
        return lease.embed(Embed(id=str(uuid.uuid4()), owner=ask.owner, texts=portion, weight=ask.weight))
    texts = [before + text if isinstance(text, str) else list(text) for text in ask.texts]
    answers = portioned(portions(texts), send, one, check, charge)
    return [vector for answer in answers for vector in answer.vectors], sum(sum(answer.tokens) for answer in answers)


def portioned(parts: Iterable[list[Part]], send: Callable[[list[Part]], Reply], name: Callable[[int], str],
              check: Callable[[], None], charge: Callable[[int], None]) -> list[Reply]:
    """What a runner says to each of the `parts` that it is sent. `name`: the field that holds the n-th text, for errors
    about it; `check` is called before each part, `charge` with the tokens of each."""
    answers: list[Reply] = []
    before = 0
    for part in parts:
        check()
        try:
            answers.append(send(part))
        except ParleyError as error:
            number = error.details.pop("text", None)    # the runner numbers the texts of a part
            if isinstance(number, int):
                _name(error, name(before + number))
            raise
        charge(sum(answers[-1].tokens))
        before += len(part)
    return answers


def shortened(vector: bytes, dimensions: int) -> bytes:
    """The first `dimensions` numbers of a vector, made one of length 1 again: what OpenAI's `dimensions` means."""
    numbers = struct.unpack(f"<{dimensions}f", vector[:4 * dimensions])
    length = math.hypot(*numbers) or 1.0
    return struct.pack(f"<{dimensions}f", *(number / length for number in numbers))


def chosen(profiles: Profiles, models_dir: Path, wanted: str | None, allowed: Sequence[str] | None,
           ranks: bool = False) -> tuple[str, Profile]:
    """(name, profile) that `wanted` means, as `EmbedAsk.model`: one that makes embeddings, or one that `ranks`. A file
    that no profile has is one by itself, for who may use all."""
    config = profiles.current()
    mine = {name: profile for name, profile in config.profiles.items() if allowed is None or name in allowed}
    if wanted is not None and allowed is None and (free := profiles.of_file(wanted)):
        mine[wanted] = free
    there = {name: profile for name, profile in mine.items()
             if profile.embedding and (catalog.made_for(models_dir, profile.model) == "ranking") == ranks}
    for name, profile in there.items():
        if wanted is None or wanted == name:
            return name, profile
    for name, profile in there.items():
        if wanted == profile.model:
            return name, profile
    advice = _TO_RANK if ranks else _TO_EMBED
    known = f"there are: {', '.join(there)}" if there else f"there is none; {advice}"
    if wanted is None:
        raise NotFound(f"no profile {'ranks texts' if ranks else 'makes embeddings'}: {known}",
                       code="profile_not_found", param="model")
    raise _none(wanted, config.profiles, mine, ranks, known)


_TO_EMBED = "`main.py models pull minilm` brings a model and says what to add to config.json"
_TO_RANK = "a profile of a reranker's file with \"embedding\": true is one"


def _none(wanted: str, profiles: dict[str, Profile], mine: dict[str, Profile], ranks: bool, known: str) -> ParleyError:
    """Why `wanted` is no such profile. `mine`: those that may be used."""
    if wanted in profiles and wanted not in mine and profiles[wanted].embedding:
        return Forbidden(f"this key may not use the profile {wanted[:80]!r}", code="profile_forbidden", param="model")
    users = [profile for name, profile in profiles.items() if wanted == name]
    users += [profile for profile in mine.values() if wanted == profile.model]
    if users:
        does = "writes text" if not users[0].embedding else "makes embeddings" if ranks else "ranks texts"
        lacks = "does not rank" if ranks else "makes no embeddings"
        return Unprocessable(f"the model {wanted[:80]!r} {does} and {lacks}; of those that do {known}", param="model",
                             code="no_ranking_profile" if ranks else "no_embedding_profile")
    return NotFound(f"no profile for {'ranking' if ranks else 'embeddings'}, and no file of one, is called "
                    f"{wanted[:80]!r}; {known}", code="model_not_found", param="model")


def _check_dimensions(wanted: int | None, ready: Ready) -> None:
    if wanted is not None and wanted > ready.n_embd:
        raise BadRequest(f"dimensions is {wanted}, but {ready.model} makes vectors of {ready.n_embd} numbers: leave it "
                         "out, or ask for fewer", param="dimensions")


def portions(texts: Sequence[Part], beside: int = 0) -> Iterator[list[Part]]:
    """`texts` in parts that a runner can tokenise and answer quickly. `beside`: characters that go with each."""
    portion: list[Part] = []
    size = 0
    for text in texts:
        if portion and (len(portion) == PORTION_TEXTS or size + len(text) + beside > PORTION_CHARS):
            yield portion
            portion, size = [], 0
        portion.append(text)
        size += len(text) + beside
    if portion:
        yield portion


def _name(error: ParleyError, field: str) -> None:
    error.param = field
    error.message = f"{field}: {error.message}"
