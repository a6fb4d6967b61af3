"""Zip archives: small ones do not become large, names are no paths, and what is broken is told of."""

import io
import stat
import struct
import zipfile

import pytest

from services.errors import ParleyError, TooLarge, Unprocessable
from services.knowledge import archives
from services.knowledge.archives import members


def zipped(files, method=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()


def test_files_come_one_by_one():
    inner = zipped([("x", "y")])
    data = zipped([("a.txt", "one"), ("folder/", ""), ("folder/b.md", "two"), ("__MACOSX/a.txt", "no"),
                   (".DS_Store", "no"), ("folder/.git/config", "no"), ("inner.zip", inner)])
    assert [(member.name, member.data) for member in members(data)] == [
        ("a.txt", b"one"), ("folder/b.md", b"two"), ("inner.zip", inner)]


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "C:\\x", "a\nb\u202e", "..\\..\\x"])
def test_names_are_labels(name):
    (member,) = members(zipped([(name, "x")]))
    assert member.data == b"x" and member.name.isprintable() and "\\" not in member.name


def test_links_are_left_out():
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert list(members(zipped([(link, "/etc/passwd")]))) == []


@pytest.mark.parametrize("data", [
    zipped([("a", bytes(300 << 20))]), zipped([(str(number), "x") for number in range(archives.MEMBERS + 1)]),
    zipped([("a", b"x" * (archives.MEMBER_BYTES + 1))], zipfile.ZIP_STORED)], ids=["bomb", "many", "large"])
def test_too_much_is_refused(data):
    with pytest.raises(TooLarge):
        list(members(data))


def test_together_they_have_a_limit(monkeypatch):
    monkeypatch.setattr(archives, "TOTAL_BYTES", 1000)
    with pytest.raises(TooLarge):
        list(members(zipped([(str(number), b"x" * 300) for number in range(5)])))


def lying():
    """Says of its file that it has 3 bytes, where it has a million."""
    data = bytearray(zipped([("a", bytes(1_000_000))]))
    at = data.rindex(b"PK\x01\x02")
    data[at + 24:at + 28] = struct.pack("<I", 3)
    return bytes(data)


def locked(flag=1):
    data = bytearray(zipped([("a", b"x")]))
    for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.rindex(mark) + offset] |= flag
    return bytes(data)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", zipped([("a", "b" * 5000)])[:-40], lying(), locked(),
                                  locked(0x20), locked(0x40), zipped([("a", "b")], zipfile.ZIP_BZIP2),
                                  zipped([("a", "b")], zipfile.ZIP_LZMA)],
                         ids=["empty", "head", "cut", "lying", "locked", "patch", "strongly", "bzip2", "lzma"])
def test_what_cannot_be_read_is_told_of(data):
    with pytest.raises(Unprocessable) as caught:
        list(members(data))
    assert caught.value.code == "unreadable_document"


def test_damage_anywhere_is_told_of():
    data = zipped([("a.txt", "some text " * 50), ("b.txt", "more text")])
    for at in range(0, len(data), 3):
        damaged = data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1:]
        try:
            list(members(damaged))
        except ParleyError:
            pass
