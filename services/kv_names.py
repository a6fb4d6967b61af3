"""How the files of suspended sessions are named, so that who deletes a session finds them, loaded model or not.

`DATA_DIR/kv/<model's fingerprint>/<owner's mark><session's mark>-<mark of the tokens>.kv`, written by the runners.
The marks are hashes: an owner's or a session's own name may hold anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

SUFFIX = ".kv"
_MARK = 8           # bytes of a hash


def stem(owner: str, session: str) -> str:
    """What the names of all files of a session begin with."""
    return _mark(owner) + _mark(f"{owner}\0{session}")


def _mark(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=_MARK).hexdigest()


def files(kv_folder: Path, suffix: str = SUFFIX) -> Iterator[os.DirEntry[str]]:
    """The snapshot files of all models, in no order; no link is followed. OSError when a folder cannot be read."""
    with suppress(FileNotFoundError):
        for folder in list(os.scandir(kv_folder)):
            if folder.is_dir(follow_symlinks=False):
                yield from _files_in(folder.path, suffix)


def _files_in(folder: str, suffix: str) -> Iterator[os.DirEntry[str]]:
    with suppress(FileNotFoundError):
        for entry in list(os.scandir(folder)):
            if entry.name.endswith(suffix) and entry.is_file(follow_symlinks=False):
                yield entry


def remove(kv_folder: Path, beginning: str) -> int:
    """Remove the files, of all models, whose names begin so; how many there were. OSError when one cannot be."""
    count = 0
    for entry in files(kv_folder):
        if entry.name.startswith(beginning):
            with suppress(FileNotFoundError):
                os.unlink(entry.path)
                count += 1
    return count
