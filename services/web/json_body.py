"""Reading a request's body: raw bytes to one strict JSON object, or an error that says what was wrong.

Nothing is guessed and nothing is coerced: one UTF-8 JSON object, no duplicate keys, no NaN or infinity, no lone
surrogates, at most `MAX_DEPTH` levels. Depth and size are checked on the bytes, before anything is parsed.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

from flask import Request
from gunicorn.http.errors import ParseException

from services.errors import BadRequest, ParleyError, TooLarge, UnsupportedMedia

MAX_DEPTH = 64              # levels of [ and {
MAX_VALUES = 100_000        # strings, or separators, of one document
MAX_DIGITS = 40             # of one whole number: more than any field takes
_CHUNK = 256 * 1024         # bytes read at once
_OUTSIDE = bytes(set(range(256)) - set(b"[]{},"))
_OPENING = b"[{"


class SlowBody(ParleyError):
    """The client announced a body and then sent nothing for long."""

    status, code, type = 408, "request_timeout", "invalid_request_error"


class LengthRequired(ParleyError):
    status, code, type = 411, "length_required", "invalid_request_error"


def read_object(request: Request, max_bytes: int, *, optional: bool = False) -> tuple[bytes, dict[str, Any] | None]:
    """The bytes of `request`'s body and the JSON object in them; None when there is no body and `optional`."""
    _check_encoding(request)
    raw = read_bytes(request, max_bytes)
    if not raw and optional:
        return raw, None
    _check_media_type(request)
    return raw, parse(raw)


def read_raw(request: Request, max_bytes: int) -> bytes:
    """The bytes of a body of any kind; `BadRequest` for none."""
    _check_encoding(request)
    raw = read_bytes(request, max_bytes)
    if not raw:
        raise BadRequest("the body is empty; send the file", code="missing_field")
    return raw


def _check_media_type(request: Request) -> None:
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != "application/json" or charset not in ("utf-8", "utf8"):
        given = request.content_type
        raise UnsupportedMedia(f"the body's Content-Type is {given[:100]!r}; send application/json" if given
                               else "the body has no Content-Type; send application/json")


def _check_encoding(request: Request) -> None:
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise UnsupportedMedia(f"Content-Encoding {encoding[:40]!r} is not accepted; send the body as it is")


def read_bytes(request: Request, max_bytes: int) -> bytes:
    """The whole body, at most `max_bytes`. A body that ends early is refused: nobody may act on half of it."""
    length = _announced(request)
    if length is None and "Transfer-Encoding" not in request.headers:
        return b""
    if length is None and not request.environ.get("wsgi.input_terminated"):
        raise LengthRequired("send Content-Length")
    if length is not None and length > max_bytes:
        raise TooLarge(f"the body has {length} bytes; at most {max_bytes} are accepted")
    raw = _read(request, max_bytes + 1 if length is None else length)
    if len(raw) > max_bytes:
        raise TooLarge(f"the body has more than {max_bytes} bytes")
    if length is not None and len(raw) < length:
        raise BadRequest(f"the body ended after {len(raw)} of {length} bytes", code="truncated_body")
    return raw


def _announced(request: Request) -> int | None:
    """Content-Length. Chunked wins over it, as in HTTP; the server in front refuses both at once."""
    given = request.environ.get("CONTENT_LENGTH") or None
    if given is None or "Transfer-Encoding" in request.headers:
        return None
    if not re.fullmatch("[0-9]{1,18}", given):
        raise BadRequest("Content-Length is not the number of bytes of a body", code="bad_length")
    return int(given)


def _read(request: Request, wanted: int) -> bytes:
    """Up to `wanted` bytes. Reads the server's own stream: Flask's would cut a chunked body silently at its limit."""
    stream, parts, missing = request.environ["wsgi.input"], [], wanted
    try:
        while missing and (part := stream.read(min(missing, _CHUNK))):
            parts.append(part)
            missing -= len(part)
    except ParseException as error:
        raise BadRequest(f"the chunked body is malformed: {type(error).__name__}", code="bad_chunk") from None
    except (BlockingIOError, TimeoutError):
        raise SlowBody(f"the body stopped after {wanted - missing} bytes") from None
    except OSError as error:
        raise BadRequest("the connection broke while the body was read", code="truncated_body") from error
    return b"".join(parts)


