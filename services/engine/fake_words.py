"""Words as the fake runner's tokens: their numbers, made-up probabilities and vectors."""

from __future__ import annotations

import hashlib
import math
import re
import struct
import threading
from collections.abc import Iterable

from services.errors import BadRequest
from services.wire import Logprob, Tokens

DIMENSIONS = 32
BYTES = 256             # the first tokens are bytes; words are given numbers when they are met first


class Words:
    """The vocabulary of one fake runner. A word's token has the blanks before it. For any thread."""

    def __init__(self) -> None:
        self._texts = [bytes([byte]) for byte in range(BYTES)]
        self._known: dict[str, int] = {}
        self._lock = threading.Lock()

    def token(self, word: str) -> int:
        with self._lock:
            if word not in self._known:
                self._known[word] = len(self._texts)
                self._texts.append(word.encode())
            return self._known[word]

    def tokenize(self, text: str) -> Tokens:
        words = split(text)
        return Tokens(text=text, tokens=[self.token(word) for word in words], pieces=[word.encode() for word in words])

    def detokenize(self, tokens: list[int], param: str = "tokens") -> Tokens:
        if foreign := [token for token in tokens if not 0 <= token < len(self._texts)]:
            raise BadRequest(f"{param} has {foreign[0]}, which is no token of this model", param=param)
        pieces = [self._texts[token] for token in tokens]
        return Tokens(text=b"".join(pieces).decode(errors="replace"), tokens=tokens, pieces=pieces)

    def likely(self, word: str, top: int) -> Logprob:
        """As probable as its hash has it, from a half on; the others have half of what is left each."""
        chance = 0.5 + hashlib.sha256(word.encode()).digest()[0] / 512
        others = [(f" other{n + 1}", (1 - chance) / 2 ** (n + 1)) for n in range(top - 1)]
        told = [(self.token(text), text.encode(), math.log(part)) for text, part in [(word, chance), *others]]
        return Logprob(token=told[0][0], text=told[0][1], logprob=told[0][2], top=told[:top])

    def likely_all(self, words: Iterable[str], top: int) -> list[Logprob]:
        """Of a prompt: nothing comes before its first."""
        told = [self.likely(word, top) for word in words]
        return [Logprob(token=first.token, text=first.text, logprob=0.0) for first in told[:1]] + told[1:]


def split(text: str) -> list[str]:
    """The words of a text, each with the blanks before it, the last with those behind it."""
    return re.findall(r"\s*\S+(?:\s+$)?|\s+$", text)


def pieces(answer: str, stops: list[str], room: int) -> tuple[list[str], str, str]:
    """The answer's words with the blanks before them, cut at a stop string or after `room` words; why it ends, and
    because of which stop string."""
    end, stop = min(((at, stop) for stop in stops if stop and (at := answer.find(stop)) >= 0), default=(None, ""))
    words = re.findall(r"\s*\S+|\s+$", answer[:end])
    return (words[:room], "length", "") if len(words) > room else (words, "stop", stop)


def vector(text: str) -> bytes:
    """A vector of length 1: the sum of its words' hashes."""
    sums = [1e-9] * DIMENSIONS
    for word in re.findall(r"\w+", text.lower()):
        sums = [total + byte - 127.5 for total, byte in zip(sums, hashlib.sha256(word.encode()).digest(), strict=True)]
    length = math.hypot(*sums)
    return struct.pack(f"<{DIMENSIONS}f", *(value / length for value in sums))


def share(query: str, text: str) -> float:
    """How many of the query's words are in `text`, of all."""
    words, found = (set(re.findall(r"\w+", one.lower())) for one in (query, text))
    return len(words & found) / max(1, len(words))
