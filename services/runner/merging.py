"""Several JSON Schemas that all are to be complied with → one."""

from __future__ import annotations

import json
from typing import Any

from services.errors import BadSchema
from services.runner.grammar import Schema, bad, names_of
from services.runner.numbers import HIGH, LOW

LOWEST, HIGHEST = {"minLength", "minItems"}, {"maxLength", "maxItems"}      # counts, beside the bounds of numbers


class NoValue(BadSchema):
    """Nothing complies: of several parts such a one is left out, the whole is refused."""


def merged(demands: list[Schema], where: str) -> Schema:
    """All `demands` in one. Of two patterns, formats, alternatives or tuples the first counts."""
    whole: Schema = {}
    for demand in demands:
        whole = _both(whole, demand, where) if whole else demand
    return whole


def _both(one: Schema, other: Schema, where: str) -> Schema:
    both = {**other, **one}
    for key in one.keys() & other.keys():
        both[key] = _of_both(key, one[key], other[key], where)
    if "properties" in both:
        both["properties"] = _known(one, other) | _known(other, one)
        for name in one.get("properties", {}).keys() & other.get("properties", {}).keys():
            both["properties"][name] = _all_of(one["properties"][name], other["properties"][name])
    return both


def _of_both(key: str, one: Any, other: Any, where: str) -> Any:
    if key in ("type", "enum"):
        return _common(key, one, other, where)
    if key == "required":
        return [*one, *other]
    if key in ("items", "additionalProperties") and not (isinstance(one, list) or isinstance(other, list)):
        return _all_of(one, other)
    if key == "patternProperties":
        return {**other, **one, **{name: _all_of(one[name], other[name]) for name in one.keys() & other.keys()}}
    if key in LOWEST or key in LOW:
        return max(one, other)
    return min(one, other) if key in HIGHEST or key in HIGH else one


def _common(key: str, one: Any, other: Any, where: str) -> list[Any]:
    if key == "type":
        names, others = names_of(one, where), names_of(other, where)
        common = [name for name in names if name in others or (name == "integer" and "number" in others)]
        common += [name for name in others if name == "integer" and name not in common and "number" in names]
    else:
        known = set(map(json.dumps, other))
        common = [value for value in one if json.dumps(value) in known]
    if not common:
        raise bad(where, "allows no value", NoValue)
    return common


def _known(one: Schema, other: Schema) -> Schema:
    """The properties of `one` with what `other` asks of them where it does not name them."""
    more = True if other.get("patternProperties") else other.get("additionalProperties", True)
    return {name: part if name in other.get("properties", {}) else _all_of(part, more)
            for name, part in one.get("properties", {}).items()}


def _all_of(one: Any, other: Any) -> Any:
    if one is False or other is False:
        return False
    return one if one == other or other is True else other if one is True else {"allOf": [one, other]}
