"""The embedding runner as its parent and its clients meet it: a child process, a socket, many at once."""

from __future__ import annotations

import signal
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.wire import Count, Counted, Embed, Failed, Forget, Message, Piece, Prepare, Vectors
from tests.services.runner.child import SOON, Child, Start, ask, hear
from tests.tiny_gguf import write_tiny
from tests.tiny_wheel import WIDTH, write_bert


@pytest.fixture(scope="module")
def bert(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Child:
    return start(write_bert(tmp_path_factory.mktemp("models") / "bert.gguf"), embedding=True, max_queue=8)


def embed(child: Child, *texts: str, owner: str = "o") -> Message:
    with child.connect() as channel:
        channel.send(Embed(id="e", owner=owner, texts=list(texts)))
        return hear(channel)


def numbers(answer: Message) -> list[tuple[float, ...]]:
    assert isinstance(answer, Vectors)
    return [struct.unpack(f"<{answer.dimensions}f", vector) for vector in answer.vectors]


def distance(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def test_ready_says_what_it_embeds(bert: Child) -> None:
    assert (bert.ready.n_embd, bert.ready.n_ctx, bert.ready.architecture) == (WIDTH, 64, "bert")
    with bert.connect() as channel:
        assert channel.ask(Count(prompts=[["the ", "cat"], ["x"]])) == Counted(tokens=[4, 3])


def test_owners_who_ask_at_once_get_what_each_gets_alone(bert: Child) -> None:
    texts = [[f"the cat number {n} is {'very ' * m}old" for m in range(5)] for n in range(8)]
    alone = [numbers(embed(bert, text))[0] for group in texts for text in group]
    ready = threading.Barrier(len(texts))

    def together(n: int) -> list[tuple[float, ...]]:
        ready.wait()
        return numbers(embed(bert, *texts[n], owner=f"o{n}"))

    with ThreadPoolExecutor(len(texts)) as pool:
        found = [vector for vectors in pool.map(together, range(len(texts))) for vector in vectors]
    assert max(map(distance, found, alone)) < 1e-3
    assert bert.stats().max_batch > 1


def test_wrong_requests_fail_and_the_connection_goes_on(bert: Child) -> None:
    with bert.connect() as channel:
        for request, code in ((ask("hello", id="e"), "bad_model"),
                              (Embed(id="e", owner="o", texts=[]), "invalid_request"),
                              (Embed(id="e", owner="o", texts=["x " * 70]), "context_length_exceeded"),
                              (Embed(id="e", owner="o", texts=["fine", ""]), "invalid_request")):
            channel.send(request)
            end = hear(channel)
            assert isinstance(end, Failed) and (end.code, end.id) == (code, "e"), end
        channel.send(Prepare(owner="o", session="s", prompt=["hello"]))
        channel.send(Forget(owner="o", session="s"))
        channel.send(Embed(id="e", owner="o", texts=["fine"]))
        assert isinstance(hear(channel), Vectors)


def test_a_model_that_writes_refuses_texts_to_embed(start: Start, tmp_path: Path) -> None:
    child = start(write_tiny(tmp_path / "tiny.gguf"))
    end = embed(child, "hello")
    assert isinstance(end, Failed) and end.code == "bad_model" and '"embedding": true' in end.message
    with child.connect() as channel:
        channel.send(ask("hello"))
        assert isinstance(hear(channel), Piece)


def test_closing_the_connection_cancels(bert: Child) -> None:
    channels = [bert.connect() for _ in range(6)]
    for channel in channels:
        channel.send(Embed(id="e", owner="o", texts=["the cat and the dog " * 3] * 4000))
    bert.wait_until(lambda stats: stats.running + stats.waiting > 0)
    for channel in channels:
        channel.close()
    bert.wait_until(lambda stats: stats.running == stats.waiting == 0)
    assert isinstance(embed(bert, "next"), Vectors)


def test_sigterm_ends_requests_with_failed(start: Start, tmp_path: Path) -> None:
    child = start(write_bert(tmp_path / "bert.gguf"), embedding=True)
    with child.connect() as channel:
        channel.send(Embed(id="e", owner="o", texts=["the cat and the dog " * 3] * 20_000))
        child.wait_until(lambda stats: stats.running > 0)
        child.process.send_signal(signal.SIGTERM)
        end = hear(channel)
    assert isinstance(end, Failed) and end.code == "unavailable"
    assert child.process.wait(SOON) == 0


def test_memory_stays_flat_over_thousands_of_texts(bert: Child) -> None:
    def grown() -> int:
        """Bytes of the runner's own memory, swapped out or not."""
        status = Path(f"/proc/{bert.process.pid}/status").read_text()
        kept = [line.split()[1] for line in status.splitlines() if line.startswith(("RssAnon", "VmSwap"))]
        return 1024 * sum(map(int, kept))

    def rounds(count: int) -> None:
        for n in range(count):
            embed(bert, *[f"text number {n} and {m}" for m in range(10)], owner=f"o{n % 7}")

    rounds(60)
    before = grown()
    rounds(200)
    assert grown() - before < 200 * 10 * 1024
