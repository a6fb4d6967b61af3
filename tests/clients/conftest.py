"""One server with the fake runner and one with real models for all tests of a file, and OpenAI's client for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from tests.conftest import MASTER, Server, make_home
from tests.tiny_wheel import write_bert

CONFIG = {
    "SelectedModel": "chat", "chat": {"model": "tiny.gguf", "n_ctx": 2048, "max_tokens": 64, "parallel": 2},
    "starter": {"model": "starter.gguf", "n_ctx": 1024, "max_tokens": 64, "temperature": 0, "chat_format": "model"},
    "vectors": {"model": "bert.gguf", "embedding": True, "n_ctx": 60}}


def started(folder: Path, runner: str) -> Iterator[Server]:
    home = make_home(folder / "home", CONFIG)
    write_bert(home / "models" / "bert.gguf")
    server = Server(home, runner)
    yield server.start()
    server.end()


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its answers are scripted in the prompts."""
    yield from started(tmp_path_factory.mktemp("fake"), "fake")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Its profiles "chat" and "starter" write with models."""
    yield from started(tmp_path_factory.mktemp("real"), "llama")


def openai_client(server: Server, **options: object) -> openai.OpenAI:
    wanted = {"base_url": server.url + "/v1", "api_key": MASTER, "max_retries": 0, **options}
    return openai.OpenAI(**wanted)      # type: ignore[arg-type]


@pytest.fixture
def client(fake: Server) -> Iterator[openai.OpenAI]:
    with openai_client(fake) as client:
        yield client


@pytest.fixture
def real_client(real: Server) -> Iterator[openai.OpenAI]:
    with openai_client(real) as client:
        yield client
