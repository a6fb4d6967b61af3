"""Logging: one line per event on standard error, control characters escaped, so that no text can forge a line."""

from __future__ import annotations

import logging
import sys
import time

LIMIT = 4000        # characters of one line; the rest is cut


class OneLine(logging.Formatter):
    """`2026-11-21T10:00:00Z INFO parley.web: text`; a traceback follows on the same line, escaped."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += " | " + self.formatException(record.exc_info)
        text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
        if len(text) > LIMIT:
            text = f"{text[:LIMIT]}… ({len(text)} characters)"
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        return f"{stamp} {record.levelname} {record.name}: {text}"


def setup(level: str = "INFO", debug: bool = False) -> None:
    """Send every logger's lines to standard error; `debug` shows all of Parley's own."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.raiseExceptions = False         # a full disk behind the log must not end a request
    if debug:
        logging.getLogger("parley").setLevel(logging.DEBUG)
    for chatty in ("httpx", "httpx2", "httpcore", "filelock", "urllib3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
