"""Reading what an address or a form brings: pairs of texts to one object, as strictly as a JSON body.

A name that is given twice is refused, since which of the two counts would be a guess.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import parse_qsl

from flask import Request

from services.errors import BadRequest
from services.web.json_body import read_bytes

FORM = "application/x-www-form-urlencoded"
MAX_FIELDS = 100


def read_query(request: Request) -> dict[str, str]:
    """The query of the address. `BadRequest` (`bad_query`) for what is not UTF-8, or there twice."""
    return _parsed(request.query_string, "the query", "bad_query")


def parse_form(raw: bytes) -> dict[str, str]:
    """The fields of a form. `BadRequest` (`bad_form`) for what is not UTF-8, or there twice."""
    return _parsed(raw, "the form", "bad_form")


def read_form(request: Request, max_bytes: int, *, optional: bool = False) -> tuple[bytes, dict[str, str] | None]:
    """The bytes of a form and its fields; None when there is no body and `optional`. As `json_body.read_object`."""
    raw = read_bytes(request, max_bytes)
    return raw, (None if optional and not raw else parse_form(raw))


def _parsed(raw: bytes, what: str, code: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except UnicodeDecodeError:
        raise BadRequest(f"{what} is not UTF-8 in percent-encoding", code=code) from None
    except ValueError:
        raise BadRequest(f"{what} has more than {MAX_FIELDS} fields", code=code) from None
    return _once(pairs, what, code)


def _once(pairs: Iterable[tuple[str, str]], what: str, code: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise BadRequest(f"{what} has {name[:80]!r} twice", code=code, param=name[:200])
        found[name] = value
    return found
