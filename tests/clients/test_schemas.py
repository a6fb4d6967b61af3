"""300 JSON Schemas through `response_format`, at budgets down to 16 tokens: every answer complies, or says why not."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

from tests.clients.conftest import openai_client
from tests.clients.test_loose_tools import ByBill, ByCard
from tests.services.runner.schemas import GOOD

Schema = dict[str, Any]
BUDGETS = (16, 16, 24, 40, 90, 300)
TEXT: Schema = {"type": "string"}
UNSUPPORTED: list[Schema] = [       # or only in part: refused by the keyword's name, or complied with
    {"not": {"type": "null"}}, {"if": TEXT, "then": {"minLength": 2}}, {"type": "object", "minProperties": 2},
    {"type": "array", "items": {"type": "integer"}, "uniqueItems": True, "minItems": 2},
    {"type": "array", "contains": {"const": 1}}, {"type": "number", "multipleOf": 0.5},
    {"type": "integer", "minimum": 3, "maximum": 12}, {"type": "number", "exclusiveMinimum": 0},
    {"type": "object", "patternProperties": {"^x": TEXT}}, {"type": "object", "propertyNames": {"maxLength": 3}},
    {"type": "object", "dependentRequired": {"a": ["b"]}, "properties": {"a": TEXT, "b": TEXT}},
    {"type": "string", "pattern": "(?=a)b"}, {"type": "string", "pattern": "^(a)\\1$"},
    {"type": "string", "format": "ipv4"}, {"type": "string", "format": "uri"}, {"type": "string", "format": "hostname"},
    {"type": "object", "properties": {"a": {"$ref": "https://example.org/a"}}, "required": ["a"]},
    {"$ref": "#/$defs/gone"}, {"type": "array", "unevaluatedItems": False}, {"type": "tuple"},
    {"type": "string", "contentEncoding": "base64"}, {"type": "object", "required": ["a"], "properties": {"a": False}}]


def an_object(optional: int = 0, **properties: Schema) -> Schema:
    return {"type": "object", "properties": properties, "required": list(properties)[optional:],
            "additionalProperties": False}


USED: list[Schema] = [              # shapes that people send
    an_object(name=TEXT, date={"type": "string", "format": "date"}, participants={"type": "array", "items": TEXT}),
    an_object(steps={"type": "array", "maxItems": 3, "items": an_object(explanation=TEXT, output=TEXT)},
              final_answer=TEXT),
    an_object(is_violating={"type": "boolean"}, category={"type": ["string", "null"], "enum": ["a", "b", None]}),
    an_object(item={"anyOf": [an_object(name=TEXT, age={"type": "number"}), an_object(number=TEXT, street=TEXT)]}),
    {**an_object(linked_list={"$ref": "#/$defs/node"}), "$defs": {"node": an_object(
        value={"type": "number"}, next={"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]})}},
    an_object(type={"const": "div"}, children={"type": "array", "items": {"$ref": "#"}, "maxItems": 2}),
    an_object(sentiment={"enum": ["positive", "negative"]}, confidence={"type": "number"}),
    an_object(1, note={"anyOf": [TEXT, {"type": "null"}], "default": None}, tags={"type": "array", "items": TEXT,
                                                                                "minItems": 1, "maxItems": 3}),
    an_object(id={"type": "string", "format": "uuid"}, at={"type": "string", "format": "date-time"}),
    an_object(zip={"type": "string", "pattern": "^[0-9]{5}(-[0-9]{4})?$"}, mail={"type": "string", "format": "email"}),
    an_object(point={"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}], "minItems": 2,
                     "items": False}),
    {"type": "array", "items": an_object(key=TEXT, value={"type": ["string", "integer", "boolean", "null"]})},
    {"type": "object", "additionalProperties": {"type": "integer"}},
]


def made_up(chance: random.Random, depth: int = 0) -> Schema:
    """A schema of any kind; some have a keyword that may be refused."""
    if chance.random() < 0.05:
        return chance.choice(UNSUPPORTED)
    if depth > 2 or chance.random() < 0.4:
        return chance.choice([
            TEXT, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}, {"type": "null"},
            {"enum": chance.sample(["red", "green", 3, None, True, 'q"'], 3)}, {"const": chance.choice([1, "x", [2]])},
            {"type": "string", "minLength": chance.randint(0, 2), "maxLength": chance.randint(2, 9)},
            {"type": "string", "pattern": chance.choice(["^[A-Z]{2}\\d+$", "^(yes|no)$", "^\\w{1,4}$"])},
            {"type": "string", "format": chance.choice(["date", "time", "uuid", "email", "date-time"])}])
    least = chance.randint(0, 2)
    parts = [made_up(chance, depth + 1) for _ in range(chance.randint(1, 3))]
    return chance.choice([
        an_object(chance.randint(0, 2), **{f"part_{index}": part for index, part in enumerate(parts)}),
        {"type": "array", "items": parts[0], "minItems": least, "maxItems": least + chance.randint(0, 2)},
        {"anyOf": parts}, {"type": "array", "prefixItems": parts},
        {**an_object(a={"$ref": "#/$defs/d"}), "$defs": {"d": parts[0]}} if depth == 0 else {"allOf": parts[:1]}])


def schemas(count: int) -> list[Schema]:
    """`count` different ones, the same in each run."""
    chance, found = random.Random(20), {json.dumps(schema): schema for schema in (*GOOD, *USED, *UNSUPPORTED)}
    while len(found) < count:
        schema = made_up(chance)
        found.setdefault(json.dumps(schema), schema)
    return list(found.values())


def keywords(schema: object) -> set[str]:
    if isinstance(schema, list):
        return {word for item in schema for word in keywords(item)}
    return {word for key, value in schema.items() for word in (key, *keywords(value))} if isinstance(schema, dict) \
        else set()


def outcome(client: openai.OpenAI, number: int, schema: Schema) -> str:
    """What became of one, "" when its answer complies."""
    most, profile = BUDGETS[number % len(BUDGETS)], ("chat", "starter")[number % 2]
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema, "strict": True}}
    try:
        answer = client.chat.completions.create(
            model=profile, messages=[{"role": "user", "content": "Hello"}], max_tokens=most, seed=number,
            temperature=1.0, response_format=form)      # type: ignore[call-overload]
    except openai.BadRequestError as error:
        if error.code == "bad_schema" and any(word in error.message for word in keywords(schema)):
            return "refused"
        assert most < 300 and "max_tokens" in error.message, (schema, most, error.message)
        return "more tokens"
    text = answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop" and answer.usage.completion_tokens <= most, (schema, text)
    jsonschema.validate(json.loads(text), schema, cls=jsonschema.Draft202012Validator,
                        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER)
    return ""


@pytest.mark.model
def test_every_answer_complies_or_the_schema_is_refused_by_its_keyword(real):
    wanted = schemas(300)
    with openai_client(real, max_retries=3) as client, ThreadPoolExecutor(4) as pool:
        told = list(pool.map(lambda pair: outcome(client, *pair), enumerate(wanted)))
    assert told.count("") > 200, {word: told.count(word) for word in told}
    assert told.count("refused") > 10


class Order(BaseModel):
    count: int = Field(gt=0, le=12)
    share: float = Field(ge=0, le=1)
    place: tuple[int, str]
    by: ByCard | ByBill = Field(discriminator="kind")


@pytest.mark.model
def test_a_model_of_pydantic_is_parsed(real):
    schema = Order.model_json_schema()
    form = {"type": "json_schema", "json_schema": {"name": "order", "schema": schema, "strict": True}}
    with openai_client(real) as client:
        for seed in range(4):
            answer = client.chat.completions.create(
                model="starter", messages=[{"role": "user", "content": "Hello"}], max_tokens=120, seed=seed,
                temperature=1.5, response_format=form)      # type: ignore[call-overload]
            Order.model_validate_json(answer.choices[0].message.content, strict=True)
