"""Reads the header of a GGUF file (versions 2 and 3, little endian) without believing a word of it.

Every count, length and offset is held against the size of the file before it is used, arrays are stepped over instead
of being built, and the file is read with `pread`, so a file that shrinks meanwhile is an error and not a SIGBUS.
Work is bounded by the limits below, whatever the file says.
"""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass, field
from pathlib import Path

from services.errors import BadModel, NotFound

MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 17
MAX_STRINGS = 1 << 23           # strings in all arrays together; the largest vocabularies have 2^18
MAX_KEPT = 1 << 20              # bytes of a string whose text is kept
MAX_SHORT_ARRAY = 4096          # arrays of numbers up to this length are kept: per-layer values, never vocabularies
WINDOW = 1 << 18                # bytes read at a time

KEPT = {"general.architecture", "general.type", "general.name", "general.license", "tokenizer.ggml.model",
        "tokenizer.ggml.pre", "tokenizer.chat_template"}
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

# ggml's tensor types: number -> (name, elements of a block, bytes of a block)
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}
REMOVED_TYPES = {4, 5, 31, 32, 33, 36, 37, 38}

Value = int | float | bool | str | tuple[float, ...] | None     # None: there, but not kept


@dataclass
class Header:
    """What a header says. `bytes_by_type` maps a tensor type's name to the bytes stored in it."""

    version: int
    size: int                               # bytes of the file
    values: dict[str, Value] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)       # of arrays
    tensors: int = 0
    parameters: int = 0
    bytes_by_type: dict[str, int] = field(default_factory=dict)
    classifies: bool = False                # has a head that gives a text scores, as models that rank do


