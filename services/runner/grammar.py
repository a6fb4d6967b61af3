"""JSON Schema → a grammar. What the grammar cannot hold a completion to is refused, never ignored.

Nothing is ever fetched. The values are written in the order and with the names that the schema gives, with at most
one space after each of `{ [ , :` and before `} ]`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import groupby
from typing import Any

from services.errors import BadSchema
from services.runner.apart import told_apart
from services.runner.gbnf import (
    BASIC,
    CHAR,
    COLON,
    COMMA,
    SPACE,
    Call,
    Either,
    Expression,
    Grammar,
    Literal,
    Repeat,
    Row,
    as_json,
    either,
    maybe,
    row,
    size,
)
from services.runner.numbers import BOUNDS, Unheld, span
from services.runner.pattern import FORMATS, MOST_REPEATS, Pattern

MOST_BYTES = 64 * 1024      # of a schema as JSON
MOST_DEPTH = 64
MOST_REFS = 256
MOST_OPTIONS = 128          # properties of one object that may be left out, parts of one anyOf: all are tried at once
MOST_SIZE = 30_000          # of a grammar: about its letters, rules and repeats together

Schema = dict[str, Any]
NOTES = {"title", "description", "default", "examples", "example", "$schema", "$id", "$comment", "deprecated",
         "readOnly", "writeOnly", "$defs", "definitions"}
TYPES = {"object": {"properties", "required", "additionalProperties"},
         "array": {"items", "prefixItems", "minItems", "maxItems"},
         "string": {"pattern", "minLength", "maxLength", "format"},
         "number": set(BOUNDS), "integer": set(BOUNDS), "boolean": set[str](), "null": set[str]()}


def grammar_of(schema: Schema) -> Grammar:
    """The grammar that lets through exactly, or less than, what `schema` allows. `BadSchema` says what is wrong."""
    return _Reader(checked(schema)).grammar()


def checked(schema: Schema) -> Schema:
    """`schema` as JSON has it. `BadSchema` when it is none, or too large."""
    try:
        text = json.dumps(schema, allow_nan=False)
    except RecursionError:
        raise bad("schema", f"is more than {MOST_DEPTH} levels deep") from None
    except (TypeError, ValueError) as error:
        raise bad("schema", f"is not JSON: {error}") from None
    if len(text) > MOST_BYTES:
        raise bad("schema", f"is larger than {MOST_BYTES} bytes; make it smaller")
    made: Schema = json.loads(text)
    return made


class _Reader:
    """One schema, read into rules. Equal ones are one."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._rules: list[Expression | None] = []       # None: of a definition that is still being read
        self._known: dict[Expression, Call] = {}
        self._refs: dict[str, Call] = {}                # $ref as written
        self._size = 0

    def grammar(self) -> Grammar:
        root = self._node(self._schema, "schema", 0)
        rules = [rule for rule in self._rules if rule is not None]
        assert len(rules) == len(self._rules)
        return Grammar(tuple(rules), root.rule)

    # ------------------------------------------------------------ rules

    def _rule(self, expression: Expression) -> Call:
        known = self._known.get(expression)
        if known is None:
            known = self._known[expression] = self._later()
            self._set(known, expression)
        return known

    def _later(self) -> Call:
        self._rules.append(None)
        return Call(len(self._rules) - 1)

    def _set(self, call: Call, expression: Expression) -> None:
        self._rules[call.rule] = expression
        self._size += size(expression)
        if self._size > MOST_SIZE:
            raise bad("schema", "makes too large a grammar; use fewer alternatives and shorter repeats")

    # ------------------------------------------------------------ any schema

    def _node(self, node: Any, where: str, depth: int) -> Call:
        if depth > MOST_DEPTH:
            raise bad(where, f"is more than {MOST_DEPTH} levels deep")
        if node is True or (isinstance(node, dict) and not node.keys() - NOTES):
            return self._anything()
        if not isinstance(node, dict):
            raise bad(where, f"is {json.dumps(node)[:40]}; a schema is an object")
        kind = next((key for key in ("$ref", "anyOf", "oneOf", "allOf", "const", "enum") if key in node), "type")
        read: Callable[[Schema, str, int], Call] = {
            "$ref": self._ref, "anyOf": self._any, "oneOf": self._one, "allOf": self._all,
            "const": self._constant, "enum": self._constant, "type": self._typed}[kind]
        return read(node, where, depth)

    def _anything(self) -> Call:
        if "" not in self._refs:
            value = self._refs[""] = self._later()
            member = self._rule(row(self._basic("string"), COLON, value))
            self._set(value, Either((self._braces("{", self._list(member, 0, None), "}"),
                                     self._braces("[", self._list(value, 0, None), "]"),
                                     *map(self._basic, ("string", "number", "boolean", "null")))))
        return self._refs[""]

    def _basic(self, name: str) -> Call:
        if name == "string":
            return self._rule(row('"', Repeat(self._rule(CHAR), 0, None), '"'))
        return self._rule(BASIC[name])

    def _ref(self, node: Schema, where: str, depth: int) -> Call:
        ref = node["$ref"]
        _only(node, {"$ref"}, where)
        target = target_of(self._schema, ref, where)
        if ref not in self._refs:
            if len(self._refs) >= MOST_REFS:
                raise bad(where, f"has more than {MOST_REFS} different $ref")
            self._refs[ref] = self._later()
            self._set(self._refs[ref], self._node(target, f"{where}.$ref", depth + 1))
        return self._refs[ref]

    def _any(self, node: Schema, where: str, depth: int) -> Call:
        _only(node, {"anyOf", "discriminator"}, where)
        parts = _listed(node["anyOf"], f"{where}.anyOf")
        if len(parts) > MOST_OPTIONS:
            raise bad(where, f"has anyOf of more than {MOST_OPTIONS} parts")
        return self._rule(Either(tuple([self._node(part, f"{where}.anyOf[{i}]", depth + 1)
                                        for i, part in enumerate(parts)])))

    def _one(self, node: Schema, where: str, depth: int) -> Call:
        """`oneOf` demands that no value fits two: taken only where something already tells them apart."""
        parts = _listed(node["oneOf"], f"{where}.oneOf")
        if len(parts) <= MOST_OPTIONS and not told_apart([self._meant(part, where) for part in parts]):
            raise bad(where, "has oneOf with parts that are not told apart by type, nor by a required property with "
                      "different const or enum; use anyOf")
        return self._any({("anyOf" if key == "oneOf" else key): value for key, value in node.items()}, where, depth)

    def _meant(self, node: Any, where: str) -> Any:
        """What a `$ref` leads to, unless that goes on and on."""
        for _ in range(MOST_DEPTH):
            if not isinstance(node, dict) or "$ref" not in node:
                break
            node = target_of(self._schema, node["$ref"], where)
        return node

    def _all(self, node: Schema, where: str, depth: int) -> Call:
        _only(node, {"allOf"}, where)
        parts = _listed(node["allOf"], f"{where}.allOf")
        if len(parts) > 1:
            raise bad(where, "has allOf with several parts, which is not supported; write one object")
        return self._node(parts[0], f"{where}.allOf[0]", depth + 1)

    def _constant(self, node: Schema, where: str, _depth: int) -> Call:
        _only(node, {"const", "enum", "type"}, where)
        values = _listed(node["enum"], f"{where}.enum") if "enum" in node else [node["const"]]
        names = names_of(node.get("type", list(TYPES)), where)
        kept = [value for value in values if any(is_of(value, name) for name in names)
                and ("const" not in node or json.dumps(value) == json.dumps(node["const"]))]
        if not kept:
            raise bad(where, "allows no value")
        return self._rule(_words(sorted(set(map(as_json, kept)))))

    # ------------------------------------------------------------ schemas of a type

    def _typed(self, node: Schema, where: str, depth: int) -> Call:
        names = names_of(node["type"] if "type" in node else _guess(node, where), where)
        if "integer" in names and "number" not in names and node.get("multipleOf") == 1:
            node = {key: value for key, value in node.items() if key != "multipleOf"}
        _only(node, {"type"}.union(*(TYPES[name] for name in names)), where)
        parts = [self._one_type(name, node, where, depth) for name in names]
        return parts[0] if len(parts) == 1 else self._rule(Either(tuple(parts)))

    def _one_type(self, name: str, node: Schema, where: str, depth: int) -> Call:
        read = {"object": self._object, "array": self._array, "string": self._string}.get(name)
        if read:
            return read(node, where, depth)
        return self._number(name, node, where) if TYPES[name] & node.keys() else self._basic(name)

    def _number(self, name: str, node: Schema, where: str) -> Call:
        bounds = {key: node[key] for key in BOUNDS if key in node}
        if wrong := [key for key, value in bounds.items() if not is_of(value, "number")]:
            raise bad(where, f"has {wrong[0]} {json.dumps(bounds[wrong[0]])[:40]}; it must be a number")
        try:
            within = span(name, bounds)
        except Unheld as error:
            raise bad(where, f"has {error.keyword} {json.dumps(bounds[error.keyword])[:40]}, which has more digits "
                      f"than are written of a {name} with bounds; round it") from None
        if within.high < within.low:
            raise bad(where, f"has {' and '.join(bounds)} between which there is no {name}, so it allows no value")
        return self._rule(within.expression())

    def _object(self, node: Schema, where: str, depth: int) -> Call:
        """With `properties` no others are written: allowed always, and safe where they would clash."""
        properties, required = node.get("properties", {}), node.get("required", [])
        more = node.get("additionalProperties", True)
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise bad(where, "needs an object as properties and a list as required")
        if missing := [name for name in required if not isinstance(name, str) or name not in properties]:
            raise bad(where, f"requires {missing[0]!r}, which is not among its properties")
        if len(properties) - len(set(required)) > MOST_OPTIONS:
            raise bad(where, f"has more than {MOST_OPTIONS} properties that are not required")
        if properties:
            members = [(row(as_json(key), COLON, self._node(part, f"{where}.{key}", depth + 1)), key in required)
                       for key, part in properties.items()]
            inner = self._members(members)
            return self._braces("{", inner if required else maybe(inner), "}")
        if more is False:
            return self._rule(Literal("{}"))
        value = self._node(more, f"{where}.additionalProperties", depth + 1)
        return self._braces("{", self._list(row(self._basic("string"), COLON, value), 0, None), "}")

    def _members(self, members: list[tuple[Row, bool]]) -> Call:
        """At least one of the members, in their order; whether one is required is told with it."""
        tail = head = self._rule(Row(()))       # what follows when something, when nothing, is written already
        for i, (pair, required) in enumerate(reversed(members)):
            member = self._rule(pair)
            first, more = row(member, tail), row(COMMA, member, tail)
            head = self._rule(first if required or not i else either(first, head))
            tail = self._rule(more if required else either(more, tail))
        return head

    def _array(self, node: Schema, where: str, depth: int) -> Call:
        if "prefixItems" in node:
            return self._tuple(node, where, depth)
        least, most = _range(node, "minItems", "maxItems", where)
        item = self._node(node.get("items", True), f"{where}.items", depth + 1)
        return self._rule(Literal("[]")) if most == 0 else self._braces("[", self._list(item, least, most), "]")

    def _tuple(self, node: Schema, where: str, depth: int) -> Call:
        """All the items that it names, and no others."""
        items = _listed(node["prefixItems"], f"{where}.prefixItems")
        if node.get("items", False) is not False:
            raise bad(where, "has 'items' beside prefixItems, which is not supported but for false; no more are "
                      "written")
        least, most = _range(node, "minItems", "maxItems", where)
        if least > len(items) or (most is not None and most < len(items)):
            raise bad(where, f"has {'minItems' if least > len(items) else 'maxItems'} that is not met by its "
                      f"{len(items)} prefixItems, all of which are written")
        parts = [self._node(part, f"{where}[{i}]", depth + 1) for i, part in enumerate(items)]
        return self._braces("[", row(parts[0], *(row(COMMA, part) for part in parts[1:])), "]")

    def _list(self, item: Expression, least: int, most: int | None) -> Expression:
        more = self._rule(row(COMMA, item))
        some = row(item, Repeat(more, max(least - 1, 0), None if most is None else most - 1))
        return some if least else maybe(some)

    def _braces(self, left: str, inner: Expression, right: str) -> Call:
        """`inner`, when it may be left out, takes the space behind it along: no blank can be read in two ways."""
        if isinstance(inner, Repeat):
            return self._rule(row(left, SPACE, maybe(inner.part, SPACE), right))
        return self._rule(row(left, SPACE, inner, SPACE, right))

    def _string(self, node: Schema, where: str, _depth: int) -> Call:
        asked = sorted(node.keys() & {"pattern", "format"})
        if asked:
            _only(node, {"type", asked[0]} | TYPES["object"] | TYPES["array"], where)
            pattern = _pattern_of(node, asked[0], where)
            return self._rule(row('"', Pattern(pattern, where).expression(), '"'))
        least, most = _range(node, "minLength", "maxLength", where)
        return self._rule(row('"', Repeat(self._rule(CHAR), least, most), '"'))


