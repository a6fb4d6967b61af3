"""Sampling parameters → a sampler chain in C, in llama.cpp's own order."""

from __future__ import annotations

import math
import secrets
from typing import Any

from services.errors import BadRequest
from services.runner.llama import lib
from services.runner.model import Model
from services.wire import Sampling

Step = tuple[Any, ...]          # name of a llama.cpp sampler, then its arguments
SEEDS = 0xFFFFFFFF              # seeds are below it: llama.cpp takes this very number for "a random one"


def steps(sampling: Sampling) -> list[Step]:
    """The samplers of one request. `BadRequest` for a number that would end the process or mean nothing."""
    _check(sampling)
    chain: list[Step] = []
    if looks_back(sampling):
        chain.append(("penalties", sampling.repeat_last_n, sampling.repeat_penalty, 0.0, 0.0))
    if sampling.temperature == 0:
        return [*chain, ("greedy",)]
    if sampling.top_k:
        chain.append(("top_k", sampling.top_k))
    if sampling.top_p < 1:
        chain.append(("top_p", sampling.top_p, 1))
    if sampling.min_p > 0:
        chain.append(("min_p", sampling.min_p, 1))
    seed = secrets.randbelow(SEEDS) if sampling.seed is None else sampling.seed % SEEDS
    return [*chain, ("temp", sampling.temperature), ("dist", seed)]


def looks_back(sampling: Sampling) -> int:
    """How many earlier tokens, the prompt's included, the chain must know; 0 when it has no penalties."""
    return sampling.repeat_last_n if sampling.repeat_penalty != 1 else 0


def _check(sampling: Sampling) -> None:
    for name, least, most in (("temperature", 0, 100), ("top_p", 0, 1), ("top_k", 0, 2**31 - 1), ("min_p", 0, 1),
                              ("repeat_penalty", 1e-3, 1e3), ("repeat_last_n", 0, 2**20)):
        value = getattr(sampling, name)
        if not (math.isfinite(value) and least <= value <= most):
            raise BadRequest(f"{name} is {value}; it must be from {least} to {most}", param=name)


class Chain:
    """One request's samplers. Made in any thread, used in the loop's."""

    def __init__(self, model: Model, sampling: Sampling, prompt: list[int]) -> None:
        self.closed = False
        chosen, back = steps(sampling), looks_back(sampling)
        self._context, self._n_vocab = model.context, model.n_vocab
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for name, *arguments in chosen:
            given = [model.n_vocab, *arguments] if name == "penalties" else arguments
            lib.llama_sampler_chain_add(self._chain, getattr(lib, f"llama_sampler_init_{name}")(*given))
        for token in prompt[-back:] if back else ():
            lib.llama_sampler_accept(self._chain, token)

    @property
    def finished(self) -> bool:
        return False

    def sample(self, row: int) -> int:
        return lib.llama_sampler_sample(self._chain, self._context, row)

    def draft(self, most: int) -> list[int]:
        return []

    def close(self) -> None:
        lib.llama_sampler_free(self._chain)
