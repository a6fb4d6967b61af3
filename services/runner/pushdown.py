"""Where in its grammar a text stands, and the shortest way to its end.

A `Machine` reads a grammar byte by byte, as a pushdown automaton does: each of its ways through the grammar is a place
and, below it, the places to return to. Sets of ways are its states, made when they are first reached and kept, so that
a byte mostly costs one look-up. Each place knows how few bytes lead from it to the end of its rule; a way's total says
how short the text can still be made. UTF-8 is read strictly; a character may begin in one token and end in the next.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

from services.runner.gbnf import Call, Chars, Either, Expression, Grammar, Literal, Repeat, size

MOST_DEPTH = 200        # places to return to, one below the other: a hundred brackets and more
MOST_WAYS = 512         # of one state; what is more ambiguous is not gone into
MOST_FRAMES = 1 << 17   # kept by one machine
MOST_STEPS = 1 << 14    # from place to place without a byte, for one state: llama.cpp takes each as often as we do
FEW_STEPS = 1 << 11     # in a client's own grammar
MOST_KEPT = 4000        # states and moves of one machine
MOST_SIZE_KEPT = 2000   # of a grammar, after its machine has gone
INLINE = 4              # a repeated part larger than this is a rule of its own
BLANK, BEFORE_BLANK = (0x20, 0x20), b",:"
MATCH, SPLIT, CALL, RETURN = range(4)

# (MATCH, ((low byte, high byte, place), …), 0) | (SPLIT, (place, …), 0) | (CALL, rule, place) | (RETURN, 0, 0)
Place: TypeAlias = "tuple[int, Any, int]"


class _Places:
    """The places of a grammar. Each is made after those it leads to, but for loops and calls."""

    def __init__(self, grammar: Grammar) -> None:
        self.places: list[Place] = []
        self.starts: list[int] = []         # of each rule
        self._firsts: list[int] = []        # the first place made for each rule
        self._rules = list(grammar.rules)   # grows: large parts that are repeated become rules
        self._shared: dict[Place, int] = {}
        for expression in self._rules:
            self._shared.clear()
            self._firsts.append(len(self.places))
            self.starts.append(self._before(expression, self._add((RETURN, 0, 0))))
        self._firsts.append(len(self.places))
        self.costs = self._least_costs()
        self.circling = self._circling()

    def _add(self, place: Place) -> int:
        self.places.append(place)
        return len(self.places) - 1

    def _before(self, expression: Expression, after: int) -> int:
        """The place from which `expression` leads to the place `after`."""
        if isinstance(expression, Literal):
            for byte in reversed(expression.text.encode()):
                after = self._add((MATCH, ((byte, byte, after),), 0))
            return after
        if isinstance(expression, Chars):
            return self._chars(expression, after)
        if isinstance(expression, Call):
            return self._add((CALL, expression.rule, after))
        if isinstance(expression, Repeat):
            return self._repeat(expression, after)
        if isinstance(expression, Either):
            return self._add((SPLIT, tuple([self._before(part, after) for part in expression.parts]), 0))
        for part in reversed(expression.parts):
            after = self._before(part, after)
        return after

    def _chars(self, expression: Chars, after: int) -> int:
        table = []
        for low, high in expression.ranges:
            for first, *rest in _encoded(low, high):
                place = after
                for low_byte, high_byte in reversed(rest):
                    place = self._share((MATCH, ((low_byte, high_byte, place),), 0))
                table.append((*first, place))
        return self._add((MATCH, tuple(table), 0))

    def _share(self, place: Place) -> int:
        if place not in self._shared:
            self._shared[place] = self._add(place)
        return self._shared[place]

    def _repeat(self, expression: Repeat, after: int) -> int:
        part, least, most = expression.part, expression.least, expression.most
        if size(part) > INLINE and max(least, most or 0) > 1:
            self._rules.append(part)
            part = Call(len(self._rules) - 1)
        end = after
        if most is None:
            after = self._add((SPLIT, (end,), 0))
            self.places[after] = (SPLIT, (end, self._before(part, after)), 0)
        for _ in range((most or least) - least):
            after = self._add((SPLIT, (end, self._before(part, after)), 0))
        for _ in range(least):
            after = self._before(part, after)
        return after

    def _least_costs(self) -> list[float]:
        """For each place the fewest bytes to the end of its rule; infinite where there is no end. The cheapest first,
        so each is looked at once (Knuth, "A generalization of Dijkstra's algorithm")."""
        costs, known = [math.inf] * len(self.places), [math.inf] * len(self.places)
        users: list[set[int]] = [set() for _ in self.places]
        for place, (kind, _, _) in enumerate(self.places):
            for target in self._leads_to(place):
                users[target].add(place)
            known[place] = 0 if kind == RETURN else math.inf
        waiting = [(0.0, place) for place, cost in enumerate(known) if cost == 0]
        while waiting:
            cost, place = heapq.heappop(waiting)
            if cost >= costs[place]:
                continue
            costs[place] = cost
            for user in users[place]:
                kind, what, after = self.places[user]
                total = costs[self.starts[what]] + costs[after] if kind == CALL else cost + (kind == MATCH)
                if total < known[user]:
                    known[user] = total
                    heapq.heappush(waiting, (total, user))
        return costs

    def _leads_to(self, place: int) -> list[int]:
        """The places on which the cost of this one depends."""
        kind, what, after = self.places[place]
        if kind == MATCH:
            return [target for _, _, target in what]
        return list(what) if kind == SPLIT else [self.starts[what], after] if kind == CALL else []

    def _circling(self) -> int | None:
        """The number of a rule that can come back to where it was without a byte; None when there is none. llama.cpp
        refuses such grammars, and no machine could tell how often that happened."""
        done, above = bytearray(len(self.places)), bytearray(len(self.places))
        for first in range(len(self.places)):
            path = [(first, iter(self._silent(first)))] if not done[first] else []
            while path:
                place, rest = path[-1]
                above[place] = 1
                following = next(rest, None)
                if following is None:
                    done[place], above[place] = 1, 0
                    path.pop()
                elif above[following]:
                    return bisect(self._firsts, following) - 1
                elif not done[following]:
                    path.append((following, iter(self._silent(following))))
        return None

    def _silent(self, place: int) -> list[int]:
        """The places to which this one leads without a byte."""
        kind, what, after = self.places[place]
        if kind == SPLIT:
            return list(what)
        if kind != CALL:
            return []
        start = self.starts[what]
        return [start, after] if self.costs[start] == 0 else [start]


def _places(grammar: Grammar) -> _Places:
    """Kept for requests that come with the same grammar again, as those with tools do, if it is not large."""
    return _kept(grammar) if sum(map(size, grammar.rules)) <= MOST_SIZE_KEPT else _Places(grammar)


@lru_cache(maxsize=128)
def _kept(grammar: Grammar) -> _Places:
    return _Places(grammar)


def _encoded(low: int, high: int) -> Iterator[tuple[tuple[int, int], ...]]:
    """The UTF-8 of the characters from `low` to `high`: rows of byte ranges. No surrogates are between them."""
    for last in (0x7F, 0x7FF, 0xFFFF, high):
        if low <= min(high, last):
            yield from _spans(chr(low).encode(), chr(min(high, last)).encode())
            low = min(high, last) + 1


def _spans(low: bytes, high: bytes) -> Iterator[tuple[tuple[int, int], ...]]:
    """The rows of byte ranges that hold what is from `low` to `high`, both of one length."""
    head, rest = (low[0], high[0]), len(low) - 1
    lowest, highest = b"\x80" * rest, b"\xBF" * rest
    if head[0] == head[1] and rest:
        yield from ((head, *tail) for tail in _spans(low[1:], high[1:]))
        return
    first, last = head
    if low[1:] != lowest:
        yield from (((first, first), *tail) for tail in _spans(low[1:], highest))
        first += 1
    if high[1:] != highest:
        last -= 1
    if first <= last:
        yield ((first, last), *([(0x80, 0xBF)] * rest))
    if high[1:] != highest:
        yield from (((head[1], head[1]), *tail) for tail in _spans(lowest, high[1:]))


class Frame:
    """A place to return to, the frames below it, and the bytes from there to the end of all."""

    __slots__ = ("below", "cost", "depth", "place")

    def __init__(self, place: int, below: Frame | None, cost: float) -> None:
        self.place, self.below = place, below
        self.cost: float = cost + (below.cost if below else 0)
        self.depth: int = below.depth + 1 if below else 1


Way: TypeAlias = "tuple[int, Frame | None]"


class State(NamedTuple):
    number: int
    ways: tuple[Way, ...]       # each stands before a byte; all lead to an end
    whole: bool                 # the value may end here
    cost: float                 # bytes that close it; infinite only for a grammar without an end


class Machine:
    """A grammar that is being read. For one thread. `BadSchema`: there is no way to an end."""

    def __init__(self, grammar: Grammar) -> None:
        made = _places(grammar)
        self._places, self._starts, self._costs = made.places, made.starts, made.costs
        self._states: dict[tuple[frozenset[Way], bool], State] = {}
        self._frames: dict[tuple[int, Frame | None], Frame] = {}
        self._moves: dict[tuple[int, int], State | None] = {}
        self._count, self.steps = 0, 0          # states made, and steps taken for them
        self._most_steps = FEW_STEPS if grammar.origin == "grammar" else MOST_STEPS
        if (circling := made.circling) is not None:
            rule = f"its rule {grammar.names[circling]}" if circling < len(grammar.names) else "it"
            raise grammar.refusal(f"goes round in circles: {rule} begins with itself, or repeats without end what may "
                                  "be empty")
        start = self._state([(self._starts[grammar.root], None)])
        if start is None:
            endless = self._costs[self._starts[grammar.root]] == math.inf
            raise grammar.refusal("allows no value that ends: it demands itself inside itself" if endless else
                                  f"allows more than {MOST_WAYS} kinds of values at once")
        self.start = start
        if start.ways and not any(self._move(start, low) for low, _ in self.next_bytes(start)):
            raise grammar.refusal("is too ambiguous: its first character could stand at too many places")

    def after(self, state: State, data: bytes) -> State | None:
        """The state behind `data`; None when it does not comply."""
        moves, now = self._moves, state
        for byte in data:
            key = (now.number, byte)
            found = moves[key] if key in moves else self._move(now, byte)
            if found is None:
                return None
            now = found
        return now

    def closing(self, state: State) -> bytes:
        """The shortest text that ends the value."""
        if state.whole:
            return b""
        place, frame = min(state.ways, key=self._total)
        text = bytearray()
        while True:
            kind, what, after = self._places[place]
            if kind == RETURN:
                if frame is None:
                    return bytes(text)
                place, frame = frame.place, frame.below
            elif kind == CALL:
                place, frame = self._starts[what], Frame(after, frame, 0)
            elif kind == SPLIT:
                place = min(what, key=self._costs.__getitem__)
            else:
                byte, _, place = min(what, key=lambda row: self._costs[row[2]])
                text.append(byte)

    def next_bytes(self, state: State) -> set[tuple[int, int]]:
        """The ranges of bytes that may come next."""
        return {(low, high) for place, _ in state.ways for low, high, _ in self._places[place][1]}

    def certain(self, state: State, last: int, most: int) -> bytes:
        """What must come next, up to `most` bytes, but that a blank that may be there is expected where JSON is
        mostly written with one. `last`: the byte written before."""
        text = bytearray()
        while len(text) < most and not state.whole:
            options = self.next_bytes(state)
            if BLANK in options and (len(options) > 1 or last in BEFORE_BLANK):
                options = {BLANK} if last in BEFORE_BLANK else options - {BLANK}
            (last, high), *others = options
            following = self.after(state, bytes([last])) if last == high and not others else None
            if following is None:           # there is a choice, or too many kinds of values behind this byte
                break
            text.append(last)
            state = following
        return bytes(text)

    def _total(self, way: Way) -> float:
        return self._costs[way[0]] + (way[1].cost if way[1] else 0)

    def _move(self, state: State, byte: int) -> State | None:
        if len(self._moves) > MOST_KEPT or len(self._frames) > MOST_FRAMES:
            self._moves.clear()
            self._states.clear()
            self._frames.clear()
        reached = list({(target, frame) for place, frame in state.ways for low, high, target in self._places[place][1]
                        if low <= byte <= high})
        found = self._moves[state.number, byte] = self._state(reached) if reached else None
        return found

    def _state(self, reached: list[Way]) -> State | None:
        """The state of all places before a byte that these ways lead to; None when there is no way to an end."""
        ways: set[Way] = set()
        whole, steps = False, 0
        while reached:
            way = reached.pop()
            if way in ways or self._total(way) == math.inf:
                continue
            steps, self.steps = steps + 1, self.steps + 1
            if steps > self._most_steps:
                return None
            place, frame = way
            kind, what, after = self._places[place]
            if kind == MATCH:
                ways.add(way)
            elif kind == SPLIT:
                reached += [(target, frame) for target in what]
            elif kind == CALL:
                if (inner := self._frame(after, frame)) is None or inner.depth <= MOST_DEPTH:
                    reached.append((self._starts[what], inner))
            elif frame is None:
                whole = True
            else:
                reached.append((frame.place, frame.below))
        if not (ways or whole) or len(ways) > MOST_WAYS:
            return None
        key = (frozenset(ways), whole)
        if key not in self._states:
            self._count += 1
            cost = 0 if whole else min(map(self._total, ways))
            self._states[key] = State(self._count, tuple(ways), whole, cost)
        return self._states[key]

    def _frame(self, place: int, below: Frame | None) -> Frame | None:
        """The way back to `place`; what only returns from there is left out, so that endless rows stay flat."""
        if self._places[place][0] == RETURN:
            return below
        key = (place, below)
        if key not in self._frames:
            self._frames[key] = Frame(place, below, self._costs[place])
        return self._frames[key]
