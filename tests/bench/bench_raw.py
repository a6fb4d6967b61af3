"""Ours, through HTTP, against the least that a Python loop over llama.cpp's low-level API does (tests/bench/raw.py).

    .venv/bin/python -m tests.bench.bench_raw               at 16 at once; about 2 minutes on two cores

In turns, in one run, the same model, threads, slots, context, prompts and samplers; medians of several rounds. The part
of the loop's speed that is left after queue, scheduler, text, sockets, sessions and HTTP is to be at least 0.95.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.bench import shapes
from tests.bench.speed import ANSWER, PROMPT
from tests.bench.target import Ask, Ours, Setup, at_once

LEAST = 0.95


class Loop:
    """The process with the raw loop."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def seconds(self, first: int, count: int) -> float:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{first} {count}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


@contextmanager
def raw_loop(setup: Setup, flash: bool) -> Iterator[Loop]:
    numbers = [setup.slots, setup.n_ctx, setup.threads, int(flash)]
    command = [sys.executable, "-m", "tests.bench.raw", str(setup.model), *map(str, numbers)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True)
    assert process.stdout
    try:
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"the raw loop does not start: {' '.join(command)}")
        yield Loop(process)
    finally:
        process.kill()
        process.wait()


def measure(ours: Ours, loop: Loop, count: int, rounds: int) -> dict[str, list[float]]:
    """Answer tokens a second by way, of each round; who comes first changes from round to round."""
    speeds: dict[str, list[float]] = {"raw loop": [], "POST /answer": [], "POST /answer, streamed": []}
    for number in range(-1, rounds):        # the first round warms up
        first = 1_000_000 + number * 1000       # of the prompts' seeds: no prompt comes twice
        for way in list(speeds) if number % 2 else list(speeds)[::-1]:
            ours.settle()
            if way == "raw loop":
                seconds = loop.seconds(first, count)
            else:
                stream = "streamed" in way
                start = first + (200 if stream else 100)
                asks = [Ask(shapes.words(PROMPT, start + n), ANSWER, stream=stream) for n in range(count)]
                seconds = at_once(ours, asks)[1]
            if number >= 0:
                speeds[way].append(count * ANSWER / seconds)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=16, help="requests at once (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--model", choices=("135m", "0.5b"), default="135m")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--flash", action="store_true", help="the raw loop with flash attention (slower on CPUs)")
    parser.add_argument("--models", type=Path, default=shapes.default_folder(), help="folder (default %(default)s)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    setup = Setup(shapes.model_file(arguments.model, arguments.models), arguments.count, 256, arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        ours = Ours(setup, Path(folder))
        ours.start()
        try:
            with raw_loop(setup, arguments.flash) as loop:
                speeds = measure(ours, loop, arguments.count, arguments.rounds)
        finally:
            ours.stop()
    base = median(speeds["raw loop"])
    print(f"{arguments.model}, {arguments.count} at once, prompt {PROMPT}, answer {ANSWER} tokens")
    for way, found in speeds.items():
        print(f"{way:24} {median(found):7.1f} tok/s  {median(found) / base:.3f} of the raw loop  "
              f"({min(found):.1f} to {max(found):.1f})")
    if median(speeds["POST /answer"]) < LEAST * base:
        sys.exit(f"less than {LEAST} of the raw loop")


if __name__ == "__main__":
    main()
