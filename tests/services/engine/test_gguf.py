"""The header reader believes nothing: whatever a file says, the answer is a ModelInfo or one line of BadModel."""

from __future__ import annotations

import os
import random
import socket
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.engine import gguf
from services.engine.gguf import inspect
from services.errors import BadModel, NotFound
from tests.tiny_gguf import TEMPLATE, vocabulary, write_tiny
from tests.tiny_wheel import write_reranker


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def whole(name: str, value: int) -> bytes:
    return key(name, 4, struct.pack("<I", value))


def string(name: str, value: str | bytes) -> bytes:
    return key(name, 8, text(value))


def array(name: str, kind: int, count: int, data: bytes) -> bytes:
    return key(name, 9, struct.pack("<IQ", kind, count) + data)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


BASE = [string("general.architecture", "llama"), whole("llama.block_count", 2), whole("llama.embedding_length", 64),
        whole("llama.context_length", 128), whole("llama.attention.head_count", 4),
        string("tokenizer.ggml.model", "gpt2"), array("tokenizer.ggml.tokens", 8, 2, text("a") + text("b"))]


def made(keys: list[bytes] | None = None, tensors: list[bytes] | None = None, data: int = 256, version: int = 3,
         counts: tuple[int, int] | None = None) -> bytes:
    """A GGUF file; `data` bytes of tensors after the padding."""
    keys = BASE if keys is None else keys
    tensors = [tensor("token_embd.weight", (64,), 0, 0)] if tensors is None else tensors
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(keys)))) + b"".join(keys + tensors)
    return head + b"\0" * (-len(head) % 32 + data)


def refused(folder: Path, data: bytes, name: str = "m.gguf") -> str:
    """The one line that `data` is refused with."""
    path = folder / name
    path.write_bytes(data)
    with pytest.raises(BadModel) as caught:
        inspect(path)
    assert "\n" not in caught.value.message and caught.value.message.startswith(name)
    return caught.value.message


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> bytes:
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf").read_bytes()


def test_a_model_is_described(tmp_path):
    info = inspect(write_tiny(tmp_path / "t.gguf"))
    assert (info.architecture, info.name, info.n_ctx_train) == ("llama", "tiny-llama", 512)
    assert (info.n_layer, info.n_embd) == (2, 64)
    assert (info.n_head, info.n_head_kv, info.key_length, info.value_length, info.n_ff) == (4, (4, 4), 16, 16, 96)
    assert (info.n_vocab, info.tokenizer, info.tokenizer_pre) == (len(vocabulary()), "gpt2", "gpt-2")
    assert info.chat_template == TEMPLATE and not info.is_embedding and info.quantisation == "F32"
    assert info.size == (tmp_path / "t.gguf").stat().st_size and info.parts == 1
    assert info.kv_bytes_per_token == 2 * 4 * (16 + 16) * 2
    assert info.memory(512, 4) == info.size + 4 * 512 * info.kv_bytes_per_token + info.compute_bytes(512, 4)


def test_attention_scores_count_where_the_runner_holds_them(tmp_path):
    info = inspect(write_tiny(tmp_path / "t.gguf"))         # 4 heads: 8 KB of scores for each token of context
    most = 32 * 1024
    assert info.compute_bytes(most, 1) > 256 << 20 > info.compute_bytes(most + 1, 1)
    assert info.compute_bytes(1025, 1) == info.compute_bytes(1280, 1)


def test_recurrent_and_sliding_window_models(tmp_path):
    mamba, gemma = (inspect(write_tiny(tmp_path / f"{arch}.gguf", arch)) for arch in ("mamba", "gemma2"))
    assert mamba.kv_bytes_per_token == 0 and mamba.state_bytes == 2 * (3 * 128 + 8 * 128) * 4
    assert mamba.cache_bytes(4096, 4) == 4 * mamba.state_bytes
    assert gemma.n_swa == 16 and mamba.n_swa == 0


def test_heads_that_differ_by_layer(tmp_path):
    keys = [*BASE, array("llama.attention.head_count_kv", 4, 2, struct.pack("<2I", 2, 0))]
    (tmp_path / "m.gguf").write_bytes(made(keys))
    assert inspect(tmp_path / "m.gguf").n_head_kv == (2, 0)
    short = [*BASE, array("llama.attention.head_count_kv", 4, 1, struct.pack("<I", 2))]
    assert "one for each of 2 layers" in refused(tmp_path, made(short))


def test_version_2_and_embedding_models(tmp_path):
    (tmp_path / "v2.gguf").write_bytes(made(version=2))
    assert inspect(tmp_path / "v2.gguf").architecture == "llama"
    (tmp_path / "e.gguf").write_bytes(made([*BASE, whole("llama.pooling_type", 1)]))
    info = inspect(tmp_path / "e.gguf")
    assert info.is_embedding and not info.ranks and info.made_for == "embeddings"


