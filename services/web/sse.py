"""Server-sent events: their framing, and a stream that can still become a plain error before it has begun.

A stream is `data: <one line of JSON>` events and `: hb` comments. JSON escapes CR and LF; the separators of lines
that only some clients know (U+0085, U+2028, U+2029) are escaped too, so no text can start an event of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from flask import Response, g, stream_with_context

from services.errors import ParleyError
from services.web.frame import as_error
from services.web.watch import ClientGone

Payload = dict[str, Any]
BEAT: Payload = {"beat": True}      # a sign of life; leaves as a comment
HEARTBEAT = b": hb\n\n"
PATIENCE = 1.0                      # seconds in which an error is still an HTTP status
_SEPARATORS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


@dataclass(frozen=True)
class Style:
    """How a family of routes writes its streams."""

    event: Callable[[Payload], bytes]
    error: Callable[[ParleyError], Payload]


def event(payload: Payload) -> bytes:
    """One event, or the heartbeat."""
    return HEARTBEAT if "beat" in payload else b"data: " + _line(payload) + b"\n\n"


def _event_or_done(payload: Payload) -> bytes:
    return b"data: [DONE]\n\n" if "done" in payload else event(payload)


def _named(payload: Payload) -> bytes:
    if "done" in payload:
        return b""
    name = b"" if "beat" in payload else b"event: " + payload["type"].encode() + b"\n"
    return name + event(payload)


def _line(payload: Payload) -> bytes:
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_SEPARATORS)
    return text.encode("utf-8", "backslashreplace")


def _inner(error: ParleyError) -> Payload:
    return {"error": error.envelope()["error"]}


PLAIN = Style(event, _inner)                # the seed's: the last event is the whole answer
OPENAI = Style(_event_or_done, _inner)      # ends in [DONE]
NAMED = Style(_named, lambda error: {"type": "error", **_inner(error)})     # each event is named after its "type"


def response(payloads: Generator[Payload, None, None], style: Style = PLAIN) -> Response:
    """`payloads` as a stream, closed with it. What they raise before their first news is raised here."""
    try:
        first = _first(payloads)
    except BaseException:
        payloads.close()
        raise
    reply = Response(stream_with_context(_counted(_lines(first, payloads, style))), mimetype="text/event-stream",
                     headers={"X-Accel-Buffering": "no"})
    reply.call_on_close(payloads.close)
    return reply


def _first(payloads: Iterator[Payload]) -> Payload:
    """The first news, or a beat when there is none for `PATIENCE` seconds."""
    started = time.monotonic()
    while "beat" in (payload := next(payloads)):
        if time.monotonic() - started >= PATIENCE:
            break
    return payload


def _lines(first: Payload, payloads: Generator[Payload, None, None], style: Style) -> Iterator[bytes]:
    with closing(payloads):
        yield style.event(first)
        try:
            for payload in payloads:
                yield style.event(payload)
        except ClientGone:
            g.trace.status = 499
        except Exception as error:
            yield style.event(style.error(as_error(error)))


def _counted(lines: Iterator[bytes]) -> Iterator[bytes]:
    for line in lines:
        g.trace.sent += len(line)
        yield line