def target_of(schema: Schema, ref: Any, where: str) -> Any:
    """What the $ref `ref` means in `schema`."""
    if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
        raise bad(where, f"has $ref {json.dumps(ref)[:80]}; only references into the schema itself (#/…) are used, "
                  "nothing is fetched")
    target: Any = schema
    for step in ref.split("/")[1:]:
        step = step.replace("~1", "/").replace("~0", "~")
        if isinstance(target, list) and step.isdigit() and int(step) < len(target):
            target = target[int(step)]
        elif isinstance(target, dict) and step in target:
            target = target[step]
        else:
            raise bad(where, f"has $ref {ref[:80]}, which is not in the schema")
    return target


def _words(words: list[str], depth: int = 0) -> Expression:
    """One of the words, which are sorted and differ. What they begin with alike is read once."""
    if len(words) == 1 or depth > MOST_DEPTH:
        return either(*words) if len(words) > 1 else Literal(words[0])
    start = next(i for i in range(len(words[-1])) if words[0][i:i + 1] != words[-1][i])
    parts = [_words([word[start:] for word in group], depth + 1)
             for _, group in groupby(words, key=lambda word: word[start:start + 1])]
    return row(words[0][:start], Either(tuple(parts)))


def _pattern_of(node: Schema, keyword: str, where: str) -> str:
    value = node[keyword]
    if keyword == "format":
        if value not in (known := list(FORMATS)):
            raise bad(where, f"has format {json.dumps(value)[:40]}, which is not supported: take it out, the "
                       f"completion would not be held to it. Supported are {', '.join(known)}")
        return FORMATS[value]
    if not isinstance(value, str):
        raise bad(where, f"has pattern {json.dumps(value)[:40]}; it must be a string")
    return value


