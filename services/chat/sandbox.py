"""The sandbox in which a model file's own chat template runs: what it may call, and how much of it (row T4).

Jinja's immutable sandbox with only the filters, methods and functions that chat templates use, each within the bounds
of `services.chat.bounds`. Where Jinja is strict and llama.cpp is not, it is llama.cpp's way: an undefined value has
undefined attributes, and adds nothing to a text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from string import Formatter
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import ChainableUndefined, Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from services.chat import bounds

_PUBLIC = re.compile("[^\\0-\\x7f\\ue000-\\uf8ff\\U000f0000-\\U0010ffff]")      # neither ASCII nor private


class Refused(Exception):
    """What `raise_exception` raises."""


def _replace(text: str, old: str, new: str, count: int | None = None) -> str:
    bounds.fits(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    items = list(value)
    if attribute is not None:
        items = [item.get(attribute, "") if isinstance(item, dict) else item[attribute] for item in items]
    return bounds.concat([bounds.text(item) for item in items], str(d))


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(int(width), 64)
    lines = f"{text}\n".splitlines()
    bounds.fits(len(text) + len(margin) * len(lines))
    body = [line if index == 0 or not (line or blank) else margin + line for index, line in enumerate(lines)]
    return (margin if first else "") + "\n".join(body)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
            sort_keys: bool = False) -> str:
    """As transformers do it: not escaped for HTML. Private characters stay as they are, whatever is asked for:
    they are the marks of `services.chat.special`."""
    depth = None if indent is None else min(int(indent), 16)
    marks = separators and (str(separators[0])[:4], str(separators[1])[:4])
    text = json.dumps(value, ensure_ascii=False, indent=depth, separators=marks, sort_keys=sort_keys, default=_null)
    return _PUBLIC.sub(lambda match: json.dumps(match[0])[1:-1], text) if ensure_ascii else text


def _null(value: Any) -> None:
    """An undefined value in JSON, as in llama.cpp."""
    if not isinstance(value, Undefined):
        raise TypeError(f"a {type(value).__name__} has no JSON")


def _format(text: str, *values: Any, **named: Any) -> str:
    """`str.format` with plain fields only (`{}`, `{0}`, `{name}`): it reaches into no object and widens nothing."""
    parts: list[str] = []
    for number, (literal, field, spec, conversion) in enumerate(Formatter().parse(text)):
        parts.append(literal)
        if field is None:
            continue
        if spec or conversion or not (field.isalnum() or not field):
            raise SecurityError(f"the field {{{field[:60]}}} is not plain")
        value = values[int(field or number)] if field.isdigit() or not field else named[field]
        parts.append(bounds.text(value))
    return bounds.concat(parts)


def _sum(value: Iterable[Any], attribute: str | None = None, start: int | float = 0) -> int | float:
    numbers = [item if attribute is None else item[attribute] for item in value]
    if not all(isinstance(number, int | float) for number in (start, *numbers)):
        raise SecurityError("sum adds numbers only")
    return sum(numbers, start)


def _raise_exception(message: object = "") -> NoReturn:
    raise Refused(message)


_FILTERS = ("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last",
            "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr",
            "sort", "title", "trim", "unique", "upper", "wordcount")
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit",
                    "islower", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
                    "removesuffix", "replace", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines",
                    "startswith", "strip", "title", "upper", "format")),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("append", "count", "index", "pop")), tuple: frozenset(("count", "index")),
    int: frozenset(), float: frozenset(), type: frozenset(), type(len): frozenset(),
}


_STRING_METHODS: dict[str, Callable[..., str]] = {
    "replace": _replace, "format": _format, "join": lambda text, items: _join(items, text)}


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; here it is its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))
    concat = staticmethod(bounds.concat)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, cache_size=0, finalize=_finalize,
                         undefined=ChainableUndefined, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self.filters = {name: bounds.checked(self.filters[name]) for name in _FILTERS}
        own: dict[str, Callable[..., Any]] = {"replace": _replace, "join": _join, "indent": _indent, "tojson": _tojson,
                                              "safe": bounds.text, "string": bounds.text, "sum": _sum}
        self.filters |= {name: bounds.checked(function) for name, function in own.items()}
        self.filters |= {"_check": bounds.check, "_result": bounds.result, "_written": bounds.written,
                         "_each": bounds.each}
        kept = {name: self.globals[name] for name in ("range", "namespace", "dict")}
        self.globals = kept | {"raise_exception": _raise_exception}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Puts checks where a template loops, builds or compares without a call: `for`, `a ~ b`, `a == b`, `a[b:]`."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = _filtered(loop.iter, "_each")
        for concat in tree.find_all(nodes.Concat):
            concat.nodes = [_filtered(nodes.List(concat.nodes), "_written")]
        for compare in tree.find_all(nodes.Compare):
            compare.expr = _filtered(compare.expr, "_check")
            for operand in compare.ops:
                operand.expr = _filtered(operand.expr, "_check")
        for item in tree.find_all(nodes.Getitem):
            if isinstance(item.arg, nodes.Slice):
                item.node = _filtered(item.node, "_result")
            else:
                item.arg = _filtered(item.arg, "_check")
        for pair in tree.find_all(nodes.Pair):
            pair.key = _filtered(pair.key, "_check")
        tree.set_environment(self)
        return tree

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` is replaced like others in `call`; `str.format_map` is refused like any that is not listed."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """A list of the template's own may grow and shrink: some queue in one."""
        kind = type(obj)        # asking a namespace by `isinstance` takes long
        if kind is Namespace:
            return not attr.startswith("_")
        allowed = _METHODS.get(kind)
        if allowed is None:
            allowed = next((names for base, names in _METHODS.items() if isinstance(obj, base)), None)
            return super().is_safe_attribute(obj, attr, value) and (allowed is None or attr in allowed)
        return attr in allowed and not (attr in ("append", "pop") and bounds.is_given(obj))

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Arguments and results are checked; methods that can build long texts are ours."""
        subject = getattr(obj, "__self__", None)
        if isinstance(subject, str) and obj.__name__ in _STRING_METHODS:
            named = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
            return bounds.checked(_STRING_METHODS[obj.__name__])(subject, *args, **named)
        return bounds.checked(super().call)(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple) and operator == "+":
            bounds.fits(len(left) + len(right))
        elif operator == "+" and _is_nothing(left) and isinstance(right, str):
            return right            # as in llama.cpp, with which templates are tried
        elif operator == "+" and _is_nothing(right) and isinstance(left, str):
            return left
        elif not (isinstance(left, int | float) and isinstance(right, int | float)):
            _check_mixed(operator, left, right)
        elif operator == "**" and (abs(left) > 1 << 16 or abs(right) > 16):
            raise bounds.Stop("computes too large a number")
        return bounds.result(super().call_binop(context, operator, left, right))


def _is_nothing(value: Any) -> bool:
    return value is None or isinstance(value, Undefined)


def _check_mixed(operator: str, left: Any, right: Any) -> None:
    """Before an operation on values that are not both numbers."""
    if operator == "*" and isinstance(left, int) != isinstance(right, int):
        times, value = (left, right) if isinstance(left, int) else (right, left)
        bounds.fits(len(value) * times)
    elif operator in ("%", "**"):
        raise SecurityError(f"the operator {operator} works on numbers only")


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context        # so that nothing is computed while compiling
def _finalize(context: Context, value: Any) -> Any:
    if isinstance(value, Undefined):
        return value
    return bounds.write(bounds.text(value))
