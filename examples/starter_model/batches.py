"""From dialogues to batches of token ids: the tokenizer, and the packing of dialogues into rows of a few lengths."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch
from dialogues import END, START, Piece, rendered
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.utils.data import IterableDataset

ROWS = {256: 0.7, 512: 0.27, 1024: 0.03}
"""Lengths of a row in tokens, and the share of the shortest dialogues that fill up rows of that length."""
TOKENS = 8192
"""Tokens in a batch."""
OTHERS = 0.1
"""Loss weight of what the model did not say itself."""
CHUNK = 500
"""Dialogues made and tokenised at a time."""

Sample = tuple[list[int], list[float]]
Batch = tuple[Tensor, Tensor, Tensor, Tensor]


def train_tokenizer(path: Path, vocab: int, seed: int = 0, count: int = 20_000) -> None:
    """A byte-level BPE of that many tokens; its text holds no digits, so that each digit stays a token of its own."""
    rng = random.Random(seed)
    no_digits = str.maketrans("", "", "0123456789")
    text = ("".join(piece for piece, _ in rendered(rng) if piece not in (START, END)) for _ in range(count))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((t.translate(no_digits) for t in text), trainer)
    tokenizer.save(str(path))


def encode(tokenizer: Tokenizer, pieces: list[Piece]) -> Sample:
    """The ids of a dialogue, and for each of them its loss weight as a target."""
    ids: list[int] = []
    weights: list[float] = []
    for said, group in groupby(pieces, key=lambda piece: piece[1]):
        found = tokenizer.encode("".join(text for text, _ in group)).ids
        ids += found
        weights += [1.0 if said else OTHERS] * len(found)
    return ids, weights


def pack(samples: list[Sample], length: int) -> tuple[Batch, list[Sample]]:
    """Rows full of whole dialogues, the long ones first, and the dialogues that are left over.

    The batch: ids, targets (int64), loss weights (float) and the number of the dialogue (-1: none), all (rows, length).
    """
    rows = TOKENS // length
    ids, targets = torch.zeros(2, rows, length, dtype=torch.int64)
    weights, owner = torch.zeros(rows, length), torch.full((rows, length), -1)
    used, left = [0] * rows, []
    for number, sample in enumerate(sorted(samples, key=lambda s: -len(s[0]))):
        tokens, weight = sample
        size = len(tokens) - 1
        row = next((r for r in range(rows) if used[r] + size <= length), None)
        if row is None:
            left.append(sample)
            continue
        place = slice(used[row], used[row] + size)
        ids[row, place], targets[row, place] = torch.tensor(tokens[:-1]), torch.tensor(tokens[1:])
        weights[row, place], owner[row, place] = torch.tensor(weight[1:]), number
        used[row] += size
    return (ids, targets, weights, owner), left


class Pool:
    """Dialogues that wait for their batch, all for rows of one length."""

    def __init__(self, length: int) -> None:
        self.length = length
        self.samples: list[Sample] = []
        self.size = 0

    def add(self, sample: Sample) -> Batch | None:
        """Take a dialogue in; hand out a batch when there are enough of them to fill its rows well."""
        self.samples.append(sample)
        self.size += len(sample[0]) - 1
        if self.size < 1.1 * TOKENS:
            return None
        batch, self.samples = pack(self.samples, self.length)
        self.size = sum(len(tokens) - 1 for tokens, _ in self.samples)
        return batch


class Batches(IterableDataset):
    """Endless batches of fresh dialogues, the same for the same seed; a dialogue longer than every row is left out."""

    def __init__(self, tokenizer_file: Path, seed: int) -> None:
        super().__init__()
        self.file, self.seed = tokenizer_file, seed

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        tokenizer = Tokenizer.from_file(str(self.file))
        rng = random.Random(self.seed)
        pools = [Pool(length) for length in ROWS]
        shares = list(ROWS.values())
        while True:
            for sample in (encode(tokenizer, rendered(rng)) for _ in range(CHUNK)):
                fit = [p for p in pools if len(sample[0]) - 1 <= p.length]
                pool = rng.choices(pools, shares)[0] if len(fit) == len(pools) else fit[0] if fit else None
                batch = pool.add(sample) if pool else None
                if batch is not None:
                    yield batch
