"""Drafts: guesses of what an answer goes on with, looked up in its own prompt and text (prompt-lookup decoding).

A batch can check guesses beside the last known token; what is right comes for the price of some rows instead of some
steps. `Drafter` finds guesses and learns how often they are right, `Payoff` learns what rows cost, and so how many
guesses are worth their rows. Where they are not, none are made: a drafter then goes on comparing what it would have
guessed with what came, which costs no rows, and begins anew when it would have been right.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

LEAST = 2               # tokens at the end of the text that must have stood before, to guess by
LONGEST = 8             # more of them tell no more
CERTAIN = LONGEST + 1   # kind of a guess that is almost sure
SURE = 20.0, 1.0        # of such guesses right and wrong are supposed, until some were made
CANDIDATES = 8          # places looked at for the longest match, the latest first
STRIDE = 4096           # tokens read in one call: a very long prompt is read over some steps
FADING = 0.95           # of what was learnt about guesses, with each new one
GAIN = 1.1              # drafts must promise so many times the tokens a second
UNKNOWN = 0.05          # what a row more is taken to cost, in steps without drafts, until it was tried
FORGET = 1000           # steps after which it is tried again: once is no measurement on a busy machine
FAST, SLOW = 0.2, 0.05  # weights of a step for the level and for the cost of its rows
OUTLIER = 3.0           # a step that takes longer than so many times what it should counts as this


class Payoff:
    """What the rows of a runner's steps cost, and so how long a draft should be. Seconds are of decode and sampling.

    The price of a row is no constant: kernels take four rows of a sequence for little more than one, but two for half
    as much again, and drafts beside answers without one cost a pass of their own. So each number of rows is measured by
    itself, in relation to the others, since all get slower and faster together (texts grow, machines get busy). What
    was not tried is taken to be cheap, and so is tried.
    """

    def __init__(self) -> None:
        self.answers = 1                                # that decode in the next step: its rows without any draft
        self._level = 0.0                               # seconds that cost 1
        self._costs: dict[tuple[int, int], _Cost] = {}  # by answers and rows of a step
        self._steps = 0

    def told(self, rows: int, seconds: float) -> None:
        """What a step of `rows`, none of prompts, took; `answers` of them were last known tokens."""
        assert rows >= self.answers > 0
        self._steps += 1
        self._level = self._level or seconds
        measured = seconds / self._level if self._level else 1.0
        if self._cost(rows) is None:
            self._costs[self.answers, rows] = _Cost(measured, self._steps)
        cost = self._costs[self.answers, rows]
        cost.steps, cost.value = self._steps, cost.value + SLOW * (measured - cost.value)
        self._level *= 1 + FAST * (min(measured / cost.value, OUTLIER) - 1) if cost.value else 1

    def length(self, rate: float, most: int) -> int:
        """Guesses to check, when each is right at this rate if those before it are: what brings the most tokens a
        second, at most `most`; 0 when that is hardly more than without."""
        plain = self._cost(self.answers)
        if plain is None:
            return 0                                    # a step without drafts is what all is compared with
        tokens, right, dear = float(self.answers), 1.0, plain
        best, speed = 0, GAIN * tokens / dear
        for rows in range(self.answers + 1, self.answers + most + 1):
            right *= rate
            tokens += right
            known = self._cost(rows)
            dear = known if known is not None else dear + UNKNOWN * plain
            if tokens > speed * dear:
                best, speed = rows - self.answers, tokens / dear
        return best

    def _cost(self, rows: int) -> float | None:
        """Of a step of `rows` with the answers of the next one; None when it is not known, or no longer."""
        cost = self._costs.get((self.answers, rows))
        return cost.value if cost and self._steps - cost.steps < FORGET else None


@dataclass
class _Cost:
    """What a step of some rows takes, in levels, and the step that told it last."""

    value: float
    steps: int


class Drafter:
    """Guesses of one sequence, whose tokens are only ever added to. `certain` gives what is almost sure to come (a
    grammar that leaves no choice): up to so many tokens, or none."""

    def __init__(self, payoff: Payoff, certain: Callable[[int], list[int]] = lambda most: []) -> None:
        self._payoff, self._certain = payoff, certain
        self._latest: dict[int, int] = {}           # two tokens -> the place behind their latest occurrence
        self._before = array("i", [-1] * LEAST)     # place -> the one before it behind the same two tokens; -1: none
        self._rates = [*(_Rate() for _ in range(LONGEST + 1)), _Rate(*SURE)]    # by length of the match, and CERTAIN
        self._kind = 0                              # of the latest guess: the length of its match, or CERTAIN
        self._unchecked: tuple[int, int] | None = None          # place and token of a guess that was not given out

    def draft(self, tokens: list[int], most: int) -> list[int]:
        """Up to `most` guesses of what follows `tokens`; [] where there are none or they would not pay."""
        if self._unchecked and self._unchecked[0] < len(tokens):
            place, guess = self._unchecked
            self._rates[self._kind].learn(tokens[place] == guess, tokens[place] != guess)
        self._unchecked = None
        self._read(tokens)
        guesses = self._guesses(tokens, most)
        if not guesses:
            return []
        count = self._payoff.length(self._rates[self._kind].value, len(guesses))
        if not count:
            self._unchecked = (len(tokens), guesses[0])
        return guesses[:count]

    def _guesses(self, tokens: list[int], most: int) -> list[int]:
        if certain := self._certain(most):
            self._kind = CERTAIN
            return certain
        place, self._kind = self._find(tokens) if len(self._before) == len(tokens) else (0, 0)
        period = len(tokens) - place
        return [tokens[place + i % period] for i in range(most)] if self._kind else []

    def told(self, drafted: int, accepted: int) -> None:
        """So many of the latest draft were what the model chose."""
        assert 0 <= accepted <= drafted
        self._rates[self._kind].learn(accepted, accepted < drafted)

    def _read(self, tokens: list[int]) -> None:
        """Note the places behind each two tokens, up to the one before the end, and no more than STRIDE of them."""
        for place in range(len(self._before), min(len(tokens), len(self._before) + STRIDE)):
            pair = tokens[place - 2] << 32 | tokens[place - 1]
            self._before.append(self._latest.get(pair, -1))
            self._latest[pair] = place

    def _find(self, tokens: list[int]) -> tuple[int, int]:
        """The place behind the longest match of the text's end, the latest of several; its length, 0 for none."""
        end, found, longest = len(tokens), 0, 0
        place = self._latest.get(tokens[-2] << 32 | tokens[-1], -1)
        for _ in range(CANDIDATES):
            if place < 0 or longest == LONGEST:
                break
            length = LEAST
            while length < LONGEST and place > length and tokens[place - length - 1] == tokens[end - length - 1]:
                length += 1
            if length > longest:
                found, longest = place, length
            place = self._before[place]
        return found, longest


class _Rate:
    """How often guesses of one kind are right, the latest counting most. Before any was made: a third, or as told."""

    def __init__(self, right: float = 1.0, wrong: float = 2.0) -> None:
        self._right, self._wrong = right, wrong

    @property
    def value(self) -> float:
        return self._right / (self._right + self._wrong)

    def learn(self, right: int, wrong: int) -> None:
        self._right = FADING * self._right + right
        self._wrong = FADING * self._wrong + wrong
