"""Who runs and who waits: requests on their way into slots and out of them, and prompts that are prepared.

Owners share the slots by weight. One that holds more than its share gives a slot up to one that has less: its sequence
is suspended and goes on later, where it was.
"""

from __future__ import annotations

from math import ceil, floor

from services.runner.fair import Queue
from services.runner.sequence import PREPARE, Sequence
from services.runner.slots import Slots

SLICE = 256         # tokens that an owner may be ahead of one that waits, where there are more owners than slots
MOST_PREPARES = 256  # prompts that wait to be prepared; older ones are dropped


class Seats:
    """Places are named after states: `queue`, `running` (in a slot), `prepares` (to be computed before it is asked)."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.queue: Queue[Sequence] = Queue()
        self.running: list[Sequence] = []
        self.prepares: dict[tuple[str, str], Sequence] = {}     # by owner and session
        self.preempted = 0              # sequences suspended so far

    @property
    def taken(self) -> bool:
        """Whether anybody waits or runs."""
        return bool(self.running or len(self.queue) or self.prepares)

    @property
    def answering(self) -> list[Sequence]:
        """What runs because somebody asked."""
        return [sequence for sequence in self.running if sequence.rank != PREPARE]

    @property
    def free(self) -> int:
        """Slots that a newcomer could have: idle ones, and those in which something is only prepared."""
        return len(self.slots.slots) - len(self.answering)

    # ------------------------------------------------------------ in

    def admit(self, now: float) -> list[Sequence]:
        """Fill idle slots, and take some from those who have more than their share; who got its first."""
        first = []
        while (sequence := self.queue.peek()) and self._make_room(sequence):
            self.queue.take(sequence)
            self._place(sequence)
            if sequence.placed is None:
                sequence.placed = now
                self.slots.lead(sequence)
                first.append(sequence)
        while self.prepares and self.slots.idle and not self.answering:
            self._place(self.prepares.pop(next(iter(self.prepares))))
        return first

    def prepare(self, sequence: Sequence) -> None:
        """To be computed when nothing else is to do. The last of a session counts."""
        assert sequence.rank == PREPARE
        self.drop_prepare(sequence.owner, sequence.session)
        while len(self.prepares) >= MOST_PREPARES:
            self.prepares.pop(next(iter(self.prepares)))
        self.prepares[sequence.owner, sequence.session] = sequence

    def _place(self, sequence: Sequence) -> None:
        placed = self.slots.place(sequence)
        assert placed
        self.running.append(sequence)

    # ------------------------------------------------------------ out

    def leave(self, sequence: Sequence, wipe: bool = False) -> None:
        """Take it out of wherever it is. `wipe`: nothing of it stays in its slot."""
        if sequence.slot is not None:
            followers = self._hand_over(sequence, wipe)
            self.running.remove(sequence)
            self.slots.release(sequence, wipe or sequence.forgotten)
            if sequence.rank != PREPARE:
                self.queue.left(sequence)
            self._lead(followers)
        elif sequence in self.queue:
            self.queue.remove(sequence)

    def drop_prepare(self, owner: str, session: str) -> None:
        """Nothing is to be prepared for the session any more; what is done of it stays in its slot."""
        self.prepares.pop((owner, session), None)
        for sequence in self.running:
            if sequence.rank == PREPARE and (sequence.owner, sequence.session) == (owner, session):
                self._end_prepare(sequence)
                break

    def forget(self, owner: str, session: str) -> None:
        """A session is gone: nothing of it stays, or will once it has ended."""
        self.drop_prepare(owner, session)
        for sequence in [*self.running, *self.queue]:
            if (sequence.owner, sequence.session) == (owner, session):
                sequence.forgotten = True
        self.slots.forget(owner, session)

    def _end_prepare(self, sequence: Sequence) -> None:
        sequence.ended = True
        self.leave(sequence)

    # ------------------------------------------------------------ from one to another

    def _make_room(self, sequence: Sequence) -> bool:
        """Have an idle slot for it: what is prepared gives way, then who has more than its share."""
        if self.slots.idle:
            return True
        victim = self._victim(sequence)
        if victim is None:
            return False
        if victim.rank == PREPARE:
            self._end_prepare(victim)
        else:
            self._preempt(victim)
        return True

    def _victim(self, sequence: Sequence) -> Sequence | None:
        """The running sequence that has to wait in its place; None when nobody has to."""
        owner = self.queue.owners[sequence.owner]
        share, slots = self.queue.share, len(self.slots.slots)
        mine = share(owner.name, slots)

        def gives_way(other: Sequence) -> bool:
            if other.rank != sequence.rank or other.owner == sequence.owner:
                return other.rank > sequence.rank
            holder = self.queue.owners[other.owner]
            theirs = share(holder.name, slots)
            if owner.running + 1 <= max(1.0, mine) and holder.running - 1 >= max(1.0, theirs):
                return True
            # About a part of a slot they take turns; nobody goes below the whole ones of its share, to get them back.
            in_turn = owner.running < ceil(mine) and holder.running > floor(theirs) and holder.running > owner.running
            return in_turn and holder.time >= owner.time + SLICE / holder.weight

        victims = [other for other in self.running if gives_way(other)]
        return max(victims, key=lambda other: (other.rank, self.queue.time(other), other.placed or 0), default=None)

    def _preempt(self, sequence: Sequence) -> None:
        """Its slot is another owner's now; it goes on where it was, before its owner's others."""
        followers = self._hand_over(sequence)
        sequence.leader = None
        self.running.remove(sequence)
        self.slots.suspend(sequence)
        self.queue.add(sequence, first=True)
        self.queue.left(sequence)
        self._lead(followers)
        self.preempted += 1

    def hand_on(self, sequence: Sequence) -> None:
        """It got further: what others wait for may be there now."""
        for other in self.running:
            if other.leader is sequence and sequence.past >= other.shared:
                self.slots.follow(other)
        if sequence.rank == PREPARE and not sequence.pending:
            self._end_prepare(sequence)

    def _hand_over(self, leader: Sequence, wipe: bool = False) -> list[Sequence]:
        """It ends, or loses its slot: its followers, who take what there is."""
        followers = [other for other in self.running if other.leader is leader]
        for other in followers:
            if wipe:
                other.leader = None
            else:
                self.slots.follow(other)
        return followers

    def _lead(self, followers: list[Sequence]) -> None:
        """One of them goes on, the others wait for it."""
        for other in followers[1:]:
            self.slots.lead(other)

    def check_integrity(self, n_ctx: int) -> None:
        """Assert what must hold between two steps."""
        self.slots.check_integrity(n_ctx)
        in_slots = {id(slot.sequence) for slot in self.slots.slots if slot.sequence}
        assert in_slots == {id(sequence) for sequence in self.running}
        queued = [*self.queue, *self.prepares.values()]
        assert all(sequence.slot is None and not sequence.past for sequence in queued)
        assert not any(sequence.ended for sequence in [*self.running, *queued])
        for name, owner in self.queue.owners.items():
            assert owner.running == sum(sequence.owner == name for sequence in self.answering)
            assert owner.running or owner.waiting, "an owner at rest has an account"
