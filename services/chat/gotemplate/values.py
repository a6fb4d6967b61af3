"""Values as Go has them: what counts as true, how they are printed (fmt), compared, and written as JSON.

A text template sees strings, booleans, whole numbers, floats, None (nil), lists, dicts (maps) and `Struct`s: nothing
else of Python can be reached.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

MAX_NESTING = 64
ITEM = 16           # characters that an item of a list or map counts for
_HTML = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}
_QUOTED = {"\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v", "\\": "\\\\",
           '"': '\\"'}


class Unfit(Exception):
    """A value of the wrong kind; the message says which was wanted."""


@dataclass(frozen=True)
class Struct:
    """A value with fixed fields: another one is an error, where a map has nil. `json`: field -> its name in JSON;
    one that is not there is as it is. `omitted` ones are left out of JSON when empty."""

    kind: str
    fields: dict[str, Any]
    json: dict[str, str] = field(default_factory=dict)
    omitted: tuple[str, ...] = ()


def kind(value: Any) -> str:
    """The name of the kind of `value`, for messages and comparisons."""
    if isinstance(value, Struct):
        return value.kind
    names = {bool: "bool", int: "int", float: "float", str: "string", list: "list", dict: "map", type(None): "nil"}
    return names[type(value)]


def truth(value: Any) -> bool:
    return True if isinstance(value, Struct) else bool(value)


def printed(value: Any) -> str:
    """As `{{value}}` writes it."""
    return "<no value>" if value is None else shown(value)


def shown(value: Any, depth: int = 0) -> str:
    """As fmt's %v writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return go_float(value)
    if value is None or isinstance(value, int):
        return "<nil>" if value is None else str(value)
    return _deeper(depth, lambda: _shown_collection(value, depth + 1))


def _shown_collection(value: Any, depth: int) -> str:
    if isinstance(value, list):
        return f"[{' '.join(shown(item, depth) for item in value)}]"
    if isinstance(value, Struct):
        return f"{{{' '.join(shown(item, depth) for item in value.fields.values())}}}"
    return f"map[{' '.join(f'{key}:{shown(value[key], depth)}' for key in sorted(value))}]"


def _deeper(depth: int, write: Callable[[], str]) -> str:
    if depth > MAX_NESTING:
        raise Unfit("a value is nested too deeply")
    return write()


def go_float(value: float, smallest: int = -4, largest: int = 6) -> str:
    """The shortest text that means `value`, with an exponent below 10^smallest and from 10^largest on: fmt's, unless
    others are given."""
    if math.isinf(value) or math.isnan(value):
        return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
    sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
    assert isinstance(exponent, int)
    text, power = "".join(map(str, digits)), len(digits) + exponent - 1
    if value and not smallest <= power < largest:
        text = text[0] + ("." + text[1:] if len(text) > 1 else "") + f"e{'-' if power < 0 else '+'}{abs(power):02d}"
    elif power < 0:
        text = "0." + "0" * (-power - 1) + text if value else "0"
    else:
        text = text.ljust(power + 1, "0")
        text = text[:power + 1] + ("." + text[power + 1:] if len(text) > power + 1 else "")
    return ("-" if sign else "") + text


def quoted(text: str) -> str:
    """As strconv.Quote, but for private characters, which stay as they are: contents may be marked with some."""
    return '"' + "".join(_QUOTED.get(char) or (char if char.isprintable() or "\ue000" <= char <= "\uf8ff"
                                               or ord(char) >= 0xF0000 else _escaped(ord(char)))
                         for char in text) + '"'


def _escaped(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def to_json(value: Any, html: bool = True, depth: int = 0) -> str:
    """As encoding/json writes it: keys sorted, fields in their order, and < > & escaped where `html`."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return text.translate(_HTML) if html else text
    if isinstance(value, float):
        if math.isinf(value) or math.isnan(value):
            raise Unfit(f"{go_float(value)} cannot be written as JSON")
        return go_float(value, -6, 21)
    if value is None or isinstance(value, bool | int):
        return json.dumps(value)
    return _deeper(depth, lambda: _collection_json(value, html, depth + 1))


def _collection_json(value: Any, html: bool, depth: int) -> str:
    if isinstance(value, list):
        return f"[{','.join(to_json(item, html, depth) for item in value)}]"
    if isinstance(value, Struct):
        pairs = [(value.json.get(name, name), item) for name, item in value.fields.items()
                 if item or name not in value.omitted]
    else:
        pairs = [(key, value[key]) for key in sorted(value)]
    return "{" + ",".join(f"{to_json(key, html)}:{to_json(item, html, depth)}" for key, item in pairs) + "}"


def equal(one: Any, other: Any) -> bool:
    """Go compares values of one basic kind only; nil equals nothing but nil."""
    if one is None or other is None:
        return one is other
    _comparable(one, other)
    return bool(one == other)


def less(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or one is None:
        raise Unfit(f"a {kind(one)} has no order")
    _comparable(one, other)
    return bool(one < other)


def _comparable(one: Any, other: Any) -> None:
    if isinstance(one, list | dict | Struct):
        raise Unfit(f"a {kind(one)} cannot be compared")
    if kind(one) != kind(other):
        raise Unfit(f"a {kind(one)} cannot be compared with a {kind(other)}")


def size(value: Any) -> int:
    """What `value` takes: the characters of its texts, and ITEM for each item; stops counting where it is too much."""
    total, waiting = 0, [value]
    while waiting and total < 1 << 28:
        item = waiting.pop()
        total += len(item) + ITEM if isinstance(item, str) else ITEM
        if isinstance(item, Struct):
            item = item.fields
        if isinstance(item, dict):
            total += sum(len(key) for key in item)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return total
