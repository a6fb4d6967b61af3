"""Which KV slot holds which tokens, and where a prompt finds most of itself computed already.

A slot is one llama.cpp sequence with a stream of its own. Its tokens belong to one owner; what another owner left is
wiped before use, never compared, but for the profile's own head at its start, which anybody may share. While a sequence
runs in a slot the sequence's own list says what the slot holds. What a slot is about to lose goes to the shelf.
"""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from services.runner.sequence import PREPARE, Sequence

WORTH = 16          # tokens below which nothing is copied, kept, restored or waited for

Held = TypeVar("Held", list[int], bytes)      # tokens, or their packed bytes
SOON = 4            # tokens that a sequence must still be allowed for it to be moved


class Memory(Protocol):
    """The KV memory behind the slots."""

    def cut(self, slot: int, keep: int) -> bool:
        """Forget all but the first `keep` tokens. False when this memory cannot; keep 0 always works."""

    def copy(self, source: int, target: int) -> bool:
        """Make `target`, which is empty, hold exactly what `source` holds, at once. False when it cannot."""

    def save(self, slot: int) -> bytes:
        """The state of all that a slot holds; b"" when it cannot be had."""

    def load(self, slot: int, state: bytes, count: int) -> bool:
        """Make `slot`, which is empty, hold the `count` tokens that `state` was saved of. False when it cannot."""


class Match(Protocol):
    """A snapshot that a prompt can begin with."""

    @property
    def count(self) -> int:
        """Tokens of the prompt that it holds."""
    @property
    def tokens(self) -> list[int]:
        """All tokens that it holds."""


class Shelf(Protocol):
    """Snapshots of slots' states."""

    def put(self, owner: str, session: str, tokens: Tokens[int], state: bytes, head: int = 0) -> None: ...
    def find(self, owner: str, prompt: Tokens[int], better_than: int) -> Match | None: ...
    def read(self, match: Any) -> bytes | None: ...
    def forget(self, owner: str, session: str) -> None: ...