def read_header(path: Path) -> Header:
    """The header of the regular file `path`. `BadModel` says in one line what is wrong; `NotFound`: absent."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFound(f"there is no file {path.name}") from None
    except (OSError, ValueError) as error:
        if path.is_symlink():
            raise BadModel(f"{path.name} is a link: copy or hard-link the model file instead") from None
        raise BadModel(f"{path.name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BadModel(f"{path.name} is not a regular file")
        return _Reader(fd, status.st_size, path.name).header()
    except OSError as error:
        raise BadModel(f"{path.name} cannot be read: {error.strerror or error}") from None
    finally:
        os.close(fd)


def not_gguf(start: bytes) -> str | None:
    """What a file that begins with `start` (some hundred bytes) is, when that is not GGUF; None when it is."""
    if start[:4] == b"GGUF":
        return None
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "is empty (0 bytes)"
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "is a web page, not a model: download the file itself (on a hub, the link with /resolve/)"
    if text.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the model itself: run `git lfs pull`, or download the file"
    if start[:4] in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        return "is in the GGML format of before August 2023, which nothing reads any more: get the model as GGUF"
    if start[:2] == b"PK" or start[8:10] == b'{"':
        return "holds PyTorch or safetensors weights, not GGUF: get the model as GGUF, or convert it with llama.cpp"
    return f"is no GGUF file: it begins with {start[:4].hex(' ')}, expected 47 47 55 46 (\"GGUF\")"


class _Reader:
    """A cursor over the file. `at` is the offset of the next byte to be understood."""

    def __init__(self, fd: int, size: int, name: str) -> None:
        self.fd, self.size, self.name = fd, size, name
        self.at = 0
        self.buffer, self.base = b"", 0
        self.strings = 0                # of arrays, so far
        self.where = "its first bytes"

    def bad(self, what: str) -> BadModel:
        return BadModel(f"{self.name} {what}")

    def cut(self, needed: int) -> BadModel:
        return self.bad(f"is damaged or its download was cut: it has {self.size:,} bytes, and {self.where} would end "
                        f"at byte {needed:,}" if needed < 1 << 63 else
                        f"is damaged: {self.where} has an impossible length")

    def window(self, length: int) -> int:
        """Have `length` (at most WINDOW) bytes from `at` in the buffer; their index in it."""
        index = self.at - self.base
        if index + length > len(self.buffer):
            if self.at + length > self.size:
                raise self.cut(self.at + length)
            self.buffer, self.base, index = os.pread(self.fd, WINDOW, self.at), self.at, 0
            if len(self.buffer) < length:
                raise self.bad("became shorter while it was read")
        return index

    def unpack(self, codes: struct.Struct) -> tuple[int, ...]:
        index = self.window(codes.size)
        self.at += codes.size
        return codes.unpack_from(self.buffer, index)

    def number(self, code: str) -> int:
        return self.unpack(struct.Struct("<" + code))[0]

    def skip(self, length: int) -> None:
        if self.at + length > self.size:
            raise self.cut(self.at + length)
        self.at += length

    def text(self, limit: int) -> str:
        """A string of at most `limit` bytes."""
        length = self.number("Q")
        if self.at + length > self.size:
            raise self.cut(self.at + length)
        if length > limit:
            raise self.bad(f"is damaged: {self.where} is {length:,} bytes long, expected at most {limit:,}")
        data = os.pread(self.fd, length, self.at) if length > WINDOW else b""
        if not data:
            index = self.window(length)
            data = self.buffer[index:index + length]
        self.at += length
        return data.decode("utf-8", "replace")

    def header(self) -> Header:
        start = os.pread(self.fd, 512, 0)
        if problem := not_gguf(start):
            raise self.bad(problem)
        _, version, tensors, keys = self.unpack(struct.Struct("<IIQQ")) if len(start) >= 24 else self._too_short(start)
        if version not in (2, 3):
            big_endian = version in (0x02000000, 0x03000000)
            raise self.bad("is a big-endian GGUF, made for another kind of machine: get the little-endian one"
                           if big_endian else f"has GGUF version {version}; expected 2 or 3: convert it again")
        if keys > MAX_KEYS or tensors > MAX_TENSORS:
            raise self.bad(f"is damaged: its header counts {keys:,} keys and {tensors:,} tensors")
        header = Header(version=version, size=self.size, tensors=tensors)
        for number in range(keys):
            self.where = f"key {number + 1} of {keys}"
            self.key(header)
        self.tensors(header)
        return header

    def _too_short(self, start: bytes) -> tuple[int, ...]:
        raise self.bad(f"is cut: it has {len(start)} bytes, a GGUF's first part has 24")

    def key(self, header: Header) -> None:
        """One key and its value, into `header`."""
        key = self.text(65535)
        self.where = f"key {printable(key)!r}"
        if key in header.values:
            raise self.bad(f"is damaged: {self.where} is there twice")
        kind = self.number("I")
        value: Value = None
        if kind in SCALARS:
            value = self.number(SCALARS[kind])
        elif kind == STRING and key in KEPT:
            value = self.text(MAX_KEPT)
        elif kind == STRING:
            self.skip(self.number("Q"))
        elif kind == ARRAY:
            value = self.array(key, header)
        else:
            raise self.bad(f"is damaged: {self.where} has the unknown type {kind}")
        header.values[key] = value

    def array(self, key: str, header: Header) -> Value:
        """An array of numbers that is short is kept, any other is stepped over."""
        kind, count = self.number("I"), self.number("Q")
        if kind not in SCALARS and kind != STRING:
            raise self.bad(f"is damaged: {self.where} is an array of the unknown type {kind}")
        width = 8 if kind == STRING else struct.calcsize("<" + SCALARS[kind])
        if self.at + count * width > self.size:
            raise self.cut(self.at + count * width)
        header.lengths[key] = count
        if kind == STRING:
            self.step_over_strings(count)
        elif count <= MAX_SHORT_ARRAY:
            return self.unpack(struct.Struct(f"<{count}{SCALARS[kind]}"))
        else:
            self.skip(count * width)
        return None

    def step_over_strings(self, count: int) -> None:
        """The one hot loop: a vocabulary's tokens and merges are hundreds of thousands of strings."""
        self.strings += count
        if self.strings > MAX_STRINGS:
            raise self.bad(f"is damaged: {self.where} brings its strings to {self.strings:,}")
        unpack = struct.Struct("<Q").unpack_from
        index = self.at - self.base
        last = len(self.buffer) - 8
        for _ in range(count):
            if index > last:
                self.at = self.base + index
                index = self.window(8)
                last = len(self.buffer) - 8
            index += 8 + unpack(self.buffer, index)[0]
        self.at = self.base + index
        self.skip(0)

    def tensors(self, header: Header) -> None:
        """The tensors' descriptions: llama.cpp wants each to begin where the one before ends, so they are summed."""
        alignment = header.values.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1 or alignment > 1 << 20 or alignment & (alignment - 1):
            raise self.bad(f"is damaged: general.alignment is {alignment!r}, expected a power of two")
        names: set[str] = set()
        end = needed = 0
        for number in range(header.tensors):
            self.where = f"tensor {number + 1} of {header.tensors}"
            name, length, offset = self.tensor(header)
            if name in names:
                raise self.bad(f"is damaged: tensor {name!r} is there twice")
            if offset != end:
                raise self.bad(f"is damaged: tensor {name!r} begins at {offset:,}, expected {end:,}")
            names.add(name)
            header.classifies |= name.startswith("cls.")
            needed = end + length
            end = needed + -needed % alignment
        if header.tensors:
            needed += self.at + -self.at % alignment
        if needed > self.size:
            raise self.bad(f"has {self.size:,} bytes, its tensors need {needed:,}: the download was cut; "
                           "fetch it again")

    def tensor(self, header: Header) -> tuple[str, int, int]:
        """One tensor's (name, bytes, offset), counted into `header`."""
        name = printable(self.text(63))
        dimensions = self.number("I")
        if dimensions > 4:
            raise self.bad(f"is damaged: tensor {name!r} has {dimensions} dimensions")
        shape = self.unpack(struct.Struct(f"<{dimensions}Q"))
        kind, offset = self.unpack(struct.Struct("<IQ"))
        if kind not in TENSOR_TYPES:
            what = "was removed from llama.cpp: get the model in another quantisation" if kind in REMOVED_TYPES else \
                "is not known to this version: the file is damaged, or newer than Parley"
            raise self.bad(f"cannot be loaded: tensor {name!r} has type {kind}, which {what}")
        label, block, width = TENSOR_TYPES[kind]
        elements = 1
        for extent in shape:
            elements *= extent
        if not 0 < elements < 1 << 63 or (shape[0] if shape else 1) % block:
            raise self.bad(f"is damaged: tensor {name!r} of type {label} has shape {'x'.join(map(str, shape))}")
        length = elements // block * width
        header.parameters += elements
        header.bytes_by_type[label] = header.bytes_by_type.get(label, 0) + length
        return name, length, offset


def printable(text: str, limit: int = 200) -> str:
    """`text` from a file, fit for a terminal: no control characters, at most `limit` characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])
