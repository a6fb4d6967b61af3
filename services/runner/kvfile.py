"""A snapshot as a file: which tokens of whom, for which model, and the state that the model computed for them.

Preamble (magic, version, whether sealed, salt, length and hash of the header), header (msgpack), state. Sealed, header
and state are AES-256-GCM under a key of the file's own (from the salt), the state in chunks, each with its number as
nonce and associated data: none can be taken for another, of this file or of one beside it. Nothing is synced to the
disk: it is a cache, and whatever is not exactly what was written is found out when it is read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

MAGIC = b"ParleyKV"
VERSION = 1
CHUNK = 1 << 20             # bytes sealed at once: about a millisecond, in which no other thread gets on
TAG = 16                   # bytes that sealing adds
_START = struct.Struct("<8sBB16sI")
_HASH = 16


class Damaged(Exception):
    """The file is not what was written, or not for us; says why."""


def mismatch(sealed: bool) -> Damaged:
    return Damaged("it is sealed, but DATA_KEY is not set" if sealed else "it is in the clear, but DATA_KEY is set")


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """`tokens`: four bytes each, as `array("I")` has them. `size` and `digest` are the state's, set by `write`."""

    fingerprint: str            # of the model and all that the state depends on
    owner: str
    session: str
    tokens: bytes
    head: int = 0               # leading tokens that come from the profile
    size: int = 0
    digest: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Header)


class _Seal:
    """Seals and opens the numbered pieces of one file: 0 is the header, 1 and on the state's chunks."""

    def __init__(self, key: bytes, salt: bytes) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        self._cipher: Any = AESGCM(blake2b(salt, key=key, digest_size=32, person=b"parley kv file").digest())

    def close(self, number: int, data: bytes | memoryview) -> bytes:
        return self._cipher.encrypt(number.to_bytes(12, "little"), data, number.to_bytes(8, "little"))

    def open(self, number: int, box: bytes) -> bytes:
        from cryptography.exceptions import InvalidTag
        try:
            return self._cipher.decrypt(number.to_bytes(12, "little"), box, number.to_bytes(8, "little"))
        except (InvalidTag, ValueError):
            raise Damaged("it was sealed with another DATA_KEY, or changed") from None


def write(path: Path, header: Header, state: bytes, key: bytes = b"") -> int:
    """Write a new file of mode 0600, sealed when there is a `key` (32 bytes); its length. OSError."""
    header = msgspec.structs.replace(header, size=len(state), digest=blake2b(state, digest_size=32).digest())
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(fd, "wb") as stream:
        return sum(stream.write(part) for part in _parts(header, state, key))


def _parts(header: Header, state: bytes, key: bytes) -> Iterator[bytes | memoryview]:
    salt = os.urandom(16)
    seal = _Seal(key, salt) if key else None
    body = _encoder.encode(header)
    if seal:
        body = seal.close(0, body)
    start = _START.pack(MAGIC, VERSION, bool(key), salt, len(body))
    yield start + blake2b(start + body, digest_size=_HASH).digest() + body
    for number, chunk in enumerate(_chunks(state), 1):
        yield seal.close(number, chunk) if seal else chunk


def _chunks(state: bytes) -> Iterator[memoryview]:
    view = memoryview(state)
    for at in range(0, len(view), CHUNK):
        yield view[at:at + CHUNK]


def is_sealed(path: Path) -> bool:
    """OSError; Damaged when the file does not begin as one of ours."""
    with _open(path) as stream:
        return _start(stream)[0]


def read_header(path: Path, key: bytes = b"") -> Header:
    """The header of a file that is as long as it should be. OSError, Damaged."""
    with _open(path) as stream:
        return _header(stream, key)[0]


def read(path: Path, key: bytes = b"") -> tuple[Header, bytes]:
    """Header and state, both exactly as written. OSError, Damaged."""
    with _open(path) as stream:
        header, seal = _header(stream, key)
        if seal:
            chunks = -(-header.size // CHUNK)
            state = b"".join(seal.open(number, stream.read(CHUNK + TAG)) for number in range(1, chunks + 1))
        else:
            state = stream.read(header.size)
    if len(state) != header.size or blake2b(state, digest_size=32).digest() != header.digest:
        raise Damaged("its state is not what was written")
    return header, state


def _open(path: Path) -> BinaryIO:
    """The file itself, never what a link names, and no waiting for a FIFO's other end."""
    return open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")


def _start(stream: BinaryIO) -> tuple[bool, bytes, int, bytes]:
    """Whether sealed, salt, header's length, and the bytes themselves."""
    start = stream.read(_START.size)
    if len(start) < _START.size or not start.startswith(MAGIC):
        raise Damaged("it does not begin as a snapshot does")
    _, version, sealed, salt, length = _START.unpack(start)
    if version != VERSION:
        raise Damaged(f"it is of version {version}, and this program knows {VERSION}")
    return bool(sealed), salt, length, start


def _header(stream: BinaryIO, key: bytes) -> tuple[Header, _Seal | None]:
    sealed, salt, length, start = _start(stream)
    if sealed != bool(key):
        raise mismatch(sealed)
    there = os.fstat(stream.fileno()).st_size
    begin = _START.size + _HASH + length
    if there < begin:
        raise Damaged("it ends in its header")
    digest, body = stream.read(_HASH), stream.read(length)
    if blake2b(start + body, digest_size=_HASH).digest() != digest:
        raise Damaged("its header is not what was written")
    seal = _Seal(key, salt) if key else None
    try:
        header = _decoder.decode(seal.open(0, body) if seal else body)
    except msgspec.DecodeError as error:
        raise Damaged(f"its header cannot be read: {error}") from None
    expected = begin + header.size + (TAG * -(-header.size // CHUNK) if seal else 0)
    if there != expected:
        raise Damaged(f"it is {there} bytes long, and was written with {expected}")
    return header, seal

