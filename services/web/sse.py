"""Server-sent events: their framing, and a stream that can still become a plain error before it has begun.

A stream is `data: <one line of JSON>` events and `: hb` comments. JSON escapes CR and LF; the separators of lines
that only some clients know (U+0085, U+2028, U+2029) are escaped too, so no text can start an event of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

from flask import Response, g, stream_with_context

from services.web.frame import as_error
from services.web.watch import ClientGone

Payload = dict[str, Any]
BEAT: Payload = {"beat": True}      # a sign of life; leaves as a comment
HEARTBEAT = b": hb\n\n"
PATIENCE = 1.0                      # seconds in which an error is still an HTTP status
_SEPARATORS = str.maketrans({"\x85": "\\u0085", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def event(payload: Payload) -> bytes:
    """One event, or the heartbeat."""
    if "beat" in payload:
        return HEARTBEAT
    text = json.dumps(payload, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_SEPARATORS)
    return b"data: " + text.encode("utf-8", "backslashreplace") + b"\n\n"


def response(payloads: Generator[Payload, None, None]) -> Response:
    """`payloads` as a stream, closed with it. What they raise before their first news is raised here."""
    try:
        first = _first(payloads)
    except BaseException:
        payloads.close()
        raise
    reply = Response(stream_with_context(_counted(_lines(first, payloads))), mimetype="text/event-stream",
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


def _lines(first: Payload, payloads: Generator[Payload, None, None]) -> Iterator[bytes]:
    with closing(payloads):
        yield event(first)
        try:
            for payload in payloads:
                yield event(payload)
        except ClientGone:
            g.trace.status = 499
        except Exception as error:
            yield event({"error": as_error(error).envelope()["error"]})


def _counted(lines: Iterator[bytes]) -> Iterator[bytes]:
    for line in lines:
        g.trace.sent += len(line)
        yield line