def test_a_model_that_ranks_has_a_head(tmp_path):
    info = inspect(write_reranker(tmp_path / "r.gguf"))
    assert info.ranks and info.is_embedding and info.made_for == "ranking"
    assert "has lost its head" in refused(tmp_path, made([*BASE, whole("llama.pooling_type", 4)]))


@pytest.mark.parametrize(("data", "says"), [
    (b"", "is empty"),
    (b"\n <!DOCTYPE html><html>", "web page"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
    (b"lmgg" + b"\0" * 50, "August 2023"),
    (b"PK\x03\x04" + b"\0" * 50, "PyTorch or safetensors"),
    (struct.pack("<Q", 300) + b'{"__metadata__"', "PyTorch or safetensors"),
    (b"\0" * 100, "begins with 00 00 00 00"),
    (b"GGUF", "is cut: it has 4 bytes"),
    (b"GGU", "begins with 47 47 55,"),
    (made(version=0), "version 0"),
    (made(version=1), "version 1"),
    (made(version=99), "version 99"),
    (made(version=0x03000000), "big-endian"),
    (made(counts=(1 << 63, 1)), "9,223,372,036,854,775,808 tensors"),
    (made(counts=(1, 1 << 63)), "9,223,372,036,854,775,808 keys"),
    (made([struct.pack("<Q", 1 << 63) + b"x"]), "impossible length"),
    (made([text("x" * 70_000)]), "65,535"),
    (made([key("general.name", 8, struct.pack("<Q", (1 << 64) - 1))]), "impossible length"),
    (made([key("some.text", 8, struct.pack("<Q", 1 << 63))]), "impossible length"),
    (made([array("some.numbers", 4, 1 << 62, b"")]), "impossible length"),
    (made([array("tokenizer.ggml.tokens", 8, 1 << 40, b"")]), "would end at byte"),
    (made([array("some.arrays", 9, 1, b"")]), "array of the unknown type 9"),
    (made([key("some.key", 77, b"")]), "unknown type 77"),
    (made([*BASE, BASE[1]]), "is there twice"),
    (made([*BASE, whole("general.alignment", 7)]), "power of two"),
    (made(BASE[1:]), "general.architecture is missing"),
    (made([string("general.architecture", "a b\x1b[31m"), *BASE[1:]]), "name of an architecture"),
    (made([*BASE[:3], *BASE[4:]]), "llama.context_length is missing"),
    (made([BASE[0], whole("llama.block_count", 513), *BASE[2:]]), "expected a whole number from 1 to 512"),
    (made([BASE[0], string("llama.block_count", "two"), *BASE[2:]]), "llama.block_count is of another type"),
    (made([*BASE[:5], BASE[6]]), "tokenizer.ggml.model is missing"),
    (made([*BASE, string("general.type", "adapter")]), "type 'adapter'"),
    (made([string("general.architecture", "clip")]), "projector"),
    (made(tensors=[]), "only a vocabulary"),
    (made(tensors=[tensor("t", (64,), 31, 0)]), "was removed from llama.cpp"),
    (made(tensors=[tensor("t", (64,), 4000, 0)]), "type 4000, which is not known"),
    (made(tensors=[tensor("t", (63,), 2, 0)]), "of type Q4_0 has shape 63"),
    (made(tensors=[tensor("t", (0,), 0, 0)]), "has shape 0"),
    (made(tensors=[tensor("t", (1 << 40, 1 << 40), 0, 0)]), "has shape"),
    (made(tensors=[tensor("t", (1, 1, 1, 1, 1), 0, 0)]), "5 dimensions"),
    (made(tensors=[tensor("t", (64,), 0, 32)]), "begins at 32, expected 0"),
    (made(tensors=[tensor("t", (8,), 0, 0), tensor("t", (8,), 0, 32)]), "tensor 't' is there twice"),
    (made(tensors=[tensor("x" * 64, (8,), 0, 0)]), "expected at most 63"),
    (made(data=100), "the download was cut"),
])
def test_what_is_wrong_is_said(tmp_path, data, says):
    assert says in refused(tmp_path, data)


def test_cut_at_a_thousand_points(tmp_path, tiny):
    path, points = tmp_path / "cut.gguf", random.Random(1).sample(range(len(tiny)), 500)
    points += list(range(250)) + random.Random(2).sample(range(250, 12_000), 250)
    for point in points:
        path.write_bytes(tiny[:point])
        with pytest.raises(BadModel):
            inspect(path)
    path.write_bytes(tiny[:-1])
    with pytest.raises(BadModel, match=f"has {len(tiny) - 1:,} bytes, its tensors need {len(tiny):,}: .* was cut"):
        inspect(path)


def test_random_flips_never_escape(tmp_path, tiny):
    path, dice = tmp_path / "flip.gguf", random.Random(3)
    head = 14_000
    for _ in range(1500):
        data = bytearray(tiny[:head])
        for _ in range(dice.choice((1, 1, 2, 8))):
            data[dice.randrange(dice.choice((64, 512, head)))] ^= 1 << dice.randrange(8)
        path.write_bytes(data)
        os.truncate(path, len(tiny))
        try:
            inspect(path)
        except BadModel as error:
            assert "\n" not in error.message


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.integers(0, 2 ** 64 - 1), st.integers(0, 2 ** 64 - 1))
def test_any_bytes_after_the_magic(tmp_path, data, tensors, keys):
    path = tmp_path / "any.gguf"
    for counts in ((tensors, keys), (tensors % 4, keys % 4)):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *counts) + data)
        with pytest.raises(BadModel):
            inspect(path)


