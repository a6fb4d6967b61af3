"""Which snapshots there are, found by owner and by how much of a prompt they begin with."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

from services.runner.slots import common_prefix

SHARED = ""                 # the owner of what comes from a profile alone: everybody may use it
_WIDTH = 4                  # bytes of a packed token


def pack(tokens: Sequence[int]) -> bytes:
    """Four bytes each, so that beginnings are compared as bytes are: in C."""
    return array("I", tokens).tobytes()


@dataclass(eq=False)
class Snapshot:
    """One state. It is in memory while `state` is there, on disk while `file` (a name) is; neither: it is gone."""

    number: int                     # in the order of coming
    owner: str
    session: str
    tokens: bytes                   # packed
    head: int
    state: bytes | None = None
    file: str = ""
    length: int = 0                 # of the file
    used: float = 0.0
    gone: bool = False


@dataclass(frozen=True)
class Match:
    """A snapshot whose first `count` tokens are the prompt's."""

    count: int
    snapshot: Snapshot

    @property
    def owner(self) -> str:
        return self.snapshot.owner

    @property
    def session(self) -> str:
        return self.snapshot.session

    @property
    def head(self) -> int:
        return self.snapshot.head

    @property
    def tokens(self) -> list[int]:
        """All tokens of the snapshot: what a slot holds after its state was set."""
        return array("I", self.snapshot.tokens).tolist()


class Index:
    """`rewindable`: a part of a state can be used. Not for two threads at once."""

    def __init__(self, rewindable: bool) -> None:
        self._rewindable = rewindable
        self._numbers = count()
        self._owners: dict[str, dict[Snapshot, None]] = {}
        self._files: dict[str, Snapshot] = {}
        self._length = 0
        self.disk_bytes = 0

    def __len__(self) -> int:
        return self._length

    def enter(self, owner: str, session: str, tokens: bytes, head: int) -> Snapshot:
        """The one of these tokens, made when there is none; from now on the newest of all."""
        mine = self._owners.setdefault(owner, {})
        snapshot = next((each for each in mine if each.session == session and each.tokens == tokens), None)
        if snapshot is None:
            snapshot = Snapshot(0, owner, session, tokens, head)
            mine[snapshot] = None
            self._length += 1
        snapshot.number, snapshot.head = next(self._numbers), head
        return snapshot

    def strike(self, snapshot: Snapshot) -> None:
        mine = self._owners[snapshot.owner]
        del mine[snapshot]
        self._length -= 1
        if not mine:
            del self._owners[snapshot.owner]

    def of_session(self, owner: str, session: str) -> list[Snapshot]:
        return [each for each in self._owners.get(owner, ()) if each.session == session]

    def outdated(self, new: Snapshot) -> Iterator[Snapshot]:
        """What `new` makes useless: all older ones of a named session. Without a name, those that hold a part of its
        tokens, where a part of a state can be used."""
        for old in self.of_session(new.owner, new.session):
            if old.number < new.number and (
                    new.session or (self._rewindable and new.tokens.startswith(old.tokens))):
                yield old

    def longest(self, owner: str, wanted: bytes, better_than: int) -> Match | None:
        """Of this owner or of nobody; what is in memory before what is on disk when both hold as much."""
        best, most = None, better_than
        for whose in {owner, SHARED}:
            for snapshot in self._owners.get(whose, ()):
                nearer = best is not None and best.state is None and snapshot.state is not None
                usable = self._usable(snapshot.tokens, wanted, most - nearer)
                if usable:
                    best, most = snapshot, usable
        return Match(most, best) if best else None

    def _usable(self, held: bytes, wanted: bytes, most: int) -> int:
        """How many tokens of `held` the prompt begins with, 0 when no more than `most`. One comparison for those."""
        more = (most + 1) * _WIDTH
        if len(held) < more or not wanted.startswith(held[:more]):
            return 0
        if wanted.startswith(held):
            return len(held) // _WIDTH
        return common_prefix(held, wanted, _WIDTH) if self._rewindable else 0

    # ------------------------------------------------------------ files

    def file(self, snapshot: Snapshot, name: str, length: int) -> None:
        """The disk has it now."""
        assert not snapshot.file
        snapshot.file, snapshot.length = name, length
        self._files[name] = snapshot
        self.disk_bytes += length

    def unfile(self, snapshot: Snapshot) -> None:
        """The disk has it no more."""
        del self._files[snapshot.file]
        self.disk_bytes -= snapshot.length
        snapshot.file, snapshot.length = "", 0

    def filed(self, names: set[str]) -> list[Snapshot]:
        return [self._files[name] for name in names if name in self._files]
