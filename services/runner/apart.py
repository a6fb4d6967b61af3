"""Whether the parts of a `oneOf` are told apart: then no value fits two, and `oneOf` is `anyOf`."""

from __future__ import annotations

from itertools import combinations
from typing import Any

Tags = dict[str | None, set[tuple[str, Any]]]


def told_apart(parts: list[Any]) -> bool:
    """By their one type, by values that differ, or by those of a property that both demand. The parts' own `$ref` have
    been followed."""
    known = [(_kind(part), _tags(part)) for part in parts]
    return all((kind and other_kind and kind != other_kind)
               or any(not tags[name] & others[name] for name in tags.keys() & others.keys())
               for (kind, tags), (other_kind, others) in combinations(known, 2))


def _kind(part: Any) -> str | None:
    """The one type, integers being numbers."""
    name = part.get("type") if isinstance(part, dict) else None
    return {"integer": "number"}.get(name, name) if isinstance(name, str) else None


def _tags(part: Any) -> Tags:
    """The few values that each demanded property may have, by its name, and those of the part itself, by None."""
    if not isinstance(part, dict):
        return {}
    tags: Tags = {None: values} if (values := _values(part)) else {}
    properties, required = part.get("properties"), part.get("required")
    if part.get("type", "object") == "object" and isinstance(properties, dict) and isinstance(required, list):
        tags |= {name: values for name, one in properties.items() if name in required and (values := _values(one))}
    return tags


def _values(node: Any) -> set[tuple[str, Any]]:
    """Those of `const` or `enum`, with their types; none where they are not all texts, integers, booleans or null."""
    if not isinstance(node, dict) or not node.keys() & {"const", "enum"}:
        return set()
    values = [node["const"]] if "const" in node else node["enum"]
    plain = isinstance(values, list) and all(value is None or isinstance(value, str | int) for value in values)
    return {(type(value).__name__, value) for value in values} if plain else set()
