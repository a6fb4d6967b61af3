"""A value's budget: whatever is written, its shortest end is always within what is left."""

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runner.closing import MOST_BYTES, MOST_KEPT, Value
from services.runner.grammar import grammar_of
from services.runner.pushdown import MATCH
from tests.services.runner.schemas import RANDOM


def by_threes(data: bytes) -> list[int]:
    """Tokens of up to three bytes."""
    return list(range(0, len(data), 3))


def unwritable(data: bytes) -> list[int] | None:
    return None if b"x" in data else by_threes(data)


def pieces(value: Value, chance: random.Random) -> bytes:
    """A token of one to three bytes that complies."""
    machine, state, piece = value._machine, value.state, b""
    for _ in range(chance.randint(1, 3)):
        if not state.ways:
            break
        kind, table, _ = machine._places[chance.choice(state.ways)[0]]
        assert kind == MATCH
        low, high, _ = chance.choice(table)
        following = machine.after(state, byte := bytes([chance.randint(low, high)]))
        assert following
        state, piece = following, piece + byte
    return piece


@settings(deadline=None, max_examples=80)
@given(schema=RANDOM, seed=st.integers(0, 999), more=st.integers(0, 12))
def test_a_value_can_be_closed_from_start_to_end(schema: dict[str, Any], seed: int, more: int) -> None:
    grammar, chance, text = grammar_of(schema), random.Random(seed), b""
    least = len(Value(grammar, by_threes, 0, True).ending(Value(grammar, by_threes, 0, True).state) or ())
    value = Value(grammar, by_threes, least + more, True)
    while not value.finished:
        assert 0 <= value.slack <= value.left
        state = value.after(piece := pieces(value, chance))
        if not state or not value.fits(state):
            break
        value.take(state, piece)
        text += piece
    ending = value.ending(value.state)
    assert ending is not None and len(ending) <= value.left
    json.loads(text + value._machine.closing(value.state))


def test_a_number_at_the_end_of_its_budget_is_finished() -> None:
    value = Value(grammar_of({"type": "integer"}), by_threes, 2, True)
    for piece in (b"12", b"3"):
        assert not value.finished
        state = value.after(piece)
        assert state and value.fits(state)
        value.take(state, piece)
    assert value.finished and value.state.ways and not value.ending(value.state)
    following = value.after(b"4")
    assert following and not value.fits(following)


def test_a_string_is_finished_by_its_quote() -> None:
    value = Value(grammar_of({"type": "string"}), by_threes, 100, True)
    state = value.after(b'"a"')
    assert state
    value.take(state, b'"a"')
    assert value.finished and value.left == 99 and value.after(b" ") is None and value.after(b"") is None


def test_what_cannot_be_spelled_does_not_fit() -> None:
    value = Value(grammar_of({"enum": ["aaa", "x"]}), unwritable, 4, False)
    assert value.ending(value.state) is None
    opened = value.after(b'"')
    assert opened and not value.fits(opened)
    told = value.after(b'"a')
    assert told and value.fits(told)


def test_an_end_that_is_too_long_is_not_written_out() -> None:
    nested: dict[str, Any] = {"type": "array", "items": {"type": "null"}, "minItems": 500}
    for _ in range(3):
        nested = {"type": "array", "items": nested, "minItems": 500}
    value = Value(grammar_of(nested), pytest.fail, 1000, True)       # type: ignore[arg-type]
    assert value.state.cost > MOST_BYTES and value.ending(value.state) is None
    opened = value.after(b"[")
    assert opened and not value.fits(opened)


def test_endings_kept_are_bounded() -> None:
    value = Value(grammar_of({"type": "string", "maxLength": 500}), by_threes, 5, True)
    for place in range(3 * MOST_KEPT):
        state = value.after(b'"' + b"a" * (place % 500))
        assert state and value.ending(state._replace(number=place)) is not None
        assert len(value._endings) <= MOST_KEPT + 1
