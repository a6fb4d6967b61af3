"""Bounds on what a template that nobody vetted may do: steps, CPU time, and the size of every value it builds.

`run` gives this thread a budget for some work. In it each call of a Python function is traced and counted, and so
is each turn of a loop over `each`; between two of them a template can only do what it spells out. What a function does
in one go is bounded by `check`ing its arguments before and its `result` after.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, ValuesView
from types import FrameType, GeneratorType
from typing import Any, TypeVar

from jinja2.utils import Namespace

_T = TypeVar("_T")
MAX_STEPS = 500_000             # Python functions called, generators resumed, items looked at
CPU_SECONDS = 1.0
MIN_TOTAL = 64 << 20            # characters and items that may be built in all: some templates add to one long text
MAX_BITS = 256                  # of a whole number
# an escape of Python's, and the code in it if it is a private character's
_ESCAPE = re.compile(r"\\(?:u(e...|f[0-8]..)|U000(f....)|U00(10....)|.)")
_READ_ONCE: tuple[type, ...] = (GeneratorType, type(reversed([])), type(reversed({})), reversed)


class Stop(BaseException):
    """Ends a rendering. No Exception, so that nothing between here and `run` can catch it."""


class _Budget(threading.local):
    """What the rendering of this thread may still do."""

    chars = 0               # of one value
    left = 0                # to be written
    total = 0               # left to be built, kept or not
    steps = 0               # left
    until = 0.0             # of the thread's CPU time
    given: dict[int, int] = {}      # the lists and objects that came from outside, which nobody changes: id, size


_budget = _Budget()


def _trace(frame: FrameType, event: str, arg: Any) -> None:
    _budget.steps -= 1
    if _budget.steps < 0 or (not _budget.steps & 63 and time.thread_time() > _budget.until):
        raise Stop("takes too long")


def _spend(steps: int) -> None:
    """For what is not traced."""
    _budget.steps -= steps
    if _budget.steps < 0 or (steps > 63 and time.thread_time() > _budget.until):
        raise Stop("takes too long")


def run(work: Callable[[], _T], chars: int, effort: int = 1, given: dict[int, int] | None = None) -> _T:
    """What `work` returns, done with a budget of its own: values of up to `chars` characters, and `effort` times the
    steps and the CPU time. `given`: the `sizes` of what it works on. Raises `Stop`."""
    _budget.given = given or {}
    _budget.chars, _budget.left, _budget.total = chars, chars, max(16 * chars, MIN_TOTAL)
    _budget.steps, _budget.until = effort * MAX_STEPS, time.thread_time() + effort * CPU_SECONDS
    before = sys.gettrace()
    sys.settrace(_trace)
    try:
        return work()
    finally:        # calls no Python function, which could be stopped
        sys.settrace(before)
        _budget.given = {}


def sizes(value: Any, into: dict[int, int]) -> int:
    """Characters and items in a JSON value, as `check` counts them; also of each list and object in it, by `id`."""
    if isinstance(value, str):
        return len(value)
    size = 1
    if isinstance(value, dict):
        size += sum(1 + len(name) + sizes(item, into) for name, item in value.items())
    elif isinstance(value, list):
        size += sum(sizes(item, into) for item in value)
    else:
        return size
    into[id(value)] = size
    return size


def is_given(value: Any) -> bool:
    """Whether this list or object came from outside."""
    return id(value) in _budget.given


def each(value: Iterable[Any]) -> Iterator[Any]:
    """The items of `value`, counted: a generator is traced whenever it is resumed."""
    for item in value:      # noqa: UP028 - `yield from` would hand the items on uncounted
        yield item


def write(text: str) -> str:
    """`text`, taken from what may still be written."""
    _budget.left -= len(text)
    if _budget.left < 0:
        raise Stop("writes too much")
    return text


def fits(chars: int) -> None:
    """`Stop` unless a value of `chars` characters may be built."""
    if chars > _budget.chars:
        raise Stop("writes too much")


def check(value: Any) -> Any:
    """`value`, once it is sure that writing or comparing it is bounded. What can be read only once becomes a list."""
    if isinstance(value, str):
        fits(len(value))
        return value
    if isinstance(value, _READ_ONCE):
        value = list(value)     # type: ignore[call-overload]
    if isinstance(value, int):
        fits(0 if value.bit_length() <= MAX_BITS else sys.maxsize)
    elif not isinstance(value, float | None):
        fits(_size(value))
    return value


def _size(value: Any) -> int:
    """Characters and items in `value` and all that it holds, counted as often as they would be written."""
    total, items, waiting = 0, 0, [value]
    while waiting:
        item = waiting.pop()
        items += 1
        if id(item) in _budget.given:
            total += _budget.given[id(item)]
            fits(total)
            continue
        if isinstance(item, Namespace):
            item = object.__getattribute__(item, "_Namespace__attrs")
        total += len(item) if isinstance(item, str) else 1
        if isinstance(item, dict):
            waiting.extend(item.items())
        elif isinstance(item, list | tuple | ItemsView | KeysView | ValuesView):
            waiting.extend(item)
        fits(total + len(waiting))
    _spend(items)
    return total


def result(value: Any) -> Any:
    """`value`, checked and taken from what may be built in all."""
    value = check(value)
    _budget.total -= len(value) if isinstance(value, str | list | tuple | dict) else 1
    if _budget.total < 0:
        raise Stop("builds too much")
    return value


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its arguments and its result checked."""
    def call(*args: Any, **kwargs: Any) -> Any:
        args = tuple(check(arg) for arg in args)
        kwargs = {name: check(value) for name, value in kwargs.items()}
        return result(function(*args, **kwargs))
    if hasattr(function, "jinja_pass_arg"):
        call.jinja_pass_arg = function.jinja_pass_arg   # type: ignore[attr-defined]
    return call


def concat(parts: Iterable[str], between: str = "") -> str:
    """`between.join(parts)`, bounded."""
    parts = list(parts)
    fits(sum(map(len, parts)) + len(between) * len(parts))
    return str(result(between.join(parts)))


def written(parts: Iterable[Any]) -> str:
    """The values of `parts` as one text, bounded."""
    return concat([text(part) for part in parts])


def text(value: Any) -> str:
    """`value` as text, checked. Private characters, the marks of `services.chat.special`, stay as they are where
    Python's notation of lists and objects would escape them."""
    shown = str(check(value))
    return shown if isinstance(value, str) else _ESCAPE.sub(_unescaped, shown)


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[match.lastindex], 16)) if match.lastindex else match[0]
