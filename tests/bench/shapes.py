"""Models to measure with: random weights in the shapes of real ones, Q4_0, made in seconds and kept in a folder.

A model's speed depends on its shape alone, so these are as fast as the real ones. Their words are made up (" badego"),
each of them one token, and only words are ever written: a text of n words has n tokens, an answer tokenises to the
tokens it was written with, and none ends before `max_tokens`.

    python -m tests.bench.shapes                writes all of them and says where
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, product
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType

from tests.tiny_gguf import CONTROL, EOS, byte_letters

VERSION = 2             # of the files; a change of this module that changes them counts it up
VOCABULARY = 151_936    # tokens, as in Qwen 2 and 3
BLOCK, BLOCK_BYTES = 32, 18         # of Q4_0: a scale in 16 bits, then 32 numbers from -8 to 7 in 4 bits each
SPREAD = 4.61           # standard deviation of such numbers when they are random
PASSAGE = 512           # words after which the copying model's text begins again
# As Mistral's: an answer's first word keeps its space, also where a server trims answers, so its tokens stay the same.
TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %} {% endif %}"
            "{{ m['content'] | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
            "{% endif %}")
SYLLABLES = ["".join(pair) for pair in product("bcdfghjklmnprstvwxyz", "aeiou")]


@dataclass(frozen=True)
class Shape:
    """What decides the speed of a model. `copies`: its greedy text repeats a known passage (`passage`)."""

    arch: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    feed: int
    copies: bool = False


SHAPES = {"135m": Shape("llama", 30, 576, 9, 3, 1536),
          "0.5b": Shape("qwen2", 24, 896, 14, 2, 4864),
          "135m-copying": Shape("llama", 30, 576, 9, 3, 1536, copies=True)}


def default_folder() -> Path:
    """Where the files are kept: the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "parley-bench"


def model_file(name: str, folder: Path) -> Path:
    """The file of the shape `name`, made now when it is not there."""
    path = folder / f"{name}-v{VERSION}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        _write(part, name, SHAPES[name])
        part.replace(path)
    return path


def words(count: int, seed: int) -> str:
    """A text of `count` random words, each of them one token; the same for the same seed."""
    chosen = np.random.default_rng(seed).integers(FIRST_WORD, len(TOKENS) - len(CONTROL), count)
    return "".join(_spelled(TOKENS[index]) for index in chosen)


def passage(count: int, first: int = 0) -> str:
    """The text that the copying model writes after word number `first - 1` of it."""
    return "".join(_spelled(TOKENS[FIRST_WORD + (first + n) % PASSAGE]) for n in range(count))


# ---------------------------------------------------------------- vocabulary

def _merges() -> Iterator[tuple[str, str]]:
    """Merges in order of rank: syllables, then words of one, two and three of them, with a space (Ġ) before."""
    yield from (tuple(syllable) for syllable in SYLLABLES)
    yield from (("Ġ", syllable) for syllable in SYLLABLES)
    for length in (1, 2):
        for beginning in product(SYLLABLES, repeat=length):
            yield from (("Ġ" + "".join(beginning), syllable) for syllable in SYLLABLES)


MERGES = list(islice(_merges(), VOCABULARY - 256 - len(CONTROL)))
TOKENS = [*byte_letters(), *("".join(pair) for pair in MERGES), *CONTROL]
FIRST_WORD = 256 + len(SYLLABLES)       # every token from here on, but for the control tokens, is a word


def _spelled(token: str) -> str:
    return token.replace("Ġ", " ")


def _tokenizer(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([*[TokenType.NORMAL] * (len(TOKENS) - len(CONTROL)), *[TokenType.CONTROL] * len(CONTROL)])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    writer.add_bos_token_id(TOKENS.index(CONTROL[0]))
    writer.add_eos_token_id(TOKENS.index(EOS))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)


# ---------------------------------------------------------------- weights

class _Weights:
    """Adds tensors. `quiet`: what a block adds to its input is nothing, at the same cost."""

    def __init__(self, writer: GGUFWriter, shape: Shape) -> None:
        self.writer, self.quiet = writer, shape.copies
        self.random = np.random.default_rng(0)

    def matrix(self, name: str, rows: int, columns: int, *, silent: bool = False) -> None:
        self.add(name, self.blocks(rows, columns, 0.0 if silent else columns ** -0.5))

    def add(self, name: str, blocks: np.ndarray) -> None:
        self.writer.add_tensor(f"{name}.weight", blocks, raw_dtype=GGMLQuantizationType.Q4_0)

    def blocks(self, rows: int, columns: int, deviation: float) -> np.ndarray:
        """Random numbers with this standard deviation, as rows of Q4_0 blocks."""
        count = rows * columns // BLOCK
        blocks = np.frombuffer(self.random.bytes(count * BLOCK_BYTES), np.uint8).reshape(count, BLOCK_BYTES).copy()
        blocks[:, :2] = np.frombuffer(np.float16(deviation / SPREAD).tobytes(), np.uint8)
        return blocks.reshape(rows, columns // BLOCK * BLOCK_BYTES)

    def vector(self, name: str, size: int, value: float) -> None:
        self.writer.add_tensor(name, np.full(size, value, np.float32))


def _block(weights: _Weights, shape: Shape, layer: int) -> None:
    block, width = f"blk.{layer}", shape.width
    rows = {"attn_q": width, "attn_k": width // shape.heads * shape.kv_heads}
    rows["attn_v"] = rows["attn_k"]
    for name, size in rows.items():
        weights.matrix(f"{block}.{name}", size, width)
        if shape.arch == "qwen2":
            weights.vector(f"{block}.{name}.bias", size, 0.0)
    weights.vector(f"{block}.attn_norm.weight", width, 1.0)
    weights.matrix(f"{block}.attn_output", width, width, silent=weights.quiet)
    weights.vector(f"{block}.ffn_norm.weight", width, 1.0)
    weights.matrix(f"{block}.ffn_gate", shape.feed, width)
    weights.matrix(f"{block}.ffn_up", shape.feed, width)
    weights.matrix(f"{block}.ffn_down", width, shape.feed, silent=weights.quiet)


def _embeddings(weights: _Weights, shape: Shape) -> None:
    table = weights.blocks(VOCABULARY, shape.width, 1.0)
    weights.add("token_embd", table)
    weights.vector("output_norm.weight", shape.width, 1.0)
    output = table[_before()] if shape.copies else weights.blocks(VOCABULARY, shape.width, shape.width ** -0.5)
    for token in chain(range(FIRST_WORD), range(VOCABULARY - len(CONTROL), VOCABULARY)):
        output[token].reshape(-1, BLOCK_BYTES)[:, :2] = 0       # what is no word is never written
    weights.add("output", output)


def _before() -> np.ndarray:
    """For each token the one that it follows: the words in order, the first PASSAGE of them as a circle."""
    before = np.arange(VOCABULARY) - 1
    before[FIRST_WORD] = FIRST_WORD + PASSAGE - 1
    return before


def _write(path: Path, name: str, shape: Shape) -> None:
    writer = GGUFWriter(str(path), shape.arch)
    writer.add_name(f"random-{name}")
    writer.add_context_length(32768)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    _tokenizer(writer)
    weights = _Weights(writer, shape)
    for layer in range(shape.layers):
        _block(weights, shape, layer)
    _embeddings(weights, shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=default_folder(), help="folder (default %(default)s)")
    folder = parser.parse_args().models
    for name in SHAPES:
        print(model_file(name, folder))


if __name__ == "__main__":
    main()
