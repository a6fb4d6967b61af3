"""Which KV slot holds which tokens, and which slot a new prompt takes.

A slot is one llama.cpp sequence with a stream of its own. Its tokens belong to one owner: what another owner left is
wiped before use, never compared. While a sequence runs in a slot the sequence's own list says what the slot holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from services.runner.sequence import Sequence


class Memory(Protocol):
    """The KV memory behind the slots."""

    def cut(self, slot: int, keep: int) -> bool:
        """Forget all but the first `keep` tokens. False when this memory cannot; keep 0 always works."""

    def copy(self, source: int, target: int) -> None:
        """Make `target`, which is empty, hold exactly what `source` holds."""


@dataclass
class Slot:
    index: int
    owner: str = ""
    left: list[int] = field(default_factory=list)   # tokens held while no sequence runs here
    sequence: Sequence | None = None
    used: int = 0                                   # turn of the clock when it was last taken or released

    @property
    def idle(self) -> bool:
        return self.sequence is None

    @property
    def length(self) -> int:
        return self.sequence.past if self.sequence else len(self.left)

    @property
    def tokens(self) -> list[int]:
        return self.sequence.tokens[:self.sequence.past] if self.sequence else self.left


class Slots:
    """All slots of a runner. `rewindable`: the memory can forget the end of what it holds (plain attention)."""

    def __init__(self, count: int, memory: Memory, rewindable: bool) -> None:
        self.slots = [Slot(index) for index in range(count)]
        self.memory = memory
        self.rewindable = rewindable
        self._turn = 0

    @property
    def idle(self) -> int:
        return sum(slot.idle for slot in self.slots)

    def place(self, sequence: Sequence) -> bool:
        """Give `sequence` a slot that holds as much of its prompt as can be reused; False when none is idle."""
        if not self.idle:
            return False
        source, shared = self._longest(sequence)
        slot = self._target(source, shared)
        slot.used = self._tick()
        sequence.past = sequence.cached = self._fill(slot, source, shared)
        slot.owner, slot.left, slot.sequence, sequence.slot = sequence.owner, [], sequence, slot.index
        return True

    def release(self, sequence: Sequence, wipe: bool = False) -> None:
        """The sequence has ended; its tokens stay for reuse unless `wipe` (the memory's content is in doubt)."""
        assert sequence.slot is not None
        slot = self.slots[sequence.slot]
        assert slot.sequence is sequence
        slot.left = [] if wipe else sequence.tokens[:sequence.past]
        slot.sequence, sequence.slot = None, None
        slot.used = self._tick()
        if wipe:
            self._wipe(slot)

    def check_integrity(self, n_ctx: int) -> None:
        """Assert what must hold between two steps."""
        for slot in self.slots:
            assert slot.length <= n_ctx
            if slot.sequence:
                assert slot.sequence.slot == slot.index and slot.owner == slot.sequence.owner and not slot.left
                assert 0 <= slot.sequence.cached <= slot.sequence.past <= len(slot.sequence.tokens)
                assert slot.sequence.cached < len(slot.sequence.prompt)

    def _tick(self) -> int:
        self._turn += 1
        return self._turn

    def _longest(self, sequence: Sequence) -> tuple[Slot | None, int]:
        """The owner's slot that shares most with the prompt, and how much; a token of the prompt stays to decode."""
        best: Slot | None = None
        most = 0
        for slot in self.slots:
            if slot.owner == sequence.owner and slot.length:
                shared = self._usable(slot.tokens, sequence.prompt)
                if shared > most or (shared == most > 0 and slot.idle):
                    best, most = slot, shared
        return best, most

    def _usable(self, held: list[int], prompt: list[int]) -> int:
        """How many tokens can be reused: all or none where the memory cannot be rewound."""
        shared = common_prefix(held, prompt[:-1])
        return shared if self.rewindable or shared == len(held) else 0

    def _target(self, source: Slot | None, shared: int) -> Slot:
        """Stay in place when little is lost by it; else the idle slot that was used longest ago, empty ones first."""
        others = [slot for slot in self.slots if slot.idle and slot is not source]
        if source and source.idle and (not others or 2 * shared >= source.length):
            return source
        return min(others, key=lambda slot: (slot.length > 0, slot.used))

    def _fill(self, slot: Slot, source: Slot | None, shared: int) -> int:
        """Make `slot` hold `shared` tokens of `source`; return how many it holds, 0 when the memory cannot."""
        if source is not slot:
            self._wipe(slot)
            if source:
                self.memory.copy(source.index, slot.index)
        if source and (shared == source.length or self.memory.cut(slot.index, shared)):
            return shared
        self._wipe(slot)
        return 0

    def _wipe(self, slot: Slot) -> None:
        emptied = self.memory.cut(slot.index, 0)
        assert emptied, "removing a whole sequence never fails"


def common_prefix(a: list[int], b: list[int]) -> int:
    """How many tokens `a` and `b` have in common at their beginning; compares slices, so at C speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
