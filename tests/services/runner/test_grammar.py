"""Schemas become grammars that a completion cannot leave; what cannot be held is refused, by name, at once."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.errors import BadSchema
from services.runner.grammar import grammar_of
from services.runner.model import Model
from services.runner.sampler import Chain
from services.runner.scheduler import Scheduler
from services.runner.sequence import SamplingFailed, Sequence
from services.runner.slots import Slots
from services.runner.text import Text
from services.wire import Done, Sampling
from tests.tiny_gguf import write_tiny

ROOM = 900


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf", n_ctx_train=1024)
    model = Model(str(path), n_ctx=1024, n_slots=1, n_threads=1)
    yield model
    model.close()


def write(model: Model, schema: dict[str, Any], seed: int = 1) -> tuple[str, Done]:
    """What a random model writes when it is held to `schema`."""
    prompt = model.tokenize(["hello"])
    chain = Chain(model, Sampling(temperature=3, top_k=0, top_p=1, seed=seed), prompt, grammar_of(schema))
    sequence = Sequence(id="", owner="o", prompt=prompt, max_tokens=ROOM, text=Text(), sampler=chain)
    scheduler = Scheduler(model, Slots(1, model, model.rewindable), 1)
    scheduler.add(sequence)
    text, end = "", None
    while scheduler.runnable:
        for _, message in scheduler.step():
            text += getattr(message, "text", "")
            end = message
    assert isinstance(end, Done), end
    return text, end


GOOD: list[dict[str, Any]] = [
    {}, {"type": "object"}, {"type": "string"}, {"type": "number"}, {"type": ["integer", "null"]},
    {"type": "object", "properties": {"a": {"type": "string", "maxLength": 3}, "b": {"type": "integer"}},
     "required": ["b"], "additionalProperties": True},
    {"type": "object", "additionalProperties": {"type": "boolean"}},
    {"type": "array", "items": {"enum": [1, "a\\b", 'say "é"\n', None, {"x": [True]}]}, "minItems": 2, "maxItems": 4},
    {"type": "array", "prefixItems": [{"const": "x"}, {"type": "boolean"}]},
    {"type": "array", "maxItems": 2},
    {"type": ["string", "null"], "enum": ["a", "b", None, 3]},
    {"type": ["string", "integer"], "minLength": 2, "maxLength": 4},
    {"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"x": {"type": "null"}}, "required": ["x"]}]},
    {"oneOf": [{"type": "integer"}, {"type": "boolean"}]},
    {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "boolean"}}},
    {"type": "string", "pattern": "^([0-9]{1,3}\\.){3}\\d{1,3}$"},
    {"type": "string", "pattern": "^(a?b){2,9}(c*)?$"},
    {"type": "string", "pattern": "^(cat|dog)-\\w+\\+*$"},
    {"type": "string", "format": "uuid"}, {"type": "string", "format": "date"},
    {"type": "string", "format": "email", "title": "a note only"},
    # Two definitions of one name in different places, and one named like the converter's own rule.
    {"type": "object", "required": ["p", "q", "r"], "properties": {
        "p": {"$ref": "#/$defs/one/properties/x"}, "q": {"$ref": "#/$defs/two/properties/x"},
        "r": {"$ref": "#/$defs/string"}},
     "$defs": {"one": {"properties": {"x": {"type": "integer"}}}, "two": {"properties": {"x": {"type": "boolean"}}},
               "string": {"type": "null"}}},
    # A tree.
    {"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "required": ["v"], "properties": {
        "v": {"type": "boolean"}, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}}}}},
]


@pytest.mark.parametrize("schema", GOOD, ids=lambda schema: json.dumps(schema)[:60])
def test_what_is_written_complies(model: Model, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    finished = 0
    for seed in range(4):
        text, end = write(model, schema, seed)
        if end.finish_reason == "stop":
            finished += 1
            written = json.loads(text)
            if "\ufffd" not in text:        # random bytes: one wrong character, several U+FFFD
                jsonschema.validate(written, schema)
    assert finished or schema in ({}, {"type": "object"}, {"type": "string"}), "a bounded value ends"


REFUSED: dict[str, Any] = {
    "unknown keyword": ({"type": "integer", "minimum": 3}, "minimum"),
    "not": ({"not": {"type": "string"}}, "not"),
    "wrong type": ({"type": "strin"}, "strin"),
    "remote ref": ({"$ref": "https://example.org/schema.json"}, "nothing is fetched"),
    "file ref": ({"$ref": "other.json#/a"}, "nothing is fetched"),
    "dangling ref": ({"$ref": "#/$defs/none"}, "not in the schema"),
    "ref to itself": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, "."),
    "required but unknown": ({"properties": {"a": {"type": "null"}}, "required": ["b"]}, "'b'"),
    "overlapping oneOf": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
    "two allOf": ({"allOf": [{"type": "object"}, {"type": "object"}]}, "allOf"),
    "anyOf beside properties": ({"anyOf": [{"type": "null"}], "properties": {}}, "properties"),
    "nothing fits": ({"type": "integer", "enum": ["a"]}, "no value"),
    "least above most": ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems"),
    "repeats": ({"type": "string", "maxLength": 10**9}, "maxLength"),
    "half a number": ({"type": "string", "maxLength": 1.5}, "maxLength"),
    "open pattern": ({"type": "string", "pattern": "abc"}, "pattern"),
    "look-ahead": ({"type": "string", "pattern": "^(?=a)a$"}, "."),
    "quote in pattern": ({"type": "string", "pattern": '^"$'}, "pattern"),
    "bad pattern": ({"type": "string", "pattern": "^(a$"}, "parenth"),
    "repeat of nothing": ({"type": "string", "pattern": "^*$"}, "."),
    "ReDoS": ({"type": "string", "pattern": "^(a+)+b$"}, "repeat"),
    "deep ReDoS": ({"type": "string", "pattern": "^((a*)b?)*$"}, "repeat"),
    "repeat of what may be empty": ({"type": "string", "pattern": "^(a?b?c?d?){1,250}$"}, "empty"),
    "repeat of an option": ({"type": "string", "pattern": "^(a|b?){2}$"}, "empty"),
    "repeat of a repeat": ({"type": "string", "pattern": "^a?{3}$"}, "empty"),
    "nothing to repeat": ({"type": "string", "pattern": "^(+a)$"}, "no regular expression"),
    "closed twice": ({"type": "string", "pattern": "^(a))$"}, "parenth"),
    "many repeats": ({"type": "string", "pattern": "^a{9999}$"}, "repeats"),
    "bomb": ({"type": "string", "pattern": "^((((a{0,512}){0,512}){0,512}){0,512}){0,512}$"}, "repeat"),
    "large enum": ({"enum": ["x" * 1000 + str(n) for n in range(1000)]}, "larger"),
    "too many optional": ({"properties": {f"p{n}": {"type": "null"} for n in range(200)}}, "not required"),
    "required a list": ({"properties": {}, "required": [["a"]]}, "among"),
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
    with pytest.raises((BadSchema, ValueError), match=words):
        Chain(model, Sampling(), [1], grammar_of(schema))


@pytest.mark.parametrize("levels", [65, 1000, 100_000])
def test_deep_schemas_are_refused(levels: int) -> None:
    with pytest.raises(BadSchema, match="levels"):
        grammar_of(deep(levels))
    assert grammar_of(deep(60))


@pytest.mark.parametrize("name", ["string", "space", "root", "char", "a b", "parley-ref-0-", "x\n::= y", "é", "*"])
def test_property_names_cannot_break_the_grammar(model: Model, name: str) -> None:
    schema = {"type": "object", "properties": {name: {"enum": [1, 2]}, "other": {"type": "boolean"}},
              "required": [name, "other"]}
    text, _ = write(model, schema)
    jsonschema.validate(json.loads(text), schema)


LEAVES = st.sampled_from([
    {"type": "boolean"}, {"type": "null"}, {"type": "integer"}, {"type": "number"}, {"enum": ["a", 1, None]},
    {"type": "string", "maxLength": 3}, {"type": "string", "minLength": 1, "maxLength": 2}, {"const": {"k": "\t\\"}},
    {"type": "string", "pattern": "^[a-c]{2}$"}, {"$ref": "#/$defs/shared"}])
NAMES = st.sampled_from(["a", "b", "ab", "a-b", "item", "value", "number", "b-kv"])


def inner(schemas: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    def an_object(properties: dict[str, Any], optional: int) -> dict[str, Any]:
        return {"type": "object", "properties": properties, "required": sorted(properties)[optional:]}

    return st.one_of(
        st.builds(an_object, st.dictionaries(NAMES, schemas, min_size=1, max_size=3), st.integers(0, 3)),
        schemas.map(lambda items: {"type": "array", "items": items, "maxItems": 2}),
        st.lists(schemas, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts}),
        st.lists(schemas, min_size=1, max_size=3).map(lambda parts: {"type": "array", "prefixItems": parts}))


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=st.recursive(LEAVES, inner, max_leaves=8), seed=st.integers(0, 99))
def test_any_supported_schema_is_complied_with(model: Model, schema: dict[str, Any], seed: int) -> None:
    schema = {**schema, "$defs": {"shared": {"type": "object", "properties": {"a": {"type": "null"}}}}}
    text, end = write(model, schema, seed)
    if end.finish_reason == "stop" and "\ufffd" not in text:     # random bytes: one wrong character, several U+FFFD
        jsonschema.validate(json.loads(text), schema)


def test_a_vocabulary_that_cannot_spell_it_fails_that_request_only(
        model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = Chain(model, Sampling(), [1], grammar_of({"type": "null"}))
    complying = Chain._complying

    def nothing_fits(self: Chain, candidates: Any) -> Any:
        candidates = complying(self, candidates)
        candidates["logit"] = -float("inf")
        return candidates

    monkeypatch.setattr(Chain, "_complying", nothing_fits)
    model._decode([(1, 0, 0, True)])
    with pytest.raises(SamplingFailed):
        chain.sample(0)
    chain.close()