def _range(node: Schema, low: str, high: str, where: str) -> tuple[int, int | None]:
    least, most = node.get(low, 0), node.get(high)
    for name, value in ((low, least), (high, most)):
        if value is not None and not (type(value) is int and 0 <= value <= MOST_REPEATS):
            raise bad(where, f"has {name} {json.dumps(value)[:40]}; it must be from 0 to {MOST_REPEATS}")
    if most is not None and most < least:
        raise bad(where, f"has {high} below {low}, so it allows no value")
    return least, most


def _guess(node: Schema, where: str) -> str:
    """The type that a node without one means by its keywords."""
    _only(node, set[str]().union(*TYPES.values()), where)
    return next(name for name, keywords in TYPES.items() if keywords & node.keys())


def names_of(value: Any, where: str) -> list[str]:
    """The types that a schema's `type` names."""
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        raise bad(where, f"has type {json.dumps(value)[:60]}; the types are {', '.join(TYPES)}")
    return names


def is_of(value: Any, name: str) -> bool:
    """Whether `value` is of the JSON type `name`."""
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, (int, float)):
        return name == "number" or (name == "integer" and float(value).is_integer())
    return {dict: "object", list: "array", str: "string", type(None): "null"}[type(value)] == name


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise bad(where, "must be a list that is not empty")
    return value


def _only(node: Schema, allowed: set[str], where: str) -> None:
    """Refuse keywords that the grammar would not hold the completion to."""
    if extra := sorted(node.keys() - allowed - NOTES):
        raise bad(where, f"has {extra[0]!r} here, which is not supported: take it out, the completion would not be "
                   "held to it")


def bad(where: str, what: str, kind: type[BadSchema] = BadSchema) -> BadSchema:
    """The error for the schema at `where`: what is wrong with it."""
    short = where if len(where) <= 100 else f"{where[:60]}…{where[-30:]}"
    return kind(f"{short} {what}", param="schema")
