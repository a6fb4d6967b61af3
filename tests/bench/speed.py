"""Throughput of both at several requests at once, quiet and beside another job, and what copying work gains."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from tests.bench.rows import Row
from tests.bench.shapes import model_file, passage, words
from tests.bench.target import Ask, Setup, Target, at_once, pair

Found = TypeVar("Found")
PROMPT, ANSWER = 128, 64        # tokens
LEVELS = (1, 4, 16, 32)
ALONE = 4                       # requests one after the other where one at once is measured
BUSY_ANSWER = 24                # tokens; some servers become slow indeed
SPIN = "while True: pass"


@dataclass
class Options:
    """What the command was asked for."""

    folder: Path
    peer: str | None
    threads: int
    rounds: int
    quick: bool
    cpu_share: float = 0.0      # the most of a core that the client ever took

    def setup(self, model: str, slots: int, n_ctx: int, **more: object) -> Setup:
        return Setup(model_file(model, self.folder), slots, n_ctx, self.threads, **more)    # type: ignore[arg-type]


def in_turns(targets: list[Target], rounds: int, measure: Callable[[Target, int], Found]) -> dict[str, list[Found]]:
    """What `measure(target, round)` found, A B, B A, A B …, each after both came to rest."""
    found: dict[str, list[Found]] = {target.name: [] for target in targets}
    for number in range(rounds):
        for target in targets if number % 2 == 0 else targets[::-1]:
            for other in targets:
                other.settle()
            found[target.name].append(measure(target, number))
    return found


def rate(target: Target, count: int, seed: int, options: Options, answer: int = ANSWER) -> float:
    """Answer tokens a second, prompts included, of `count` requests at once; of a few in a row where it is one."""
    tokens, seconds = 0, 0.0
    for number in range(ALONE * answer // ANSWER if count == 1 else 1):
        asks = [Ask(words(PROMPT, seed * 10_000 + number * 100 + n), answer) for n in range(count)]
        replies, took, share = at_once(target, asks)
        tokens, seconds = tokens + sum(reply.completion for reply in replies), seconds + took
        options.cpu_share = max(options.cpu_share, share)
    return tokens / seconds


def warm(targets: list[Target], options: Options) -> None:
    """What a server does at its first requests only is nobody's speed."""
    for target in targets:
        rate(target, 4, 999, options, answer=16)


def throughput(options: Options, model: str, bench: str, rounds: int) -> list[Row]:
    """Requests of 128 tokens that are answered with 64, all at once."""
    rows = []
    with pair(options.setup(model, max(LEVELS), 256), options.peer) as targets:
        warm(targets, options)
        for level in LEVELS[:3] if options.quick else LEVELS:
            def measure(target: Target, number: int, level: int = level) -> float:
                return rate(target, level, number * 100 + level, options)
            found = in_turns(targets, rounds, measure)
            rows.append(Row(bench, f"{model}, {level} at once", "tok/s", median(found["ours"]),
                            median(found["llama.cpp"]), at=level))
    return rows


def throughput_135m(options: Options) -> list[Row]:
    """Tokens a second at 1, 4, 16 and 32 at once, 135m."""
    return throughput(options, "135m", "throughput-135m", options.rounds)


def throughput_05b(options: Options) -> list[Row]:
    """Tokens a second at 1, 4, 16 and 32 at once, 0.5b."""
    return throughput(options, "0.5b", "throughput-0.5b", min(options.rounds, 2))     # it takes its time


# ---------------------------------------------------------------- a busy machine

@contextmanager
def job(threads: int) -> Iterator[None]:
    """Another job on the machine that takes what it gets of `threads` cores."""
    spinning = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(threads)]
    try:
        time.sleep(0.5)
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def busy(options: Options) -> list[Row]:
    """Tokens a second at 1 and 16 beside another job on every core, as a part of the own quiet speed."""
    rows = []
    with pair(options.setup("135m", 16, 256), options.peer) as targets:
        warm(targets, options)
        for level in (1, 16):
            def measure(target: Target, number: int, level: int = level) -> tuple[float, float]:
                quiet = rate(target, level, number * 100 + level, options, BUSY_ANSWER)
                with job(options.threads):
                    return quiet, rate(target, level, number * 100 + level + 50, options, BUSY_ANSWER)
            found = in_turns(targets, min(options.rounds, 2), measure)
            kept = {name: median(beside / quiet for quiet, beside in values) for name, values in found.items()}
            speed = {name: median(beside for _, beside in values) for name, values in found.items()}
            rows += [Row("busy", f"speed kept, {level} at once", "of quiet", kept["ours"], kept["llama.cpp"], at=level),
                     Row("busy", f"beside the job, {level} at once", "tok/s", speed["ours"], speed["llama.cpp"],
                         at=level + 0.5)]
    return rows


# ---------------------------------------------------------------- copying

def copying(options: Options) -> list[Row]:
    """Speed of an answer that copies from its prompt, and of one that does not, once its first token is there."""
    answer = 96 if options.quick else 192
    with pair(options.setup("135m-copying", 4, 1024, template="{input}"), options.peer) as targets:
        rows = []
        for what, start in (("copying", 0), ("nothing to copy", None)):
            def measure(target: Target, number: int, start: int | None = start) -> float:
                known = passage(300, 0) if start is not None else words(300, number)
                reply = target.ask(Ask(words(8, number + 77) + known + passage(1, 0), answer, stream=True, greedy=True))
                if reply.text.strip() != passage(answer, 1).strip():
                    raise RuntimeError(f"{target.name} wrote another text than this model writes: {reply.text[:200]!r}")
                return (reply.completion - 1) / (reply.wall - reply.first)
            found = in_turns(targets, options.rounds + 2, measure)
            rows.append(Row("copying", what, "tok/s", median(found["ours"]), median(found["llama.cpp"]),
                            at=float(start is not None)))
    return rows
