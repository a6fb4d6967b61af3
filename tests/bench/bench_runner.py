"""Speed of a runner through its wire: tokens per second at 1, 4 and 16 requests at once, what a long prompt costs the
answer that streams beside it (gaps as multiples of its quiet gap), and how much of a step is Python.

    python tests/bench/bench_runner.py models/starter.gguf
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from services.wire import Channel, Count, Counted, Done, Generate, Piece, RunnerLimits, Sampling, connect  # noqa: E402

KEY = b"bench"
QUIET = 100             # gaps that say what is quiet
WORDS = "one two three four five six seven eight nine ten "


@contextmanager
def runner(arguments: argparse.Namespace) -> Iterator[str]:
    """A runner as a child; its address."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", "import sys; from services.runner.server import main; sys.exit(main())"]
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin and process.stdout
        spec = {"model": str(arguments.model.resolve()), "n_ctx": arguments.ctx, "parallel": arguments.slots,
                "n_threads": arguments.threads}
        start = {"address": f"{folder}/s", "authkey": KEY.hex(), "spec": spec}
        process.stdin.write(json.dumps(start).encode() + b"\n")
        process.stdin.flush()
        ready = json.loads(process.stdout.readline())
        if ready["type"] != "Ready":
            sys.exit(ready["message"])
        print(f"{ready['model']}: {ready['architecture']}, {ready['n_threads']} threads, {ready['n_slots']} slots x "
              f"{ready['n_ctx']} tokens, loaded in {ready['load_ms']:.0f} ms\n")
        yield f"{folder}/s"
        process.stdin.close()
        process.wait(10)


