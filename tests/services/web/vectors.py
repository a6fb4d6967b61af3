"""A started server with small models that write, make vectors and rank."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Server, make_home, serving
from tests.tiny_wheel import write_bert, write_reranker

CONFIG = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 512},
          "ranker": {"model": "tiny-reranker.gguf", "embedding": True, "n_ctx": 60},
          "vectors": {"model": "bert.gguf", "embedding": True, "n_ctx": 60}}


def vector_server(folders: pytest.TempPathFactory, runner: str) -> Iterator[Server]:
    home = make_home(folders.mktemp("vectors") / "home", CONFIG)
    write_bert(home / "models" / "bert.gguf")
    write_reranker(home / "models" / "tiny-reranker.gguf")
    with serving(home, runner) as server:
        yield server
