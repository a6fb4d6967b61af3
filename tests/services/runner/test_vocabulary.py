"""A text and its tokens: what is asked for comes back as it was, what is none is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.errors import BadRequest, ContextOverflow
from services.runner.embedder import Embedder
from services.runner.vocabulary import check_tokens, tokens_of
from services.wire import Detokenize, Tokenize
from tests.tiny_gguf import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    """A model for embeddings: it puts an end behind each text."""
    model = Embedder(str(write_tiny(tmp_path_factory.mktemp("models") / "e.gguf", pooling=1)), n_ctx=64, n_threads=1)
    yield model
    model.close()


def test_what_the_model_wants_around_a_text_is_told_when_asked_for(model: Embedder) -> None:
    plain, around = (tokens_of(model, Tokenize(text="hello", around=around)) for around in (False, True))
    assert plain.pieces == [b"hello"] and around.pieces == [b"hello", b"<|im_end|>"]
    assert tokens_of(model, Detokenize(tokens=around.tokens)).text == "hello<|im_end|>"


def test_any_text_comes_back(model: Embedder) -> None:
    for text in ("Zürich\n 你好 😀", "  two  blanks  ", "\0", "x" * 64 * 32):
        tokens = tokens_of(model, Tokenize(text=text, special=False))
        assert b"".join(tokens.pieces).decode() == text == tokens_of(model, Detokenize(tokens=tokens.tokens)).text


def test_what_is_too_long_or_no_token_is_refused(model: Embedder) -> None:
    with pytest.raises(ContextOverflow, match=r"2049 characters; at most 2048"):
        tokens_of(model, Tokenize(text="x" * 2049))
    with pytest.raises(ContextOverflow, match=r"2049 tokens; at most 2048"):
        tokens_of(model, Detokenize(tokens=[1] * 2049))
    with pytest.raises(BadRequest, match=f"prompt has {model.n_vocab}, which is no token") as refused:
        check_tokens([0, model.n_vocab], model.n_vocab, "prompt")
    assert refused.value.param == "prompt"
