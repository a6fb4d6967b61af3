"""The sampler of a request with a schema: what it writes always parses, always complies, and is always closed in time.

A token is first chosen freely, then checked: the vocabulary is masked only when the choice does not comply. Two
readers of the same grammar check: llama.cpp's, which can mask, and ours (pushdown.py), which knows what it takes to
close the value, reads UTF-8 strictly and sees the text that is really sent. A client's own grammar ours reads alone.
"""

from __future__ import annotations

import codecs
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np

from services.errors import BadSchema
from services.runner.closing import MOST_BYTES, Value
from services.runner.gbnf import Grammar
from services.runner.llama import File, last_error, lib
from services.runner.model import Model
from services.runner.sampler import Chain, banned
from services.runner.sequence import SamplingFailed
from services.wire import Sampling

FEW = 32                # first bytes of tokens, up to which the second ones are looked at as well
ENOUGH = 256            # tokens that comply, the likeliest ones: no more are looked for
PATIENCE = 30_000       # steps of our reader for one token: about as many microseconds
MOST_TRIES = 32         # tokens that comply but do not fit, or the like: then the value is closed


class Holding(Chain):
    """Holds the model to a grammar: to the value `_value`, which llama.cpp's `_rules` mask, or our reader without them.

    `forced` are tokens that come next whatever the model says.
    """

    _value: Value
    _rules: Any

    def __init__(self, model: Model, sampling: Sampling, prompt: list[int]) -> None:
        self.forced: list[int] = []
        self._model, self._spelling = model, Spelling(model)
        self._beginnings = np.frombuffer(model.beginnings, np.int32)        # made here: the loop has no time for it
        self._banned, self._all = np.array(banned(sampling), np.int64), np.arange(model.n_vocab)
        super().__init__(model, sampling, prompt)

    def sample(self, row: int) -> int:
        token = self.forced.pop(0) if self.forced else self._choose(row)
        lib.llama_sampler_accept(self._chain, token)
        return token

    def draft(self, most: int) -> list[int]:
        """Up to `most` tokens that will come next, or most likely: what the grammar leaves no choice about."""
        if self.forced:
            return self.forced[:most]
        text = self._value.certain(4 * most)
        text = text[:codecs.utf_8_decode(text, "ignore")[1]]        # without the part of a character at its end
        return (self._spelling.tokens(text) or [])[:most] if text else []

    def _choose(self, row: int) -> int:
        """The first of the chain's choices that complies and leaves room to close the value."""
        for tries, token in enumerate(self._choices(row)):
            if self._model.is_end(token):
                if self._value.state.whole:
                    return token
                continue
            state = self._value.after(piece := self._model.piece(token))
            if state and self._value.fits(state):
                if self._rules:
                    lib.llama_sampler_accept(self._rules, token)
                self._value.take(state, piece)
                self.closed = self._value.left <= 0 and bool(state.ways)    # a number, say, that might have gone on
                return token
            if (state and self._value.slack <= 0) or tries >= MOST_TRIES:
                break
        return self._close_now()

    def _close_now(self) -> int:
        ending = self._value.ending(self._value.state)
        if ending is None:
            raise SamplingFailed("this model's vocabulary cannot spell what the schema or grammar demands; simplify "
                                 "it or use another model")
        first, *self.forced = ending or [self._last_token()]
        self.closed = True
        return first

    def _last_token(self) -> int:
        """What ends an answer."""
        eos: int = lib.llama_vocab_eos(self._model.vocab)
        if eos < 0 and not self._model.ends:
            raise SamplingFailed("this model has no token to end an answer with")
        return eos if eos >= 0 else min(self._model.ends)

    def _choices(self, row: int) -> Iterator[int]:
        """Tokens that llama.cpp lets through, in the order in which the chain chooses them."""
        logits, token = self._logits(row), self._first(row)
        if np.isfinite(self._complying(candidates_of(logits[token:token + 1], np.array([token])))["logit"][0]):
            yield token
        likely = np.setdiff1d(self._may_come(), self._banned, assume_unique=True)
        allowed = self._complying(candidates_of(logits[likely], likely))
        allowed = allowed[np.isfinite(allowed["logit"]) & (allowed["id"] != token)]
        while len(allowed):
            yield (token := self._pick(allowed.copy()))
            allowed = allowed[allowed["id"] != token]

    def _may_come(self) -> np.ndarray[Any, Any]:
        """The tokens that begin as the value may go on, and those that may end it: few, mostly, where a mask is needed.
        llama.cpp's reader takes tens of milliseconds for a whole vocabulary, and a multiple where it is ambiguous."""
        begins = np.zeros((257, 257), bool)         # as in `File.beginnings`
        firsts = self._value.next_bytes(self._value.state)
        for first in firsts:
            if len(firsts) > FEW:
                begins[first] = True
            elif state := self._value.after(bytes([first])):
                begins[first, [0, *(second + 1 for second in self._value.next_bytes(state))]] = True
        allowed = begins.ravel()[self._beginnings]
        allowed[list(self._model.ends)] = self._value.state.whole
        return np.flatnonzero(allowed)

    def _logits(self, row: int) -> np.ndarray[Any, Any]:
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(self._context, row), (self._n_vocab,))

    def _first(self, row: int) -> int:
        """The chain's choice of all tokens."""
        logits = self._logits(row)
        token = self._likeliest.choose(self._chain, logits) if self._likeliest else None
        return self._pick(candidates_of(logits, self._all)) if token is None else token

    def _pick(self, candidates: np.ndarray[Any, Any]) -> int:
        chosen = _pointer(candidates)
        lib.llama_sampler_apply(self._chain, ctypes.byref(chosen))
        return int(chosen.data[chosen.selected].id)

    def _complying(self, candidates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The candidates, with the logits of those that break the grammar at minus infinity."""
        if not self._rules:
            return self._read(candidates)
        lib.llama_sampler_apply(self._rules, ctypes.byref(_pointer(candidates)))
        return candidates


    def _read(self, candidates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The same by our reader: the likeliest first, until there are enough or its patience is at an end."""
        complying, until = [], self._value.steps + PATIENCE
        for place in np.argsort(-candidates["logit"], kind="stable"):
            token = int(candidates["id"][place])
            ends = self._model.is_end(token)
            if self._value.state.whole if ends else self._value.after(self._model.piece(token)):
                complying.append(place)
            if len(complying) >= ENOUGH or self._value.steps > until:
                break
        candidates["logit"][np.setdiff1d(np.arange(len(candidates)), complying)] = -np.inf
        return candidates


class Complying(Holding):
    """Made in any thread, used in the loop's. `budget`: the tokens that the value may have.

    `BadSchema`: llama.cpp refuses the grammar, or its shortest value does not fit the budget.
    """

    def __init__(self, model: Model, sampling: Sampling, prompt: list[int], grammar: Grammar, budget: int) -> None:
        self._value = Value(grammar, Spelling(model).tokens, budget, len(model.byte_tokens) == 256)
        _refuse_what_does_not_fit(self._value, grammar)
        super().__init__(model, sampling, prompt)
        try:
            self._rules = rules_of(model, grammar)
        except BadSchema:
            super().close()
            raise

    @property
    def finished(self) -> bool:
        return self._value.finished or (self.closed and not self.forced)

    def close(self) -> None:
        super().close()
        if self._rules:
            lib.llama_sampler_free(self._rules)


def rules_of(model: Model, grammar: Grammar) -> Any:
    """llama.cpp's reader of a grammar, to be freed. `BadSchema` when it refuses it. None for a client's own grammar:
    where many ways are open llama.cpp takes minutes for a token (400 Chinese characters, any of them, repeated)."""
    if grammar.origin == "grammar":
        return None
    rules = lib.llama_sampler_init_grammar(model.vocab, grammar.text.encode(), b"root")
    if not rules:
        raise grammar.refusal(f"is refused by llama.cpp: {last_error() or 'it cannot parse it'}")
    return rules


class Spelling:
    """Bytes → tokens whose pieces are these bytes and nothing else."""

    def __init__(self, model: File) -> None:
        self._model = model

    def tokens(self, data: bytes) -> list[int] | None:
        """None when the vocabulary cannot. `data` may begin in the middle of a character."""
        start = next((i for i, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))
        head = self._single(data[:start])
        rest = self._of_text(data[start:])
        return None if head is None or rest is None else head + rest

    def _of_text(self, data: bytes) -> list[int] | None:
        """As the model's tokenizer has it. Some put a space before what begins a text: not behind a line end."""
        text = data.decode()
        for lead in ("", "\n"):
            tokens = self._model.tokens(lead + text, parse=False)[len(self._model.tokens(lead, parse=False)):]
            pieces = list(map(self._model.piece, tokens))
            if b"".join(pieces) == data and all(pieces):
                return tokens
        return self._single(data)

    def _single(self, data: bytes) -> list[int] | None:
        known = self._model.byte_tokens if data else {}
        return [known[byte] for byte in data] if all(byte in known for byte in data) else None


def _refuse_what_does_not_fit(value: Value, grammar: Grammar) -> None:
    ending = value.ending(value.state)
    if value.state.cost > MOST_BYTES:
        raise grammar.refusal(f"demands a value of at least {value.state.cost:.0f} bytes; at most {MOST_BYTES} are "
                              "taken")
    if ending is None:
        raise grammar.refusal("demands what this model's vocabulary cannot spell")
    if len(ending) > value.left:
        raise grammar.refusal(f"demands a value whose shortest form has {len(ending)} tokens, and the answer may have "
                              f"{value.left}: raise max_tokens; where the context has no more room, shorten the prompt")


def candidates_of(logits: np.ndarray[Any, Any], ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """llama.cpp's token data."""
    candidates = np.empty(len(ids), np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)]))
    candidates["id"], candidates["logit"] = ids, logits
    return candidates


def _pointer(candidates: np.ndarray[Any, Any]) -> Any:
    data = candidates.ctypes.data_as(lib.llama_token_data_p)
    return lib.llama_token_data_array(data, len(candidates), -1, False)
