"""A snapshot's file: what was written comes back exactly, or the damage is told."""

import os
import stat
import subprocess
import sys

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runner import kvfile
from services.runner.kvfile import Damaged, Header

KEY, OTHER = b"k" * 32, b"o" * 32
HEADER = Header(fingerprint="f" * 32, owner="k1", session="s1", tokens=b"\1\0\0\0\2\0\0\0", head=1)
STATE = bytes(range(256)) * 3


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(kvfile, "CHUNK", 100)


@pytest.fixture(params=[b"", KEY], ids=["clear", "sealed"])
def key(request):
    return request.param


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000])
def test_what_was_written_comes_back(tmp_path, key, size):
    path, state = tmp_path / "a.kv", os.urandom(size)
    assert kvfile.write(path, HEADER, state, key) == path.stat().st_size
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    header, found = kvfile.read(path, key)
    assert found == state and header == kvfile.read_header(path, key)
    assert msgspec.structs.replace(header, size=0, digest=b"") == HEADER
    assert kvfile.is_sealed(path) == bool(key)


def test_sealed_is_not_legible_and_never_twice_the_same(tmp_path):
    for name in "ab":
        kvfile.write(tmp_path / name, HEADER, b"secret words" * 100, KEY)
    a, b = (tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()
    assert b"secret" not in a and b"k1" not in a and a != b


def damaged(path, key):
    with pytest.raises(Damaged) as caught:
        kvfile.read(path, key)
    return str(caught.value)


def test_truncation_at_every_offset(tmp_path, key):
    path = tmp_path / "a.kv"
    kvfile.write(path, HEADER, STATE, key)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        damaged(path, key)
        with pytest.raises(Damaged):
            kvfile.read_header(path, key)
    path.write_bytes(whole + b"x")
    damaged(path, key)


def test_every_byte_flipped(tmp_path, key):
    path = tmp_path / "a.kv"
    kvfile.write(path, HEADER, STATE, key)
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1:])
        damaged(path, key)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_told(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "garbage.kv"
    for start in (b"", kvfile.MAGIC, kvfile.MAGIC + b"\1\0", kvfile.MAGIC + b"\1\1"):
        path.write_bytes(start + content)
        damaged(path, b"")
        damaged(path, KEY)


def test_chunks_cannot_change_places(tmp_path):
    path = tmp_path / "a.kv"
    kvfile.write(path, HEADER, STATE, KEY)
    whole = path.read_bytes()
    box = 100 + 16
    begin = len(whole) - (7 * box + len(STATE) % 100 + 16)
    swapped = whole[:begin] + whole[begin + box:begin + 2 * box] + whole[begin:begin + box] + whole[begin + 2 * box:]
    assert len(swapped) == len(whole)
    path.write_bytes(swapped)
    assert "sealed with another DATA_KEY, or changed" in damaged(path, KEY)


def test_a_wrong_key_is_told(tmp_path):
    kvfile.write(tmp_path / "sealed", HEADER, STATE, KEY)
    kvfile.write(tmp_path / "clear", HEADER, STATE)
    assert "another DATA_KEY" in damaged(tmp_path / "sealed", OTHER)
    assert "DATA_KEY is not set" in damaged(tmp_path / "sealed", b"")
    assert "in the clear, but DATA_KEY is set" in damaged(tmp_path / "clear", KEY)


def test_another_version_is_told(tmp_path):
    path = tmp_path / "a.kv"
    kvfile.write(path, HEADER, STATE)
    path.write_bytes(path.read_bytes().replace(kvfile.MAGIC + b"\1", kvfile.MAGIC + b"\2"))
    assert "version 2" in damaged(path, b"")


def test_links_and_fifos_are_not_followed(tmp_path):
    kvfile.write(tmp_path / "a", HEADER, STATE)
    (tmp_path / "link").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError):
        kvfile.read(tmp_path / "link")
    damaged(tmp_path / "fifo", b"")
    with pytest.raises(FileExistsError):
        kvfile.write(tmp_path / "link", HEADER, STATE)


def test_cryptography_is_not_loaded_in_the_clear(tmp_path):
    code = ("import sys; from services.runner import snapshots; from services.wire import RunnerLimits; "
            f"snapshots.Snapshots(RunnerLimits(kv_folder={str(tmp_path)!r}, kv_disk_bytes=9), 'f', True); "
            "assert 'cryptography' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
