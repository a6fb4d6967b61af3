"""Every kind of reuse gives the text that a fresh computation gives, on models that can be rewound and that cannot.

A random model's greedy text depends on every token before it, so a wrong state shows. Kernels may round differently by
batch size; two nearest logits of these models are much further apart than that (`test_model.py` measures it).
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from services.wire import Channel, Count, Counted, Done, Forget, Generate, Prepare
from tests.services.runner.child import GREEDY, Child, Start, answer, ask, one
from tests.tiny_gguf import write_tiny

KINDS = ["llama", "mamba", "gemma2"]        # plain, recurrent, sliding window
WORDS = ["the", "world", "or", "hello", "a", "line", "of", "words", "that", "nobody", "wrote", "before"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str, tmp_path: Path) -> Path:
    return write_tiny(tmp_path / f"{kind}.gguf", kind)


def prompt_of(turns: list[tuple[str, str]], text: str, k: int = 3) -> tuple[str, str]:
    """The prompt, and the part of it that is known before the text is."""
    head = "the profile says hello to all the world in a line of its own.\n"
    history = "".join(f"Human: {q}\nAI: {a}\n" for q, a in turns[-k:])
    known = f"{head}{history}PROMPT: "
    return known, f"{known}{text}\nBOT:"


def said(number: int) -> str:
    return " ".join(WORDS[(number * 5 + i) % len(WORDS)] for i in range(8))


def fresh(child: Child, prompt: str, number: int) -> str:
    """The answer when nothing can be reused."""
    return one(child, ask(prompt, owner=f"fresh {number}", max_tokens=12))[0]


def test_a_sliding_session_processes_only_what_is_new_at_every_turn(start: Start, model: Path) -> None:
    child = start(model, n_ctx=500)
    turns: list[tuple[str, str]] = []
    with child.connect() as channel:
        for number in range(10):
            known, prompt = prompt_of(turns, said(number))
            text, end = answer(channel, session(prompt))
            assert isinstance(end, Done) and text == fresh(child, prompt, number)
            if turns:
                new = tokens(channel, prompt) - tokens(channel, known)
                assert end.processed_tokens <= 1.15 * new and end.prompt_tokens > 3 * new
            turns.append((said(number), text))
            prepare(child, channel, prompt_of(turns, "")[0])


def tokens(channel: Channel, text: str) -> int:
    counted = channel.ask(Count(prompts=[[text]]))
    assert isinstance(counted, Counted)
    return counted.tokens[0]


def session(prompt: str, name: str = "s", **more: Any) -> Generate:
    return ask(prompt, session=name, max_tokens=12, **more)


def prepare(child: Child, channel: Channel, known: str, name: str = "s") -> None:
    """Have it prepared, and wait until it is."""
    before = child.stats().prepared_tokens
    channel.send(Prepare(owner="o", session=name, prompt=[known]))
    child.wait_until(lambda stats: stats.prepared_tokens > before)
    while (now := child.stats().prepared_tokens) != before:
        before = now
        time.sleep(0.05)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_sessions_resume_after_a_restart(start: Start, model: Path, tmp_path: Path, end: signal.Signals) -> None:
    limits = {"kv_folder": str(tmp_path / "kv"), "kv_memory_bytes": 1 << 26, "kv_disk_bytes": 1 << 28}
    child = start(model, n_ctx=500, limits=limits)
    names = "abcdef"                    # more than there are slots
    texts = {name: one(child, session(prompt_of([], f"{name} {said(3)}")[1], name))[0] for name in names}
    known = {name: prompt_of([(said(3), texts[name])], "")[0] for name in names}
    with child.connect() as channel:
        for name in names:
            prepare(child, channel, known[name], name)
    if end == signal.SIGKILL:
        child.wait_until(lambda stats: len(list((tmp_path / "kv").rglob("*.kv"))) >= len(names))
    child.process.send_signal(end)
    child.process.wait(30)
    again = start(model, n_ctx=500, limits=limits)
    for name in names:
        prompt = f"{known[name]}and then?\nBOT:"
        text, done = one(again, session(prompt, name))
        assert isinstance(done, Done) and done.processed_tokens <= 20 < done.cached_tokens
        assert text == fresh(again, prompt, ord(name))
    assert again.stats().restored_tokens > 0


def test_sessions_beyond_the_slots_wait_in_memory(start: Start, model: Path) -> None:
    child = start(model, n_ctx=500, parallel=2)
    turns: dict[str, list[tuple[str, str]]] = {name: [] for name in "abcdef"}
    with child.connect() as channel:
        for turn in range(3):
            for name, before in turns.items():
                known, prompt = prompt_of(before, f"{name} {said(turn)}")
                text, done = answer(channel, session(prompt, name))
                assert isinstance(done, Done)
                if turn:
                    assert done.processed_tokens <= 1.15 * (tokens(channel, prompt) - tokens(channel, known))
                assert text == fresh(child, prompt, ord(name))
                before.append((f"{name} {said(turn)}", text))
                prepare(child, channel, prompt_of(before, "")[0], name)
    assert child.stats().restored_tokens > 0


def test_who_was_suspended_goes_on_with_the_same_text(start: Start, model: Path) -> None:
    child = start(model, n_ctx=500, parallel=1)
    alone = one(child, ask("hello the world", owner="x", max_tokens=200))[0]
    with child.connect() as talker:
        talker.send(Generate(id="r", owner="talker", prompt=["hello the world"], max_tokens=200, sampling=GREEDY,
                             batch=True))
        child.wait_until(lambda stats: stats.running == 1)
        quick = one(child, ask("a line", owner="quick", max_tokens=5))
        text, _ = answer(talker)
    assert text == alone and isinstance(quick[1], Done)
    assert child.stats().preempted <= 1     # 0: the talker was quicker


def test_the_head_is_shared_and_nothing_behind_it(start: Start, model: Path) -> None:
    child = start(model, n_ctx=500)
    head = "the profile says hello to all the world in a line of its own.\n"
    prompt = f"{head}Human: {said(1)}\nAI:"
    texts = set()
    for number in range(6):
        text, end = one(child, ask(prompt, owner=f"owner {number}", max_tokens=12, head=len(head)))
        assert isinstance(end, Done)
        texts.add(text)
        if number:
            assert 0 < end.cached_tokens <= len(head)
    assert texts == {fresh(child, prompt, 9)}


def test_a_forgotten_session_is_computed_anew(start: Start, model: Path, tmp_path: Path) -> None:
    limits = {"kv_folder": str(tmp_path / "kv"), "kv_memory_bytes": 1 << 26, "kv_disk_bytes": 1 << 28}
    child = start(model, n_ctx=500, limits=limits)
    _, prompt = prompt_of([], said(1))
    one(child, session(prompt))
    child.wait_until(lambda stats: any((tmp_path / "kv").rglob("*.kv")))
    with child.connect() as channel:
        channel.send(Forget(owner="o", session="s"))
    child.wait_until(lambda stats: not any((tmp_path / "kv").rglob("*.kv")))
    _, end = one(child, session(prompt))
    assert isinstance(end, Done) and end.cached_tokens == 0