def parse(raw: bytes) -> dict[str, Any]:
    """`raw` as a dict. Raises `BadRequest` (`invalid_json`, `too_deep`, `too_complex`, `bad_unicode`)."""
    if not raw:
        raise BadRequest("the body is empty; send one JSON object", code="invalid_json")
    if raw.startswith(b"\xef\xbb\xbf"):
        raise BadRequest("the body starts with a byte order mark; send UTF-8 without one", code="invalid_json")
    check_depth(raw)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 (byte {error.start})", code="bad_unicode") from None
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} at line {error.lineno} column {error.colno}",
                         code="invalid_json") from None
    if not isinstance(value, dict):
        raise BadRequest("the body is not a JSON object", code="invalid_json")
    if (where := lone_surrogate(value)) is not None:
        raise BadRequest(f"{where or 'a field name'} holds half of a surrogate pair, which is no character",
                         code="bad_unicode", param=where or None)
    return value


def check_depth(raw: bytes) -> None:
    """Refuse too many levels or values by counting bytes, in time linear to the body and without recursion.

    Escapes are paired off and strings cut out first. Outside of strings a backslash is no JSON, so the count is exact
    for as far as the parser will ever read.
    """
    bare = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 2 * MAX_VALUES:
        _too_complex()
    structure = b"".join(bare.split(b'"')[::2]).translate(None, _OUTSIDE)
    if structure.count(b",") > MAX_VALUES:
        _too_complex()
    brackets = structure.replace(b",", b"")
    depth = 0
    for byte in brackets[:4 * MAX_VALUES]:
        depth += 1 if byte in _OPENING else -1
        if depth > MAX_DEPTH:
            raise BadRequest(f"the body is nested more than {MAX_DEPTH} levels deep", code="too_deep")
    if len(brackets) > 4 * MAX_VALUES:
        _too_complex()


def _too_complex() -> NoReturn:
    raise BadRequest(f"the body holds more than {MAX_VALUES} values", code="too_complex")


def lone_surrogate(value: Any, path: str = "") -> str | None:
    """Dotted path of the first string that UTF-8 cannot carry; "" when that is a top-level field's own name."""
    if isinstance(value, str):
        return None if value.isascii() or _encodable(value) else path
    if isinstance(value, dict):
        for key, item in value.items():
            if not _encodable(key):
                return path
            if (found := lone_surrogate(item, f"{path}.{key}" if path else key)) is not None:
                return found
    if isinstance(value, list):
        for index, item in enumerate(value):
            if (found := lone_surrogate(item, f"{path}.{index}")) is not None:
                return found
    return None


def _encodable(text: str) -> bool:
    return not re.search("[\ud800-\udfff]", text)


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))   # type: ignore[func-returns-value]
        shown = twice[:80] if _encodable(twice[:80]) else ascii(twice[:80])
        raise BadRequest(f"field {shown!r} is given twice", code="invalid_json", param=None)
    return result


def _refuse(literal: str) -> NoReturn:
    raise BadRequest(f"the number {literal[:40]} is not accepted: it is not finite, too long, or not exact",
                     code="bad_number")


def _int(literal: str) -> int:
    return int(literal) if len(literal) <= MAX_DIGITS and literal != "-0" else _refuse(literal)


def _float(literal: str) -> float:
    value = float(literal)
    underflow = value == 0 and (literal[0] == "-" or any(c in "123456789" for c in re.split("[eE]", literal)[0]))
    return value if math.isfinite(value) and not underflow else _refuse(literal)


_decoder = json.JSONDecoder(object_pairs_hook=_pairs, parse_constant=_refuse, parse_int=_int, parse_float=_float)
