"""What can be wrong with a Go template: how it is written, or what it does with the values it gets."""

from __future__ import annotations


class Fault(Exception):
    """`reason` begins in lower case and is one line; `line` is the template's, from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


class Exceeded(Fault):
    """It would take too long, or write too much: nothing can be made of it."""
