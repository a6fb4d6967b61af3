"""What was measured: rows of a table, kept as JSON, printed, and handed to the picture."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One figure of both. `less`: the smaller is the better one."""

    bench: str
    what: str
    unit: str
    ours: float
    peer: float
    less: bool = False
    at: float = 0.0             # place on the picture's axis: requests at once, number of the turn
    shown: bool = True          # in the table

    @property
    def ratio(self) -> float:
        """How many times better ours is; below 1 it is worse."""
        ours, peer = (self.peer, self.ours) if self.less else (self.ours, self.peer)
        return ours / peer if peer else float("inf")


@dataclass
class Report:
    """All rows so far, and what they were measured on."""

    about: dict[str, str]
    rows: list[Row]

    def replace(self, bench: str, rows: Iterable[Row]) -> None:
        """Take `rows` for those that were known of this bench."""
        self.rows = [row for row in self.rows if row.bench != bench] + list(rows)

    def save(self, path: Path) -> None:
        rows = [asdict(row) for row in self.rows]
        path.write_text(json.dumps({"about": self.about, "rows": rows}, indent=1) + "\n")


def load(path: Path | None) -> Report:
    """The report in `path`; an empty one when there is none."""
    if path is None or not path.exists():
        return Report({}, [])
    kept = json.loads(path.read_text())
    return Report(kept["about"], [Row(**row) for row in kept["rows"]])


def table(rows: Iterable[Row]) -> str:
    """The rows as text, aligned; the last column says how many times better ours is."""
    lines = [("", "", "ours", "llama.cpp", "ratio")]
    bench = ""
    for row in (row for row in rows if row.shown):
        lines.append((row.bench if row.bench != bench else "", f"{row.what} [{row.unit}]", _number(row.ours),
                      _number(row.peer), f"{row.ratio:.2f}"))
        bench = row.bench
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join("  ".join([line[0].ljust(widths[0]), line[1].ljust(widths[1]),
                                *(line[n].rjust(widths[n]) for n in (2, 3, 4))]).rstrip() for line in lines)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value == int(value) else f"{value:.2f}" if value < 10 else f"{value:.1f}"
