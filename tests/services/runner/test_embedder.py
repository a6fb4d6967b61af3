"""Vectors of the real llama.cpp: the same alone and in a batch, of length 1, by every kind of pooling."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.engine import minilm
from services.engine.gguf import inspect
from services.errors import BadRequest, ContextOverflow
from services.runner import llama
from services.runner.embedder import Embedder
from services.runner.embedding import EmbedScheduler, prepare
from services.runner.llama import LoadFailed
from services.wire import Embed, RunnerLimits, Vectors
from tests.tiny_gguf import EOS, write_tiny
from tests.tiny_wheel import write_bert

NONE, MEAN, CLS, LAST = range(4)
TEXTS = ["the cat", "a dog is barking", "hello", "x", "the cat and the dog, the dog and the cat", "cat the"]


@pytest.fixture(scope="module", params=["bert", "mean", "last", "sliding"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    """An encoder that sees both ways, and models that would write, pooled by their mean or their last token."""
    path = tmp_path_factory.mktemp("models") / "tiny.gguf"
    if request.param == "bert":
        write_bert(path)
    else:
        write_tiny(path, "gemma2" if request.param == "sliding" else "llama",
                   pooling=LAST if request.param == "last" else MEAN)
    model = Embedder(str(path), n_ctx=60, n_threads=1)
    yield model
    model.close()


def vectors(model: Embedder, texts: list[str]) -> np.ndarray:
    return np.array([np.frombuffer(data, "<f4") for data in model.embed([model.read(text) for text in texts])])


def test_a_text_has_the_same_vector_alone_and_beside_others(model: Embedder) -> None:
    alone = np.concatenate([vectors(model, [text]) for text in TEXTS])
    assert alone.shape == (len(TEXTS), model.n_embd)
    for order in (TEXTS, TEXTS[::-1]):
        together = vectors(model, order)
        expected = alone if order is TEXTS else alone[::-1]
        assert np.abs(together - expected).max() < 1e-3
    assert np.abs(np.linalg.norm(alone, axis=1) - 1).max() < 1e-6
    close = alone @ alone.T
    assert np.abs(close - np.eye(len(TEXTS))).max() < 0.9999, "all texts are the same to it"


def test_a_full_batch_and_the_longest_text(model: Embedder) -> None:
    longest = next(text for n in range(60, 0, -1) if len(model.read(text := "x " * n)) <= model.n_ctx)
    assert np.abs(vectors(model, [longest]) - vectors(model, [longest, "the cat"])[:1]).max() < 1e-3
    many = vectors(model, ["x"] * model.n_slots)
    assert np.abs(many - many[0]).max() < 1e-3


def test_nothing_in_a_text_is_a_special_token(model: Embedder) -> None:
    marker = "[SEP]" if model.architecture == "bert" else EOS
    special, = model.tokens(marker)
    around = model.read("")
    inside = model.read(f"cat {marker} dog")
    assert inside.count(special) == around.count(special) and len(around) == model.n_around > 0


def test_tokens_get_what_the_model_wants_around_a_text_once(model: Embedder) -> None:
    for text in TEXTS:
        whole, plain = model.read(text), model.tokens(text, parse=False)
        start = next(at for at in range(len(whole)) if whole[at:at + len(plain)] == plain)
        assert len(whole) == len(plain) + model.n_around
        job = prepare(model, Embed(id="1", owner="o", texts=[text, plain, whole, whole[start:],
                                                             whole[:start + len(plain)]]))
        assert [list(tokens) for tokens in job.texts] == [whole] * 5


def test_a_schedule_of_many_gives_each_its_own(model: Embedder) -> None:
    scheduler = EmbedScheduler(model, RunnerLimits())
    texts = [f"{TEXTS[n % len(TEXTS)]} {n}" for n in range(150)]
    jobs = [prepare(model, Embed(id=str(n), owner=str(n % 3), texts=texts[n * 10:n * 10 + 10])) for n in range(15)]
    for job in jobs:
        assert not scheduler.add(job)
    ends = {}
    while scheduler.runnable:
        ends |= dict(scheduler.step())
    for number, job in enumerate(jobs):
        end = ends[job]
        assert isinstance(end, Vectors) and end.dimensions == model.n_embd
        assert end.tokens == [len(model.read(text)) for text in texts[number * 10:number * 10 + 10]]
        found = np.array([np.frombuffer(data, "<f4") for data in end.vectors])
        assert np.abs(found - vectors(model, texts[number * 10:number * 10 + 10])).max() < 1e-3


def test_a_text_longer_than_the_model_has_positions_is_refused(model: Embedder) -> None:
    with pytest.raises(ContextOverflow) as refused:
        prepare(model, Embed(id="1", owner="o", texts=["x", "x " * 70]))
    details = refused.value.details
    assert details["text"] == 1 and details["limit"] == model.n_ctx < details["prompt_tokens"]


def test_a_file_has_no_more_positions_than_it_says(tmp_path: Path) -> None:
    model = Embedder(str(write_bert(tmp_path / "tiny.gguf")), n_ctx=4096, n_threads=1)
    assert model.n_ctx == 64
    model.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=200))
def test_any_text_is_refused_or_has_a_vector_of_length_1(model: Embedder, text: str) -> None:
    try:
        job = prepare(model, Embed(id="1", owner="o", texts=[text]))
    except BadRequest as refused:
        assert refused.details["text"] == 0
    else:
        assert abs(np.linalg.norm(np.frombuffer(model.embed(job.texts)[0], "<f4")) - 1) < 1e-4


def test_an_encoder_that_does_not_say_how_it_pools_is_pooled_by_the_mean(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    found = {}
    for pooling in (NONE, MEAN, CLS):
        monkeypatch.setattr(minilm, "MEAN", pooling)
        model = Embedder(str(write_bert(tmp_path / f"{pooling}.gguf")), n_ctx=64, n_threads=1)
        found[pooling] = vectors(model, ["the cat and the dog"])
        model.close()
    assert np.abs(found[NONE] - found[MEAN]).max() < 1e-6 < np.abs(found[CLS] - found[MEAN]).max()
    assert [record.message.split()[0] for record in caplog.records if "how it pools" in record.message] == ["0.gguf"]


@pytest.mark.parametrize("pooling", [NONE, None])
def test_what_makes_no_vectors_is_refused(tmp_path: Path, pooling: int | None) -> None:
    with pytest.raises(LoadFailed, match="is not made for embeddings"):
        Embedder(str(write_tiny(tmp_path / "tiny.gguf", pooling=pooling)), n_ctx=64, n_threads=1)


def test_damaged_weights_are_a_load_that_fails(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "tiny.gguf", pooling=MEAN)
    data = path.read_bytes()
    path.write_bytes(data[:-150_000] + b"\xff" * 150_000)     # four such bytes are a NaN; the head ends before them
    with pytest.raises(LoadFailed, match=r"not finite|cannot be loaded"):
        Embedder(str(path), n_ctx=64, n_threads=1)


@pytest.mark.parametrize("n_ctx", [100, 512, 4000])
@pytest.mark.parametrize("arch", ["bert", "llama", "gemma2"])
def test_what_llama_cpp_sets_aside_is_within_what_the_memory_check_expects(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arch: str, n_ctx: int) -> None:
    path, said, ours = tmp_path / "tiny.gguf", list[bytes](), llama._log.callback
    write_bert(path) if arch == "bert" else write_tiny(path, arch, pooling=MEAN, n_ctx_train=2048)
    monkeypatch.setattr(llama._log, "callback",
                        llama.lib.llama_log_callback(lambda _level, text, _data: said.append(text)))
    try:
        Embedder(str(path), n_ctx=n_ctx, n_threads=1).close()
    finally:
        llama.lib.llama_log_set(ours, None)
    report = re.findall(rb"(?:compute|KV|output) buffer size = *([0-9.]+) MiB", b"".join(said))
    info = inspect(path)
    assert 0 < sum(map(float, report)) * 2**20 <= info.embedding_bytes(n_ctx) + info.cache_bytes(
        info.embedding_rows(n_ctx), 1)
