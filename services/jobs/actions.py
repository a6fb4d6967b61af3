"""Action items as data, and the lines that skynet's clients read (S1.21)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

NONE = "No action items"
FIELDS = ("task", "owner", "due")
MOST = 100              # of one text that is read at once
SCHEMA: dict[str, Any] = {
    "type": "array", "maxItems": MOST,
    "items": {"type": "object", "additionalProperties": False, "required": list(FIELDS),
              "properties": {"task": {"type": "string", "minLength": 1, "maxLength": 500},
                             "owner": {"type": ["string", "null"], "maxLength": 100},
                             "due": {"type": ["string", "null"], "maxLength": 100}}}}

Item = dict[str, str | None]        # task, owner, due


def items_of(text: str) -> list[Item] | None:
    """What a model wrote under SCHEMA; None where it is nothing of the kind."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, list):
        return None
    items = [{name: _clean(one.get(name)) for name in FIELDS} for one in found if isinstance(one, dict)]
    return [item for item in items if item["task"]]


def joined(parts: Iterable[list[Item]]) -> list[Item]:
    """The items of all parts, each task of an owner once: parts of a text overlap."""
    found: dict[tuple[str, str], Item] = {}
    for item in (item for items in parts for item in items):
        known = found.setdefault(_same(item), item)
        known["due"] = known["due"] or item["due"]
    return [*found.values()]


def lines(items: list[Item]) -> str:
    """`<task> [<owner>]`, one a line; `NONE` without any."""
    return "\n".join(f"{item['task']} [{item['owner']}]" if item["owner"] else str(item["task"])
                     for item in items) or NONE


def _clean(value: object) -> str | None:
    """On one line; a model's way of saying that there is none is None."""
    text = " ".join(value.split()) if isinstance(value, str) else ""
    return None if text.strip(".").lower() in ("", "null", "none", "n/a", "unknown", "-") else text


def _same(item: Item) -> tuple[str, str]:
    """What two ways of writing the same one have in common."""
    return _letters(item["task"]), _letters(item["owner"])


def _letters(text: str | None) -> str:
    return "".join(sign for sign in (text or "").lower() if sign.isalnum())
