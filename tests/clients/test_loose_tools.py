"""Tools as libraries describe them, with all that their schemas say, on a started server with the starter model."""

from __future__ import annotations

import enum
import json
import uuid
from typing import Annotated, Any, Literal

import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field, PositiveInt

from tests.clients.test_openai_python import user


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class ByCard(BaseModel):
    kind: Literal["card"]
    digits: str = Field(min_length=4, max_length=4)


class ByBill(BaseModel):
    kind: Literal["bill"]
    days: int | None = Field(None, title="Days to pay")


class Order(BaseModel):
    item: str = Field(min_length=1, max_length=2000, examples=["tea"])
    customer: uuid.UUID
    size: Size = Size.SMALL
    tags: set[str] = Field(default_factory=set, max_length=3)
    place: tuple[float, float] | None = None


class Payment(BaseModel):
    by: Annotated[ByCard | ByBill, Field(discriminator="kind")]


class Numbered(BaseModel):
    count: PositiveInt = Field(le=20)
    code: str = Field(pattern="[A-Z]{2}")


# As a server of the Model Context Protocol for a file system and one for a tracker describe theirs.
MCP = [{"name": "edit_file", "inputSchema": {
    "type": "object", "$schema": "http://json-schema.org/draft-07/schema#", "additionalProperties": False,
    "properties": {"path": {"type": "string"}, "dryRun": {"type": "boolean", "default": False},
                   "edits": {"type": "array", "minItems": 1, "items": {
                       "type": "object", "required": ["oldText"], "additionalProperties": False,
                       "properties": {"oldText": {"type": "string", "description": "text to look for", "maxLength": 8},
                                      "newText": {"type": "string", "maxLength": 1000}}}}},
    "required": ["path", "edits"]}},
    {"name": "search_issues", "inputSchema": {
        "type": "object", "properties": {
            "q": {"type": "string", "minLength": 1}, "page": {"type": "number", "minimum": 1},
            "perPage": {"type": "integer", "minimum": 1, "maximum": 100, "format": "int32"},
            "sort": {"oneOf": [{"type": "string", "enum": ["created", "updated"]}, {"type": "null"}], "nullable": True},
            "labels": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
            "filters": {"type": "object", "patternProperties": {"^x-": {"type": "string"}}, "minProperties": 1}},
        "required": ["q"], "anyOf": [{"required": ["page"]}, {"required": ["perPage"]}]}}]
DROPPED = {"uniqueItems", "minProperties"}       # what no grammar holds


def tool(name: str, parameters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


def called(client: openai.OpenAI, tools: list[dict[str, Any]], name: str, **more: Any) -> dict[str, Any]:
    answer = client.chat.completions.create(
        model="starter", messages=user("Hello"), tools=tools, max_tokens=300, parallel_tool_calls=False, temperature=1,
        tool_choice={"type": "function", "function": {"name": name}}, **more)
    call, = answer.choices[0].message.tool_calls
    assert call.function.name == name
    return json.loads(call.function.arguments)


@pytest.mark.model
def test_a_pydantic_model_with_limits_is_a_tool(real_client):
    for model in (Order, Payment):
        for seed in range(2):
            model.model_validate(called(real_client, [tool("f", model.model_json_schema())], "f", seed=seed))
    assert {"count", "code"} == called(real_client, [tool("f", Numbered.model_json_schema())], "f").keys()


@pytest.mark.model
@pytest.mark.parametrize("described", MCP, ids=lambda described: described["name"])
def test_a_tool_of_a_protocol_server(real_client, described):
    tools = [tool(one["name"], one["inputSchema"]) for one in MCP]
    held = without(described["inputSchema"])
    for seed in range(2):
        jsonschema.validate(called(real_client, tools, described["name"], seed=seed), held)


def without(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: without(value) for key, value in schema.items() if key not in DROPPED}
    return [without(value) for value in schema] if isinstance(schema, list) else schema


@pytest.mark.model
def test_a_strict_tool_is_refused_by_the_keyword_that_is_not_held(real_client):
    with pytest.raises(openai.BadRequestError, match=r"the tool 'count': parameters\.c.* has "):
        called(real_client, [tool("count", Numbered.model_json_schema(), strict=True)], "count")
    with pytest.raises(openai.BadRequestError, match=r"the tool 'f': parameters\.a has \$ref .*, which is not in"):
        called(real_client, [tool("f", {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}})], "f")
    answer = real_client.responses.create(model="starter", input="Hello", tool_choice="required", tools=[
        {"type": "function", "name": "count", "parameters": Numbered.model_json_schema()}], max_output_tokens=100)
    assert {"count", "code"} == json.loads(answer.output[-1].arguments).keys()


@pytest.mark.model
def test_an_answer_that_is_begun_is_gone_on_with(real_client):
    begun = [*user("What is the capital of France?"), {"role": "assistant", "content": "The capital of France is"}]
    answer = real_client.chat.completions.create(model="starter", messages=begun, max_tokens=20, temperature=0)
    assert answer.choices[0].message.content == " Paris."
