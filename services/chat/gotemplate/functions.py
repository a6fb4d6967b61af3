"""The functions that templates may call: text/template's own, and those of sprig that prompts are written with.

Each is declared with the kinds of its arguments: s string, i whole number, v anything; one last letter and * takes any
number of them. Nothing is converted, as Go converts nothing. `and` and `or` are the evaluator's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from services.chat.gotemplate.values import (
    Struct,
    Unfit,
    equal,
    go_float,
    kind,
    less,
    quoted,
    shown,
    size,
    to_json,
    truth,
)

MAX_WIDTH = 1000            # of a printf
_VERB = re.compile(r"%(?P<flags>[-+ 0#]*)(?P<width>\d{0,4})(?:\.(?P<precision>\d{1,3}))?(?P<verb>.)", re.DOTALL)


@dataclass(frozen=True)
class Function:
    """`call(limit, *arguments)`: `limit` is the most characters that the result may have."""

    call: Callable[..., Any]
    kinds: str

    def __call__(self, limit: int, arguments: list[Any]) -> Any:
        kinds = self.kinds.removesuffix("*")
        if self.kinds.endswith("*"):
            kinds = kinds[:-1] + kinds[-1] * max(0, len(arguments) - len(kinds) + 1)
        if len(kinds) != len(arguments):
            raise Unfit(f"takes {len(kinds)} arguments, not {len(arguments)}")
        for wanted, value in zip(kinds, arguments, strict=True):
            if (wanted == "s" and not isinstance(value, str)) or (wanted == "i" and type(value) is not int):
                raise Unfit(f"takes a {'string' if wanted == 's' else 'whole number'} where it gets a {kind(value)}")
        return self.call(limit, *arguments)


FUNCTIONS: dict[str, Function] = {}


def _function(kinds: str, *names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def register(call: Callable[..., Any]) -> Callable[..., Any]:
        for name in names or (call.__name__.strip("_"),):
            FUNCTIONS[name] = Function(call, kinds)
        return call
    return register


def _simple(kinds: str, name: str, call: Callable[..., Any]) -> None:
    """A function whose result is not longer than its arguments."""
    FUNCTIONS[name] = Function(lambda _limit, *arguments: call(*arguments), kinds)


def _fits(limit: int, chars: int) -> None:
    if chars > limit:
        raise Unfit(f"would make a text of {chars} characters; there is room for {limit}")


# ---------------------------------------------------------------- text/template's own

_simple("vv*", "eq", lambda one, *others: _some(one, others))
_simple("vv", "ne", lambda one, other: not equal(one, other))
_simple("vv", "lt", less)
_simple("vv", "le", lambda one, other: less(one, other) or equal(one, other))
_simple("vv", "gt", lambda one, other: less(other, one))
_simple("vv", "ge", lambda one, other: less(other, one) or equal(one, other))
_simple("v", "not", lambda value: not truth(value))
_simple("v*", "and", lambda *_: None)
_simple("v*", "or", lambda *_: None)


def _some(one: Any, others: tuple[Any, ...]) -> bool:
    if not others:
        raise Unfit("takes two or more arguments, not 1")
    return any(equal(one, other) for other in others)


@_function("v", "len")
def _length(_limit: int, value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode())
    if isinstance(value, list | dict):
        return len(value)
    raise Unfit(f"a {kind(value)} has no length")


@_function("vv*")
def _index(_limit: int, value: Any, *keys: Any) -> Any:
    for key in keys:
        if isinstance(value, dict) and isinstance(key, str):
            value = value.get(key)
        elif isinstance(value, list | str) and type(key) is int:
            held = value.encode() if isinstance(value, str) else value
            if not 0 <= key < len(held):
                raise Unfit(f"there is no item {key} of {len(held)}")
            value = held[key]
        else:
            raise Unfit(f"a {kind(value)} has no item {shown(key)[:40]}")
    return value


@_function("v*")
def _print(limit: int, *values: Any) -> str:
    """As fmt.Sprint: a space between two values of which neither is a string."""
    _fits(limit, sum(map(size, values)))
    text = ""
    for at, value in enumerate(values):
        apart = at and not isinstance(value, str) and not isinstance(values[at - 1], str)
        text += (" " if apart else "") + shown(value)
    return text


@_function("v*")
def _println(limit: int, *values: Any) -> str:
    _fits(limit, sum(map(size, values)))
    return " ".join(map(shown, values)) + "\n"


@_function("sv*")
def _printf(limit: int, form: str, *values: Any) -> str:
    _fits(limit, len(form) + 7 * sum(map(size, values)) + MAX_WIDTH * form.count("%"))
    left = list(values)

    def one(match: re.Match[str]) -> str:
        if match["verb"] == "%":
            return "%"
        if not left:
            raise Unfit(f"{match.group()} has no value")
        return _padded(match, _formatted(match["verb"], left.pop(0), match["precision"], match["flags"]))
    text = _VERB.sub(one, form)
    if left:
        raise Unfit(f"takes {len(values) - len(left)} values for {form[:40]!r}, not {len(values)}")
    return text


def _formatted(verb: str, value: Any, precision: str | None, flags: str) -> str:
    if verb == "v" and precision is None:
        return shown(value)
    if verb in "sq" and isinstance(value, str):
        text = value[:int(precision)] if precision else value
        return quoted(text) if verb == "q" else text
    if verb == "t" and isinstance(value, bool):
        return shown(value)
    if verb in "dxc" and type(value) is int and not (verb == "c" and not 0 <= value < 0xD800):
        text = str(value) if verb == "d" else f"{value:x}" if verb == "x" else chr(value)
        return "+" + text if "+" in flags and value >= 0 and verb == "d" else text
    if verb in "fg" and isinstance(value, float):
        return go_float(value) if verb == "g" else f"{value:.{int(precision or 6)}f}"
    raise Unfit(f"%{verb} does not take a {kind(value)}")


def _padded(match: re.Match[str], text: str) -> str:
    width = min(int(match["width"] or 0), MAX_WIDTH)
    if "-" in match["flags"]:
        return text.ljust(width)
    return text.zfill(width) if "0" in match["flags"] and match["verb"] in "dxfg" else text.rjust(width)


# ---------------------------------------------------------------- sprig's: strings

_simple("s", "trim", str.strip)
_simple("ss", "trimAll", lambda chars, text: text.strip(chars))
_simple("ss", "trimSuffix", lambda end, text: text.removesuffix(end))
_simple("ss", "trimPrefix", lambda start, text: text.removeprefix(start))
_simple("s", "upper", str.upper)
_simple("s", "lower", str.lower)
_simple("s", "title", lambda text: re.sub(r"(?<![\w'])\w", lambda match: match.group().upper(), text))
_simple("ss", "contains", lambda part, text: part in text)
_simple("ss", "hasPrefix", lambda start, text: text.startswith(start))
_simple("ss", "hasSuffix", lambda end, text: text.endswith(end))
_simple("v", "toString", lambda value: shown(value))
_simple("v", "toJson", to_json)
_simple("v", "toRawJson", lambda value: to_json(value, html=False))


@_function("sss")
def _replace(limit: int, old: str, new: str, text: str) -> str:
    _fits(limit, len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    return text.replace(old, new)


@_function("sv")
def _join(limit: int, between: str, values: Any) -> str:
    items = values if isinstance(values, list) else [values]
    _fits(limit, size(items) + len(between) * len(items))
    return between.join(shown(item) for item in items if item is not None)


@_function("is")
def _indent(limit: int, spaces: int, text: str) -> str:
    margin = " " * _count(spaces, 200)
    _fits(limit, len(text) + len(margin) * (text.count("\n") + 1))
    return margin + text.replace("\n", "\n" + margin)


@_function("is")
def _nindent(limit: int, spaces: int, text: str) -> str:
    return "\n" + str(_indent(limit, spaces, text))


@_function("is")
def _repeat(limit: int, count: int, text: str) -> str:
    _fits(limit, _count(count, limit) * len(text))
    return text * count


def _count(value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise Unfit(f"takes a number from 0 to {most}, not {value}")
    return value


@_function("v*", "quote", "squote")
def _quote(limit: int, *values: Any) -> str:
    _fits(limit, 7 * sum(map(size, values)))
    return " ".join(quoted(shown(value)) for value in values if value is not None)


FUNCTIONS["squote"] = Function(
    lambda limit, *values: " ".join(f"'{shown(value)}'" for value in values if value is not None), "v*")


@_function("is")
def _trunc(_limit: int, count: int, text: str) -> str:
    """Bytes in Go; here characters, of which no half is left."""
    return text[count:] if count < 0 else text[:count]


@_function("ss", "splitList")
def _split_list(_limit: int, between: str, text: str) -> list[str]:
    return text.split(between) if between else list(text)


# ---------------------------------------------------------------- sprig's: numbers, lists, maps, choices

_simple("i*", "add", lambda *numbers: _whole(sum(numbers)))
_simple("ii", "sub", lambda one, other: _whole(one - other))
_simple("v*", "list", lambda *items: list(items))
_simple("v", "first", lambda items: _end(items, 0))
_simple("v", "last", lambda items: _end(items, -1))
_simple("v", "empty", lambda value: not _full(value))
_simple("vvv", "ternary", lambda yes, no, test: yes if _bool(test) else no)
_simple("v*", "coalesce", lambda *values: next((value for value in values if _full(value)), None))


def _whole(value: int) -> int:
    if value.bit_length() > 63:
        raise Unfit("makes too large a number")
    return value


def _end(items: Any, at: int) -> Any:
    if not isinstance(items, list):
        raise Unfit(f"takes a list, not a {kind(items)}")
    return items[at] if items else None


def _full(value: Any) -> bool:
    return not isinstance(value, Struct) and truth(value)


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise Unfit(f"takes a bool where it gets a {kind(value)}")
    return value


@_function("vv*")
def _default(_limit: int, instead: Any, *given: Any) -> Any:
    return given[0] if given and _full(given[0]) else instead


@_function("v*")
def _dict(_limit: int, *items: Any) -> dict[str, Any]:
    keys = [key if isinstance(key, str) else shown(key) for key in items[::2]]
    return dict(zip(keys, [*items[1::2], ""], strict=False))


@_function("vs")
def _get(_limit: int, values: Any, key: str) -> Any:
    return _map(values).get(key, "")


@_function("vs", "hasKey")
def _has_key(_limit: int, values: Any, key: str) -> bool:
    return key in _map(values)


def _map(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unfit(f"takes a map where it gets a {kind(value)}")
    return value
