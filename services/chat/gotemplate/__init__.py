"""Go's text/template, as far as prompts are written in it; see `Template`.

There is no Python library for it that is kept up (those of PyPI are builds of the Go library, by hand and for other
machines), so the part that LocalAI's models use is here: fields, if, else if, with, range, variables, pipelines,
comments, trim markers, break and continue, and the functions of `functions`. What is outside is refused when the
template is read, by name and line. Nothing of Python can be reached, and a rendering is bounded in steps and size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from services.chat.gotemplate.evaluator import Run
from services.chat.gotemplate.faults import Exceeded, Fault
from services.chat.gotemplate.parser import parse
from services.chat.gotemplate.values import Struct

__all__ = ("Exceeded", "Fault", "Struct", "Template")

MAX_SOURCE = 256 * 1024         # characters of a template
SPARE_CHARS = 1 << 20           # that a template may write, beside eight times what it is given


class Template:
    """A template, read. Raises `Fault` with the line of what is not supported or wrong."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE:
            raise Fault(1, f"the template has more than {MAX_SOURCE} characters")
        self._nodes = parse(source)

    def render(self, data: Struct | dict[str, Any], given: int = 0) -> str:
        """The text for `data`, of which `given` is the length in characters. Raises `Fault`; `Exceeded` where it
        would take too long or write too much."""
        run = Run(data, SPARE_CHARS + 8 * given)
        try:
            run.walk(self._nodes, data)
        except RecursionError:
            raise Exceeded(1, "is nested too deeply") from None
        return "".join(run.written)


@lru_cache(maxsize=64)
def template(source: str) -> Template:
    """`Template(source)`, kept."""
    return Template(source)
