"""Schemas become grammars that a completion cannot leave; what cannot be held is refused, by name, at once."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.errors import BadSchema
from services.runner.closing import MOST_BYTES
from services.runner.complying import Complying
from services.runner.grammar import grammar_of
from services.runner.model import Model
from services.runner.pushdown import Machine
from services.wire import Sampling
from tests.services.runner.schemas import GOOD, RANDOM
from tests.services.runner.writing import WILD, write_value
from tests.tiny_gguf import write_tiny

ROOM = 900


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf", n_ctx_train=1024)
    model = Model(str(path), n_ctx=1024, n_slots=1, n_threads=1)
    yield model
    model.close()


def complies(text: str, schema: dict[str, Any]) -> bool:
    return not list(jsonschema.Draft202012Validator(schema).iter_errors(json.loads(text)))


@pytest.mark.parametrize("schema", GOOD, ids=lambda schema: json.dumps(schema)[:60])
def test_what_is_written_complies(model: Model, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    for seed in range(4):
        text, end = write_value(model, schema, ROOM, Sampling(temperature=3, top_k=0, top_p=1, seed=seed))
        assert end.finish_reason == "stop" and complies(text, schema)


TAGGED: dict[str, Any] = {"type": "object", "properties": {"kind": {"const": "a"}}, "required": ["kind"]}
REFUSED: dict[str, Any] = {
    "unknown keyword": ({"type": "integer", "multipleOf": 3}, "multipleOf"),
    "not": ({"not": {"type": "string"}}, "not"),
    "wrong type": ({"type": "strin"}, "strin"),
    "remote ref": ({"$ref": "https://example.org/schema.json"}, "nothing is fetched"),
    "file ref": ({"$ref": "other.json#/a"}, "nothing is fetched"),
    "dangling ref": ({"$ref": "#/$defs/none"}, "not in the schema"),
    "ref to itself": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "."),
    "required but unknown": ({"properties": {"a": {"type": "null"}}, "required": ["b"]}, "'b'"),
    "overlapping oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    "oneOf with one tag twice": ({"oneOf": [TAGGED, TAGGED]}, "oneOf"),
    "oneOf with a tag that may be left out": ({"oneOf": [TAGGED, {**TAGGED, "required": []}]}, "oneOf"),
    "oneOf of equal numbers": ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "oneOf"),
    "oneOf round and round": ({"oneOf": [{"$ref": "#/$defs/a"}, {}], "$defs": {"a": {"$ref": "#/$defs/a"}}}, "oneOf"),
    "discriminator alone": ({"discriminator": {"propertyName": "a"}, "type": "object"}, "discriminator"),
    "tuple that goes on": ({"type": "array", "prefixItems": [{}], "items": {"type": "null"}}, "'items' beside"),
    "tuple too short": ({"type": "array", "prefixItems": [{}], "minItems": 2}, "minItems that is not met"),
    "tuple too long": ({"type": "array", "prefixItems": [{}, {}], "maxItems": 1}, "maxItems that is not met"),
    "two allOf": ({"allOf": [{"type": "object"}, {"type": "object"}]}, "allOf"),
    "anyOf beside properties": ({"anyOf": [{"type": "null"}], "properties": {}}, "properties"),
    "nothing fits": ({"type": "integer", "enum": ["a"]}, "no value"),
    "least above most": ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems"),
    "repeats": ({"type": "string", "maxLength": 10**9}, "maxLength"),
    "half a number": ({"type": "string", "maxLength": 1.5}, "maxLength"),
    "open pattern": ({"type": "string", "pattern": "abc"}, "pattern"),
    "look-ahead": ({"type": "string", "pattern": "^(?=a)a$"}, "."),
    "bad pattern": ({"type": "string", "pattern": "^(a$"}, "parenth"),
    "repeat of nothing": ({"type": "string", "pattern": "^*$"}, "."),
    "deep ReDoS": ({"type": "string", "pattern": "^((a*)b?)*$"}, "repeat"),
    "repeat of what may be empty": ({"type": "string", "pattern": "^(a?b?c?d?){1,250}$"}, "empty"),
    "repeat of an option": ({"type": "string", "pattern": "^(a|b?){2}$"}, "empty"),
    "repeat of a repeat": ({"type": "string", "pattern": "^a?{3}$"}, "repeat of a repeat"),
    "nothing to repeat": ({"type": "string", "pattern": "^(+a)$"}, "where it is not supported"),
    "closed twice": ({"type": "string", "pattern": "^(a))$"}, "parenth"),
    "many repeats": ({"type": "string", "pattern": "^a{9999}$"}, "repeats"),
    "ambiguous": ({"type": "string", "pattern": "^([a-z]{1,17}){1,17}b$"}, "repeat inside a repeat"),
    "bomb": ({"type": "string", "pattern": "^((((a{0,512}){0,512}){0,512}){0,512}){0,512}$"}, "repeat"),
    "large enum": ({"enum": ["x" * 1000 + str(n) for n in range(1000)]}, "larger"),
    "too many optional": ({"properties": {f"p{n}": {"type": "null"} for n in range(200)}}, "not required"),
    "required a list": ({"properties": {}, "required": [["a"]]}, "among"),
    "too many parts": ({"anyOf": [{"const": n} for n in range(200)]}, "200|128"),
    "too large": ({"properties": {f"p{n}": {"type": "string", "minLength": 400 + n} for n in range(100)}}, "too large"),
    "unknown format": ({"type": "string", "format": "regex"}, "regex"),
    "format of a number": ({"type": "integer", "format": "int32"}, "format"),
    "format beside pattern": ({"type": "string", "format": "date", "pattern": "^a$"}, "pattern"),
    "pattern beside length": ({"type": "string", "minLength": 1, "pattern": "^a$"}, "minLength"),
    "pattern no string": ({"type": "string", "pattern": 5}, "string"),
    "itself inside itself": ({"properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "inside itself"),
    "itself at its start": ({"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "begins with itself"),
    "not a schema": ({"properties": {"a": 5}}, "object"),
    "infinite": ({"const": float("inf")}, "JSON"),
    "bytes": ({"const": b"x"}, "JSON"),
    "false": ({"items": False}, "object"),
}


def deep(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_held_is_refused(model: Model, name: str) -> None:
    schema, words = REFUSED[name]
    with pytest.raises(BadSchema, match=words):
        Complying(model, WILD, [1], grammar_of(schema), ROOM)


@pytest.mark.parametrize("levels", [65, 1000, 100_000])
def test_deep_schemas_are_refused(levels: int) -> None:
    with pytest.raises(BadSchema, match="levels"):
        grammar_of(deep(levels))
    assert grammar_of(deep(60))


@pytest.mark.parametrize("name", ["string", "space", "root", "char", "a b", "r0", "x\n::= y", "é", "*", "\ud800", "\0"])
def test_property_names_cannot_break_the_grammar(model: Model, name: str) -> None:
    schema = {"type": "object", "properties": {name: {"enum": [1, 2]}, "other": {"type": "boolean"}},
              "required": [name, "other"]}
    text, _ = write_value(model, schema, ROOM)
    assert set(json.loads(text)) == {name, "other"}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=RANDOM, seed=st.integers(0, 99))
def test_any_supported_schema_is_complied_with(model: Model, schema: dict[str, Any], seed: int) -> None:
    text, end = write_value(model, schema, ROOM, Sampling(temperature=3, top_k=0, top_p=1, seed=seed))
    assert end.finish_reason == "stop" and complies(text, schema)


def test_properties_are_written_in_the_order_of_the_schema() -> None:
    names = ["z", "a", "m"]
    machine = Machine(grammar_of({"properties": {name: {"const": 1} for name in names}, "required": ["a", "m"]}))
    assert machine.closing(machine.start) == b'{"a":1,"m":1}'
    state = machine.after(machine.start, b'{"z": 1, "a": 1,')
    assert state and machine.closing(state) == b'"m":1}'


BOMBS: list[dict[str, Any]] = [
    {"type": "string", "pattern": "^(a+)+b$"},
    {"type": "string", "pattern": "^(a|aa|a+)+b$"},
    {"type": "string", "pattern": "^([a-z]{1,16}){1,16}b$"},
    {"type": "string", "pattern": "^" + "(" * 24 + "a" + ")?" * 24 + "b$"},
    {"type": "string", "pattern": "^(.{1,80}b){1,3}.{0,512}$"},
    {"type": "array", "minItems": 500, "items": {"type": "array", "minItems": 500, "items": {"minItems": 500}}},
    {"properties": {f"p{n}": {"type": "string", "maxLength": 400 + n} for n in range(50)}},
    {"properties": {f"p{n}": {} for n in range(128)}},
    {"enum": ["x" * (n % 50) + str(n) for n in range(800)]},
    {"anyOf": [{"anyOf": [{"type": "string", "pattern": f"^a{{{n + m}}}b$"} for n in range(20)]} for m in range(20)]},
]


@pytest.mark.parametrize("schema", BOMBS, ids=lambda schema: json.dumps(schema)[:40])
def test_grammar_bombs_stay_small(schema: dict[str, Any]) -> None:
    """Neither the grammar nor the ways that are followed at once grow beyond their limits, whatever is written."""
    grammar = grammar_of(schema)
    machine = Machine(grammar)
    assert len(grammar.text) < 200_000 and len(machine._places) < 80_000
    state = machine.start
    for letter in b'"' + b"a" * 200:
        state = machine.after(state, bytes([letter])) or state
        assert len(state.ways) <= 512
    assert machine.start.cost > MOST_BYTES or complies(machine.closing(machine.start).decode(), schema)


def test_ten_thousand_schemas_leave_nothing_behind(model: Model) -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = 0
    for n in range(10_000):
        if n == 1000:
            before = resident()
        schema = {"properties": {f"name{n}": {"type": "integer"}, "b": {"enum": [f"x{n}", n]}}, "required": ["b"]}
        Complying(model, WILD, [1], grammar_of(schema), 100).close()
    assert resident() - before < 8 << 20
