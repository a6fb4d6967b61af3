"""How likely a request's tokens were: kept until their text is sure to be sent, so that what is said is told."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import msgspec

from services.wire import Logprob

MOST = 20               # likeliest tokens told with each
NEVER = -9999.0         # told of what cannot be: minus infinity is no JSON, and this is what OpenAI says


class Likely:
    """The log probabilities of one request: `top` likeliest tokens with each, `echo`: the prompt's too."""

    def __init__(self, top: int, echo: bool = False) -> None:
        self.top, self.echo = top, echo
        self.told = 0                                   # tokens of the prompt that were told
        self._held: deque[tuple[int, Logprob]] = deque()

    def of_prompt(self, prompt: list[int], past: int, count: int, row: int,
                  look: Callable[[int, int, int], Logprob]) -> list[Logprob]:
        """Those of the prompt's tokens that were not told yet, where `count` tokens behind `past` were decoded, the
        last in batch row `row`. `look` tells for a row, a token and `top`; the first token follows nothing: 0.0."""
        first = [] if self.told else [msgspec.structs.replace(look(row, prompt[0], 0), logprob=0.0)]
        before = row - past - count             # of the token at place n the row before is before + n
        places = range(max(self.told, past + 1), min(past + count + 1, len(prompt)))
        told = first + [look(before + place, prompt[place], self.top) for place in places]
        self.told += len(told)
        return told

    def hold(self, begin: int, logprob: Logprob) -> None:
        """A token was sampled whose text begins at this character of the answer."""
        self._held.append((begin, logprob))

    def take(self, certain: int) -> list[Logprob]:
        """What may be told when so many characters are certain: each once, in order. See `Text.certain`."""
        taken = []
        while self._held and self._held[0][0] < certain:
            taken.append(self._held.popleft()[1])
        return taken
