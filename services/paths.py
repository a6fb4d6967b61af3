"""The one function that turns a name sent by a client into a path (rows M1, M2, I1 of the fault list)."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from services.errors import BadRequest

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.+@=-]{0,199}")


def inside(folder: Path, name: str, *, what: str = "name") -> Path:
    """`folder/name`, for a plain file name: no separators, no leading or trailing dot, no control characters.

    The path need not exist. When it does it must be a regular file and no link, so a FIFO is never opened and a
    link never followed. Raises `BadRequest` (`bad_name`) naming `what`.
    """
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise BadRequest(f"{what} {name[:80]!r} is not a plain file name: use letters, digits, '-', '_' and '.'",
                         code="bad_name", param=what)
    path = folder / name
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return path
    if not stat.S_ISREG(mode):
        raise BadRequest(f"{what} {name!r} is not a regular file", code="bad_name", param=what)
    return path
