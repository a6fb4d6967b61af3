"""What a model is known by, and how much room a snapshot takes."""

import os

import pytest

from services.runner import kvfile
from services.runner.kvdisk import MIB, length_of, model_fingerprint


def test_a_models_fingerprint(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(bytes(3 * MIB))
    seen = {model_fingerprint(str(path), "0.3.36", 2048)}
    assert len(seen.pop()) == 32
    first = model_fingerprint(str(path), "0.3.36", 2048)
    seen = {first, model_fingerprint(str(path), "0.3.37", 2048), model_fingerprint(str(path), "0.3.36", 4096)}
    kept = path.stat()
    for at, end in ((0, 0), (3 * MIB - 1, 0), (0, 1)):
        content = bytearray(3 * MIB + end)
        content[at] = 1
        path.write_bytes(content)
        os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
        seen.add(model_fingerprint(str(path), "0.3.36", 2048))
    path.write_bytes(bytes(3 * MIB))
    os.utime(path, ns=(0, 1))
    seen.add(model_fingerprint(str(path), "0.3.36", 2048))
    assert len(seen) == 7
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert model_fingerprint(str(path), "0.3.36", 2048) == first


def test_all_files_of_a_split_model_count(tmp_path):
    files = [tmp_path / f"m-0000{n}-of-00002.gguf" for n in (1, 2)]
    for file in files:
        file.write_bytes(b"x")
    before = model_fingerprint(str(files[0]))
    files[1].write_bytes(b"yy")
    assert model_fingerprint(str(files[0])) != before
    files[1].unlink()
    with pytest.raises(FileNotFoundError):
        model_fingerprint(str(files[0]))


@pytest.mark.parametrize("key", [b"", b"k" * 32])
@pytest.mark.parametrize("size", [0, MIB, 3 * MIB + 1])
def test_a_file_is_never_longer_than_said(tmp_path, key, size):
    owner, session, tokens = "o" * 100, "s\u20ac" * 100, bytes(70_000)
    header = kvfile.Header(fingerprint="f" * 32, owner=owner, session=session, tokens=tokens, head=2**31)
    length = kvfile.write(tmp_path / "a.kv", header, bytes(size), key)
    assert 0 <= length_of(owner, session, tokens, bytes(size)) - length < 256
