"""Texts to vectors: which profile is meant, portions, and errors that name the text of the request."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services import wire
from services.chat import embed
from services.chat.embed import EmbedAsk, Embeddings, portions
from services.chat.profiles import Profiles
from services.errors import BadRequest, ContextOverflow, DeadlineExceeded, Forbidden, NotFound, Unprocessable
from services.settings import Settings
from tests.tiny_gguf import write_tiny
from tests.tiny_wheel import write_bert, write_reranker

CONFIG = {"SelectedModel": "chat", "chat": {"model": "chat.gguf"}, "small": {"model": "s.gguf", "embedding": True},
          "large": {"model": "l.gguf", "embedding": True, "keep_loaded": 60}, "chat.gguf": {"model": "l.gguf"}}
READY = wire.Ready(model="s.gguf", architecture="bert", n_ctx=64, n_ctx_train=64, n_slots=64, n_vocab=9, n_threads=1,
                   chat_template=None, bos="", eos="", special_tokens=[], n_embd=1)


class Lengths:
    """An engine whose vectors are the texts themselves."""

    ready = READY

    def __init__(self) -> None:
        self.leased: list[tuple[str, float]] = []
        self.asked: list[wire.Embed] = []

    @contextlib.contextmanager
    def lease(self, spec: wire.RunnerSpec, keep: float, beat: Any) -> Iterator[Lengths]:
        assert spec.embedding
        self.leased.append((Path(spec.model).name, keep))
        beat()
        yield self

    def embed(self, request: wire.Embed) -> wire.Vectors:
        self.asked.append(request)
        for number, text in enumerate(request.texts):
            if text == "long":
                raise ContextOverflow("too long", text=number, limit=3)
        return wire.Vectors(id=request.id, dimensions=1, vectors=[str(text).encode() for text in request.texts],
                            tokens=[1] * len(request.texts))


@pytest.fixture
def service(tmp_path: Path) -> Embeddings:
    return made(tmp_path)


def made(folder: Path, config: dict[str, Any] = CONFIG, **settings: Any) -> Embeddings:
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("chat.gguf", "s.gguf", "l.gguf"):
        (folder / name).write_bytes(b"")
    chosen = Settings(models_dir=folder, **settings)
    return Embeddings(chosen, Profiles(folder / "config.json", chosen), Lengths())      # type: ignore[arg-type]


@pytest.mark.parametrize(("wanted", "profile", "leased"), [
    (None, "small", ("s.gguf", 0.0)), ("large", "large", ("l.gguf", 60.0)), ("s.gguf", "small", ("s.gguf", 0.0))])
def test_a_model_is_a_profile_or_its_file_or_the_first(service: Embeddings, wanted: str | None, profile: str,
                                                       leased: tuple[str, float]) -> None:
    found = service.embed(EmbedAsk(owner="k", texts=["a", "b"], model=wanted))
    assert (found.profile, found.vectors, found.tokens, found.dimensions) == (profile, [b"a", b"b"], 2, 1)
    assert service.engine.leased == [leased]                                            # type: ignore[attr-defined]


def test_who_may_use_one_profile_gets_that_one(service: Embeddings) -> None:
    assert service.embed(EmbedAsk(owner="k", texts=["a"], allowed_profiles=["chat", "large"])).profile == "large"
    for model, error, told in (("small", Forbidden, "may not use"), ("s.gguf", NotFound, "there are: large"),
                               ("chat", Unprocessable, "writes text .* large"),
                               ("chat.gguf", Unprocessable, "writes text"),
                               ("gpt", NotFound, "'gpt'; there are: large")):
        with pytest.raises(error, match=told) as refused:
            service.embed(EmbedAsk(owner="k", texts=["a"], allowed_profiles=["chat", "large"], model=model))
        assert refused.value.param == "model"


def test_a_file_without_a_profile_is_served_with_a_default_one(tmp_path: Path) -> None:
    service = made(tmp_path)
    write_bert(tmp_path / "free.gguf")
    found = service.embed(EmbedAsk(owner="k", texts=["a"], model="free.gguf"))
    assert (found.profile, found.vectors) == ("free.gguf", [b"a"])
    with pytest.raises(NotFound, match="there are: small"):
        service.embed(EmbedAsk(owner="k", texts=["a"], model="free.gguf", allowed_profiles=["small"]))
    write_tiny(tmp_path / "writes.gguf")
    with pytest.raises(Unprocessable, match="writes text"):
        service.embed(EmbedAsk(owner="k", texts=["a"], model="writes.gguf"))
    write_reranker(tmp_path / "ranks.gguf")
    with pytest.raises(Unprocessable, match="ranks texts"):
        service.embed(EmbedAsk(owner="k", texts=["a"], model="ranks.gguf"))
    assert embed.chosen(service.profiles, tmp_path, "ranks.gguf", None, ranks=True)[0] == "ranks.gguf"
    with pytest.raises(Unprocessable, match="cannot answer"):
        service.profiles.named("free.gguf")
    name, profile = service.profiles.any_named("free.gguf")
    assert name == "free.gguf" and profile.embedding


def test_without_any_it_says_how_to_get_one(tmp_path: Path) -> None:
    service = made(tmp_path, {"SelectedModel": "chat", "chat": {"model": "chat.gguf"}})
    with pytest.raises(NotFound, match="models pull minilm"):
        service.embed(EmbedAsk(owner="k", texts=["a"]))


def test_many_texts_go_in_portions_and_come_back_in_order(service: Embeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "PORTION_TEXTS", 3)
    monkeypatch.setattr(embed, "PORTION_CHARS", 10)
    texts = ["a", "b", "c", "d", "e" * 8, "f" * 20, "g"]
    assert list(portions(texts)) == [["a", "b", "c"], ["d", "e" * 8], ["f" * 20], ["g"]]
    charged: list[int] = []
    found = service.embed(EmbedAsk(owner="k", texts=texts, weight=2.0), charge=charged.append)
    assert [vector.decode() for vector in found.vectors] == texts and charged == [3, 2, 1, 1] and found.tokens == 7
    asked = service.engine.asked                                                        # type: ignore[attr-defined]
    assert {(request.owner, request.weight) for request in asked} == {("k", 2.0)}
    assert len({request.id for request in asked}) == 4


def test_tokens_reach_the_model_as_they_are(service: Embeddings) -> None:
    assert service.embed(EmbedAsk(owner="k", texts=["a", (1, 2)])).vectors == [b"a", b"[1, 2]"]


def test_an_error_names_the_text_of_the_request(service: Embeddings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed, "PORTION_TEXTS", 3)
    for texts, param in ((["a"] * 4 + ["long"], "input.4"), (["long"], "input")):
        with pytest.raises(ContextOverflow) as refused:
            service.embed(EmbedAsk(owner="k", texts=texts))
        assert (refused.value.message, refused.value.param) == (f"{param}: too long", param)
        assert refused.value.details == {"limit": 3}


def test_other_dimensions_than_the_models_are_refused_before_anything_is_computed(service: Embeddings) -> None:
    with pytest.raises(BadRequest, match="makes vectors of 1 numbers"):
        service.embed(EmbedAsk(owner="k", texts=["a"], dimensions=256))
    assert not service.engine.asked                                                     # type: ignore[attr-defined]
    assert service.embed(EmbedAsk(owner="k", texts=["a"], dimensions=1)).vectors == [b"a"]


def test_it_ends_when_the_time_is_over_or_the_client_gone(tmp_path: Path, service: Embeddings) -> None:
    class Left(Exception):
        pass

    def leave() -> None:
        raise Left

    with pytest.raises(Left):
        service.embed(EmbedAsk(owner="k", texts=["a"]), leave)
    with pytest.raises(DeadlineExceeded, match="REQUEST_TIMEOUT"):
        made(tmp_path, request_timeout=0.0).embed(EmbedAsk(owner="k", texts=["a"]))
