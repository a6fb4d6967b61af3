"""Tools that are not strict: no keyword fails a request, and arguments comply with all that can be held."""

import copy
import json
import random
import time
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.chat import tools
from services.chat.messages import Tool, Toolbox
from services.errors import BadSchema
from services.runner.grammar import grammar_of
from services.runner.loose import arguments
from services.runner.model import Model
from services.runner.pushdown import Machine
from services.wire import Sampling
from tests.services.runner.schemas import RANDOM, UNION
from tests.services.runner.test_calling import answer, check, said
from tests.services.runner.walk import walks
from tests.tiny_gguf import write_tiny

SPRINKLED: list[dict[str, Any]] = [
    {"minimum": 3, "maximum": 1e300, "exclusiveMinimum": True, "multipleOf": 0.5}, {"not": {"const": 1}},
    {"minProperties": 2, "maxProperties": 9, "propertyNames": {"pattern": "x"}}, {"uniqueItems": True},
    {"contains": {"type": "integer"}, "minContains": 2}, {"if": {"type": "object"}, "then": {"required": ["zz"]}},
    {"dependentRequired": {"a": ["b"]}, "dependentSchemas": {"a": {}}}, {"unevaluatedProperties": False},
    {"nullable": True, "discriminator": {"propertyName": "kind"}, "x-vendor": [1]}, {"format": "int64"},
    {"title": "T", "default": None, "examples": [1], "$schema": "http://json-schema.org/draft-07/schema#"},
    {"maxLength": 5000}, {"maxItems": 100_000}, {"contentEncoding": "base64", "deprecated": True}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(str(write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")), n_ctx=512, n_slots=1, n_threads=1)
    yield model
    model.close()


def sprinkled(schema: Any, chance: random.Random) -> Any:
    """`schema` with keywords in it that no grammar holds, and that allow no more."""
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs"):
            made[key] = some(value, chance)
        elif key == "oneOf":
            made[key] = [sprinkled(one, chance) for one in value]
        elif key in ("anyOf", "prefixItems"):
            made[chance.choice([key, "oneOf"]) if key == "anyOf" else key] = [sprinkled(one, chance) for one in value]
        else:
            made[key] = sprinkled(value, chance) if key == "items" else value
    for more in chance.sample(SPRINKLED, chance.choice([0, 1, 3])):
        made = {**copy.deepcopy(more), **made}
    if set(made) <= {"pattern", "type", "minLength"} and "pattern" not in made:
        made["pattern"] = "(?=look)ahead"
    return {"allOf": [made], "description": "one"} if chance.random() < 0.1 else made


def some(schemas: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    return {name: sprinkled(schema, chance) for name, schema in schemas.items()}


@settings(deadline=None, max_examples=60)
@given(schema=RANDOM, seed=st.integers(0, 999))
def test_no_keyword_is_refused_and_all_that_can_be_is_held(schema: dict[str, Any], seed: int) -> None:
    chance = random.Random(seed)
    shared = schema.pop("$defs")
    given = {"properties": {"x": sprinkled(schema, chance)}, "required": ["x"], "$defs": some(shared, chance)}
    checker = jsonschema.Draft202012Validator({"type": "object", "properties": {"x": schema}, "required": ["x"],
                                               "$defs": shared})
    for text in walks(Machine(grammar_of(arguments(given))), seed, 12):
        checker.validate(json.loads(text))


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=RANDOM, seed=st.integers(0, 99))
def test_a_model_calls_loose_tools(model: Model, schema: dict[str, Any], seed: int) -> None:
    shared, chance = schema.pop("$defs"), random.Random(seed)
    loose = {"type": "object", "required": ["x"], "properties": {"x": sprinkled(schema, chance)},
             "$defs": some(shared, chance)}
    held = {"type": "object", "required": ["x"], "properties": {"x": schema}, "$defs": shared}
    calls = tools.HERMES.calls(Toolbox((Tool("f", "", loose),), "required", parallel=False))
    text, done = answer(model, calls, 300, Sampling(temperature=2, top_k=0, top_p=1, seed=seed))
    reader = said(tools.HERMES, text)
    assert len(reader.calls) == 1 and done.finish_reason == "stop"
    check(reader, (Tool("f", "", held),))


def lets(schema: dict[str, Any], value: Any) -> bool:
    """Whether a tool with the one parameter x of `schema` can be called with that value."""
    given = {"properties": {"x": {key: part for key, part in schema.items() if key != "$defs"}}, "required": ["x"],
             "$defs": schema.get("$defs", {})}
    machine = Machine(grammar_of(arguments(given)))
    state = machine.after(machine.start, json.dumps({"x": value}).encode())
    return state is not None and state.whole


BASE = {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}
NAMED = {"properties": {"name": {"type": "string"}}}
KINDS = {"properties": {"kind": {"type": "string"}}, "required": ["kind"], "oneOf": [
    {"properties": {"kind": {"const": "a"}, "x": {"type": "integer"}}},
    {"properties": {"kind": {"const": "b"}, "y": {"minimum": 0}}, "required": ["y"]}]}
TREE = {"$ref": "#/$defs/node", "$defs": {"base": {"properties": {"v": {"type": "boolean"}}, "required": ["v"]},
                                          "node": {"allOf": [{"$ref": "#/$defs/base"}, {"properties": {
                                              "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}}}]}}}


@pytest.mark.parametrize(("schema", "good", "bad"), [
    ({"type": "integer", "minimum": 0, "multipleOf": 5}, [0, 7], [-1, "a", 1.5]),
    ({"type": "string", "pattern": "[a-z]"}, ["", "é"], [1]), ({"type": "string", "format": "ipv6"}, ["x"], [None]),
    ({"type": "string", "maxLength": 4096, "minLength": 2}, ["ab", "x" * 600], ["a"]),
    ({"type": "string", "pattern": "^[ab]{2}$", "format": "email", "maxLength": 9}, ["ab"], ["abc"]),
    ({"type": "string", "format": "date", "minLength": 1}, ["2024-01-31"], ["today"]),
    ({"type": ["string", "null"], "minLength": 1}, ["a", None], ["", 1]),
    ({"minimum": 3}, [3, 4.5], [1, "a"]),
    ({"minimum": 3, "exclusiveMinimum": True, "exclusiveMaximum": False, "maximum": 5}, [3.1, 5], [3, 5.1]),
    ({"type": "integer", "minimum": 1e300, "maximum": 9}, [9, -5], [10]), ({"exclusiveMinimum": True}, ["a", 1], []),
    ({"type": "integer", "minimum": 3, "allOf": [{"minimum": 5, "maximum": 9}, {"maximum": 7}]}, [5, 7], [4, 8]),
    ({"anyOf": [{"type": "integer", "minimum": 3, "maximum": 2}, {"type": "null"}]}, [None], [2, 3]),
    ({"not": {"type": "null"}}, [1, []], []),
    ({"type": "string", "enum": ["a", "b"], "default": "a", "minLength": 1}, ["a", "b"], ["c"]),
    ({"const": 3, "minimum": 1}, [3], [4]), ({"enum": [1, 2], "const": 2}, [2], [1]),
    ({"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 3}, {"type": "null"}]}, [1, None], ["a"]),
    (UNION, [{"kind": "a", "n": 1}, {"kind": "b"}], [{"kind": "a"}, {"kind": "c"}, {"kind": "a", "n": 0}]),
    ({"anyOf": [{"type": "string"}, False], "type": "string"}, ["a"], [1]),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 1}, [[1, 1]], [[], ["a"]]),
    ({"type": "array", "items": [{"type": "integer"}, {"type": "null"}], "additionalItems": False}, [[1, None]], [[1]]),
    ({"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "null"}, "minItems": 3, "maxItems": 3},
     [[1, None, None]], [[1], [1, None]]),
    ({"type": "array", "prefixItems": [{}, {}], "items": False, "maxItems": 1}, [[1]], [[1, 2]]),
    ({"type": "array", "prefixItems": [{"const": 1}, False]}, [[1]], [[1, 2]]),
    ({"type": "array", "items": False}, [[]], [[1]]), ({"type": "array", "prefixItems": [False]}, [[]], [[1]]),
    ({"type": "object", "patternProperties": {"^a": {"type": "integer"}}, "additionalProperties": False},
     [{"a1": 1}, {}], [{"a1": "x"}]),
    ({"patternProperties": {"^a": {"type": "integer"}, "^b": {"type": "null"}}}, [{"a": 1, "b": None}], [{"a": "x"}]),
    ({"type": "object", "minProperties": 1, "propertyNames": {"pattern": "^a"}}, [{"b": 1}, {}], [1]),
    ({"type": "object", "required": ["a"]}, [{"a": [1]}], [{}, {"b": 1}]),
    ({"type": "object", "required": ["a"], "additionalProperties": {"type": "null"}}, [{"a": None}], [{"a": 1}]),
    ({"type": "object", "properties": {"a": False}}, [{}], [{"a": 1}]),
    ({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a", "a"], "if": {}}, [{"a": None}], [{}]),
    ({"allOf": [BASE, NAMED]}, [{"id": 1}, {"id": 1, "name": "n"}], [{"name": "n"}, {"id": "x"}]),
    ({"allOf": [BASE, {"properties": {"id": {"enum": [1, "a"]}}}]}, [{"id": 1}], [{"id": 2}, {"id": "a"}]),
    ({"allOf": [{"type": "number"}, {"type": ["integer", "string"]}, {"maximum": 3}]}, [3], [4, 1.5, "a"]),
    ({"allOf": [{"minLength": 2, "maxLength": 3}, {"minLength": 1, "maxLength": 2, "type": "string"}]}, ["ab"], ["a"]),
    ({"allOf": [{"enum": [1, 2]}, {"enum": [2, 3]}]}, [2], [1, 3]), ({"allOf": [True, {}]}, [1, "a"], []),
    ({"allOf": [{"items": {"type": "number"}}, {"items": {"type": "integer"}}]}, [[1]], [[1.5]]),
    ({"allOf": [{"items": [{"type": "null"}]}, {"items": {"type": "integer"}}]}, [[None]], [[1]]),
    ({"allOf": [{**BASE, "additionalProperties": False}, NAMED]}, [{"id": 1}], [{"id": 1, "name": "n"}]),
    ({**BASE, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, [{"id": 1, "a": 1}], [{"id": 1}]),
    (KINDS, [{"kind": "a", "x": 1}, {"kind": "b", "y": 1}], [{"kind": "b"}, {"kind": "c"}]),
    ({"$ref": "#/$defs/a", "minimum": 3, "$defs": {"a": {"type": "integer"}}}, [3], [1, "a"]),
    ({"$ref": "#/$defs/a", "required": ["b"], "$defs": {"a": {"type": "object"}}}, [{"b": 1}], [{}]),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, [1], []),
    (TREE, [{"v": True, "kids": [{"v": False}]}], [{"v": True, "kids": [{}]}, {"kids": []}]),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"properties": {"a": {"$ref": "#/$defs/a", "required": ["b"]}}}}},
     [{"a": {"a": {"a": {"b": 1}, "b": 1}, "b": 1}}, {}], [{"a": {}}])],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "")
def test_what_is_held(schema: dict[str, Any], good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert lets(schema, value), value
    for value in bad:
        assert not lets(schema, value), value


@pytest.mark.parametrize(("schema", "words"), [
    ([], "schema is an object"), ("x", "schema is an object"), ({"type": "text"}, "the types are"),
    ({"minimum": "3"}, "minimum \"3\"; it must be a number"), ({"exclusiveMinimum": []}, "must be a number"),
    ({"type": "integer", "minimum": 3, "maximum": 2}, "no integer is within its bounds"),
    ({"maxLength": -1}, "whole number"),
    ({"maxLength": True}, "must be a number"), ({"minItems": 1.5}, "whole number"), ({"pattern": 3}, "a string"),
    ({"required": True}, "must be a list"), ({"required": [1]}, "list of names"), ({"enum": []}, "without values"),
    ({"properties": []}, "must be an object"), ({"anyOf": []}, "not empty"), ({"allOf": {}}, "must be a list"),
    ({"not": 3}, "must be a schema"), ({"items": "x"}, "must be a schema"), ({"format": []}, "a string"),
    ({"$ref": "http://x/y"}, "nothing is fetched"), ({"$ref": "#/$defs/none"}, "not in the schema"),
    ({"$ref": 3}, "a string"), ({"properties": {"a": {"oneOf": [7]}}}, r"parameters.x.a.oneOf\[0\] is 7"),
    ({"enum": [1], "type": "string"}, "allows no value"), ({"minItems": 3, "maxItems": 2}, "allows no value"),
    ({"allOf": [{"type": "string"}, {"type": "null"}]}, "allows no value"), (False, "allows no value"),
    ({"properties": {"a": False}, "required": ["a"]}, "x.a is false"), ({"anyOf": [False]}, "is false"),
    ({"items": False, "minItems": 1}, "is false"), ({"prefixItems": [{}, False], "minItems": 2}, "is false"),
    ({"description": "x" * 70_000}, "larger than")])
def test_what_is_no_schema_is_refused(model: Model, schema: Any, words: str) -> None:
    given = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    with pytest.raises(BadSchema, match="the tool 'f': .*" + words) as refused:
        answer(model, tools.HERMES.calls(Toolbox((Tool("f", "", given),))))
    assert refused.value.param == "tools"


def test_deep_and_growing_schemas_are_refused_soon() -> None:
    deep: dict[str, Any] = {}
    for _ in range(80):
        deep = {"allOf": [{"minimum": 1}, {"properties": {"a": deep}}]}
    doubling: dict[str, Any] = {"type": "object"}
    for level in range(20):
        doubling = {"properties": {f"p{level}": doubling}, "anyOf": [{"required": [f"a{level}"]}, {"minProperties": 1}]}
    ways = [{"type": "object", "properties": {f"n{n}": {"$ref": f"#/$defs/{m}"}}} for n, m in enumerate("bca")]
    mixed = {"$defs": {name: {"allOf": [{"$ref": f"#/$defs/{other}"}, way, {"required": [name]}]}
                       for name, other, way in zip("abc", "bca", ways, strict=True)}, "$ref": "#/$defs/a"}
    started = time.monotonic()
    for schema, words in ((deep, "levels"), (doubling, "too large|larger|levels")):
        with pytest.raises(BadSchema, match=words):
            grammar_of(arguments(schema))
    arguments(mixed)
    assert time.monotonic() - started < 5


def test_strict_tools_are_refused_by_keyword(model: Model) -> None:
    given = {"type": "object", "properties": {"level": {"type": "integer", "multipleOf": 5}}}
    with pytest.raises(BadSchema, match=r"the tool 'f': parameters\.level has 'multipleOf'"):
        answer(model, tools.HERMES.calls(Toolbox((Tool("f", "", given, strict=True),))))
