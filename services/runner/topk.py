"""The likeliest tokens of a vocabulary, for samplers that look at no others.

llama.cpp's samplers begin by writing a record for each token: with 150,000 of them that is a thirtieth of a small
model's step, for each answer in it. To read the logits twice takes a third of that.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from services.runner.llama import lib

PARTS = 64              # of the logits, which are compared place by place
SPARE = 4               # times as many places as tokens wanted, or it is no gain
RECORD = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])     # llama_token_data


class Likeliest:
    """Chooses with a chain of samplers that begins with `top_k` of `count`, or is greedy (`count` 1)."""

    def __init__(self, count: int) -> None:
        self._seen = np.zeros(count, RECORD)
        self._records = self._seen.ctypes.data_as(ctypes.POINTER(lib.llama_token_data))

    def choose(self, chain: Any, logits: np.ndarray[Any, Any]) -> int | None:
        """The chain's choice, which it has not yet accepted; None where a logit is no number."""
        ids = likeliest(logits, len(self._seen))
        if len(ids) < len(self._seen):
            return None
        self._seen["id"], self._seen["logit"] = ids, logits[ids]
        given = lib.llama_token_data_array(self._records, len(ids), -1, True)
        lib.llama_sampler_apply(chain, ctypes.byref(given))
        return int(given.data[given.selected].id)


def worth(count: int, n_vocab: int) -> bool:
    """Whether to look for so many tokens here is a gain."""
    return 0 < count * SPARE <= n_vocab // PARTS


def likeliest(logits: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """The `count` tokens with the highest logits, those first, of equals the first; fewer where one is no number.

    Of the highest in each place of the parts the `count`-th is a bound: so many tokens are not below it.
    """
    places = len(logits) // PARTS
    highest = logits[:PARTS * places].reshape(PARTS, places).max(axis=0)
    bound = highest.max() if count == 1 else np.partition(highest, places - count)[places - count]
    ids = np.flatnonzero(logits >= bound)
    return ids[np.argsort(-logits[ids], kind="stable")[:count]]
