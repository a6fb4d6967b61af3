"""Sampling parameters become llama.cpp's chain; numbers that would end the process are refused."""

import math
from collections.abc import Iterator

import pytest

from services.errors import BadRequest
from services.runner.model import Model
from services.runner.sampler import MOST_BIASES, SEEDS, Chain, looks_back, steps
from services.wire import Sampling
from tests.services.runner.writing import write, write_value
from tests.tiny_gguf import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """Writes ababab…"""
    path = write_tiny(tmp_path_factory.mktemp("models") / "ab.gguf", successors={"a": "b", "b": "a"})
    model = Model(str(path), n_ctx=256, n_slots=1, n_threads=1)
    yield model
    model.close()


def said(model: Model, budget: int = 8, **sampling: object) -> str:
    prompt = model.tokenize(["a"])
    return write(model, Chain(model, Sampling(**{"temperature": 0, **sampling}), prompt), prompt, budget)[0]    # type: ignore[arg-type]


def test_temperature_zero_is_greedy() -> None:
    assert steps(Sampling(temperature=0)) == [("greedy",)]


def test_the_chain_is_in_llama_cpps_order() -> None:
    sampling = Sampling(temperature=0.5, top_k=10, top_p=0.9, min_p=0.1, repeat_penalty=1.2, repeat_last_n=8, seed=3)
    assert steps(sampling) == [("penalties", 8, 1.2, 0.0, 0.0), ("top_k", 10), ("top_p", 0.9, 1), ("min_p", 0.1, 1),
                               ("temp", 0.5), ("dist", 3)]
    assert looks_back(sampling) == 8
    biased = steps(Sampling(logit_bias={5: 1.5, 6: -100}, presence_penalty=0.5, frequency_penalty=-1, temperature=0))
    assert biased == [("logit_bias", {5: 1.5, 6: -math.inf}), ("penalties", 64, 1.0, -1, 0.5), ("greedy",)]


def test_what_is_off_is_not_in_the_chain() -> None:
    names = [step[0] for step in steps(Sampling(top_k=0, top_p=1, min_p=0))]
    assert names == ["temp", "dist"]


def test_seeds_of_any_size_are_taken_and_none_is_drawn() -> None:
    assert steps(Sampling(seed=2**64))[-1] == ("dist", 2**64 % SEEDS)
    assert steps(Sampling(seed=SEEDS))[-1][1] < SEEDS
    assert steps(Sampling())[-1] != steps(Sampling())[-1]


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": math.nan}, {"top_p": 1.5}, {"top_k": -1},
                                   {"min_p": math.inf}, {"repeat_penalty": 0}, {"repeat_last_n": -1},
                                   {"presence_penalty": math.nan}, {"frequency_penalty": 1e9},
                                   {"logit_bias": {1: -100.5}}, {"logit_bias": {1: math.nan}},
                                   {"logit_bias": dict.fromkeys(range(MOST_BIASES + 1), 0.0)}])
def test_numbers_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(BadRequest, match=next(iter(wrong))):
        steps(Sampling(**wrong))    # type: ignore[arg-type]


def test_penalties_are_taken_off_what_was_there_also_when_greedy(model: Model) -> None:
    assert said(model) == "babababa"
    for penalty in ({"presence_penalty": 100}, {"frequency_penalty": 100}, {"repeat_penalty": 1000}):
        text = said(model, **penalty)
        assert text[0] == "b" and len(set(text)) > 2, "what was said is not said again"
    assert said(model, frequency_penalty=100, repeat_last_n=0) == "babababa"


def test_a_bias_draws_and_bans(model: Model) -> None:
    (a,), (b,), (z,) = (model.tokens(letter) for letter in "abz")
    assert said(model, logit_bias={z: 100}) == "z" * 8
    assert "b" not in said(model, logit_bias={b: -100})
    everything_else = {token: -100.0 for token in range(model.n_vocab) if token != a}
    assert said(model, logit_bias=everything_else) == "aaaaaaaa"
    assert said(model, logit_bias=everything_else, temperature=100, top_k=0, top_p=1) == "aaaaaaaa"


def test_a_bias_counts_under_a_schema_too(model: Model) -> None:
    (a,), (b,) = (model.tokens(letter) for letter in "ab")
    schema = {"type": "string", "pattern": "^[ab]{40}$"}
    text, _ = write_value(model, schema, 60, Sampling(temperature=5, top_k=0, logit_bias={b: -100}))
    assert text == '"' + "a" * 40 + '"'
    assert write_value(model, schema, 60, Sampling(temperature=0, logit_bias={a: -100}))[0] == '"' + "b" * 40 + '"'
    text, end = write_value(model, schema, 60, Sampling(temperature=0, logit_bias={a: -100, b: -100}))
    assert len(text) == 42 and end.closed, "the schema is the stronger one"


def test_biases_must_be_on_tokens_and_leave_one(model: Model) -> None:
    for biases in ({model.n_vocab: 1.0}, {-1: 1.0}, {0: 0.0, 2**40: 1.0}, dict.fromkeys(range(model.n_vocab), -100.0)):
        with pytest.raises(BadRequest, match="logit_bias") as refused:
            Chain(model, Sampling(logit_bias=biases), [1])
        assert refused.value.param == "logit_bias"
