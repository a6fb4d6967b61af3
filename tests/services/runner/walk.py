"""Random ways through a grammar, byte by byte."""

from __future__ import annotations

import random
from collections.abc import Iterator

from services.runner.pushdown import MATCH, Machine


def walks(machine: Machine, seed: int, steps: int) -> Iterator[bytes]:
    """After each of up to `steps` random bytes the text so far with its shortest end: each complies whole."""
    chance, state, text = random.Random(seed), machine.start, b""
    for _ in range(steps):
        yield text + machine.closing(state)
        if not state.ways:
            return
        kind, table, _ = machine._places[chance.choice(state.ways)[0]]
        assert kind == MATCH
        low, high, _ = chance.choice(table)
        byte = bytes([chance.randint(low, high)])
        following = machine.after(state, byte)
        assert following
        assert len(machine.closing(following)) == following.cost <= state.cost + 400
        state, text = following, text + byte
    yield text + machine.closing(state)
