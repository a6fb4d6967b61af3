"""Texts to a model's tokens and back, for who asks for just that."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from services.chat.asking import check_allowed
from services.chat.profiles import Profiles
from services.engine.client import Engine, Lease
from services.settings import Settings
from services.wire import Tokens


@dataclass(frozen=True)
class Tokenizer:
    """The tokens of the model that `model` names (as in `Ask`), for a key with `allowed_profiles`.

    `beat` is called about every second of waiting and may raise to give up. Both raise `NotFound`, `Forbidden`, and
    what a lease raises.
    """

    settings: Settings
    profiles: Profiles
    engine: Engine
    model: str | None = None
    allowed_profiles: Sequence[str] | None = None
    beat: Callable[[], None] = lambda: None

    def tokenize(self, text: str, special: bool, around: bool) -> Tokens:
        """`special`, `around`: as in `wire.Tokenize`."""
        with self._lease() as lease:
            return lease.tokenize(text, special, around)

    def detokenize(self, tokens: Sequence[int]) -> Tokens:
        """`BadRequest` for what is no token of the model."""
        with self._lease() as lease:
            return lease.detokenize(tokens)

    @contextmanager
    def _lease(self) -> Iterator[Lease]:
        config = self.profiles.current()
        allowed = self.allowed_profiles
        name, profile = self.profiles.any_named(self.model or config.selected, allowed)
        check_allowed(allowed, name, "model")
        spec = self.profiles.spec(profile, self.settings.models_dir)
        with self.engine.lease(spec, keep=config.keep(profile), beat=self.beat) as lease:
            yield lease
