"""JSON Schema → GBNF grammar. What the grammar cannot hold a completion to is refused, never ignored.

llama-cpp-python's converter skips keywords that it does not know and confuses definitions of the same name, so the
schema is first rewritten into the plain forms that it converts faithfully. Nothing is ever fetched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from services.errors import BadSchema
from services.runner.llama import SchemaConverter

MOST_BYTES = 64 * 1024      # of a schema as JSON, and of its grammar
MOST_DEPTH = 64
MOST_REPEATS = 512          # minItems, maxItems, minLength, maxLength, pattern's {n}
MOST_REFS = 256
MOST_OPTIONAL = 128         # properties of one object that may be left out: the grammar grows with their square
MOST_PATTERN = 128          # characters
MOST_WEIGHT, ENDLESS = 4000, 64     # of a pattern's nested repeats

Schema = dict[str, Any]
NOTES = {"title", "description", "default", "examples", "example", "$schema", "$id", "$comment", "deprecated",
         "readOnly", "writeOnly", "$defs", "definitions", "format"}
TYPES = {"object": {"properties", "required", "additionalProperties"},
         "array": {"items", "prefixItems", "minItems", "maxItems"},
         "string": {"pattern", "minLength", "maxLength"},
         "integer": set[str](), "number": set[str](), "boolean": set[str](), "null": set[str]()}
FORMATS = {"uuid", "date", "time", "date-time"}
REF = "parley-ref-"         # name of every definition in the rewritten schema
SAFE_PATTERN = re.compile(r"""(?x) \^ (?: [A-Za-z0-9\ _\-:/,@\#%&=~;!'] | \\[.+*?()\[\]{}|/dw-]
                              | \[ [A-Za-z0-9\ _:,.@+\#-]+ \] | [*+?|()] | \{\d{1,4}(,\d{0,4})?\} )* \$""")
WORD = re.compile(r"(\[(?:\\.|[^\]\\])*\]|\{(?:\d+,)?(\d*)\}|.)")
SETS = {"d": "[0-9]", "w": "[A-Za-z0-9_]"}
# A JSON string's characters: no raw control characters, and no escaped half of a surrogate pair.
CHAR = (r'[^"\\\x7F\x00-\x1F] | "\\" (["\\/bfnrt] | "u" ([0-9a-cA-CefEF] [0-9a-fA-F] | [dD] [0-7]) [0-9a-fA-F] '
        r'[0-9a-fA-F])')


def grammar_of(schema: Schema) -> str:
    """The grammar that lets through exactly, or less than, what `schema` allows. `BadSchema` says what is wrong."""
    try:
        text = json.dumps(schema, allow_nan=False)
    except RecursionError:
        raise _bad("schema", f"is more than {MOST_DEPTH} levels deep") from None
    except (TypeError, ValueError) as error:
        raise _bad("schema", f"is not JSON: {error}") from None
    if len(text) > MOST_BYTES:
        raise _bad("schema", f"is larger than {MOST_BYTES} bytes; make it smaller")
    plain = _Rewriter(json.loads(text)).rewritten()
    converter = _Converter(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    try:
        converter.visit(converter.resolve_refs(plain, ""), "")
    except (AssertionError, ValueError, LookupError, RecursionError) as error:
        raise _bad("schema", f"cannot be turned into a grammar: {error}") from None
    grammar = str(converter.format_grammar())
    if len(grammar) > MOST_BYTES:
        raise _bad("schema", "makes too large a grammar; use fewer alternatives and shorter repeats")
    return grammar


class _Converter(SchemaConverter):
    """The library's converter, with strings that are always valid JSON."""

    def _format_literal(self, literal: str) -> str:
        return '"' + "".join(f"\\x{ord(c):02X}" if ord(c) < 32 else f"\\{c}" if c in '"\\' else c
                             for c in literal) + '"'

    def _generate_constant_rule(self, value: Any) -> str:
        return self._format_literal(json.dumps(value, ensure_ascii=False)) + " space"

    def _add_primitive(self, name: str, rule: Any) -> str:
        if name == "char":
            return str(self._add_rule(name, CHAR))
        return str(super()._add_primitive(name, rule))


class _Rewriter:
    """One schema, rewritten into what the converter gets right."""

    def __init__(self, schema: Schema) -> None:
        self.root = schema
        self.names: dict[str, str] = {}         # $ref as written -> name of the definition
        self.definitions: dict[str, Any] = {}

    def rewritten(self) -> Schema:
        root = self._node(self.root, "schema", 0)
        return {**root, "$defs": self.definitions} if self.definitions else root

    def _node(self, node: Any, where: str, depth: int) -> Schema:
        if depth > MOST_DEPTH:
            raise _bad(where, f"is more than {MOST_DEPTH} levels deep")
        if node is True or (isinstance(node, dict) and not node.keys() - NOTES):
            return {"anyOf": [{"type": name} for name in TYPES if name != "integer"]}
        if not isinstance(node, dict):
            raise _bad(where, f"is {json.dumps(node)[:40]}; a schema is an object")
        kind = next((key for key in ("$ref", "anyOf", "oneOf", "allOf", "const", "enum") if key in node), "type")
        rewrite: Callable[[Schema, str, int], Schema] = {
            "$ref": self._ref, "anyOf": self._any, "oneOf": self._one, "allOf": self._all,
            "const": self._constant, "enum": self._constant, "type": self._typed}[kind]
        return rewrite(node, where, depth)

    def _ref(self, node: Schema, where: str, depth: int) -> Schema:
        ref = node["$ref"]
        _only(node, {"$ref"}, where)
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            raise _bad(where, f"has $ref {json.dumps(ref)[:80]}; only references into the schema itself (#/…) are "
                       "used, nothing is fetched")
        if ref not in self.names:
            if len(self.names) >= MOST_REFS:
                raise _bad(where, f"has more than {MOST_REFS} different $ref")
            self.names[ref] = name = f"{REF}{len(self.names)}-"
            self.definitions[name] = self._node(self._target(ref, where), f"{where}.$ref", depth + 1)
        return {"$ref": f"#/$defs/{self.names[ref]}"}

    def _target(self, ref: str, where: str) -> Any:
        target: Any = self.root
        for step in ref.split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and step.isdigit() and int(step) < len(target):
                target = target[int(step)]
            elif isinstance(target, dict) and step in target:
                target = target[step]
            else:
                raise _bad(where, f"has $ref {ref[:80]}, which is not in the schema")
        return target

    def _any(self, node: Schema, where: str, depth: int) -> Schema:
        _only(node, {"anyOf"}, where)
        return {"anyOf": [self._node(part, f"{where}.anyOf[{i}]", depth + 1)
                          for i, part in enumerate(_listed(node["anyOf"], f"{where}.anyOf"))]}

    def _one(self, node: Schema, where: str, depth: int) -> Schema:
        """`oneOf` demands that no value fits two: taken only where the types already tell them apart."""
        parts = _listed(node["oneOf"], f"{where}.oneOf")
        kinds = [_kind(part) for part in parts]
        if None in kinds or len(set(kinds)) < len(kinds):
            raise _bad(where, "has oneOf with parts that are not told apart by type; use anyOf")
        return self._any({("anyOf" if key == "oneOf" else key): value for key, value in node.items()}, where, depth)

    def _all(self, node: Schema, where: str, depth: int) -> Schema:
        _only(node, {"allOf"}, where)
        parts = _listed(node["allOf"], f"{where}.allOf")
        if len(parts) > 1:
            raise _bad(where, "has allOf with several parts, which is not supported; write one object")
        return self._node(parts[0], f"{where}.allOf[0]", depth + 1)

    def _constant(self, node: Schema, where: str, _depth: int) -> Schema:
        _only(node, {"const", "enum", "type"}, where)
        values = _listed(node["enum"], f"{where}.enum") if "enum" in node else [node["const"]]
        names = _names(node.get("type", list(TYPES)), where)
        kept = [value for value in values if any(_is(value, name) for name in names)
                and ("const" not in node or json.dumps(value) == json.dumps(node["const"]))]
        if not kept:
            raise _bad(where, "allows no value")
        return {"enum": kept}

    def _typed(self, node: Schema, where: str, depth: int) -> Schema:
        names = _names(node["type"] if "type" in node else _guess(node, where), where)
        _only(node, {"type"}.union(*(TYPES[name] for name in names)), where)
        parts = [self._one_type(name, node, where, depth) for name in names]
        return parts[0] if len(parts) == 1 else {"anyOf": parts}

    def _one_type(self, name: str, node: Schema, where: str, depth: int) -> Schema:
        if name == "object":
            return self._object(node, where, depth)
        if name == "array":
            return self._array(node, where, depth)
        if name == "string":
            return _string(node, where)
        return {"type": name}

    def _object(self, node: Schema, where: str, depth: int) -> Schema:
        """With `properties` no others are written: allowed always, and safe where they would clash."""
        properties, required = node.get("properties", {}), node.get("required", [])
        others = node.get("additionalProperties", True)
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise _bad(where, "needs an object as properties and a list as required")
        if missing := [name for name in required if not isinstance(name, str) or name not in properties]:
            raise _bad(where, f"requires {missing[0]!r}, which is not among its properties")
        if len(properties) - len(set(required)) > MOST_OPTIONAL:
            raise _bad(where, f"has more than {MOST_OPTIONAL} properties that are not required")
        if properties:
            parts = {key: self._node(part, f"{where}.{key}", depth + 1) for key, part in properties.items()}
            return {"type": "object", "properties": parts, "required": required, "additionalProperties": False}
        if others is False:
            return {"type": "object", "additionalProperties": False}
        if others is True or others == {}:
            return {"type": "object"}
        values = self._node(others, f"{where}.additionalProperties", depth + 1)
        return {"type": "object", "additionalProperties": values}

    def _array(self, node: Schema, where: str, depth: int) -> Schema:
        if "prefixItems" in node:
            _only(node, {"type", "prefixItems"}, where)
            parts = _listed(node["prefixItems"], f"{where}.prefixItems")
            return {"type": "array", "prefixItems": [self._node(part, f"{where}[{i}]", depth + 1)
                                                     for i, part in enumerate(parts)]}
        least, most = _range(node, "minItems", "maxItems", where)
        items = self._node(node.get("items", True), f"{where}.items", depth + 1)
        return {"type": "array", "items": items, "minItems": least, **({} if most is None else {"maxItems": most})}


def _string(node: Schema, where: str) -> Schema:
    if "pattern" in node:
        _only(node, {"type", "pattern"}, where, notes=NOTES - {"format"})
        return {"type": "string", "pattern": _pattern(node["pattern"], where)}
    if "minLength" in node or "maxLength" in node:
        least, most = _range(node, "minLength", "maxLength", where)
        return {"type": "string", "minLength": least, **({} if most is None else {"maxLength": most})}
    return {"type": "string", "format": node["format"]} if node.get("format") in FORMATS else {"type": "string"}


def _pattern(pattern: Any, where: str) -> str:
    """The pattern in the words that the converter gets right: no escapes outside sets, repeats that cannot explode."""
    if not isinstance(pattern, str) or len(pattern) > MOST_PATTERN or not SAFE_PATTERN.fullmatch(pattern):
        raise _bad(where, "has a pattern that is not supported; use ^…$ with plain characters, sets, groups, repeats")
    plain = re.sub(r"\\(.)", lambda m: SETS.get(m[1], f"[\\{m[1]}]" if m[1] in "[]" else f"[{m[1]}]"), pattern)
    if any(int(number) > MOST_REPEATS for braces in re.findall(r"\{[^}]*\}", plain)
           for number in re.findall(r"\d+", braces)):
        raise _bad(where, f"has a pattern that repeats more than {MOST_REPEATS} times")
    if _weight(plain, where) > MOST_WEIGHT:
        raise _bad(where, "has a pattern with a repeat inside a repeat that could grow without end")
    return plain


def _weight(pattern: str, where: str) -> int:
    """The largest product of repeats inside one another; an endless one counts `ENDLESS`. What may be empty must not be
    repeated: the ways to read it, all of which the grammar follows at once, would grow beyond any bound."""
    groups, starts, last, empty = [1], [0], 1, False
    for found in WORD.finditer(pattern):
        word, most = found.groups()
        if word == "(":
            groups.append(1)
            starts.append(found.start())
        elif word == ")":
            last, start = groups.pop(), starts.pop()
            if not groups:
                break
            empty = _may_be_empty(pattern[start:found.end()], where)
        elif word[0] in "*+{":
            if empty:
                raise _bad(where, "has a pattern that repeats something that may be empty")
            last *= int(most) if most else ENDLESS
            empty = word == "*" or word[:2] == "{0"
        elif word == "?":
            empty = True
        else:
            last, empty = 1, False
        groups[-1] = max(groups[-1], last)
    if len(groups) != 1:
        raise _bad(where, "has a pattern whose parentheses do not match")
    return groups[0]


def _may_be_empty(pattern: str, where: str) -> bool:
    try:
        return re.fullmatch(pattern, "") is not None
    except re.error as error:
        raise _bad(where, f"has a pattern that is no regular expression: {error}") from None


def _range(node: Schema, low: str, high: str, where: str) -> tuple[int, int | None]:
    least, most = node.get(low, 0), node.get(high)
    for name, value in ((low, least), (high, most)):
        if value is not None and not (type(value) is int and 0 <= value <= MOST_REPEATS):
            raise _bad(where, f"has {name} {json.dumps(value)[:40]}; it must be from 0 to {MOST_REPEATS}")
    if most is not None and most < least:
        raise _bad(where, f"has {high} below {low}, so it allows no value")
    return least, most


def _guess(node: Schema, where: str) -> str:
    """The type that a node without one means by its keywords."""
    _only(node, set[str]().union(*TYPES.values()), where)
    return next(name for name, keywords in TYPES.items() if keywords & node.keys())


def _names(value: Any, where: str) -> list[str]:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        raise _bad(where, f"has type {json.dumps(value)[:60]}; the types are {', '.join(TYPES)}")
    return names


def _kind(node: Any) -> str | None:
    """What tells a part of `oneOf` apart: its one type, integers being numbers."""
    name = node.get("type") if isinstance(node, dict) else None
    return {"integer": "number"}.get(name, name) if isinstance(name, str) else None


def _is(value: Any, name: str) -> bool:
    """Whether `value` is of the JSON type `name`."""
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, (int, float)):
        return name == "number" or (name == "integer" and float(value).is_integer())
    return {dict: "object", list: "array", str: "string", type(None): "null"}[type(value)] == name


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise _bad(where, "must be a list that is not empty")
    return value


def _only(node: Schema, allowed: set[str], where: str, notes: set[str] = NOTES) -> None:
    """Refuse keywords that the grammar would not hold the completion to."""
    if extra := sorted(node.keys() - allowed - notes):
        raise _bad(where, f"has {extra[0]!r} here, which is not supported: take it out, the completion would not be "
                   "held to it")


def _bad(where: str, what: str) -> BadSchema:
    short = where if len(where) <= 100 else f"{where[:60]}…{where[-30:]}"
    return BadSchema(f"{short} {what}", param="schema")
