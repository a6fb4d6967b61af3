"""The sampler of a request with tools: free text until a call begins; what follows is a call that parses and complies.

A call's frame and the tool's name are chosen among the tokens that spell them; its arguments are held to the tool's
grammar, as a value is (complying.py), and all is closed in time. A call that the budget has no room for is not begun.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from services.errors import BadRequest, BadSchema
from services.runner.complying import MOST_TRIES, Holding, candidates_of
from services.runner.llama import lib
from services.runner.model import Model
from services.runner.text import Text
from services.runner.tool import Tool, spelled
from services.runner.watch import Watch
from services.wire import Calls, Sampling

MOST_TOOLS = 128
MOST_SIZE = 100_000     # of all tools' grammars together: some seconds of work
MOST_GAP = 4            # characters of white space between calls that are no list

Way = tuple[list[int], Tool | None]        # tokens that lead to a tool's arguments; None: to the end of all


class Calling(Holding):
    """Made in any thread, used in the loop's. `budget`: the tokens that the answer may have. `shown`: special tokens
    that are sent as text. From the first call on no stop string of `output` counts.

    `BadSchema`: the grammar does not hold a tool's parameters, the vocabulary cannot spell a call, or a required one
    does not fit the budget.
    """

    def __init__(self, model: Model, sampling: Sampling, prompt: list[int], calls: Calls, budget: int,
                 output: Text, shown: dict[int, bytes]) -> None:
        if not 0 < len(calls.forms) <= MOST_TOOLS:
            raise BadRequest(f"tools has {len(calls.forms)} entries; it must have 1 to {MOST_TOOLS}", param="tools")
        super().__init__(model, sampling, prompt)
        self._calls, self._left, self._output, self._shown = calls, budget, output, shown
        self._over = False                          # nothing follows what is forced
        self._gap = b""                             # white space behind the latest call
        self._watch = Watch.over(calls)
        self._step: Callable[[int], int] = self._free
        self._tools: list[Tool] = []
        try:
            self._prepare()
        except BadSchema:
            self.close()
            raise

    def _prepare(self) -> None:
        calls = self._calls
        self._closing, self._thought = self._spell(calls.closing), self._spell(calls.thought)
        room = MOST_SIZE
        for form in calls.forms:
            self._tools.append(tool := Tool(self._model, form, self._spelling, self._spell))
            room -= tool.size
            if room < 0:
                raise BadSchema(f"the parameters of all {len(calls.forms)} tools are too large together, at "
                                f"{form.name!r}: offer fewer tools, or simpler ones", param="tools")
        self._first_costs = min(self._cost(tool, calls.opening) for tool in self._tools)
        self._another_costs = min(self._cost(tool, "") for tool in self._tools)
        if not calls.required:
            return
        needed = self._first_costs + (len(self._thought) if self._watch.inside else 0)
        if needed > self._left:
            raise BadSchema(f"the shortest call of a tool has {needed} tokens, and the answer may have {self._left}: "
                            "raise max_tokens; where the context has no more room, shorten the prompt", param="tools")
        if not self._watch.inside:
            self._begin(self._ways(calls.opening, b"", self._left))

    @property
    def finished(self) -> bool:
        return not self.forced and (self._over or (self._step == self._again and self._left < self._another_costs))

    def sample(self, row: int) -> int:
        token = self.forced.pop(0) if self.forced else self._step(row)
        lib.llama_sampler_accept(self._chain, token)
        self._left -= 1
        return token

    def draft(self, most: int) -> list[int]:
        return super().draft(most) if self.forced or self._step == self._hold else []

    def close(self) -> None:
        super().close()
        for tool in self._tools:
            tool.close()

    # ------------------------------------------------------------ steps: each chooses the next token

    def _free(self, row: int) -> int:
        """Text, until a call begins; of a required one only the thought before it."""
        for token in self._freely(row):
            if self._model.is_end(token):
                return self._stop_thinking() if self._calls.required else token
            watch, over = self._watch.after(self._piece(token))
            if over is not None:
                if not (ways := self._ways(self._calls.opening, self._calls.trigger.encode() + over, self._left - 1)):
                    continue            # a call that does not fit is not begun
                self._begin(ways)
            elif self._calls.required and watch.inside \
                    and self._left - 1 < self._first_costs + len(self._thought):
                return self._stop_thinking()
            elif self._calls.required and not watch.inside:
                self._step = self._lead
            self._watch = watch
            return token
        return self._stop()

    def _stop_thinking(self) -> int:
        first, *self.forced = self._thought
        self._step = self._lead
        return first

    def _lead(self, row: int) -> int:
        """Between a thought and the call that is required: a little white space."""
        token = self._first(row)
        gap = self._gap + self._piece(token)
        if not self._model.is_end(token) and self._is_gap(gap) and self._left > self._first_costs:
            self._gap = gap
            return token
        self._begin(self._ways(self._calls.opening, b"", self._left))
        return self.forced.pop(0) if self.forced else self._step(row)

    def _choose_way(self, ways: list[Way], row: int) -> int:
        """The next token of one of the ways."""
        firsts = np.array(sorted({tokens[0] for tokens, _ in ways}))
        allowed = np.setdiff1d(firsts, self._banned)
        allowed = allowed if len(allowed) else firsts
        token = self._pick(candidates_of(self._logits(row)[allowed], allowed))
        self._follow([(tokens[1:], tool) for tokens, tool in ways if tokens[0] == token])
        return token

    def _enter(self, tool: Tool, row: int) -> int:
        """The first token of a call's arguments."""
        self._value, self._rules = tool.begin(self._left - len(self._closing))
        self._tool, self._step = tool, self._hold
        return self._hold(row)

    def _hold(self, row: int) -> int:
        closed, self.closed = self.closed, False
        token = self._choose(row)
        if self.closed or self._value.state.whole:
            self.forced += self._tool.tail
            if not self._calls.many:
                self._end()
            else:
                self._gap, self._step = b"", self._more if self._closing else self._again
        self.closed |= closed
        return token

    def _more(self, row: int) -> int:
        """In a list of calls: another one if the model begins it by itself, or else the list's end."""
        token = self._first(row)
        ways: list[Way] = [(self._closing, None), *self._ways(self._calls.between, b"", self._left)]
        if chosen := [(tokens[1:], tool) for tokens, tool in ways if tokens[0] == token]:
            self._follow(chosen)
            return token
        self._end()
        return self.forced.pop(0)

    def _again(self, row: int) -> int:
        """Behind a call: what begins another one, white space before it, or the end of the answer."""
        token = self._first(row)
        if self._model.is_end(token):
            return token
        gap = self._gap + self._piece(token)
        if self._is_gap(gap):
            self._gap = gap
            return token
        bare = gap.lstrip()
        if not bare or not (ways := self._ways("", bare, self._left - 1)):
            return self._stop()
        self._follow(ways)
        return token

    # ------------------------------------------------------------ ways to the arguments

    def _ways(self, lead: str, written: bytes, left: int) -> list[Way]:
        """What may follow when a call has been `written` so far, and so many tokens are left."""
        ways: list[Way] = []
        for tool in self._tools:
            text = (lead + tool.begins).encode()
            tokens = spelled(self._model, self._spelling, text[len(written):]) if text.startswith(written) else None
            if tokens is not None and len(tokens) + tool.least + len(self._closing) <= left:
                ways.append((tokens, tool))
        return ways

    def _begin(self, ways: list[Way]) -> None:
        """The first call."""
        self._output.stops = []
        self._follow(ways)

    def _follow(self, ways: list[Way]) -> None:
        tokens, tool = next((way for way in ways if not way[0]), ways[0])
        if tokens and len(ways) > 1:
            self._step = partial(self._choose_way, ways)
            return
        self.forced += tokens
        if tool is None:
            self._over = True
        else:
            self._step = partial(self._enter, tool)

    def _end(self) -> None:
        self.forced += self._closing
        self._over = True

    def _stop(self) -> int:
        """The answer ends here."""
        self._over = True
        return self._last_token()

    def _cost(self, tool: Tool, lead: str) -> int:
        """Of the shortest call."""
        return len(self._spell(lead + tool.begins)) + tool.least + len(self._closing)

    # ------------------------------------------------------------ tokens and text

    def _freely(self, row: int) -> Iterator[int]:
        """Tokens in the order in which the chain chooses them."""
        yield (token := self._first(row))
        logits, ids = self._logits(row), self._all
        for _ in range(MOST_TRIES):
            ids = ids[ids != token]
            yield (token := self._pick(candidates_of(logits[ids], ids)))

    def _piece(self, token: int) -> bytes:
        return self._shown.get(token) or self._model.piece(token)

    def _is_gap(self, text: bytes) -> bool:
        return text.isspace() and len(text) <= MOST_GAP and len(text) > len(self._gap)

    def _spell(self, text: str) -> list[int]:
        tokens = spelled(self._model, self._spelling, text.encode())
        if tokens is None:
            raise BadSchema(f"this model's vocabulary cannot spell {text[:80]!r}, which a call of a tool needs",
                            param="tools")
        return tokens
