"""Sampling parameters become llama.cpp's chain; numbers that would end the process are refused."""

import math

import pytest

from services.errors import BadRequest
from services.runner.sampler import SEEDS, looks_back, steps
from services.wire import Sampling


def test_temperature_zero_is_greedy() -> None:
    assert steps(Sampling(temperature=0)) == [("greedy",)]


def test_the_chain_is_in_llama_cpps_order() -> None:
    sampling = Sampling(temperature=0.5, top_k=10, top_p=0.9, min_p=0.1, repeat_penalty=1.2, repeat_last_n=8, seed=3)
    assert steps(sampling) == [("penalties", 8, 1.2, 0.0, 0.0), ("top_k", 10), ("top_p", 0.9, 1), ("min_p", 0.1, 1),
                               ("temp", 0.5), ("dist", 3)]
    assert looks_back(sampling) == 8


def test_what_is_off_is_not_in_the_chain() -> None:
    names = [step[0] for step in steps(Sampling(top_k=0, top_p=1, min_p=0))]
    assert names == ["temp", "dist"]


def test_seeds_of_any_size_are_taken_and_none_is_drawn() -> None:
    assert steps(Sampling(seed=2**64))[-1] == ("dist", 2**64 % SEEDS)
    assert steps(Sampling(seed=SEEDS))[-1][1] < SEEDS
    assert steps(Sampling())[-1] != steps(Sampling())[-1]


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": math.nan}, {"top_p": 1.5}, {"top_k": -1},
                                   {"min_p": math.inf}, {"repeat_penalty": 0}, {"repeat_last_n": -1}])
def test_numbers_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(BadRequest, match=next(iter(wrong))):
        steps(Sampling(**wrong))    # type: ignore[arg-type]