def ask(channel: Channel, words: int, tokens: int, owner: str) -> tuple[Done, list[float]]:
    """One answer: its end, and when each piece came."""
    prompt = (owner + ": " + WORDS * (words // 10 + 1))
    channel.send(Generate(id=owner, owner=owner, prompt=[prompt], max_tokens=tokens,
                          sampling=Sampling(temperature=1.0, top_k=40)))
    times = [time.monotonic()]
    while isinstance(message := channel.receive(600), Piece):
        times.append(time.monotonic())
    assert isinstance(message, Done), message
    return message, times


def concurrent(address: str, count: int, words: int, tokens: int, turn: int) -> tuple[list[Done], float]:
    """`count` requests of different owners at once; their ends, and the seconds all took."""
    ends: list[Done] = []

    def one(n: int) -> None:
        with connect(address, KEY) as channel:
            ends.append(ask(channel, words, tokens, f"{turn}-{count}-{n}")[0])

    threads = [threading.Thread(target=one, args=(n,)) for n in range(count)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends, time.monotonic() - began


def throughput(address: str, arguments: argparse.Namespace) -> None:
    print("at once | answer tok/s | prompt+answer tok/s | first token ms (median) | seconds")
    for turn, count in enumerate(arguments.concurrent):
        ends, seconds = concurrent(address, count, arguments.prompt, arguments.tokens, turn)
        answered = sum(end.completion_tokens for end in ends)
        prompts = sum(end.processed_tokens for end in ends)
        first = median(end.queue_ms + end.prefill_ms for end in ends)
        print(f"{count:7} | {answered / seconds:12.1f} | {(answered + prompts) / seconds:19.1f} | {first:23.0f} | "
              f"{seconds:7.2f}")


def stall(address: str, tokens: int) -> str:
    """What a prompt of about `tokens` tokens costs the answer that streams beside it, and what the answer costs it."""
    with connect(address, KEY) as channel:
        words = 10 * tokens // words_of(channel)
        alone = ask(channel, words, 1, f"alone {time.monotonic()}")[0]
    with connect(address, KEY) as channel, talker(address) as heard:
        began = time.monotonic()
        done = ask(channel, words, 1, f"beside {began}")[0]
        ended = time.monotonic()
    gaps = [(b, b - a) for a, b in pairwise(heard)]
    quiet = [gap for at, gap in gaps if at < began]
    beside = sorted(gap for at, gap in gaps if began < at < ended)
    if len(quiet) < QUIET // 2 or len(beside) < 5:
        return "the answer was too short to measure what a long prompt costs it"
    usual = median(quiet)
    ratios = [gap / usual for gap in (median(beside), beside[int(len(beside) * 0.95)], beside[-1])]
    return (f"{done.processed_tokens:13} | {alone.prefill_ms / 1e3:7.2f} | {done.prefill_ms / 1e3:8.2f} | "
            f"{usual * 1e3:12.1f} | " + " | ".join(f"{ratio:7.1f}x" for ratio in ratios))


def words_of(channel: Channel) -> int:
    """How many tokens ten words are."""
    counted = channel.ask(Count(prompts=[[WORDS], [WORDS * 11]]))
    assert isinstance(counted, Counted)
    return (counted.tokens[1] - counted.tokens[0]) // 10


@contextmanager
def talker(address: str) -> Iterator[list[float]]:
    """An answer that goes on; when each of its pieces came. It has settled when this begins."""
    heard: list[float] = []
    stop = threading.Event()

    def listen(channel: Channel) -> None:
        while not stop.is_set() and not isinstance(message := channel.receive(0.1), Done):
            if message:
                heard.append(time.monotonic())

    with connect(address, KEY) as channel:
        channel.send(Generate(id="t", owner="talker", prompt=[WORDS], max_tokens=1 << 20,
                              sampling=Sampling(temperature=1.5, top_k=0)))
        listener = threading.Thread(target=listen, args=(channel,))
        listener.start()
        while len(heard) < QUIET and listener.is_alive():
            time.sleep(0.01)
        yield heard
        stop.set()
        listener.join()


def stalls(arguments: argparse.Namespace) -> None:
    """`stall`, on a runner of its own whose context holds the prompt, and the answer beside it."""
    spec = argparse.Namespace(**{**vars(arguments), "ctx": 2 * arguments.stall + 1024, "slots": 2})
    with runner(spec) as address:
        print("prompt tokens | alone s | beside s | quiet gap ms |  median |    95 % |     max, gap beside the prompt")
        for _ in range(arguments.rounds):
            print(stall(address, arguments.stall))


def overhead(arguments: argparse.Namespace) -> None:
    """The share of the steps' time that is spent outside llama.cpp, measured in this process."""
    from services.runner.intake import prepare
    from services.runner.model import Model
    from services.runner.server import Runner

    model = Model(str(arguments.model), n_ctx=arguments.ctx, n_slots=arguments.slots, n_threads=arguments.threads)
    inside = 0.0

    def timed(function: Any) -> Any:
        def call(*values: Any) -> Any:
            nonlocal inside
            began = time.perf_counter()
            try:
                return function(*values)
            finally:
                inside += time.perf_counter() - began
        return call

    model._decode_batch = timed(model._decode_batch)                       # type: ignore[method-assign]
    scheduler = Runner(model, RunnerLimits()).scheduler
    for n in range(arguments.slots):
        sequence = prepare(model, Generate(id="", owner=str(n), prompt=[WORDS], max_tokens=arguments.tokens))
        sequence.sampler.sample = timed(sequence.sampler.sample)            # type: ignore[method-assign]
        scheduler.add(sequence)
    began, steps = time.perf_counter(), 0
    while scheduler.runnable:
        scheduler.step()
        steps += 1
    seconds = time.perf_counter() - began
    print(f"\nPython per step with {arguments.slots} answers: {(seconds - inside) / steps * 1e6:.0f} µs of "
          f"{seconds / steps * 1e6:.0f} µs ({(seconds - inside) / seconds:.1%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("--ctx", type=int, default=2048, help="tokens per slot (default %(default)s)")
    parser.add_argument("--slots", type=int, default=16, help="default %(default)s")
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--prompt", type=int, default=100, help="words of each prompt (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer (default %(default)s)")
    parser.add_argument("--concurrent", type=int, nargs="*", default=[1, 4, 16],
                        help="default 1 4 16; none: only what a long prompt costs")
    parser.add_argument("--stall", type=int, default=4000,
                        help="tokens of the long prompt beside an answer, 0: none (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="of that measurement (default %(default)s)")
    arguments = parser.parse_args()
    if arguments.concurrent:
        with runner(arguments) as address:
            throughput(address, arguments)
        overhead(arguments)
    if arguments.stall:
        stalls(arguments)


if __name__ == "__main__":
    main()
