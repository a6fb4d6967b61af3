"""A model under a schema: whatever its weights, its seed and its budget, the value parses, complies and is closed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, conint

from services.errors import BadSchema
from services.runner.complying import Complying, Spelling
from services.runner.grammar import grammar_of
from services.runner.model import Model
from services.runner.sequence import SamplingFailed
from services.wire import Sampling
from tests.services.runner.schemas import GOOD, RANDOM
from tests.services.runner.writing import WILD, write, write_value
from tests.tiny_gguf import write_tiny

ROOT = Path(__file__).resolve().parents[3]
PERSON = {"type": "object", "required": ["name", "age"], "properties": {"name": {"type": "string"},
                                                                        "age": {"type": "integer"}}}


class Card(BaseModel):
    kind: Literal["card"]
    digits: tuple[int, int]


class Bill(BaseModel):
    kind: Literal["bill"]
    days: int | None = Field(ge=7, lt=90)


class Order(BaseModel):
    count: conint(gt=0, le=12)      # type: ignore[valid-type]
    age: int = Field(ge=18, multiple_of=1)
    share: float = Field(ge=0, le=1)
    worth: float = Field(gt=-0.5)
    place: tuple[Annotated[float, Field(ge=-90, le=90)], Annotated[float, Field(ge=-180, lt=180)]] | None
    by: Card | Bill = Field(discriminator="kind")


MODELS = [pytest.param("tiny", id="tiny"), pytest.param("starter", id="starter", marks=pytest.mark.model)]


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = ROOT / "models" / "starter.gguf"
    if request.param == "tiny":
        path = write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")
    model = Model(str(path), n_ctx=512, n_slots=1, n_threads=1)
    yield model
    model.close()


def least(schema: dict[str, Any], model: Model) -> int:
    """The smallest budget that is not refused."""
    with pytest.raises(BadSchema) as refused:
        Complying(model, WILD, [1], grammar_of(schema), 0)
    return int(str(refused.value).partition(" has ")[2].split()[0])


def check(model: Model, schema: dict[str, Any], budget: int, sampling: Sampling) -> None:
    text, end = write_value(model, schema, budget, sampling)
    assert end.finish_reason == "stop" and 0 < end.completion_tokens <= budget
    errors = list(jsonschema.Draft202012Validator(schema).iter_errors(json.loads(text)))
    assert not errors, (text, errors)


@pytest.mark.parametrize("schema", GOOD, ids=lambda schema: json.dumps(schema)[:60])
def test_from_the_least_budget_on_a_value_comes_out(model: Model, schema: dict[str, Any]) -> None:
    least_budget = least(schema, model)
    for budget in {least_budget, least_budget + 1, least_budget + 4, max(20, least_budget)}:
        for sampling in (Sampling(temperature=0), WILD, Sampling(temperature=1.2, repeat_penalty=1.3, seed=budget)):
            check(model, schema, budget, sampling)
    with pytest.raises(BadSchema, match=rf"has {least_budget} tokens, and the answer may have {least_budget - 1}"):
        write_value(model, schema, least_budget - 1)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=RANDOM, seed=st.integers(0, 999), temperature=st.sampled_from([0, 0.7, 3]), more=st.integers(0, 40))
def test_any_schema_any_budget(model: Model, schema: dict[str, Any], seed: int, temperature: float, more: int) -> None:
    sampling = Sampling(temperature=temperature, top_k=0, top_p=1, seed=seed)
    check(model, schema, least(schema, model) + more, sampling)


def test_models_of_pydantic_are_complied_with(model: Model) -> None:
    schema = Order.model_json_schema()
    budget = least(schema, model)
    for seed in range(6):
        for most in {budget, budget + seed, 300}:
            text, end = write_value(model, schema, most, Sampling(temperature=2, top_k=0, top_p=1, seed=seed))
            assert end.completion_tokens <= most
            assert Order.model_validate_json(text, strict=True).count <= 12
            jsonschema.validate(json.loads(text), schema)


def test_a_value_that_ends_by_itself_is_not_closed_and_costs_no_end_token(model: Model) -> None:
    text, end = write_value(model, {"const": {"a": [1, 2]}}, 100)
    assert text == '{"a": [1, 2]}' and not end.closed
    assert Spelling(model).tokens(text.encode())
    assert end.completion_tokens <= len(text)


def test_a_value_that_the_budget_ends_is_told(model: Model) -> None:
    for schema in ({"type": "array", "items": {"type": "string"}, "minItems": 2}, {"type": "integer"}):
        budget = least(schema, model) + 2
        ends = [write_value(model, schema, budget, Sampling(temperature=2, seed=seed))[1] for seed in range(8)]
        assert any(end.closed for end in ends)
    assert write_value(model, {"type": "boolean"}, 50)[1].closed is False


def test_forced_tokens_come_whatever_the_row_says(model: Model) -> None:
    """As under speculation: several tokens are sampled from the rows of one decode."""
    prompt = model.tokenize(["hello"])
    schema = {"type": "array", "items": {"enum": ["alpha", "beta"]}, "minItems": 30}
    sampler = Complying(model, WILD, prompt, grammar_of(schema), least(schema, model))
    model.cut(0, 0)
    model._decode([(token, place, 0, True) for place, token in enumerate(prompt)])
    tokens = [sampler.sample(0)]
    while not sampler.finished:
        expected = list(sampler.forced)
        if expected:
            assert sampler.closed and sampler.draft(3) == expected[:3]
        tokens.append(sampler.sample(0))
        assert not expected or tokens[-1] == expected[0]
    sampler.close()
    jsonschema.validate(json.loads(b"".join(map(model.piece, tokens))), schema)


def test_drafts_spell_what_the_schema_demands(model: Model) -> None:
    sampler = Complying(model, WILD, [1], grammar_of(PERSON), 100)
    assert b"".join(map(model.piece, sampler.draft(64))) == b'{"name": "'
    assert len(sampler.draft(2)) == 2
    sampler.close()


@pytest.mark.parametrize("schema", [{"enum": ["é", "è"]}, {"const": "é" * 50}, {"const": "x中" * 30}])
def test_drafts_end_with_a_whole_character(model: Model, schema: dict[str, Any]) -> None:
    sampler = Complying(model, WILD, [1], grammar_of(schema), 400)
    for most in range(1, 20):
        assert b"".join(map(model.piece, sampler.draft(most))).startswith(b'"')
    sampler.close()


def test_text_may_end_within_a_character(model: Model) -> None:
    spelling = Spelling(model)
    for text in ('{"a":1}', "é", " b", "\n", "", '"😀"'):
        data = text.encode()
        for start in range(len(data) + 1):
            if start == 0 or data[start:start + 1] < b"\xc0":
                tokens = spelling.tokens(data[start:])
                assert tokens is not None and b"".join(map(model.piece, tokens)) == data[start:]
    special = model.eos
    assert not any(model.is_end(token) for token in spelling.tokens(special.encode()) or [])


def test_a_vocabulary_that_cannot_spell_it_is_told_before(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spelling, "tokens", lambda self, data: None)
    with pytest.raises(BadSchema, match="vocabulary"):
        Complying(model, WILD, [1], grammar_of(PERSON), 100)


def test_when_nothing_complies_the_value_is_closed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    complying = Complying._complying

    def nothing_fits(self: Complying, candidates: Any) -> Any:
        candidates = complying(self, candidates)
        candidates["logit"] = -np.inf
        return candidates

    monkeypatch.setattr(Complying, "_complying", nothing_fits)
    prompt = model.tokenize(["hello"])
    text, end = write(model, Complying(model, WILD, prompt, grammar_of(PERSON), 100), prompt, 100)
    assert json.loads(text) == {"name": "", "age": 0} and end.closed
    sampler = Complying(model, WILD, prompt, grammar_of(PERSON), 100)
    monkeypatch.setattr(sampler._value, "ending", lambda state: None)
    with pytest.raises(SamplingFailed):
        sampler.sample(0)
    sampler.close()
