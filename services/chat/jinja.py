"""A model file's own chat template (Jinja), rendered as transformers and llama.cpp do, without trusting it (row T4).

The template comes from a file that somebody downloaded. It runs in Jinja's immutable sandbox with only the filters,
methods and functions that chat templates use, within the bounds of `services.chat.bounds`, also while it is compiled.
What a client sends reaches a template as the text of messages and as nothing else.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

from services.chat import bounds
from services.errors import Unprocessable

MAX_SOURCE = 256 * 1024         # characters of a template
SPARE_CHARS = 1 << 20           # that a template may write, beside eight times what it was given


class Raised(Unprocessable):
    """The template itself refused the messages, with `raise_exception`."""

    code = "bad_template"


class _Refused(Exception):
    """What `raise_exception` raises."""


@contextmanager
def _bounded(chars: int) -> Iterator[None]:
    """Runs a block under a new budget; whatever goes wrong in it leaves as `Unprocessable` with the reason."""
    try:
        with bounds.running(chars):
            yield
    except _Refused as error:
        raise Raised(f"the model's chat template refuses this conversation: {str(error)[:200]}") from None
    except bounds.Stop as error:
        raise bad_template(str(error)) from None
    except (RecursionError, MemoryError):
        raise bad_template("is nested too deeply") from None
    except Exception as error:
        raise bad_template(f"{type(error).__name__}: {str(error)[:200]}") from None


def bad_template(reason: str) -> Unprocessable:
    return Unprocessable(f"the model's chat template cannot be used: {reason}; give the profile a text template "
                         "(chat_format \"template\")", code="bad_template")


def _replace(text: str, old: str, new: str, count: int | None = None) -> str:
    bounds.fits(len(text) + (text.count(old) if old else len(text) + 1) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    items = list(value)
    if attribute is not None:
        items = [item.get(attribute, "") if isinstance(item, dict) else item[attribute] for item in items]
    return bounds.concat([str(bounds.check(item)) for item in items], str(d))


def _indent(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    margin = width if isinstance(width, str) else " " * min(int(width), 64)
    lines = text.splitlines() or [""]
    bounds.fits(len(text) + len(margin) * len(lines))
    body = [line if index == 0 or not (line or blank) else margin + line for index, line in enumerate(lines)]
    return (margin if first else "") + "\n".join(body)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
            sort_keys: bool = False) -> str:
    """As transformers do it: not escaped for HTML. Always with the characters as they are, whatever is asked for."""
    depth = None if indent is None else min(int(indent), 16)
    marks = separators and (str(separators[0])[:4], str(separators[1])[:4])
    return json.dumps(value, ensure_ascii=False, indent=depth, separators=marks, sort_keys=sort_keys)


def _raise_exception(message: object = "") -> NoReturn:
    raise _Refused(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(str(form)[:100])


# ---------------------------------------------------------------- the sandbox

_FILTERS = ("abs", "capitalize", "count", "d", "default", "dictsort", "first", "float", "int", "items", "last",
            "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "select", "selectattr",
            "sort", "string", "title", "trim", "unique", "upper", "wordcount")
_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(("capitalize", "casefold", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit",
                    "islower", "isspace", "isupper", "join", "lower", "lstrip", "partition", "removeprefix",
                    "removesuffix", "replace", "rfind", "rpartition", "rsplit", "rstrip", "split", "splitlines",
                    "startswith", "strip", "title", "upper")),
    dict: frozenset(("get", "items", "keys", "values")),
    list: frozenset(("count", "index")), tuple: frozenset(("count", "index")),
    int: frozenset(), float: frozenset(), type: frozenset(), type(len): frozenset(),
}


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; here it is its body."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))
    concat = staticmethod(bounds.concat)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, cache_size=0, finalize=_finalize,
                         extensions=[_Generation, "jinja2.ext.loopcontrols"])
        self.filters = {name: bounds.checked(self.filters[name]) for name in _FILTERS}
        own: dict[str, Callable[..., Any]] = {"replace": _replace, "join": _join, "indent": _indent, "tojson": _tojson,
                                              "safe": str}
        self.filters |= {name: bounds.checked(function) for name, function in own.items()}
        self.filters |= {"_check": bounds.check, "_result": bounds.result, "_written": bounds.written}
        kept = {name: self.globals[name] for name in ("range", "namespace", "dict")}
        self.globals = kept | {"raise_exception": _raise_exception, "strftime_now": _strftime_now}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Puts checks where a template builds or compares values without a call: `a ~ b`, `a == b`, `a[b]`, `a[b:]`."""
        tree = super()._parse(source, name, filename)
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
        """`str.format` is refused like any method that is not listed, not made safe."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        allowed = next((names for kind, names in _METHODS.items() if isinstance(obj, kind)), None)
        return super().is_safe_attribute(obj, attr, value) and (allowed is None or attr in allowed)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Arguments and results are checked; methods that can build long texts are ours."""
        subject = getattr(obj, "__self__", None)
        if isinstance(subject, str) and obj.__name__ in ("replace", "join"):
            own = _replace if obj.__name__ == "replace" else lambda text, items: _join(items, text)
            return bounds.checked(own)(subject, *args, **kwargs)
        return bounds.checked(super().call)(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str | list | tuple) and isinstance(right, str | list | tuple) and operator == "+":
            bounds.fits(len(left) + len(right))
        elif not (isinstance(left, int | float) and isinstance(right, int | float)):
            _check_mixed(operator, left, right)
        elif operator == "**" and (abs(left) > 1 << 16 or abs(right) > 16):
            raise bounds.Stop("computes too large a number")
        return bounds.result(super().call_binop(context, operator, left, right))


def _check_mixed(operator: str, left: Any, right: Any) -> None:
    """Before an operation on values that are not both numbers."""
    if operator == "*" and isinstance(left, int) != isinstance(right, int):
        times, value = (left, right) if isinstance(left, int) else (right, left)
        bounds.fits(len(value) * times)
    elif operator in ("%", "**"):
        raise SecurityError(f"the operator {operator} works on numbers only")


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


@jinja2.pass_context        # so that nothing is computed while compiling
def _finalize(context: Context, value: Any) -> Any:
    if isinstance(value, Undefined):
        return value
    return bounds.write(str(bounds.check(value)))


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    if len(source) > MAX_SOURCE:
        raise bad_template(f"has {len(source)} characters; at most {MAX_SOURCE} are accepted")
    with _bounded(SPARE_CHARS):
        return _Sandbox().from_string(source)


def render(source: str, messages: list[dict[str, Any]], *, bos: str = "", eos: str = "",
           tools: list[dict[str, Any]] | None = None) -> str:
    """The prompt of `messages` (`role`, `content`) with the answer's start. Raises `Unprocessable` (`bad_template`):
    `Raised` when the template itself refuses the messages."""
    compiled = _compiled(source)
    with _bounded(SPARE_CHARS + 8 * sum(len(message["content"]) for message in messages)):
        return compiled.render(messages=messages, bos_token=bos, eos_token=eos, add_generation_prompt=True,
                               **({"tools": tools} if tools else {}))
