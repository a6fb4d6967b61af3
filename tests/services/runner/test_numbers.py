"""Numbers within bounds: what is written complies, and what complies is let through, up to the bounds."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from typing import Any

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from services.errors import BadSchema
from services.runner.grammar import grammar_of
from services.runner.loose import arguments
from services.runner.numbers import Unheld, span
from services.runner.pushdown import Machine
from tests.services.runner.walk import walks

WHOLES = st.one_of(st.integers(-130, 130), st.integers(-10**22, 10**22),
                   st.builds(lambda power, more: 10**power + more, st.integers(0, 24), st.integers(-2, 2)))
HALVES = st.integers(-40, 40).map(lambda number: number / 4)
DECIMALS = st.one_of(st.integers(-130, 130), st.decimals(-1000, 1000, places=3).map(float),
                     st.sampled_from([0.0, 0.5, 1e-9, -1e-9, 1e9 - 1, 1.25e6, 99.99, -0.1]))


def bounded(numbers: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    keys = st.sampled_from([("minimum",), ("maximum",), ("exclusiveMinimum",), ("exclusiveMaximum",),
                            ("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum"),
                            ("minimum", "exclusiveMaximum"), ("exclusiveMinimum", "maximum"),
                            ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")])
    return keys.flatmap(lambda names: st.fixed_dictionaries(dict.fromkeys(names, numbers)))


def empty(name: str, bounds: dict[str, Any]) -> bool:
    within = span(name, bounds)
    return within.high < within.low


def lets(machine: Machine, text: str) -> bool:
    state = machine.after(machine.start, text.encode())
    return state is not None and state.whole


@settings(deadline=None, max_examples=60)
@given(bounds=bounded(st.one_of(WHOLES, HALVES)), more=st.integers(-10**9, 10**9), seed=st.integers(0, 9))
def test_integers(bounds: dict[str, Any], more: int, seed: int) -> None:
    schema = {"type": "integer", **bounds}
    checker = jsonschema.Draft202012Validator(schema)
    near = {math.floor(bound) + step for bound in bounds.values() for step in (-11, -2, -1, 0, 1, 2, 9, more)}
    if empty("integer", bounds):
        assert not any(map(checker.is_valid, near))
        with pytest.raises(BadSchema, match="no integer"):
            grammar_of(schema)
        return
    machine = Machine(grammar_of(schema))
    for value in near | {-1, 0, 1, 9, 10, 10**15}:
        if not checker.is_valid(value):
            assert not lets(machine, str(value)), value
        elif abs(value) < 10**16 or abs(value) <= max(map(abs, bounds.values())) + 11:
            assert lets(machine, str(value)), value
    assert not lets(machine, "007") and not lets(machine, "1.0") and not lets(machine, "1e1")
    for text in walks(machine, seed, 12):
        assert isinstance(json.loads(text), int)
        checker.validate(json.loads(text))


@settings(deadline=None, max_examples=60)
@given(bounds=bounded(DECIMALS), digits=st.text("0123456789", min_size=1, max_size=4), seed=st.integers(0, 9))
def test_numbers(bounds: dict[str, Any], digits: str, seed: int) -> None:
    schema = {"type": "number", **bounds}
    try:
        none = empty("number", bounds)
    except Unheld as error:     # small and large ones together
        with pytest.raises(BadSchema, match=f"{error.keyword}.*more digits"):
            grammar_of(schema)
        return
    if none:
        with pytest.raises(BadSchema, match="no number"):
            grammar_of(schema)
        return
    machine, checker = Machine(grammar_of(schema)), jsonschema.Draft202012Validator(schema)
    for bound in bounds.values():
        near = Fraction(str(bound))
        for step in (-1, 0, 1):
            text = f"{math.trunc(near) + step}"
            for written in (text, f"{text}.0", f"{text}.{digits}", f"{float(near + Fraction(step, 1000)):.4f}"):
                if not written.startswith("-0"):
                    assert lets(machine, written) == checker.is_valid(json.loads(written)), written
    assert not lets(machine, "1e1") and not lets(machine, "01") and not lets(machine, "1.")
    for text in walks(machine, seed, 24):
        checker.validate(json.loads(text))


@given(bounds=bounded(DECIMALS))
@settings(deadline=None, max_examples=40)
def test_the_numbers_next_to_a_bound_are_told_from_it_as_floats(bounds: dict[str, Any]) -> None:
    try:
        within = span("number", bounds)
    except Unheld:
        assume(False)
    checker = jsonschema.Draft202012Validator({"type": "number", **bounds})
    if within.low <= within.high:
        for units in (within.low, within.high):
            checker.validate(float(Fraction(units, 10**within.places)))


@pytest.mark.parametrize(("schema", "good", "bad"), [
    ({"type": "integer", "minimum": 0, "maximum": 100}, "0 7 10 42 99 100", "-1 101 00 07 1000 1.0 1e1"),
    ({"type": "integer", "exclusiveMinimum": -3, "exclusiveMaximum": 3}, "-2 -1 0 2", "-3 3 -02"),
    ({"type": "integer", "minimum": -2**63, "maximum": 2**63 - 1}, f"{-2**63} {2**63 - 1} 0", f"{-2**63 - 1} {2**63}"),
    ({"type": "integer", "minimum": 1e300, "maximum": 1e301}, "", ""),
    ({"type": "integer", "minimum": -1e300, "maximum": 5}, "5 -9999999999999999", "6"),
    ({"type": "integer", "minimum": 1.5, "exclusiveMaximum": 4.5}, "2 4", "1 5"),
    ({"type": "integer", "exclusiveMinimum": 10**18}, f"{10**18 + 1} {10**19}", f"{10**18} 5"),
    ({"type": "integer", "minimum": 3, "multipleOf": 1}, "3", "2"),
    ({"minimum": 0.5}, "0.5 0.50 1 12.25", "0.4 0.49999 0 -1 .5 00.5"),
    ({"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}, "0.1 0.05 0.99", "0 0.0 1 1.0 1.01"),
    ({"type": "number", "minimum": 0, "maximum": 1}, "0 0.0 0.25 1 1.0 1.000", "-0.1 1.01 2"),
    ({"type": "number", "maximum": -2.5}, "-2.5 -2.51 -3 -1000000", "-2.4 -2 0 3"),
    ({"type": "number", "minimum": -1.5, "maximum": 2.25}, "-1.5 -1 -0.1 0 2 2.25", "-1.6 -2 2.26 3"),
    ({"type": ["number", "null"], "minimum": 1}, "null 1 1.5", "0.9"),
    ({"type": "number", "maximum": 1e300}, "5 -5.5", ""),
], ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "")
def test_bounds(schema: dict[str, Any], good: str, bad: str) -> None:
    if schema.get("minimum") == 1e300:
        with pytest.raises(BadSchema, match=r"has minimum 1e\+300, which has more digits"):
            grammar_of(schema)
        return
    machine = Machine(grammar_of(schema))
    loose = Machine(grammar_of(arguments({"properties": {"x": schema}, "required": ["x"]})))
    for words, expected in ((good, True), (bad, False)):
        for word in words.split():
            assert lets(machine, word) == expected, word
            assert lets(loose, f'{{"x": {word}}}') == expected, word


@pytest.mark.parametrize(("schema", "words"), [
    ({"type": "integer", "minimum": "3"}, 'minimum "3"; it must be a number'),
    ({"type": "integer", "exclusiveMinimum": True, "minimum": 3}, "exclusiveMinimum true; it must be a number"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "minimum and maximum between which there is no integer"),
    ({"type": "integer", "exclusiveMinimum": 1, "maximum": 1.5}, "no integer"),
    ({"type": "number", "exclusiveMinimum": 1, "exclusiveMaximum": 1}, "no number"),
    ({"type": "number", "minimum": 0.1234567890123456}, "minimum .* more digits than are written of a number"),
    ({"type": "number", "maximum": -1e14}, "maximum .* more digits"),
    ({"type": "string", "minimum": 3}, "'minimum' here"), ({"type": "integer", "multipleOf": 2}, "'multipleOf'"),
    ({"type": "number", "multipleOf": 1}, "'multipleOf'"), ({"type": ["number", "integer"], "multipleOf": 1}, "mult")])
def test_bounds_that_cannot_be_held_are_refused(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(BadSchema, match=words):
        grammar_of(schema)


def test_bounds_keep_a_grammar_small() -> None:
    for schema in ({"type": "integer", "minimum": -10**39 - 7, "maximum": 10**39 + 7},
                   {"type": "number", "exclusiveMinimum": -1.5, "exclusiveMaximum": 1.5}):
        machine = Machine(grammar_of(schema))
        assert len(machine._places) < 6000
        state = machine.start
        for letter in b"1" * 12:
            state = machine.after(state, bytes([letter])) or state
            assert len(state.ways) < 16
