"""Texts to vectors: which profile, which runner, and portions that leave room for others between them."""

from __future__ import annotations

import math
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from services.chat.profiles import Profile, Profiles
from services.engine.client import Engine, Lease
from services.errors import BadRequest, DeadlineExceeded, Forbidden, NotFound, ParleyError, Unprocessable
from services.settings import Settings
from services.wire import Embed, Ready

PORTION_TEXTS, PORTION_CHARS = 256, 1 << 18     # that a runner is sent at once


@dataclass(frozen=True)
class EmbedAsk:
    """Texts to embed, and for whom."""

    owner: str                                          # key id
    texts: Sequence[str | Sequence[int]]                # at least one, none of them blank; some may be tokens
    model: str | None = None                            # an embedding profile, or the file of one; None: the first
    allowed_profiles: Sequence[str] | None = None       # None: all
    dimensions: int | None = None                       # of each vector; None: as the model makes them
    weight: float = 1.0                                 # the owner's share of the runner beside others


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
        name, profile = chosen(config.profiles, ask.model, ask.allowed_profiles)
        spec = self.profiles.spec(profile, self.settings.models_dir)
        check = self._checked(beat)
        with self.engine.lease(spec, keep=config.keep(profile), beat=check) as lease:
            _check_dimensions(ask.dimensions, lease.ready)
            vectors, tokens = _vectors(lease, ask, check, charge)
            wanted = ask.dimensions or lease.ready.n_embd
            if wanted < lease.ready.n_embd:
                vectors = [shortened(vector, wanted) for vector in vectors]
            return Embedded(profile=name, model=lease.ready.model, dimensions=wanted, vectors=vectors, tokens=tokens)

    def _checked(self, beat: Callable[[], None]) -> Callable[[], None]:
        """`beat`, which gives up when the time of a request is over."""
        until = time.monotonic() + self.settings.request_timeout

        def check() -> None:
            beat()
            if time.monotonic() >= until:
                raise DeadlineExceeded(f"the embeddings took more than {self.settings.request_timeout:g} seconds "
                                       "(REQUEST_TIMEOUT)")
        return check


def _vectors(lease: Lease, ask: EmbedAsk, check: Callable[[], None],
             charge: Callable[[int], None]) -> tuple[list[bytes], int]:
    """The vectors, and the tokens of all texts."""
    vectors: list[bytes] = []
    tokens = 0
    for portion in portions(_texts(lease, ask.texts)):
        check()
        try:
            answer = lease.embed(Embed(id=str(uuid.uuid4()), owner=ask.owner, texts=portion, weight=ask.weight))
        except ParleyError as error:
            _name_text(error, len(vectors), len(ask.texts))
            raise
        vectors += answer.vectors
        charge(sum(answer.tokens))
        tokens += sum(answer.tokens)
    return vectors, tokens


def _texts(lease: Lease, texts: Sequence[str | Sequence[int]]) -> list[str]:
    """`texts` as text, which is what a model's tokenizer then makes the same tokens of."""
    found = []
    for number, text in enumerate(texts):
        if isinstance(text, str):
            found.append(text)
            continue
        try:
            found.append(lease.detokenize(text).text)
            if not found[-1].strip():
                raise BadRequest("should not be blank, as the text of these tokens is")
        except ParleyError as error:
            _name(error, number, len(texts))
            raise
    return found


def shortened(vector: bytes, dimensions: int) -> bytes:
    """The first `dimensions` numbers of a vector, made one of length 1 again: what OpenAI's `dimensions` means."""
    numbers = struct.unpack(f"<{dimensions}f", vector[:4 * dimensions])
    length = math.hypot(*numbers) or 1.0
    return struct.pack(f"<{dimensions}f", *(number / length for number in numbers))


def chosen(profiles: dict[str, Profile], wanted: str | None, allowed: Sequence[str] | None) -> tuple[str, Profile]:
    """(name, profile) that `wanted` means, as `EmbedAsk.model`."""
    there = {name: profile for name, profile in profiles.items()
             if profile.embedding and (allowed is None or name in allowed)}
    for name, profile in there.items():
        if wanted is None or wanted == name:
            return name, profile
    for name, profile in there.items():
        if wanted == profile.model:
            return name, profile
    raise _none(wanted, profiles, list(there))


def _none(wanted: str | None, profiles: dict[str, Profile], there: list[str]) -> ParleyError:
    """Why there is no such embedding profile."""
    known = f"there are: {', '.join(there)}" if there else \
        "there is none; `main.py models pull minilm` brings a model and says what to add to config.json"
    if wanted is None:
        return NotFound(f"no profile makes embeddings: {known}", code="profile_not_found", param="model")
    if wanted in profiles and profiles[wanted].embedding:
        return Forbidden(f"this key may not use the profile {wanted[:80]!r}", code="profile_forbidden", param="model")
    if wanted in profiles:
        return Unprocessable(f"the profile {wanted[:80]!r} writes text and makes no embeddings; of those that do "
                             f"{known}", code="no_embedding_profile", param="model")
    return NotFound(f"no profile for embeddings, and no file of one, is called {wanted[:80]!r}; {known}",
                    code="model_not_found", param="model")


def _check_dimensions(wanted: int | None, ready: Ready) -> None:
    if wanted is not None and wanted > ready.n_embd:
        raise BadRequest(f"dimensions is {wanted}, but {ready.model} makes vectors of {ready.n_embd} numbers: leave it "
                         "out, or ask for fewer", param="dimensions")


def portions(texts: Sequence[str]) -> Iterator[list[str]]:
    """`texts` in parts that a runner can tokenise and answer quickly."""
    portion: list[str] = []
    size = 0
    for text in texts:
        if portion and (len(portion) == PORTION_TEXTS or size + len(text) > PORTION_CHARS):
            yield portion
            portion, size = [], 0
        portion.append(text)
        size += len(text)
    if portion:
        yield portion


def _name_text(error: ParleyError, before: int, count: int) -> None:
    """The runner numbers the texts of a portion; the caller knows those of the request."""
    number = error.details.pop("text", None)
    if isinstance(number, int):
        _name(error, before + number, count)


def _name(error: ParleyError, number: int, count: int) -> None:
    error.param = "input" if count == 1 else f"input.{number}"
    error.message = f"{error.param}: {error.message}"
