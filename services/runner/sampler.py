"""Sampling parameters → a sampler chain in C, in llama.cpp's own order; with a grammar when there is a schema."""

from __future__ import annotations

import ctypes
import math
import secrets
from typing import Any

import numpy as np

from services.errors import BadRequest
from services.runner.llama import last_error, lib
from services.runner.model import Model
from services.runner.sequence import SamplingFailed
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
    """One request's samplers. With a grammar a token is first chosen freely, then checked: the whole vocabulary is
    masked only when the choice does not comply. Accepting one that does not would abort the process: none gets there.

    Made in any thread, used in the loop's. ValueError: llama.cpp refuses the grammar.
    """

    def __init__(self, model: Model, sampling: Sampling, prompt: list[int], grammar: str | None = None) -> None:
        self.whole, self.closed = True, False
        chosen, back = steps(sampling), looks_back(sampling)
        self._context, self._n_vocab = model.context, model.n_vocab
        self._rules = _rules(model.vocab, grammar) if grammar is not None else None
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for name, *arguments in chosen:
            given = [model.n_vocab, *arguments] if name == "penalties" else arguments
            lib.llama_sampler_chain_add(self._chain, getattr(lib, f"llama_sampler_init_{name}")(*given))
        for token in prompt[-back:] if back else ():
            lib.llama_sampler_accept(self._chain, token)

    def sample(self, row: int) -> int:
        if self._rules is None:
            return lib.llama_sampler_sample(self._chain, self._context, row)
        token = self._choose(row)
        lib.llama_sampler_accept(self._rules, token)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def close(self) -> None:
        lib.llama_sampler_free(self._chain)
        if self._rules is not None:
            lib.llama_sampler_free(self._rules)

    def _choose(self, row: int) -> int:
        """The token that the chain chooses among those that comply."""
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, row), (self._n_vocab,))
        token = self._pick(_candidates(logits))
        if np.isfinite(self._complying(_candidates(logits[token:token + 1], token))["logit"][0]):
            return token
        allowed = self._complying(_candidates(logits))
        allowed = allowed[np.isfinite(allowed["logit"])]
        if not len(allowed):
            raise SamplingFailed("this model's vocabulary cannot spell what the schema demands; simplify the schema "
                                 "or use another model")
        return self._pick(allowed)

    def _pick(self, candidates: np.ndarray[Any, Any]) -> int:
        chosen = _pointer(candidates)
        lib.llama_sampler_apply(self._chain, ctypes.byref(chosen))
        return int(chosen.data[chosen.selected].id)

    def _complying(self, candidates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The candidates, with the logits of those that break the grammar at minus infinity."""
        lib.llama_sampler_apply(self._rules, ctypes.byref(_pointer(candidates)))
        return candidates


def _rules(vocab: Any, grammar: str) -> Any:
    rules = lib.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
    if not rules:
        raise ValueError(last_error() or "llama.cpp cannot parse it")
    return rules


def _candidates(logits: np.ndarray[Any, Any], first: int = 0) -> np.ndarray[Any, Any]:
    """llama.cpp's token data for the tokens from `first` on."""
    candidates = np.zeros(len(logits), np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)]))
    candidates["id"] = np.arange(first, first + len(logits))
    candidates["logit"] = logits
    return candidates


def _pointer(candidates: np.ndarray[Any, Any]) -> Any:
    data = candidates.ctypes.data_as(lib.llama_token_data_p)
    return lib.llama_token_data_array(data, len(candidates), -1, False)
