"""Ours against llama.cpp's own server, in one run, in turns, medians of several rounds.

    .venv/bin/python -m tests.bench.bench_peer                      all of it, about a quarter of an hour on two cores
    .venv/bin/python -m tests.bench.bench_peer --quick --only session heads

Both serve the same file with the same threads, slots and context, and are asked over HTTP by the same client. Ours is
asked through POST /answer, the peer through /completion, or /v1/chat/completions where there is a conversation. It
prints one table and draws one picture. With --json the figures are kept in a file, and those that are not measured this
time are shown as they are there.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench import peer, picture, shapes
from tests.bench.conversations import heads, resume, session
from tests.bench.rows import Report, Row, load, table
from tests.bench.speed import Options, busy, copying, throughput_05b, throughput_135m
from tests.bench.stall import long_prompt

BENCHES: dict[str, Callable[[Options], list[Row]]] = {
    "throughput-135m": throughput_135m, "throughput-0.5b": throughput_05b, "session": session, "heads": heads,
    "long-prompt": long_prompt, "resume": resume, "busy": busy, "copying": copying}


def parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {name:16} {(bench.__doc__ or '').splitlines()[0]}" for name, bench in BENCHES.items())
    made = argparse.ArgumentParser(description=f"{__doc__}\nwhat there is to measure:\n{names}",
                                   formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--peer", metavar="PATH", help="a llama-server (default: the one on PATH, else xllamacpp's)")
    made.add_argument("--only", nargs="+", choices=BENCHES, default=list(BENCHES), metavar="NAME")
    made.add_argument("--quick", action="store_true", help="one round of less")
    made.add_argument("--rounds", type=int, default=3, help="default %(default)s")
    made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of both (default: all cores)")
    made.add_argument("--models", type=Path, default=shapes.default_folder(),
                      help="folder of the random models, made when they are not there (default %(default)s)")
    made.add_argument("--json", type=Path, metavar="FILE", help="keep the figures here")
    made.add_argument("--picture", type=Path, metavar="FILE", help="draw them here, as PNG")
    return made


def main() -> None:
    arguments = parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))     # so that the servers are stopped, whatever ends this
    if arguments.picture:
        picture.check()
    binary = peer.find(arguments.peer)
    options = Options(arguments.models, binary, arguments.threads, 1 if arguments.quick else arguments.rounds,
                      arguments.quick)
    report = load(arguments.json)
    report.about = {"processor": processor(), "threads": str(arguments.threads), "peer": peer.described(binary)}
    print("\n".join(f"{name}: {value}" for name, value in report.about.items()), flush=True)
    for name in arguments.only:
        began = time.monotonic()
        report.replace(name, BENCHES[name](options))
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        if arguments.json:
            report.save(arguments.json)
    finish(report, options, arguments.picture)


def finish(report: Report, options: Options, path: Path | None) -> None:
    """Print the table and draw the picture."""
    order = list(BENCHES)
    report.rows.sort(key=lambda row: order.index(row.bench))        # stable: a bench's rows stay in their order
    print(f"\n{table(report.rows)}\n\nratio: how many times better ours is")
    if options.cpu_share:
        print(f"the client took at most {options.cpu_share:.1%} of a core while throughput was measured")
    if path:
        picture.draw(report, path)
        print(f"picture: {path}")


def processor() -> str:
    """The processor's name and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass        # not everywhere; the short name does
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


if __name__ == "__main__":
    main()
