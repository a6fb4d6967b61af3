"""Action items: data, and lines of them."""

from __future__ import annotations

import json

from services.jobs.actions import SCHEMA, items_of, joined, lines
from services.runner.grammar import grammar_of


def item(task: str, owner: str | None = None, due: str | None = None) -> dict[str, str | None]:
    return {"task": task, "owner": owner, "due": due}


def test_the_schema_can_be_held_to() -> None:
    assert grammar_of(SCHEMA)


def test_what_a_model_writes_is_read_and_put_in_order() -> None:
    told = [item(" Write\n the notes ", "None", "N/A"), item(""), {"task": "Test", "owner": 7}, "?", item("Go", "Anna")]
    assert items_of(json.dumps(told)) == [item("Write the notes"), item("Test"), item("Go", "Anna")]
    assert items_of("[]") == []
    assert items_of('[{"task": "cut') is None and items_of("{}") is None and items_of("") is None


def test_each_task_of_an_owner_counts_once() -> None:
    parts = [[item("Write the notes.", "Anna"), item("Test")], [item("write the notes", "anna", "Friday"),
                                                                item("Write the notes", "Ben")]]
    assert joined(parts) == [item("Write the notes.", "Anna", "Friday"), item("Test"), item("Write the notes", "Ben")]


def test_lines_are_as_skynets() -> None:
    assert lines([item("Write the notes", "Anna", "Friday"), item("Test")]) == "Write the notes [Anna]\nTest"
    assert lines([]) == "No action items"
