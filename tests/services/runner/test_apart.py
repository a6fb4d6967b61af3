"""Parts of a `oneOf` that are told apart: no value fits two of them."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import BadSchema
from services.runner.apart import told_apart
from services.runner.grammar import grammar_of
from services.runner.pushdown import Machine
from tests.services.runner.walk import walks


def tagged(required: bool = True, **tags: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"enum": values} for name, values in tags.items()},
            "required": list(tags) if required else []}


@pytest.mark.parametrize("parts", [
    [{}], [{"type": "integer"}, {"type": "string"}, {"type": "object"}], [tagged(a=["x"]), tagged(a=["y", "z"])],
    [tagged(a=["x"], b=[1]), tagged(a=["x"], b=[2]), tagged(a=["y"])],
    [tagged(a=[1]), tagged(a=["1"]), {"type": "null"}],
    [tagged(a=[True]), tagged(a=[False]), tagged(a=[None])], [{"const": "x"}, {"enum": ["y"]}],
    [{"properties": {"a": {"const": 1}}, "required": ["a"]}, tagged(a=[2])]])
def test_told_apart(parts: list[Any]) -> None:
    assert told_apart(parts)


@pytest.mark.parametrize("parts", [
    [{}, {}], [True, {"type": "null"}], [{"type": "integer"}, {"type": "number"}], [tagged(a=["x"]), tagged(b=["y"])],
    [tagged(a=["x"]), tagged(required=False, a=["y"])], [tagged(a=["x", "y"]), tagged(a=["y"])],
    [tagged(a=[1]), tagged(a=[1.0])], [tagged(a=[[1]]), tagged(a=[[2]])],
    [{"type": ["string", "null"]}, {"type": "null"}],
    [{**tagged(a=["x"]), "type": ["object", "null"]}, {**tagged(a=["y"]), "type": ["object", "null"]}],
    [{"properties": {"a": {}}}, {"type": "string"}], [{"enum": 3}, {"properties": 3, "required": 4}]])
def test_not_told_apart(parts: list[Any]) -> None:
    assert not told_apart(parts)


VALUES = st.lists(st.sampled_from(["x", "y", "z", 1, 1.0, True, None]), min_size=1, max_size=2)
PARTS = st.one_of(st.dictionaries(st.sampled_from(["a", "b"]), VALUES, max_size=2).map(lambda tags: tagged(**tags)),
                  VALUES.map(lambda values: {"enum": values}), st.sampled_from([{"type": "integer"}, {"type": "null"}]))


@settings(deadline=None, max_examples=150)
@given(parts=st.lists(PARTS, min_size=2, max_size=3), seed=st.integers(0, 9))
def test_what_is_taken_fits_one_part_only(parts: list[Any], seed: int) -> None:
    schema = {"oneOf": parts}
    try:
        machine = Machine(grammar_of(schema))
    except BadSchema:
        return
    for text in walks(machine, seed, 8):
        jsonschema.Draft202012Validator(schema).validate(json.loads(text))