def test_hostile_counts_cost_no_memory_and_no_time(tmp_path):
    """A sparse file of a terabyte makes any count believable; the reader's own limits end it."""
    path = tmp_path / "huge.gguf"
    claims = [array("tokenizer.ggml.tokens", 8, 1 << 36, b""),
              string("general.name", b"")[:-8] + struct.pack("<Q", 1 << 35)]
    for claim in claims:
        path.write_bytes(made([*BASE[:6], claim]))
        os.truncate(path, 1 << 40)
        tracemalloc.start()
        with pytest.raises(BadModel):
            inspect(path)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()


def test_a_large_vocabulary_is_stepped_over(tmp_path):
    tokens = b"".join(text(f"token{number}") for number in range(150_000))
    keys = [*BASE[:6], array("tokenizer.ggml.tokens", 8, 150_000, tokens),
            array("tokenizer.ggml.token_type", 5, 150_000, b"\0" * 600_000),
            string("tokenizer.chat_template", "x" * 300_000)]
    (tmp_path / "m.gguf").write_bytes(made(keys))
    info = inspect(tmp_path / "m.gguf")
    assert info.n_vocab == 150_000 and len(info.chat_template or "") == 300_000


def test_only_regular_files_are_opened(tmp_path, tiny):
    os.mkfifo(tmp_path / "fifo.gguf")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "real.gguf").write_bytes(tiny)
    (tmp_path / "link.gguf").symlink_to("real.gguf")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.gguf"))
        for name, says in (("fifo", "not a regular file"), ("folder", "not a regular file"), ("s", "cannot be read"),
                           ("link", "is a link: copy or hard-link")):
            with pytest.raises(BadModel, match=says):
                inspect(tmp_path / f"{name}.gguf")
    with pytest.raises(NotFound):
        inspect(tmp_path / "absent.gguf")


def split(folder: Path, count: int = 3, names: str = "big") -> list[Path]:
    """A model in `count` parts: the first has the keys, each a tensor."""
    paths = []
    for number in range(count):
        keys = [key("split.no", 2, struct.pack("<H", number)), key("split.count", 2, struct.pack("<H", count))]
        paths.append(folder / f"{names}-{number + 1:05d}-of-{count:05d}.gguf")
        paths[-1].write_bytes(made((BASE if number == 0 else []) + keys, [tensor(f"t{number}", (64,), 0, 0)]))
    return paths


def test_split_models(tmp_path):
    paths = split(tmp_path)
    info = inspect(paths[0])
    assert info.parts == 3 and info.tensors == 3 and info.size == sum(path.stat().st_size for path in paths)
    with pytest.raises(BadModel, match=r"load its first part, big-00001-of-00003\.gguf"):
        inspect(paths[1])
    assert inspect(paths[1], alone=True).tensors == 1
    paths[2].unlink()
    with pytest.raises(BadModel, match=r"one of 3 parts; missing are big-00003-of-00003.gguf"):
        inspect(paths[0])
    assert inspect(paths[0], alone=True).tensors == 1
    paths[0].rename(tmp_path / "renamed.gguf")
    with pytest.raises(BadModel, match="must keep its name"):
        inspect(tmp_path / "renamed.gguf")


def test_a_cut_part_of_a_split_model_is_found(tmp_path):
    paths = split(tmp_path)
    os.truncate(paths[1], paths[1].stat().st_size - 1)
    with pytest.raises(BadModel, match=r"big-00002-of-00003.gguf has .* the download was cut"):
        inspect(paths[0])


def test_sibling_names():
    assert gguf.siblings("a.gguf") == ["a.gguf"]
    assert gguf.siblings("a-00002-of-00002.gguf") == ["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]
    assert gguf.siblings("a-00003-of-00002.gguf") == ["a-00003-of-00002.gguf"]
    assert gguf.siblings("a-00001-of-99999.gguf") == ["a-00001-of-99999.gguf"]


def test_names_from_files_are_fit_for_a_terminal(tmp_path):
    (tmp_path / "m.gguf").write_bytes(made([*BASE, string("general.name", b"nice\x1b[2J\x07\xff")]))
    assert inspect(tmp_path / "m.gguf").name.isprintable()
