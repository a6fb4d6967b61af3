"""A tool's parameters as clients send them → a schema that `grammar_of` takes, for tools that do not ask to be strict.

What no grammar can hold arguments to is dropped: a keyword that only narrows is passed over (`multipleOf`, `not`, an
unanchored `pattern`, that no value may fit two parts of a `oneOf`), a part that says nothing else may be any value.
Arguments comply with all the rest, of which `allOf`, what stands beside a `$ref`, `anyOf` or `oneOf`, and tuples are
written in the words of the grammar. What is no schema is refused as ever.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from services.errors import BadSchema
from services.runner.grammar import MOST_DEPTH, TYPES, Schema, bad, checked, is_of, names_of, target_of
from services.runner.merging import HIGHEST, LOWEST, NoValue, merged
from services.runner.numbers import BOUNDS, Unheld, span
from services.runner.pattern import FORMATS, MOST_REPEATS, Pattern

MOST_NODES = 10_000         # schemas that are read, those behind references each time that they are merged
MOST_MERGED = 512 << 10      # characters of what is merged, as JSON
HELD = {"$ref", "allOf", "anyOf", "oneOf", "const", "enum", "type", "patternProperties", "additionalItems"}.union(
    *TYPES.values())
KINDS: dict[str, tuple[tuple[type, ...], str]] = {     # what the keywords' values are
    **dict.fromkeys(("minimum", "maximum", "multipleOf", "minProperties", "maxProperties", "minContains", "maxContains",
                     *LOWEST, *HIGHEST), ((int, float), "a number")),
    **dict.fromkeys(("exclusiveMinimum", "exclusiveMaximum"), ((int, float, bool), "a number")),
    **dict.fromkeys(("$ref", "pattern", "format"), ((str,), "a string")),
    **dict.fromkeys(("enum", "required", "anyOf", "oneOf", "allOf", "prefixItems"), ((list,), "a list")),
    **dict.fromkeys(("properties", "patternProperties", "dependentRequired", "dependentSchemas", "$defs",
                     "definitions"), ((dict,), "an object")),
    **dict.fromkeys(("not", "if", "then", "else", "contains", "propertyNames", "additionalProperties"),
                    ((dict, bool), "a schema")),
    "items": ((dict, bool, list), "a schema")}


def arguments(schema: Schema) -> Schema:
    """The schema of an object for `grammar_of`, which lets through what `schema` does, or less, but for keywords that
    cannot be held. `BadSchema` says why `schema` is none."""
    return _Loosening(checked(schema)).arguments()


class _Loosening:
    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._names: dict[str, str] = {}        # what is written once, as it was -> its name in `_shared`
        self._shared: Schema = {}
        self._nodes = self._size = 0

    def arguments(self) -> Schema:
        root = self._written([{"type": "object"}, *self._demands(self._schema, "schema", 0)], "schema", 0)
        return {**root, "$defs": self._shared}

    # ------------------------------------------------------------ any schema

    def _node(self, node: Any, where: str, depth: int) -> Schema:
        return self._written([*self._demands(node, where, depth)], where, depth)

    def _written(self, demands: list[Schema], where: str, depth: int) -> Schema:
        """All that is asked for as one schema."""
        if not demands:
            return {}
        if len(demands) == 1 and "$ref" not in demands[0]:
            return self._plain(demands[0], where, depth)
        demands = _unique(demands)
        key = json.dumps(demands)
        self._spend(size=len(key))
        if '"$ref"' not in key:
            return self._plain(merged(demands, where), where, depth)
        if key not in self._names:          # which may come again within itself
            name = self._names[key] = str(len(self._names))
            seen = set[str]()
            parts = _unique([part for one in demands for part in self._demands(one, where, depth, seen)])
            self._shared[name] = self._plain(merged(parts, where), where, depth + 1) if parts else {}
        return {"$ref": f"#/$defs/{self._names[key]}"}

    def _demands(self, node: Any, where: str, depth: int, seen: set[str] | None = None) -> Iterator[Schema]:
        """What `node` asks for, one after the other, without `allOf`; with `seen` what each `$ref` means in its place.
        """
        self._count(node, where, depth)
        if node is True:
            return
        own = {key: value for key, value in _numbered(node).items() if key in HELD - {"$ref", "allOf", "const"}}
        if "const" in node:
            yield {"enum": [node["const"]]}
        if own:
            yield own
        if "$ref" in node:
            target = target_of(self._schema, node["$ref"], where)
            if seen is None:
                yield {"$ref": node["$ref"]}
            elif node["$ref"] not in seen:
                seen.add(node["$ref"])
                yield from self._demands(target, f"{where}.$ref", depth + 1, seen)
        for index, part in enumerate(node.get("allOf", ())):
            yield from self._demands(part, f"{where}.allOf[{index}]", depth + 1, seen)

    def _count(self, node: Any, where: str, depth: int) -> None:
        self._spend(nodes=1)
        if depth > MOST_DEPTH:
            raise bad(where, f"is more than {MOST_DEPTH} levels deep")
        if node is False:
            raise bad(where, "is false, so it allows no value", NoValue)
        if node is not True:
            _check(node, where)

    def _spend(self, nodes: int = 0, size: int = 0) -> None:
        self._nodes += nodes
        self._size += size
        if self._nodes > MOST_NODES or self._size > MOST_MERGED:
            raise bad("schema", "is too large with what its allOf, anyOf and $ref mean; make it smaller")

    def _plain(self, node: Schema, where: str, depth: int) -> Schema:
        """Of a `node` without `$ref`, `allOf` and `const`."""
        kind = next((key for key in ("anyOf", "oneOf") if key in node), None)
        if kind:
            base = {key: value for key, value in node.items() if key not in ("anyOf", "oneOf")}
            return self._any(base, node[kind], f"{where}.{kind}", depth)
        if "enum" in node:
            return _enum(node, where)
        names = names_of(node["type"], where) if "type" in node else _guessed(node)
        parts = [self._one_type(name, node, where, depth) for name in names]
        return {"anyOf": parts} if len(parts) > 1 else parts[0] if parts else {}

    def _any(self, base: Schema, options: list[Any], where: str, depth: int) -> Schema:
        """Each part with what is asked for beside them all."""
        if not options:
            raise bad(where, "must be a list that is not empty")
        parts = []
        for index, part in enumerate(options):
            try:
                at = f"{where}[{index}]"
                demands = self._demands(part, at, depth + 1)
                parts.append(self._written([base, *demands] if base else [*demands], at, depth + 1))
            except NoValue as error:
                failed = error
        if not parts:
            raise failed
        parts = _unique(parts)
        return {"anyOf": parts} if len(parts) > 1 else parts[0]

    # ------------------------------------------------------------ schemas of a type

    def _one_type(self, name: str, node: Schema, where: str, depth: int) -> Schema:
        if name == "object":
            return self._object(node, where, depth)
        if name == "array":
            return self._array(node, where, depth)
        if name == "string":
            return _string(node, where)
        return _number(name, node, where) if TYPES[name] & node.keys() else {"type": name}

    def _object(self, node: Schema, where: str, depth: int) -> Schema:
        required = list(dict.fromkeys(_names_in(node.get("required", []), where)))
        more = _others(node)
        named = {**node.get("properties", {}), **{name: more or True for name in required
                                                  if name not in node.get("properties", {})}}
        properties = {}
        for name, part in named.items():
            try:
                properties[name] = self._node(part, f"{where}.{name}", depth + 1)
            except NoValue:
                if name in required:
                    raise
        if properties:
            return {"type": "object", "properties": properties, "required": required}
        try:
            return {"type": "object", "additionalProperties": self._node(not named and more, where, depth + 1)}
        except NoValue:
            return {"type": "object", "additionalProperties": False}

    def _array(self, node: Schema, where: str, depth: int) -> Schema:
        """Tuples have all their items, and no others."""
        least, most = _range(node, "minItems", "maxItems", where)
        first, items = node.get("prefixItems", []), node.get("items", True)
        if isinstance(items, list):         # as they were written before 2020
            first, items = items, node.get("additionalItems", True)
        if not first:
            try:
                return {"type": "array", "items": self._node(items, f"{where}.items", depth + 1),
                        **_limits(minItems=least, maxItems=most)}
            except NoValue:
                if least:
                    raise
                return {"type": "array", "maxItems": 0}
        parts: list[Schema] = []
        if least <= MOST_REPEATS:
            first = [*first, *[items] * (least - len(first))]
        for index, part in enumerate(first[:most]):
            try:
                parts.append(self._node(part, f"{where}[{index}]", depth + 1))
            except NoValue:
                if index < least:
                    raise
                break
        return {"type": "array", **({"prefixItems": parts} if parts else {"maxItems": 0})}


def _string(node: Schema, where: str) -> Schema:
    if "pattern" in node and _is_held(node["pattern"]):
        return {"type": "string", "pattern": node["pattern"]}
    if node.get("format") in FORMATS:
        return {"type": "string", "format": node["format"]}
    least, most = _range(node, "minLength", "maxLength", where)
    return {"type": "string", **_limits(minLength=least, maxLength=most)}


def _number(name: str, node: Schema, where: str) -> Schema:
    bounds = {key: node[key] for key in BOUNDS if key in node}
    while bounds:
        try:
            within = span(name, bounds)
        except Unheld as error:
            del bounds[error.keyword]
            continue
        if within.high < within.low:
            raise bad(where, f"allows no value: no {name} is within its bounds", NoValue)
        break
    return {"type": name, **bounds}


def _numbered(node: Schema) -> Schema:
    """`node` with bounds that are numbers: until 2016 `exclusiveMinimum` said of `minimum` whether it is exclusive."""
    made = {key: value for key, value in node.items() if key not in BOUNDS or not isinstance(value, bool)}
    for key, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if node.get(key) is True and bound in made:
            made[key] = made.pop(bound)
    return made


def _is_held(pattern: str) -> bool:
    try:
        Pattern(pattern, "").expression()
    except BadSchema:
        return False
    return True


def _enum(node: Schema, where: str) -> Schema:
    names = names_of(node.get("type", list(TYPES)), where)
    values = [value for value in node["enum"] if any(is_of(value, name) for name in names)]
    if not values:
        raise bad(where, "allows no value", NoValue)
    return {"enum": values}


def _others(node: Schema) -> Any:
    """The schema of properties that have no name in `node`."""
    more, patterns = node.get("additionalProperties", True), list(node.get("patternProperties", {}).values())
    if not patterns:
        return more
    options = [*patterns, more] if isinstance(more, dict) else patterns
    return options[0] if len(options) == 1 else {"anyOf": options}


def _guessed(node: Schema) -> list[str]:
    """The type that a node without one means by its keywords; none: any."""
    if "patternProperties" in node:
        return ["object"]
    return [name for name, keywords in TYPES.items() if keywords & node.keys()][:1]


def _range(node: Schema, low: str, high: str, where: str) -> tuple[int, int | None]:
    least, most = int(node.get(low, 0)), int(node[high]) if high in node else None
    if most is not None and most < least:
        raise bad(where, f"has {high} below {low}, so it allows no value", NoValue)
    return least, most


def _limits(**limits: int | None) -> Schema:
    """Those that a grammar holds."""
    return {name: limit for name, limit in limits.items() if limit is not None and limit <= MOST_REPEATS}


def _unique(schemas: list[Schema]) -> list[Schema]:
    return list({json.dumps(schema): schema for schema in schemas}.values())


# ---------------------------------------------------------------- what is no schema

def _check(node: Any, where: str) -> None:
    if not isinstance(node, dict):
        raise bad(where, f"is {json.dumps(node)[:40]}; a schema is an object")
    for key in node.keys() & KINDS.keys():
        value, (kinds, words) = node[key], KINDS[key]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise bad(where, f"has {key} {json.dumps(value)[:40]}; it must be {words}")
    for key in node.keys() & (LOWEST | HIGHEST):
        if node[key] < 0 or node[key] != int(node[key]):
            raise bad(where, f"has {key} {json.dumps(node[key])[:40]}; it must be a whole number from 0 on")
    if node.get("enum") == []:
        raise bad(where, "has an enum without values")
    if "type" in node:
        names_of(node["type"], where)


def _names_in(required: list[Any], where: str) -> list[str]:
    if wrong := [name for name in required if not isinstance(name, str)]:
        raise bad(where, f"has {json.dumps(wrong[0])[:40]} in required; it must be a list of names")
    return required
