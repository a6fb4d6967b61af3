"""Scores of the real llama.cpp: pairs as its server writes them, and a runner that ranks and does nothing else."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.errors import BadModel, BadRequest, ContextOverflow
from services.runner.embedder import Embedder, filled
from services.runner.embedding import EmbedScheduler, prepare
from services.wire import Embed, Failed, Rank, Ranked, RunnerLimits
from tests.services.runner.child import Start, hear
from tests.tiny_gguf import EOS, START, write_tiny
from tests.tiny_wheel import WORDS, write_reranker

CLS, SEP = WORDS.index("[CLS]"), WORDS.index("[SEP]")
TEXTS = ["a dog is barking", "the cat", "hello", "x", "the cat and the dog"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedder]:
    model = Embedder(str(write_reranker(tmp_path_factory.mktemp("models") / "r.gguf")), n_ctx=60, n_threads=1)
    yield model
    model.close()


def scores(model: Embedder, *pairs: tuple[str, str]) -> list[float]:
    return [struct.unpack("<f", score)[0] for score in model.embed([model.pair(*pair) for pair in pairs])]


def test_a_pair_is_written_as_llama_cpps_server_does(model: Embedder) -> None:
    query, text = model.tokens("the cat", parse=False), model.tokens("a dog [SEP]", parse=False)
    assert model.pair("the cat", "a dog [SEP]") == [CLS, *query, SEP, *text]
    assert text.count(SEP) == 0, "nothing in a text is a special token"


def test_a_files_own_template_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Embedder(str(write_tiny(tmp_path / "tiny.gguf", pooling=4)), n_ctx=60, n_threads=1)
    monkeypatch.setattr(model, "_rank_template", START + "user\nQ: {query}\nD: {document}" + EOS)
    asked = model.pair("hello", f"the {EOS} world")
    end, = model.tokens(EOS)
    assert asked == model.tokenize([START + "user\nQ: hello\nD: the <", EOS[1:] + " world" + EOS])
    assert asked.count(end) == 1 and asked[-1] == end
    model.close()


def test_values_are_filled_in_once(model: Embedder) -> None:
    values = {"{query}": "{document}", "{document}": "<a><a>{query}"}
    assert filled("{query}|{document}.", values, ["<a>"]) == ["{document}|<", "a><", "a>{query}."]
    assert filled("{query}|{document}", values, []) == ["{document}|<a><a>{query}"]


def test_a_pair_has_the_same_score_alone_and_beside_others(model: Embedder) -> None:
    pairs = [("the cat", text) for text in TEXTS]
    alone = [scores(model, pair)[0] for pair in pairs]
    assert max(abs(a - b) for a, b in zip(alone, scores(model, *pairs), strict=True)) < 1e-3
    assert len({round(score, 3) for score in alone}) == len(TEXTS)
    assert abs(scores(model, ("the cat", "x"))[0] - scores(model, ("x", "the cat"))[0]) > 1e-3


def test_a_schedule_ranks(model: Embedder) -> None:
    scheduler = EmbedScheduler(model, RunnerLimits())
    job = prepare(model, Rank(id="r", owner="o", query="the cat", texts=TEXTS * 30))
    assert not scheduler.add(job)
    ends = {}
    while scheduler.runnable:
        ends |= dict(scheduler.step())
    end = ends[job]
    assert isinstance(end, Ranked) and end.tokens == [len(model.pair("the cat", text)) for text in TEXTS * 30]
    expected = scores(model, *(("the cat", text) for text in TEXTS)) * 30
    assert max(abs(a - b) for a, b in zip(end.scores, expected, strict=True)) < 0.05, "they are of the order of 1"


def test_what_cannot_be_ranked_is_refused(model: Embedder) -> None:
    with pytest.raises(ContextOverflow) as long:
        prepare(model, Rank(id="r", owner="o", query="the cat", texts=["fine", "the cat " * 30]))
    assert long.value.details["text"] == 1 and "and the query" in long.value.message
    with pytest.raises(BadRequest, match="no text"):
        prepare(model, Rank(id="r", owner="o", query="the cat", texts=[]))
    with pytest.raises(BadModel, match="/v1/rerank"):
        prepare(model, Embed(id="e", owner="o", texts=["x"]))


@pytest.mark.parametrize("kind", ["ranks", "writes"])
def test_a_runner_says_what_it_does(start: Start, tmp_path: Path, kind: str) -> None:
    ranks = kind == "ranks"
    child = start(write_reranker(tmp_path / "m.gguf") if ranks else write_tiny(tmp_path / "m.gguf"), embedding=ranks)
    assert child.ready.ranks == ranks
    with child.connect() as channel:
        for _ in range(2):
            channel.send(Rank(id="r", owner="o", query="the cat", texts=["the cat", "x"]))
            answer = hear(channel)
    if ranks:
        assert isinstance(answer, Ranked) and len(answer.scores) == len(answer.tokens) == 2
    else:
        assert isinstance(answer, Failed) and answer.code == "bad_model" and "ranks nothing" in answer.message
