"""Tables of contents: lines `hh:mm:ss – title` whose times are the text's own, `– title` where it has none."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

MOST_LINES = 40         # of a table; a longer one is shortened
MOST_TIMES = 500        # that a grammar names one by one
TITLE = 120             # characters
_TIME = re.compile(r"(?<![\d:.])(?:(\d{1,2}):)?(\d{1,2}):(\d{2})(?![\d:])")
_LINE = re.compile(r"(?:\d\d:\d\d:\d\d )?– .+")


def times_of(text: str) -> list[str]:
    """The times of day or of a recording that a text names, each once, in their order, as hh:mm:ss. `5:07` is five
    minutes and seven seconds."""
    found = (tuple(int(part or 0) for part in match.groups()) for match in _TIME.finditer(text))
    told = (f"{hours:02}:{minutes:02}:{seconds:02}" for hours, minutes, seconds in found if minutes < 60 > seconds)
    return list(dict.fromkeys(told))


def grammar(times: Sequence[str]) -> str:
    """GBNF of a table whose lines name these times, or none."""
    if not times:
        time = '""'
    elif len(times) <= MOST_TIMES:
        time = "(" + " | ".join(f'"{one}"' for one in times) + ') " "'
    else:
        time = '[0-9] [0-9] ":" [0-5] [0-9] ":" [0-5] [0-9] " "'
    return (f'root ::= line ("\\n" line){{0,{MOST_LINES - 1}}}\nline ::= time "– " title\ntime ::= {time}\n'
            f"title ::= [^ \\n] [^\\n]{{2,{TITLE}}}\n")


def lines_of(text: str, cut: bool) -> list[str] | None:
    """The lines of what a model wrote, None where there are none. `cut`: it was ended in the middle of the last one."""
    written = text.strip().splitlines()
    written = written[:-1] if cut and len(written) > 1 else written
    lines = [line.strip() for line in written]
    return [line for line in lines if _LINE.fullmatch(line)] or None


def joined(parts: Iterable[list[str]]) -> list[str]:
    """The lines of all parts by their time, those without one in their order; one for each time and title."""
    known: dict[str, str] = {}
    for line in (line for lines in parts for line in lines):
        known.setdefault(line[:8] if line[0].isdigit() else line.lower(), line)
    return sorted(known.values(), key=lambda line: line[:8] if line[0].isdigit() else "")
