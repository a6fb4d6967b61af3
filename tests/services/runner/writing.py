"""A model writes: decode and sample by hand, one request alone in slot 0."""

from __future__ import annotations

from typing import Any

from services.runner.batch import Chunk
from services.runner.complying import Complying
from services.runner.grammar import grammar_of
from services.runner.model import Model
from services.runner.sampler import Chain
from services.runner.sequence import Sequence
from services.runner.text import Text
from services.wire import Done, Sampling

WILD = Sampling(temperature=3, top_k=0, top_p=1, seed=1)


def write(model: Model, sampler: Chain, prompt: list[int], budget: int) -> tuple[str, Done]:
    """The whole completion, and how it ended."""
    sequence = Sequence(id="", owner="o", prompt=prompt, max_tokens=budget, text=Text(), sampler=sampler, slot=0)
    model.cut(0, 0)
    text, reason = "", None
    try:
        while reason is None:
            count = sequence.pending
            row = model.decode([Chunk(sequence, count)])[0]
            sequence.past += count
            token = sampler.sample(row)
            piece, reason = sequence.accept(token, model.piece(token), model.is_end(token), 0.0)
            text += piece
    finally:
        sampler.close()
    return text, sequence.done(reason, 0.0)


def write_value(model: Model, schema: dict[str, Any], budget: int, sampling: Sampling = WILD) -> tuple[str, Done]:
    """What the model writes when it is held to `schema`. `BadSchema`: not within `budget` tokens."""
    prompt = model.tokenize(["hello"])
    return write(model, Complying(model, sampling, prompt, grammar_of(schema), budget), prompt, budget)
