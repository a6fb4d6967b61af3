"""Sampling parameters → a sampler chain in C, in llama.cpp's own order."""

from __future__ import annotations

import math
import secrets
from typing import Any

import numpy as np

from services.errors import BadRequest
from services.runner.llama import lib
from services.runner.model import Model
from services.runner.topk import Likeliest, worth
from services.wire import Sampling

Step = tuple[Any, ...]          # name of a llama.cpp sampler, then its arguments
SEEDS = 0xFFFFFFFF              # seeds are below it: llama.cpp takes this very number for "a random one"
BAN = -100                      # a bias that bans its token, as OpenAI says
MOST_BIASES = 1024


def steps(sampling: Sampling) -> list[Step]:
    """The samplers of one request. `BadRequest` for a number that would end the process or mean nothing."""
    _check(sampling)
    chain: list[Step] = []
    if sampling.logit_bias:
        chain.append(("logit_bias", {token: -math.inf if bias == BAN else bias
                                     for token, bias in sampling.logit_bias.items()}))
    if looks_back(sampling):
        chain.append(("penalties", sampling.repeat_last_n, sampling.repeat_penalty, sampling.frequency_penalty,
                      sampling.presence_penalty))
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


def looked_at(chosen: list[Step]) -> int:
    """How many of the likeliest tokens the samplers look at; 0 for all."""
    name, *arguments = chosen[0]
    return {"greedy": 1, "top_k": next(iter(arguments), 0)}.get(name, 0)


def looks_back(sampling: Sampling) -> int:
    """How many earlier tokens, the prompt's included, the chain must know; 0 when it has no penalties."""
    penalises = sampling.repeat_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
    return sampling.repeat_last_n if penalises else 0


def banned(sampling: Sampling) -> list[int]:
    """The tokens that must not be written."""
    return [token for token, bias in sampling.logit_bias.items() if bias == BAN]


def _check(sampling: Sampling) -> None:
    for name, least, most in (("temperature", 0, 100), ("top_p", 0, 1), ("top_k", 0, 2**31 - 1), ("min_p", 0, 1),
                              ("repeat_penalty", 1e-3, 1e3), ("repeat_last_n", 0, 2**20),
                              ("presence_penalty", -100, 100), ("frequency_penalty", -100, 100)):
        value = getattr(sampling, name)
        if not (math.isfinite(value) and least <= value <= most):
            raise BadRequest(f"{name} is {value}; it must be from {least} to {most}", param=name)
    if len(sampling.logit_bias) > MOST_BIASES:
        raise _bad_bias(f"has {len(sampling.logit_bias)} entries; at most {MOST_BIASES} are taken")
    for token, bias in sampling.logit_bias.items():
        if not BAN <= bias <= -BAN:
            raise _bad_bias(f"gives token {token} {bias}; a bias must be from {BAN} to {-BAN}")


def check_biased(sampling: Sampling, n_vocab: int) -> None:
    """`BadRequest` for a bias on what is no token of the vocabulary, or on so many that none is left to write."""
    if foreign := [token for token in sampling.logit_bias if not 0 <= token < n_vocab]:
        raise _bad_bias(f"names token {foreign[0]}; this model's are 0 to {n_vocab - 1}: ask for a text's tokens first")
    if len(banned(sampling)) >= n_vocab:
        raise _bad_bias("bans every token that the model has")


def _bad_bias(what: str) -> BadRequest:
    return BadRequest(f"logit_bias {what}", param="logit_bias")


class Chain:
    """One request's samplers. Made in any thread, used in the loop's."""

    def __init__(self, model: Model, sampling: Sampling, prompt: list[int]) -> None:
        self.closed = False
        chosen, back = steps(sampling), looks_back(sampling)
        check_biased(sampling, model.n_vocab)
        self._context, self._n_vocab = model.context, model.n_vocab
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for step in chosen:
            lib.llama_sampler_chain_add(self._chain, _made(step, model.n_vocab))
        count = looked_at(chosen)
        self._likeliest = Likeliest(count) if worth(count, model.n_vocab) else None
        for token in prompt[-back:] if back else ():
            lib.llama_sampler_accept(self._chain, token)

    @property
    def finished(self) -> bool:
        return False

    def sample(self, row: int) -> int:
        if self._likeliest and row:     # the first would pay for what the decode has pushed out of the caches
            logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, row), (self._n_vocab,))
            token = self._likeliest.choose(self._chain, logits)
            if token is not None:
                lib.llama_sampler_accept(self._chain, token)
                return token
        return lib.llama_sampler_sample(self._chain, self._context, row)

    def draft(self, most: int) -> list[int]:
        return []

    def close(self) -> None:
        lib.llama_sampler_free(self._chain)


def _made(step: Step, n_vocab: int) -> Any:
    """llama.cpp's sampler of a step."""
    name, *arguments = step
    if name == "logit_bias":
        biases = [lib.llama_logit_bias(token, bias) for token, bias in arguments[0].items()]
        return lib.llama_sampler_init_logit_bias(n_vocab, len(biases), (lib.llama_logit_bias * len(biases))(*biases))
    given = [n_vocab, *arguments] if name == "penalties" else arguments
    return getattr(lib, f"llama_sampler_init_{name}")(*given)
