"""Looking at the likeliest tokens only changes no choice."""

import ctypes
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runner.complying import candidates_of
from services.runner.llama import lib
from services.runner.sampler import looked_at, steps
from services.runner.topk import PARTS, SPARE, Likeliest, likeliest, worth
from services.wire import Sampling

N_VOCAB = 32_003


def random_logits(seed: int, size: int = N_VOCAB) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)


def chain_of(sampling: Sampling) -> Any:
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    for name, *arguments in steps(sampling):
        lib.llama_sampler_chain_add(chain, getattr(lib, f"llama_sampler_init_{name}")(*arguments))
    return chain


def among_all(chain: Any, logits: np.ndarray[Any, Any]) -> int:
    """The chain's choice as llama.cpp makes it."""
    records = candidates_of(logits, np.arange(len(logits)))
    data = records.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))
    given = lib.llama_token_data_array(data, len(logits), -1, False)
    lib.llama_sampler_apply(chain, ctypes.byref(given))
    return int(given.data[given.selected].id)


@pytest.mark.parametrize("sampling", [
    Sampling(temperature=0), Sampling(temperature=0.8, top_k=40, top_p=0.95, seed=7),
    Sampling(temperature=1.5, top_k=100, top_p=1, min_p=0.05, seed=8), Sampling(temperature=1, top_k=1, seed=9)])
def test_the_choices_are_llama_cpps(sampling: Sampling) -> None:
    count = looked_at(steps(sampling))
    assert worth(count, N_VOCAB)
    chain, other, of_few = chain_of(sampling), chain_of(sampling), Likeliest(count)
    for seed in range(50):
        logits = random_logits(seed)
        assert of_few.choose(chain, logits) == among_all(other, logits)
    lib.llama_sampler_free(chain)
    lib.llama_sampler_free(other)


@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(0, PARTS), st.integers(1, 4000))
def test_they_are_the_highest_in_order(seed: int, count: int, more: int, values: int) -> None:
    """Of equals, which few values make many of, the first."""
    logits = np.random.default_rng(seed).integers(0, values, PARTS * count * SPARE + more).astype(np.float32)
    assert (likeliest(logits, count) == np.argsort(-logits, kind="stable")[:count]).all()


@pytest.mark.parametrize("count", [1, 40])
def test_what_is_no_number_is_left_to_llama_cpp(count: int) -> None:
    logits = random_logits(1)
    logits[N_VOCAB // 2:] = np.nan
    chain = chain_of(Sampling(temperature=0))
    assert Likeliest(count).choose(chain, logits) is None
    lib.llama_sampler_free(chain)


def test_it_is_for_samplers_that_look_at_few() -> None:
    assert looked_at(steps(Sampling(top_k=0))) == 0
    assert looked_at(steps(Sampling(repeat_penalty=1.1))) == 0
    assert not worth(0, N_VOCAB) and not worth(N_VOCAB, N_VOCAB) and not worth(40, 1000)
