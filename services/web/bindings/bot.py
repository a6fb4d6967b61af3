"""What the routes of all platforms share. They need no key of a client: the platform's signature takes its place."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from typing import ClassVar, Generic, TypeVar, cast

from flask import Response, current_app, g, request

from services.errors import NotFound
from services.web.bindings.config import Binding
from services.web.bindings.desk import Desk, Question, refused
from services.web.json_body import read_bytes
from services.web.routes import Endpoint

MOST_BYTES = 1 << 20        # of a request: many times what a platform sends
FRESH = 300.0               # seconds that a request may be old, or ahead of this machine's clock
BUSY = "I am answering as many questions as I can at once: please ask again in a moment."
Kind = TypeVar("Kind", bound=Binding)


class Bot(Endpoint, Generic[Kind]):
    """A platform's route. `model`: how a binding of it is configured."""

    model: ClassVar[type[Binding]]

    def receive(self, name: str) -> Response:
        """Whatever comes: nothing of it is parsed, and nothing done, unless the platform signed it a moment ago."""
        binding = self.desk.bindings.current().get(name)
        if not isinstance(binding, self.model):
            raise NotFound("there is nothing at this path; GET /docs shows what there is")
        found = cast(Kind, binding)
        raw = read_bytes(request, min(MOST_BYTES, self.room.settings.max_body_bytes))
        signature = self.signature(found, raw)
        g.trace.key = binding.key       # from here on it is the platform that asks
        return self.handle(found, raw, signature)

    def signature(self, binding: Kind, raw: bytes) -> str:
        """The request's signature, when it is the platform's. Raises `Unauthorized`."""
        raise NotImplementedError

    def handle(self, binding: Kind, raw: bytes, signature: str) -> Response:
        """What the platform is told."""
        raise NotImplementedError

    @property
    def desk(self) -> Desk:
        return self.room.desk

    def take(self, signature: str, question: Question, deliver: Callable[[str], None]) -> bool:
        """As `Desk.take`."""
        return self.desk.take(current_app._get_current_object(),    # type: ignore[attr-defined]
                              signature, question, deliver)


def given(binding: Binding, header: str) -> str:
    """The header `header`. Raises `Unauthorized` when there is none."""
    value = request.headers.get(header)
    if not value:
        raise refused(binding, f"it has no {header}")
    return value


def check_same(binding: Binding, given: str, expected: str) -> None:
    """Raises `Unauthorized` for another signature than that, in the same time wherever they differ."""
    if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode()):
        raise refused(binding, "its signature is another one")


def check_fresh(binding: Binding, seconds: float | None) -> None:
    """Raises `Unauthorized` unless `seconds` (Unix time) is about now; None is no time at all."""
    if seconds is None or abs(time.time() - seconds) > FRESH:
        raise refused(binding, f"its time is not within {FRESH:.0f} s of this machine's")


def unix_time(text: str) -> float | None:
    """Digits as Unix time, in seconds."""
    return float(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None
