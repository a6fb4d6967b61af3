"""The runner as its parent and its clients meet it: a child process, a line on each standard stream, a socket."""

from __future__ import annotations

import json
import os
import random
import signal
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.runner.frames import frame_of
from services.wire import (
    Count,
    Counted,
    Detokenize,
    Done,
    Embed,
    Failed,
    Forget,
    GetStats,
    Piece,
    Prepare,
    Stats,
    Tokenize,
    Tokens,
    WireError,
    connect,
    encode,
)
from tests.services.runner.child import (
    KEY,
    SOON,
    STARTER,
    Child,
    Start,
    answer,
    ask,
    hear,
    launch_raw,
    one,
    tell,
)
from tests.tiny_gguf import write_tiny


@pytest.fixture(scope="module")
def tiny(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Child:
    """A random model: its text depends on the whole prompt."""
    return start(write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf"))


@pytest.fixture(scope="module")
def endless(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Child:
    """A model that writes abababab… until it is stopped."""
    path = write_tiny(tmp_path_factory.mktemp("models") / "endless.gguf", successors={"a": "b", "b": "a"})
    return start(path, n_ctx=50_000, parallel=2, max_queue=2)


def test_ready_says_what_the_model_is(tiny: Child) -> None:
    ready = tiny.ready
    assert (ready.model, ready.architecture, ready.n_ctx, ready.n_slots) == ("tiny.gguf", "llama", 300, 4)
    assert (ready.n_ctx_train, ready.eos) == (512, "<|im_end|>") and "<|im_start|>" in ready.special_tokens


def test_count_may_come_before_generate_on_one_connection(tiny: Child) -> None:
    with tiny.connect() as channel:
        assert channel.ask(Count(prompts=[["hello world"], ["<|im", "_start|>"], []])) == Counted(tokens=[2, 12, 1])
        first = answer(channel, ask("hello world"))
        second = answer(channel, ask("hello world"))
    assert first[0] == second[0] and first[0]
    assert isinstance(first[1], Done) and first[1].prompt_tokens == 2


def test_a_text_and_its_tokens(tiny: Child) -> None:
    with tiny.connect() as channel:
        parsed = channel.ask(Tokenize(text="hello<|im_end|>é"))
        assert isinstance(parsed, Tokens)
        assert parsed.pieces == [b"hello", b"<|im_end|>", b"\xc3", b"\xa9"]
        assert channel.ask(Detokenize(tokens=parsed.tokens)) == parsed
        plain = channel.ask(Tokenize(text="<|im_end|>", special=False))
        assert isinstance(plain, Tokens) and len(plain.tokens) == 10
        assert channel.ask(Detokenize(tokens=[])) == channel.ask(Tokenize(text="")) == Tokens(
            text="", tokens=[], pieces=[])
        half = channel.ask(Detokenize(tokens=parsed.tokens[:3]))
        assert isinstance(half, Tokens) and half.text == "hello<|im_end|>\ufffd"
        for wrong, code in ((Detokenize(tokens=[tiny.ready.n_vocab]), "invalid_request"),
                            (Detokenize(tokens=[0, -1]), "invalid_request"),
                            (Detokenize(tokens=[0] * 10_000), "context_length_exceeded"),
                            (Tokenize(text="x" * 10_000), "context_length_exceeded")):
            failed = channel.ask(wrong)
            assert isinstance(failed, Failed) and failed.code == code and failed.details["param"]


def test_sixteen_at_once_on_four_slots_get_what_each_gets_alone(tiny: Child) -> None:
    prompts = [f"tell the world about number {n}" * 3 for n in range(16)]
    alone = [one(tiny, ask(prompt, owner=f"alone {n}"))[0] for n, prompt in enumerate(prompts)]
    ready = threading.Barrier(16)

    def together(n: int) -> tuple[str, Done | Failed]:
        with tiny.connect() as channel:
            ready.wait()
            return answer(channel, ask(prompts[n], owner=f"together {n}"))

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(together, range(16)))
    assert all(isinstance(end, Done) for _, end in answers)
    assert [text for text, _ in answers] == alone and len(set(alone)) > 8
    assert tiny.stats().max_batch > 1


def test_a_prompt_that_does_not_fit_is_told_with_its_counts(tiny: Child) -> None:
    for size in (300, 2000):
        text, end = one(tiny, ask("x" * size))
        assert isinstance(end, Failed) and end.code == "context_length_exceeded" and not text
        assert (end.details["prompt_tokens"], end.details["n_ctx"]) == (size, 300)
    _, end = one(tiny, ask("x" * 5_000_000))
    assert isinstance(end, Failed) and end.code == "context_length_exceeded"
    _, end = one(tiny, ask("x" * 299))
    assert isinstance(end, Done) and end.completion_tokens == 1


@pytest.mark.parametrize(("wrong", "code"), [
    ({"max_tokens": 0}, "invalid_request"), ({"logprobs": 21}, "invalid_request"),
    ({"logprobs": -1}, "invalid_request"), ({"schema": {"$ref": "https://example.org/"}}, "bad_schema"),
    ({"schema": {"type": "string", "pattern": "^(?=x)$"}}, "bad_schema"), ({"prompt": [], "max_tokens": -1},
                                                                            "invalid_request")])
def test_wrong_requests_fail_and_the_connection_goes_on(tiny: Child, wrong: dict[str, Any], code: str) -> None:
    with tiny.connect() as channel:
        _, end = answer(channel, msgspec.structs.replace(ask("hello"), **wrong))
        assert isinstance(end, Failed) and (end.code, end.id) == (code, "r")
        assert isinstance(answer(channel, ask("hello"))[1], Done)


def test_a_schema_is_complied_with(tiny: Child) -> None:
    text, end = one(tiny, ask("hello", max_tokens=200, schema={
        "type": "object", "properties": {"name": {"type": "string", "maxLength": 8}}, "required": ["name"]}))
    assert isinstance(end, Done) and end.finish_reason == "stop"
    assert list(json.loads(text)) == ["name"]


@pytest.mark.parametrize("stream", [True, False])
def test_how_likely_each_token_was_comes_with_the_text(tiny: Child, stream: bool) -> None:
    with tiny.connect() as channel:
        prompt = channel.ask(Tokenize(text="hello world number 5"))
        assert isinstance(prompt, Tokens)
        channel.send(ask(prompt.text, max_tokens=30, logprobs=2, echo=True, stream=stream))
        pieces = [hear(channel)]
        while not isinstance(pieces[-1], Done):
            pieces.append(hear(channel))
    said, end = [piece for piece in pieces if isinstance(piece, Piece)], pieces[-1]
    told = [one for piece in said for one in piece.logprobs]
    assert isinstance(end, Done) and (end.cached_tokens, end.prompt_tokens) == (0, len(prompt.tokens))
    assert [one.token for one in told[:len(prompt.tokens)]] == prompt.tokens
    assert (told[0].logprob, told[0].top) == (0.0, []) and told[1].logprob < 0
    answer = told[len(prompt.tokens):]
    assert len(answer) == end.completion_tokens - (end.finish_reason == "stop")
    assert all(one.logprob == one.top[0][2] and len(one.top) == 2 for one in answer)
    assert sum(len(piece.logprobs) for piece in said if not piece.tokens) == len(prompt.tokens)


def test_closing_the_connection_cancels_in_decode_prefill_and_queue(endless: Child) -> None:
    for prompt in ("a", "ab" * 20_000):
        channels = [endless.connect() for _ in range(4)]
        for channel in channels:
            channel.send(ask(prompt, max_tokens=40_000))
        endless.wait_until(lambda stats: (stats.running, stats.waiting) == (2, 2))
        for channel in reversed(channels):
            channel.close()
        endless.wait_until(lambda stats: (stats.running, stats.waiting) == (0, 0))


def test_saying_anything_cancels_and_the_connection_goes_on(endless: Child) -> None:
    with endless.connect() as channel:
        channel.send(ask("a", max_tokens=40_000))
        assert isinstance(hear(channel), Piece)
        channel.send(GetStats())
        _, end = answer(channel)
        assert isinstance(end, Done) and end.finish_reason == "cancelled" and end.completion_tokens > 0
        assert answer(channel, ask("a", max_tokens=4))[0] == "baba"


def test_a_full_queue_refuses_at_once(endless: Child) -> None:
    channels = [endless.connect() for _ in range(4)]
    for channel in channels:
        channel.send(ask("a", max_tokens=40_000))
    endless.wait_until(lambda stats: (stats.running, stats.waiting) == (2, 2))
    _, end = one(endless, ask("a"))
    assert isinstance(end, Failed) and end.code == "unavailable" and end.retry_after and end.retry_after >= 1
    for channel in channels:
        channel.close()
    endless.wait_until(lambda stats: stats.running == 0)


def test_answers_stream_on_while_a_long_prompt_comes_in(endless: Child) -> None:
    with endless.connect() as talker, endless.connect() as newcomer:
        talker.send(ask("a", max_tokens=45_000))
        assert isinstance(hear(talker), Piece)
        stop = threading.Event()
        heard: list[int] = []

        def listen() -> None:
            while not stop.is_set():
                message = talker.receive(0.1)
                heard.append(len(message.text) if isinstance(message, Piece) else 0)

        listener = threading.Thread(target=listen)
        listener.start()
        before = sum(heard)
        _, end = answer(newcomer, ask("ab" * 1500, owner="newcomer", max_tokens=1))
        during = sum(heard) - before
        stop.set()
        listener.join()
    assert isinstance(end, Done) and end.processed_tokens == 3000
    assert during >= 8, "the prompt came in several steps, and each carried a token of the answer"
    endless.wait_until(lambda stats: stats.running == 0)


def test_a_reader_that_takes_nothing_delays_nobody(endless: Child) -> None:
    with endless.connect() as deaf:
        deaf.send(ask("a", max_tokens=45_000))
        for _ in range(3):
            assert one(endless, ask("a", owner="p", max_tokens=50))[0] == "ba" * 25
    endless.wait_until(lambda stats: stats.running == 0)


def test_garbage_ends_its_own_connection_only(tiny: Child) -> None:
    expected = one(tiny, ask("hello there"))[0]
    garbage = [b"\x7f" + os.urandom(64), struct.pack("!i", 1 << 30), struct.pack("!iQ", -1, 1 << 62),
               struct.pack("!i", 3) + b"{}!", struct.pack("!i", 5000) + b"\x91" * 5000,
               struct.pack("!i", 2) + b"\x80\x80"]
    halves = [struct.pack("!i", 500) + b"half", b"\0\0", b""]
    with tiny.connect() as bystander:
        bystander.send(ask("hello there"))
        for data in garbage:
            with tiny.connect() as channel:
                os.write(channel.fileno(), data)
                with pytest.raises(WireError):
                    channel.receive(SOON)
        for data in halves:
            with tiny.connect() as channel:
                os.write(channel.fileno(), data)
        with tiny.connect() as confused:
            confused.send(Stats(running=0, waiting=0, slots=0, slots_used=0, cached_tokens=0, prompt_tokens=0,
                                completion_tokens=0, requests=0, max_batch=0, tokens_per_second=0, idle_seconds=0))
            with pytest.raises(WireError):
                confused.receive(SOON)
        assert answer(bystander)[0] == expected
    with connect(tiny.address, b"another key") as stranger, pytest.raises(WireError):
        stranger.ask(GetStats())
    assert one(tiny, ask("hello there"))[0] == expected


def test_thousands_of_frames_are_no_bother_to_others(tiny: Child) -> None:
    """Row P9: requests with a bit flipped, cut short, or lengthened, beside one that is answered all the while."""
    chance = random.Random(7)
    good = [frame_of(encode(message)) for message in (
        ask("hello there"), Count(prompts=[["hello"]]), GetStats(), Forget(owner="o", session="s"),
        Prepare(owner="o", session="s", prompt=["hello"]), Embed(id="e", owner="o", texts=["x"]))]
    expected = one(tiny, ask("hello there"))[0]
    for _ in range(20):
        with tiny.connect() as bystander:
            bystander.send(ask("hello there"))
            for _ in range(100):
                frame = bytearray(chance.choice(good))
                frame[chance.randrange(len(frame))] ^= 1 << chance.randrange(8)
                frame = frame[:chance.randrange(1, len(frame))] if chance.random() < 0.3 else frame + b"\0" * 5
                with tiny.connect() as channel:
                    os.write(channel.fileno(), frame)
            assert answer(bystander)[0] == expected
    tiny.wait_until(lambda stats: (stats.running, stats.waiting) == (0, 0))
    assert tiny.process.poll() is None


def test_equal_ids_and_cancelled_requests_never_mix_answers(tiny: Child) -> None:
    prompts = [f"number {n} of the world" for n in range(8)]
    expected = [one(tiny, ask(prompt))[0] for prompt in prompts]

    def many(n: int) -> None:
        for turn in range(10):
            with tiny.connect() as channel:
                channel.send(ask(prompts[n], id="the same"))
                if turn % 3 == 2:
                    continue        # gone before the answer
                if turn % 3 == 1:
                    hear(channel)
                    channel.send(GetStats())
                    if isinstance(end := answer(channel)[1], Done) and end.finish_reason == "cancelled":
                        assert answer(channel, ask(prompts[n], id="the same"))[0] == expected[n]
                else:
                    assert answer(channel)[0] == expected[n]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(many, range(8)))
    tiny.wait_until(lambda stats: (stats.running, stats.waiting) == (0, 0))


def test_the_parents_end_is_the_runners_end_even_in_a_decode(start: Start, tmp_path: Path) -> None:
    child = start(write_tiny(tmp_path / "m.gguf", successors={}), n_ctx=50_000, parallel=1)
    with child.connect() as channel:
        channel.send(ask("a" * 40_000, max_tokens=5))
        child.wait_until(lambda stats: stats.running == 1)
        assert child.process.stdin
        child.process.stdin.close()
        assert child.process.wait(SOON) == 0


def test_sigterm_ends_requests_with_failed_and_exits_cleanly(start: Start, tmp_path: Path) -> None:
    child = start(write_tiny(tmp_path / "m.gguf", successors={}), n_ctx=50_000, parallel=1)
    with child.connect() as channel:
        channel.send(ask("a", max_tokens=40_000))
        assert isinstance(hear(channel), Piece)
        child.process.send_signal(signal.SIGINT)        # a terminal's Ctrl-C is the parent's business
        assert isinstance(hear(channel), Piece)
        child.process.send_signal(signal.SIGTERM)
        _, end = answer(channel)
        assert isinstance(end, Failed) and end.code == "unavailable"
        assert child.process.wait(SOON) == 0
    assert child.process.stdout and child.process.stdout.read() == b"", "only Ready is ever said there"


def test_a_file_that_is_no_model_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("notes")
    process = launch_raw([])
    tell(process, {"address": str(tmp_path / "s"), "authkey": KEY.hex(), "limits": {"max_queue": 1},
                   "spec": {"model": str(tmp_path / "notes.gguf"), "n_ctx": 64}})
    assert process.stdout
    failed = msgspec.json.decode(process.stdout.readline(), type=Failed)
    assert process.wait(SOON) == 1 and process.stdout.read() == b""
    assert failed.code == "bad_model" and "notes.gguf" in failed.message


def test_more_context_than_was_trained_is_served_with_a_warning_on_one_line(start: Start, tmp_path: Path) -> None:
    """Row O2: whatever a file is called."""
    child = start(write_tiny(tmp_path / "m\n\x1b[31mERROR\r.gguf", n_ctx_train=64), n_ctx=128)
    assert isinstance(one(child, ask("hello"))[1], Done)
    child.process.kill()
    assert child.process.stderr
    (line,) = [line for line in child.process.stderr.read().split(b"\n") if b"trained on 64" in line]
    assert b" WARNING parley.runner: " in line and rb"m\n\x1b[31mERROR\r.gguf" in line


@pytest.mark.model
@pytest.mark.skipif(not STARTER.exists(), reason="the starter model is not made yet")
def test_the_starter_model_serves_sixteen_at_once(start: Start) -> None:
    child = start(STARTER, n_ctx=512)
    with ThreadPoolExecutor(16) as pool:
        ends = list(pool.map(lambda n: one(child, ask(f"Hello {n}", owner=str(n), max_tokens=16))[1], range(16)))
    assert all(isinstance(end, Done) for end in ends) and child.stats().max_batch > 1
