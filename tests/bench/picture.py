"""One picture of a report: a panel for each bench, ours beside llama.cpp."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.bench.rows import Report, Row

OURS, PEER, GREY = "#1f6f8b", "#c9ced6", "#555555"
PANELS = {      # bench -> title, unit of the rows shown
    "throughput-135m": ("Tokens a second, 135m, by requests at once", "tok/s"),
    "throughput-0.5b": ("Tokens a second, 0.5b, by requests at once", "tok/s"),
    "session": ("First token by turn of a conversation, ms (less is better)", "ms"),
    "heads": ("First token of 16 conversations behind one 1,000-token head, ms (less is better)", "ms"),
    "long-prompt": ("Gap between tokens beside a 4,000-token prompt, × quiet (less is better)", "x quiet"),
    "resume": ("First token of a conversation after a restart, ms (less is better)", "ms"),
    "busy": ("Speed kept beside a job on every core", "of quiet"),
    "copying": ("Tokens a second of one answer", "tok/s")}


def check() -> None:
    """Exit now, not after a quarter of an hour, when there is nothing to draw with."""
    if find_spec("matplotlib") is None:
        sys.exit(f"--picture needs matplotlib: {sys.executable} -m pip install -r tests/bench/requirements.txt")


def draw(report: Report, path: Path) -> None:
    """Write the picture of `report` to `path`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [name for name in PANELS if any(row.bench == name for row in report.rows)]
    lines = (len(shown) + 1) // 2
    figure = Figure(figsize=(12, 0.8 + 3 * lines), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, 2, squeeze=False).flatten()
    for axis, name in zip(axes, shown, strict=False):
        title, unit = PANELS[name]
        rows = [row for row in report.rows if row.bench == name]
        (_lines if name == "session" else _bars)(axis, [row for row in rows if row.unit == unit])
        axis.set_xlabel(_others(row for row in rows if row.unit != unit and row.shown), fontsize=8, color=GREY)
        axis.set_title(title, loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_ylim(bottom=0)
    for axis in axes[len(shown):]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=11)
    figure.supxlabel(f"{report.about['processor']}, {report.about['threads']} threads. llama.cpp: "
                     f"{report.about['peer'].split('(')[0].strip()}", fontsize=8, color=GREY)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _others(rows: Iterable[Row]) -> str:
    """What has another unit than the axis, in words: the last two of it."""
    return "\n".join([f"{row.what}: {row.ours:.4g}, llama.cpp's {row.peer:.4g} {row.unit}" for row in rows][-2:])


def _bars(axis: Any, rows: list[Row]) -> None:
    for shift, name, colour in ((-0.2, "Parley", OURS), (0.2, "llama.cpp's server", PEER)):
        values = [row.ours if shift < 0 else row.peer for row in rows]
        bars = axis.bar([index + shift for index in range(len(rows))], values, 0.38, label=name, color=colour)
        axis.bar_label(bars, [f"{value:.0f}" if value >= 10 else f"{value:.2f}" for value in values], fontsize=8,
                       color=GREY)
    axis.set_xticks(range(len(rows)), [row.what.removeprefix("135m, ").removeprefix("0.5b, ") for row in rows],
                    fontsize=8)


def _lines(axis: Any, rows: list[Row]) -> None:
    turns = [row.at for row in rows]
    for name, colour, values in (("Parley", OURS, [row.ours for row in rows]),
                                 ("llama.cpp's server", PEER, [row.peer for row in rows])):
        axis.plot(turns, values, marker="o", label=name, color=colour)
    axis.set_xticks(turns)
