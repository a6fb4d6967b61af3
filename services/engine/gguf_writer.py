"""Writes GGUF files (version 3, little endian): as much of the format as our own converters need."""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

Value = bool | int | float | str | list[str] | list[int]

ALIGNMENT = 32              # bytes that each tensor's data is padded to
U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
TENSOR_TYPES = {"float32": 0, "float16": 1}


def gguf(values: Mapping[str, Value], tensors: Mapping[str, np.ndarray]) -> bytes:
    """The bytes of a GGUF file. The same values and tensors, in the same order, always give the same bytes.

    A whole number is written as u32 (in lists i32), other numbers as f32. Tensors are float16 or float32; numpy's last
    axis is the one that GGUF names first.
    """
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values))]
    head += [_string(key) + _typed(value) for key, value in values.items()]
    data, offset = [], 0
    for name, tensor in tensors.items():
        shape = struct.pack(f"<{tensor.ndim}Q", *reversed(tensor.shape))
        head.append(_string(name) + struct.pack("<I", tensor.ndim) + shape
                    + struct.pack("<IQ", TENSOR_TYPES[tensor.dtype.name], offset))
        data.append(_padded(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).tobytes()))
        offset += len(data[-1])
    return _padded(b"".join(head)) + b"".join(data)


def _typed(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", U32, value)
    if isinstance(value, float):
        return struct.pack("<If", F32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    assert value, "an empty list has no type"
    items = [_string(item) if isinstance(item, str) else struct.pack("<i", item) for item in value]
    return struct.pack("<IIQ", ARRAY, STRING if isinstance(value[0], str) else I32, len(items)) + b"".join(items)


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % ALIGNMENT)
