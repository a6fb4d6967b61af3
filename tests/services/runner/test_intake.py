"""What becomes of a request's prompt, in whichever form it is given; what is refused before the loop hears of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from services.errors import BadGrammar, BadRequest, ContextOverflow, NoInfill
from services.runner.complying import Complying
from services.runner.intake import prepare
from services.runner.model import Model
from services.runner.sequence import Sequence
from services.wire import Generate
from tests.services.runner.writing import write
from tests.tiny_gguf import write_tiny

GAP = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(str(write_tiny(tmp_path_factory.mktemp("models") / "p.gguf")), n_ctx=64, n_slots=1, n_threads=1)
    yield model
    model.close()


@pytest.fixture(scope="module")
def filler(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A model that knows what a gap is."""
    path = write_tiny(tmp_path_factory.mktemp("models") / "f.gguf", control=GAP)
    model = Model(str(path), n_ctx=64, n_slots=1, n_threads=1)
    yield model
    model.close()


def prepared(model: Model, **more: Any) -> Sequence:
    sequence = prepare(model, Generate(**{"id": "r", "owner": "o", "prompt": [], "max_tokens": 9, **more}))
    sequence.sampler.close()
    return sequence


def test_tokens_are_the_prompt_as_they_are(plain: Model) -> None:
    tokens = plain.tokenize(["hello<|im_end|>"])
    assert prepared(plain, tokens=tokens).prompt == tokens == prepared(plain, prompt=["hello<|im_end|>"]).prompt
    assert prepared(plain, tokens=[plain.n_vocab - 1] * 63).max_tokens == 1


@pytest.mark.parametrize("wrong", [[-1], [1, 10**9], [1] * 64])
def test_tokens_that_are_none_or_too_many_are_refused(plain: Model, wrong: list[int]) -> None:
    with pytest.raises(ContextOverflow if len(wrong) == 64 else BadRequest) as refused:
        prepared(plain, tokens=wrong)
    assert refused.value.param == "prompt"


def test_a_gap_is_between_what_precedes_and_what_follows(plain: Model, filler: Model) -> None:
    prompt = prepared(filler, prompt=["def f(", "<|im_end|>"], suffix="):\n").prompt
    assert b"".join(map(filler.spelled, prompt)) == b"<|fim_prefix|>def f(<|im_end|><|fim_suffix|>):\n<|fim_middle|>"
    assert not any(filler.is_end(token) for token in prompt), "text is text"
    assert [filler.spelled(token) for token in prepared(filler, suffix="").prompt] == [gap.encode() for gap in GAP]
    assert filler.infill and not plain.infill
    with pytest.raises(NoInfill, match=r"fim_pre, fim_suf, fim_mid") as refused:
        prepared(plain, prompt=["x"], suffix="")
    assert (refused.value.code, refused.value.param) == ("no_infill", "suffix")
    with pytest.raises(ContextOverflow):
        prepared(filler, prompt=["x"], suffix="x" * 64 * 32)


def test_a_grammar_is_complied_with_and_closed_in_time(plain: Model) -> None:
    for room in range(5, 12):
        sequence = prepare(plain, Generate(id="r", owner="o", prompt=["hello"], max_tokens=room, stop=["y"],
                                           grammar='root ::= "ye" [a-f]* "s!"'))
        assert isinstance(sequence.sampler, Complying)
        text, end = write(plain, sequence.sampler, sequence.prompt, room)
        assert text.startswith("ye") and text.endswith("s!") and end.completion_tokens <= room
    with pytest.raises(BadGrammar, match="5 tokens, and the answer may have 3") as refused:
        prepared(plain, prompt=["x"], max_tokens=3, grammar='root ::= "yes!?"')
    assert (refused.value.code, refused.value.param) == ("bad_grammar", "grammar")
