"""Who is next: fair queueing over owners, by tokens and weights, in two classes.

Each owner has a virtual time: the tokens computed for it, divided by its weight. Whoever is behind is next, interactive
requests before batch ones; an owner's own come in order of arrival. It is deficit round robin with a quantum of one
token, in the manner of start-time fair queueing (Goyal, Vin, Cheng 1996): an owner that comes back from a rest begins
where the others are, so that nobody saves up a claim.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from services.errors import TooManyRequests, Unavailable
from services.runner.sequence import BATCH, INTERACTIVE
from services.wire import RunnerLimits

CLASSES = (INTERACTIVE, BATCH)


class Request(Protocol):
    """What waits: a sequence, or texts to embed."""

    owner: str
    weight: float
    rank: int               # its class


Item = TypeVar("Item", bound=Request)


@dataclass
class Owner(Generic[Item]):
    """What is known of an owner that waits or runs."""

    name: str
    weight: float = 1.0
    time: float = 0.0           # virtual: tokens / weight
    running: int = 0            # sequences in slots
    turn: int = 0               # of the last request taken: breaks ties
    queues: dict[int, deque[Item]] = field(default_factory=lambda: {rank: deque() for rank in CLASSES})

    @property
    def waiting(self) -> int:
        return sum(map(len, self.queues.values()))


class Queue(Generic[Item]):
    """All that wait for a slot, and each owner's account."""

    def __init__(self) -> None:
        self.owners: dict[str, Owner[Item]] = {}
        self._turn = 0

    def __len__(self) -> int:
        return sum(owner.waiting for owner in self.owners.values())

    def __iter__(self) -> Iterator[Item]:
        for owner in self.owners.values():
            for queue in owner.queues.values():
                yield from queue

    def refusal(self, name: str, limits: RunnerLimits, free: int = 0) -> tuple[str, str] | None:
        """The code and the reason of why this owner's next request is not taken in, where so many slots are free."""
        queued, own = len(self), self.owners.get(name)
        if queued >= limits.max_queue + free:
            return Unavailable.code, (f"the model's queue is full: {queued} requests are waiting "
                                      f"(limit {limits.max_queue})")
        if own and own.waiting >= limits.max_queue_per_owner + free:
            return TooManyRequests.code, (f"{own.waiting} requests of this key are waiting already "
                                          f"(limit {limits.max_queue_per_owner})")
        return None

    def add(self, sequence: Item, first: bool = False) -> None:
        """Have it wait behind its owner's others of its class; `first`: before them (it ran already)."""
        owner = self._owner(sequence)
        queue = owner.queues[sequence.rank]
        if first:
            queue.appendleft(sequence)
        else:
            queue.append(sequence)

    def remove(self, sequence: Item) -> None:
        self.owners[sequence.owner].queues[sequence.rank].remove(sequence)
        self._forget(sequence.owner)

    def peek(self) -> Item | None:
        """The one to be served next; None when nobody waits."""
        for rank in CLASSES:
            ready = [owner for owner in self.owners.values() if owner.queues[rank]]
            if ready:
                return min(ready, key=lambda owner: (owner.time, owner.running, owner.turn)).queues[rank][0]
        return None

    def take(self, sequence: Item) -> None:
        """It got a slot."""
        owner = self.owners[sequence.owner]
        owner.queues[sequence.rank].remove(sequence)
        owner.running += 1
        self._turn += 1
        owner.turn = self._turn

    def left(self, sequence: Item) -> None:
        """It gave its slot back."""
        self.owners[sequence.owner].running -= 1
        self._forget(sequence.owner)

    def charge(self, sequence: Item, tokens: int) -> None:
        """`tokens` were computed for a running sequence."""
        owner = self.owners[sequence.owner]
        owner.time += tokens / owner.weight

    def time(self, sequence: Item) -> float:
        """Its owner's virtual time; 0 for one that has no account."""
        owner = self.owners.get(sequence.owner)
        return owner.time if owner else 0.0

    def share(self, name: str, slots: int) -> float:
        """Slots that are an owner's while others wait: by weight, among those that wait or run."""
        return slots * self.owners[name].weight / sum(owner.weight for owner in self.owners.values())

    def position(self, sequence: Item) -> int:
        """1: the next of all that wait. As if each owner in turn were served one request."""
        owner = self.owners[sequence.owner]
        before = owner.queues[sequence.rank].index(sequence)
        ahead = before + 1
        for other in self.owners.values():
            if sequence.rank == BATCH:
                ahead += len(other.queues[INTERACTIVE])
            if other is not owner:
                ahead += min(len(other.queues[sequence.rank]), before + (other.time <= owner.time))
        return ahead

    def _owner(self, sequence: Item) -> Owner[Item]:
        owner = self.owners.get(sequence.owner)
        if owner is None:
            now = min((other.time for other in self.owners.values()), default=0.0)
            owner = self.owners[sequence.owner] = Owner(sequence.owner, time=now)
        owner.weight = sequence.weight
        return owner

    def _forget(self, name: str) -> None:
        """An owner at rest has no account: it comes back where the others are."""
        owner = self.owners[name]
        if not owner.running and not owner.waiting:
            del self.owners[name]
