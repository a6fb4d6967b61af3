"""Schemas to try: of every kind that is supported, by hand and at random."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

UNION: dict[str, Any] = {       # as pydantic has it
    "oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
    "discriminator": {"propertyName": "kind", "mapping": {"a": "#/$defs/A", "b": "#/$defs/B"}},
    "$defs": {"A": {"type": "object", "properties": {"kind": {"const": "a", "type": "string", "title": "Kind"},
                                                     "n": {"type": "integer", "exclusiveMinimum": 0}},
                    "required": ["kind", "n"]},
              "B": {"type": "object", "properties": {"kind": {"enum": ["b"], "type": "string"},
                                                     "n": {"type": "number", "maximum": 1}}, "required": ["kind"]}}}

GOOD: list[dict[str, Any]] = [
    {}, {"type": "object"}, {"type": "string"}, {"type": "number"}, {"type": ["integer", "null"]},
    {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}, "b": {"type": "integer"}},
     "required": ["b"], "additionalProperties": True},
    {"type": "object", "properties": {"é\"": {"type": "null"}, "b": {"type": "boolean"}, "c": {"const": 1}}},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"type": "object", "additionalProperties": False},
    {"type": "array", "items": {"enum": [1, "a\\b", 'say "é"\n', None, {"x": [True]}]}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"const": "x"}, {"type": "boolean"}]},
    {"type": "array", "prefixItems": [{"type": "integer", "minimum": 18, "maximum": 120}, {"type": "string"}],
     "minItems": 2, "maxItems": 2, "items": False},
    {"type": "integer", "minimum": -7, "maximum": 1234}, {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": -2.5, "exclusiveMaximum": 12.75}, {"type": "integer", "minimum": 10**18},
    UNION, {"oneOf": [{"const": "x"}, {"enum": ["y", 1]}, {"enum": [True, None]}]},
    {"type": "array", "maxItems": 2}, {"type": "array", "maxItems": 0}, {"type": "array", "maxItems": 1},
    {"type": ["string", "null"], "enum": ["a", "b", None, 3]},
    {"enum": [1, 12, 123, "1", "12", "one", "once", True]},
    {"type": ["string", "integer"], "minLength": 2, "maxLength": 4},
    {"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"x": {"type": "null"}}, "required": ["x"]}]},
    {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
    {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "boolean"}}},
    {"type": "string", "pattern": "^([0-9]{1,3}\\.){3}\\d{1,3}$"},
    {"type": "string", "pattern": "^(a?b){2,9}(c*)?$"},
    {"type": "string", "pattern": "^(cat|dog)-\\w+\\+*$"},
    {"type": "string", "pattern": '^"[^a-z\\d]{2}.\\\\\\t$'},
    {"type": "string", "pattern": "^(?:[a-z]+-)*[a-z]+$"},
    {"type": "string", "format": "uuid"}, {"type": "string", "format": "date", "title": "a note only"},
    {"type": "string", "format": "date-time"}, {"type": "string", "format": "email"},
    # Two definitions of one name in different places.
    {"type": "object", "required": ["p", "q", "r"], "properties": {
        "p": {"$ref": "#/$defs/one/properties/x"}, "q": {"$ref": "#/$defs/two/properties/x"},
        "r": {"$ref": "#/$defs/string"}},
     "$defs": {"one": {"properties": {"x": {"type": "integer"}}}, "two": {"properties": {"x": {"type": "boolean"}}},
               "string": {"type": "null"}}},
    # A tree.
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["v"], "properties": {
        "v": {"type": "boolean"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}}}},
]

_LEAVES = st.sampled_from([
    {}, {"type": "boolean"}, {"type": "null"}, {"type": "integer"}, {"type": "number"}, {"enum": ["a", 1, None]},
    {"type": "integer", "minimum": -12, "maximum": 340}, {"type": "number", "exclusiveMinimum": 0.5, "maximum": 20},
    {"type": "string", "maxLength": 3}, {"type": "string", "minLength": 1, "maxLength": 2}, {"const": {"k": "\t\\"}},
    {"type": "string", "pattern": "^[a-c]{2}$"}, {"type": "string", "format": "time"}, {"type": "string"},
    {"$ref": "#/$defs/shared"}])
_NAMES = st.sampled_from(["a", "b", "ab", "a-b", "item", "value", "€", "b-kv"])


def _inner(schemas: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def an_object(properties: dict[str, Any], optional: int) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": sorted(properties)[optional:]}

    return st.one_of(
        st.builds(an_object, st.dictionaries(_NAMES, schemas, min_size=1, max_size=4), st.integers(0, 4)),
        st.builds(lambda items, least, more: {"type": "array", "items": items, "minItems": least,
                                              "maxItems": least + more}, schemas, st.integers(0, 2), st.integers(0, 2)),
        st.lists(schemas, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        st.lists(schemas, min_size=1, max_size=3).map(lambda parts: {"type": "array", "prefixItems": parts}),
        st.lists(schemas, min_size=1, max_size=3).map(lambda parts: {
            "type": "array", "prefixItems": parts, "minItems": len(parts), "maxItems": len(parts), "items": False}),
        st.lists(schemas, min_size=2, max_size=3).map(lambda parts: {"oneOf": [
            {"type": "object", "properties": {"kind": {"const": f"k{n}"}, "value": part}, "required": ["kind", "value"]}
            for n, part in enumerate(parts)], "discriminator": {"propertyName": "kind"}}))


RANDOM = st.recursive(_LEAVES, _inner, max_leaves=8).map(
    lambda schema: {**schema, "$defs": {"shared": {"type": "object", "properties": {"a": {"type": "null"}}}}})
