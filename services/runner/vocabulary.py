"""What a model's vocabulary says about a text and its tokens, for who asks by `Tokenize` and `Detokenize`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from services.errors import BadRequest, ContextOverflow
from services.wire import Detokenize, Tokenize, Tokens

BYTES_PER_TOKEN = 32        # of a text, for each token of the context: a longer one is not even tokenised


class Vocabulary(Protocol):
    """A model file, as it is needed here."""

    n_ctx: int
    n_vocab: int

    def tokens(self, text: str, around: bool = False, parse: bool = True) -> list[int]:
        """The tokens of a text."""

    def spelled(self, token: int) -> bytes:
        """A token's text, also a special one's."""

    def text_of(self, tokens: list[int]) -> bytes:
        """The text that tokens are together, special ones as they are spelled."""


def tokens_of(model: Vocabulary, message: Tokenize | Detokenize) -> Tokens:
    """Bounded by the model's context: `ContextOverflow`. `BadRequest` for what is no token."""
    if isinstance(message, Tokenize):
        _refuse_long(model, len(message.text), "characters", "text")
        text, tokens = message.text, model.tokens(message.text, message.around, message.special)
    else:
        _refuse_long(model, len(message.tokens), "tokens", "tokens")
        check_tokens(message.tokens, model.n_vocab, "tokens")
        text, tokens = model.text_of(message.tokens).decode("utf-8", "replace"), message.tokens
    spelled = {token: model.spelled(token) for token in set(tokens)}
    return Tokens(text=text, tokens=tokens, pieces=[spelled[token] for token in tokens])


def check_tokens(tokens: Iterable[int], n_vocab: int, param: str) -> None:
    """`BadRequest` when one of them is not in the vocabulary."""
    if foreign := [token for token in tokens if not 0 <= token < n_vocab]:
        raise BadRequest(f"{param} has {foreign[0]}, which is no token of this model: they are 0 to {n_vocab - 1}",
                         param=param)


def _refuse_long(model: Vocabulary, size: int, unit: str, param: str) -> None:
    most = model.n_ctx * BYTES_PER_TOKEN
    if size > most:
        raise ContextOverflow(f"{param} has {size} {unit}; at most {most} are taken, {BYTES_PER_TOKEN} for each of the "
                              f"{model.n_ctx} tokens of the context: split it", param=param, n_ctx=model.n_ctx)
