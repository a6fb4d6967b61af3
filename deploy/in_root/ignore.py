"""Which files of a folder are sent to a build: .dockerignore, by docs.docker.com/build/concepts/context."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path


class Ignored:
    """The last pattern that matches a path, or a folder above it, decides; `!` takes it in again."""

    def __init__(self, text: str) -> None:
        self._rules: list[tuple[bool, re.Pattern[str]]] = []
        for line in text.splitlines():
            pattern = line.strip()
            if pattern and not pattern.startswith("#"):
                keep = pattern.startswith("!")
                self._rules.append((keep, _compiled(pattern.lstrip("!").strip().strip("/"))))

    def __call__(self, path: str) -> bool:
        """`path` is relative to the folder, with `/`."""
        parts = path.split("/")
        above = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        ignored = False
        for keep, pattern in self._rules:
            if any(pattern.fullmatch(name) for name in above):
                ignored = not keep
        return ignored


def _compiled(pattern: str) -> re.Pattern[str]:
    """Go's filepath.Match, and `**` for any number of folders."""
    pieces = re.findall(r"\*\*/?|\*|\?|\[[^]]*\]|\\.|.", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(known.get(piece) or (piece if piece[0] == "[" else re.escape(piece.lstrip("\\")))
                              for piece in pieces))


def files(folder: Path, sources: Sequence[str]) -> list[str]:
    """The files below `folder` that `sources`, files or folders in it, stand for, without those that its
    .dockerignore names; sorted."""
    rules = folder / ".dockerignore"
    ignored = Ignored(rules.read_text() if rules.exists() else "")
    found: set[str] = set()
    for source in sources:
        start = folder / source
        below = start.rglob("*") if start.is_dir() else [start]
        found.update(path.relative_to(folder).as_posix() for path in below if path.is_file() or path.is_symlink())
    return sorted(path for path in found if not ignored(path))
