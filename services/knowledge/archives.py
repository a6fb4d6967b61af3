"""Zip archives from strangers: nothing is unpacked to disk, and a small one cannot become a large one (row R9)."""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from services.errors import TooLarge, Unprocessable
from services.knowledge.documents import one_line

MEMBERS = 1000              # files of an archive that is given as a collection of documents
PARTS = 10_000              # files inside an Office document
MEMBER_BYTES, TOTAL_BYTES = 16 << 20, 128 << 20     # uncompressed, of one file and of all
RATIO = 200                 # bytes that may come of each compressed one, beyond the first MiB
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


@dataclass(frozen=True)
class Member:
    """`name`: as the archive says, on one line; a label and never a path."""

    name: str
    data: bytes = field(repr=False)


def members(data: bytes) -> Iterator[Member]:
    """The files in the archive `data`, one at a time; archives in it are files like others and are not opened.

    Folders, links, and what systems put beside files (`__MACOSX`, dot files) are left out. Raises `Unprocessable`
    (`unreadable_document`) for damaged and locked archives, `TooLarge` for those that hold too much.
    """
    with opened(data, MEMBERS) as archive:
        left = TOTAL_BYTES
        for info in archive.infolist():
            if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16) or _is_litter(info.filename):
                continue
            content = content_of(archive, info, min(MEMBER_BYTES, left))
            left -= len(content)
            yield Member(one_line(info.filename.replace("\\", "/")), content)


def opened(data: bytes, most: int) -> zipfile.ZipFile:
    """The archive `data`, of which no more than the list of its at most `most` files was read."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error) as error:
        raise _unreadable(f"it is no zip archive, or damaged ({error})") from None
    if len(archive.infolist()) > most:
        raise TooLarge(f"the archive holds {len(archive.infolist())} files; at most {most} are taken")
    return archive


def content_of(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """The file `info`. What it says of its own length is not believed."""
    name = one_line(info.filename, 80)
    if info.flag_bits & 1:
        raise _unreadable(f"{name!r} in it is locked with a password")
    if info.compress_type not in _METHODS:
        raise _unreadable(f"{name!r} in it is compressed in an unusual way")
    most = min(most, (1 << 20) + RATIO * info.compress_size)
    try:
        with archive.open(info) as stream:
            content = stream.read(most + 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise _unreadable(f"{name!r} in it is damaged ({error})") from None
    if len(content) > most:
        raise TooLarge(f"{name!r} in the archive is larger than is taken, or together with the others")
    return content


def _is_litter(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "__MACOSX" or any(part.startswith(".") and part not in (".", "..") for part in parts)


def _unreadable(why: str) -> Unprocessable:
    return Unprocessable(f"the archive cannot be read: {why}", code="unreadable_document")