@dataclass
class Slot:
    index: int
    owner: str = ""
    session: str = ""
    head: int = 0                                   # tokens at the start that any owner may share
    left: list[int] = field(default_factory=list)   # tokens held while no sequence runs here
    sequence: Sequence | None = None
    used: int = 0                                   # turn of the clock when it was last taken or released
    saved: bool = False                             # what is left here is on the shelf too

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

    def __init__(self, count: int, memory: Memory, rewindable: bool, shelf: Shelf) -> None:
        self.slots = [Slot(index) for index in range(count)]
        self.memory = memory
        self.rewindable = rewindable
        self.shelf = shelf
        self.restored = 0           # tokens brought back from the shelf
        self._turn = 0

    @property
    def idle(self) -> int:
        return sum(slot.idle for slot in self.slots)

    # ------------------------------------------------------------ coming and going

    def place(self, sequence: Sequence) -> bool:
        """Give `sequence` a slot that holds as much of its tokens as can be reused; False when none is idle."""
        if not self.idle:
            return False
        source, shared, match = None, 0, None
        if not sequence.tells:
            source, shared = self._longest(sequence)
            match = self.shelf.find(sequence.owner, sequence.tokens, max(shared, WORTH))
        slot = self._target(sequence, None if match else source, shared)
        self._keep(slot, sequence, shared if slot is source else 0)
        held = self._restore(slot, match) if match else 0
        sequence.past = held or self._fill(slot, source, shared)
        for other in self.slots:
            if other is not slot and other.idle and _continues(other, sequence):
                self._wipe(other)               # an earlier state of the same session
        if sequence.placed is None:
            sequence.cached = sequence.past
        slot.used, slot.saved = self._tick(), False
        slot.owner, slot.session, slot.head = sequence.owner, sequence.session, sequence.head
        slot.left, slot.sequence, sequence.slot = [], sequence, slot.index
        return True

    def release(self, sequence: Sequence, wipe: bool = False) -> None:
        """The sequence has ended; its tokens stay for reuse unless `wipe` (the memory's content is in doubt)."""
        slot = self._of(sequence)
        slot.left = [] if wipe else sequence.tokens[:sequence.past]
        slot.sequence, sequence.slot = None, None
        slot.used, slot.saved = self._tick(), False
        if wipe:
            self._wipe(slot)

    def suspend(self, sequence: Sequence) -> None:
        """Take its slot from a sequence that has not ended. What it held is on the shelf, if there is room."""
        slot = self._of(sequence)
        self.release(sequence, wipe=sequence.forgotten)
        self._shelve(slot)
        slot.saved, sequence.past = True, 0

    # ------------------------------------------------------------ what one computes for another

    def lead(self, sequence: Sequence) -> None:
        """Have it wait for a running prompt that will soon hold much more of this one than its own slot does."""
        best, most = None, sequence.past + WORTH
        for slot in self.slots:
            other = slot.sequence
            if other and other is not sequence and other.leads and not sequence.tells:
                shared = self._common(other.prompt, other.owner, other.head, sequence)
                if other.past <= shared and shared > most:
                    best, most = other, shared
        sequence.leader, sequence.shared = best, most if best else 0

    def follow(self, sequence: Sequence) -> None:
        """Its leader has come far enough, or ends now: copy what it holds of this prompt."""
        leader, sequence.leader = sequence.leader, None
        assert leader
        held = min(leader.past, sequence.shared)
        if held <= sequence.past or not (self.rewindable or leader.past == held):
            return
        slot, source = self._of(sequence), self._of(leader)
        reused = held - sequence.past
        sequence.past = self._fill(slot, source, held)
        sequence.cached += reused if sequence.past else -sequence.cached

    def note_head(self, sequence: Sequence) -> None:
        """The sequence holds the profile's head and nothing else: keep it for everybody."""
        head = sequence.tokens[:sequence.head]
        if self.shelf.find("", [*head, 0], len(head) - 1) is None:
            self._put("", "", head, self._of(sequence), len(head))

    # ------------------------------------------------------------ rest, and the end of a session

    def save_one(self) -> bool:
        """Put what an idle slot holds of a session on the shelf too, where it outlives this process."""
        for slot in self.slots:
            if slot.idle and slot.session and not slot.saved and slot.length >= WORTH:
                self._shelve(slot)
                slot.saved = True
                return True
        return False

    def forget(self, owner: str, session: str) -> None:
        """Nothing of this session may stay. A slot in which it runs right now is wiped by its end."""
        for slot in self.slots:
            if slot.idle and (slot.owner, slot.session) == (owner, session):
                self._wipe(slot)
        self.shelf.forget(owner, session)

    def check_integrity(self, n_ctx: int) -> None:
        """Assert what must hold between two steps."""
        for slot in self.slots:
            assert slot.length <= n_ctx
            if sequence := slot.sequence:
                assert sequence.slot == slot.index and slot.owner == sequence.owner and not slot.left
                assert 0 <= sequence.cached < len(sequence.prompt) and sequence.past <= len(sequence.tokens)
                assert sequence.leader is None or self.slots[sequence.leader.slot or 0].sequence is sequence.leader

    # ------------------------------------------------------------ inside

    def _tick(self) -> int:
        self._turn += 1
        return self._turn

    def _of(self, sequence: Sequence) -> Slot:
        assert sequence.slot is not None
        slot = self.slots[sequence.slot]
        assert slot.sequence is sequence
        return slot

    def _longest(self, sequence: Sequence) -> tuple[Slot | None, int]:
        """The slot that shares most with the tokens, and how much; one of the tokens stays to decode."""
        best: Slot | None = None
        most = 0
        for slot in self.slots:
            if slot.length:
                shared = self._common(slot.tokens, slot.owner, slot.head, sequence)
                if not self.rewindable and shared < slot.length:
                    shared = 0
                if shared > most or (shared == most > 0 and slot.idle):
                    best, most = slot, shared
        return best, most

    def _common(self, held: list[int], owner: str, head: int, sequence: Sequence) -> int:
        """Tokens at the start that the sequence may take from `held`: of another owner only the common head."""
        shared = common_prefix(held, sequence.tokens[:-1])
        return shared if owner == sequence.owner else min(shared, head, sequence.head)

    def _target(self, sequence: Sequence, source: Slot | None, shared: int) -> Slot:
        """The idle slot that leaves the running ones closest together; of those the source or the session's own where
        nobody else's is lost by it, then an empty one, then the one that was used longest ago."""
        running = self._running()

        def price(slot: Slot) -> tuple[int, bool, bool, bool, int]:
            in_place = slot is source and not slot.session and 2 * shared >= slot.length
            stays = slot is source and _continues(slot, sequence)
            return (runs([*running, slot.index]), not stays, not (in_place or _continues(slot, sequence)),
                    slot.length > 0, slot.used)

        return min((slot for slot in self.slots if slot.idle), key=price)

    def close_ranks(self) -> bool:
        """Move one running sequence to where it stands beside the others, if that makes fewer runs of slots: llama.cpp
        computes each run of neighbours in a pass of its own."""
        running = self._running()
        now = runs(running)
        if now < 2 or max(map(self._left, running)) < SOON:
            return False
        moves = [(runs([*(i for i in running if i != start), slot.index]), slot.length > 0, -self._left(start), start,
                  slot.index) for start in running for slot in self.slots if slot.idle]
        best, _, left, start, end = min(moves, default=(now, False, 0, 0, 0))
        if best >= now or -left < SOON:
            return False
        self._move(self.slots[start], self.slots[end])
        return True

    def _running(self) -> list[int]:
        return [slot.index for slot in self.slots if slot.sequence and slot.sequence.rank != PREPARE]

    def _left(self, index: int) -> int:
        """Steps that the sequence in a slot still needs, at most."""
        sequence = self.slots[index].sequence
        return sequence.room if sequence else 0

    def _move(self, start: Slot, end: Slot) -> None:
        if not end.saved:
            self._shelve(end)
        self._wipe(end)
        if not self.memory.copy(start.index, end.index):
            self._wipe(end)
            return
        sequence = start.sequence
        assert sequence
        end.owner, end.session, end.head, end.sequence = start.owner, start.session, start.head, sequence
        end.used, end.saved, sequence.slot = start.used, False, end.index
        start.sequence = None
        self._wipe(start)

    def _keep(self, slot: Slot, sequence: Sequence, shared: int) -> None:
        """Shelve what the slot holds before `sequence` takes it, unless that only continues it."""
        lost = slot.length - shared
        if lost >= WORTH and (slot.session or lost > shared) and not _continues(slot, sequence) and not slot.saved:
            self._shelve(slot)

    def _shelve(self, slot: Slot) -> None:
        if slot.length >= WORTH:
            self._put(slot.owner, slot.session, slot.left, slot, slot.head)

    def _put(self, owner: str, session: str, tokens: list[int], slot: Slot, head: int) -> None:
        if state := self.memory.save(slot.index):
            self.shelf.put(owner, session, tokens, state, head)

    def _restore(self, slot: Slot, match: Match) -> int:
        """Tokens that the slot holds now from a snapshot; 0 when it turned out to be no good."""
        state = self.shelf.read(match)
        if state is None:
            return 0
        self._wipe(slot)
        if not self.memory.load(slot.index, state, len(match.tokens)):
            self._wipe(slot)
            return 0
        if match.count < len(match.tokens) and not self.memory.cut(slot.index, match.count):
            self._wipe(slot)
            return 0
        self.restored += match.count
        return match.count

    def _fill(self, slot: Slot, source: Slot | None, shared: int) -> int:
        """Make `slot` hold `shared` tokens of `source`; return how many it holds, 0 when the memory cannot."""
        length = source.length if source else 0
        shared = min(shared, length)            # a snapshot that turned out to be no good has emptied it
        if source is not slot:
            self._wipe(slot)
            if not (source and shared >= WORTH and self.memory.copy(source.index, slot.index)):
                shared = 0
        if shared and (shared == length or self.memory.cut(slot.index, shared)):
            return shared
        self._wipe(slot)
        return 0

    def _wipe(self, slot: Slot) -> None:
        emptied = self.memory.cut(slot.index, 0)
        assert emptied, "removing a whole sequence never fails"
        slot.left = []


def runs(indices: list[int]) -> int:
    """How many runs of neighbours there are among different indices."""
    ordered = sorted(indices)
    return sum(a + 1 != b for a, b in zip([-2, *ordered], ordered, strict=False))


def _continues(slot: Slot, sequence: Sequence) -> bool:
    """Whether the slot holds an earlier state of the sequence's session."""
    return bool(slot.session) and (slot.owner, slot.session) == (sequence.owner, sequence.session)


def common_prefix(a: Held, b: Held, width: int = 1) -> int:
    """How many tokens `a` and `b` have in common at their beginning, each of so many items; compares slices, so at C
    speed."""
    low, high = 0, min(len(a), len(b)) // width
    while low < high:
        middle = (low + high + 1) // 2
        if a[low * width:middle * width] == b[low * width:middle * width]:
            low = middle
        else:
            high = middle - 1
    return low
