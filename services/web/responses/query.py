"""Values in the query of a request: what is not given is the default, what is wrong is a `BadRequest`."""

from __future__ import annotations

from collections.abc import Sequence

from flask import request

from services.errors import BadRequest


def flag(name: str) -> bool:
    return choice(name, ("false", "true")) == "true"


def choice(name: str, choices: Sequence[str]) -> str:
    """One of `choices`, the first when it is not given."""
    given = request.args.get(name, choices[0])
    if given not in choices:
        raise BadRequest(f"{name}: expected {' or '.join(choices)}, not {given[:80]!r}", param=name)
    return given


def number(name: str, default: int, least: int, most: int) -> int:
    given = request.args.get(name)
    if given is None:
        return default
    if not (given.isascii() and given.isdecimal() and len(given) < 20 and least <= int(given) <= most):
        raise BadRequest(f"{name}: expected a whole number from {least} to {most}, not {given[:80]!r}", param=name)
    return int(given)
