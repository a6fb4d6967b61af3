"""A value that is always closed in time: its budget of tokens is spent so that its shortest end still fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from services.runner.gbnf import Grammar
from services.runner.pushdown import Machine, State

MOST_KEPT = 1000        # endings
MOST_BYTES = 16 * 1024  # of an ending: what would take longer is taken for impossible

Spell: TypeAlias = Callable[[bytes], "list[int] | None"]


class Value:
    """The value that one request writes. `spell` gives the tokens of a text, None when the vocabulary has none; it may
    be one that `knows_bytes`: there is a token for each.

    While `fits` is asked before each `take`, the value can always be closed within its budget.
    """

    def __init__(self, grammar: Grammar, spell: Spell, budget: int, knows_bytes: bool) -> None:
        self._machine, self._spell, self._endings = Machine(grammar), spell, dict[int, "list[int] | None"]()
        self._knows_bytes = knows_bytes
        self.begin(budget)

    def begin(self, budget: int) -> None:
        """Nothing is written yet, or again."""
        self.state, self.left, self._last = self._machine.start, budget, 0

    @property
    def finished(self) -> bool:
        """Nothing more may follow, or may be paid for."""
        return self.state.whole and (not self.state.ways or self.left <= 0)

    @property
    def slack(self) -> int:
        """Tokens that are left beyond those that close the value."""
        return self.left - len(self.ending(self.state) or ())

    @property
    def steps(self) -> int:
        """How much work was done so far to read what may come."""
        return self._machine.steps

    def after(self, piece: bytes) -> State | None:
        """Where the value would stand behind `piece`; None when it would not comply."""
        return self._machine.after(self.state, piece) if piece else None

    def fits(self, state: State) -> bool:
        """Whether the value can still be closed when a token has led to `state`: first by its bytes, which are at least
        as many as tokens."""
        if self._knows_bytes and state.cost <= self.left - 1:
            return True
        ending = self.ending(state)
        return ending is not None and len(ending) <= self.left - 1

    def take(self, state: State, piece: bytes) -> None:
        """A token has been written."""
        self.state, self._last = state, piece[-1]
        self.left -= 1

    def ending(self, state: State) -> list[int] | None:
        """The tokens that close the value from `state`; None when they are too many or the vocabulary has none."""
        if state.number not in self._endings:
            if len(self._endings) > MOST_KEPT:
                self._endings.clear()
            short = state.cost <= MOST_BYTES
            self._endings[state.number] = self._spell(self._machine.closing(state)) if short else None
        return self._endings[state.number]

    def next_bytes(self, state: State) -> list[int]:
        """The bytes that may come next."""
        return [byte for low, high in self._machine.next_bytes(state) for byte in range(low, high + 1)]

    def certain(self, most: int) -> bytes:
        """What the grammar demands next, or nearly: see `Machine.certain`."""
        return self._machine.certain(self.state, self._last, most)
