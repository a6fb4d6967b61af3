"""Session files: what they look like, and what becomes of torn, damaged, foreign and missing ones."""

import json
import logging
import os
import shutil
import stat

import pytest

from services.errors import Gone, NotFound, Unavailable
from services.store import lines
from services.store.base import new_head, numbered
from services.store.crypto import Cipher
from services.store.files import FileStore
from tests.services.store.contract import HEAD, StoreContract, add, contents, said

TEXTS = ["hi", "", "añ😀\u2028\0\x1b\u202e", '{"lc":1}\n{"n":9}', "x" * 40, "AI: no"] * 4


class TestFiles(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return FileStore(tmp_path)


class TestEncryptedFiles(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return FileStore(tmp_path, Cipher.open(tmp_path, "k" * 32))


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path)


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    monkeypatch.setattr(logging.getLogger("parley.store"), "disabled", True)


def path_of(store, sid="1"):
    return store.folder / "0" / f"{sid}.jsonl"


def put(path, content):
    """A new file, since ext4 syncs one that is truncated and written again."""
    path.unlink()
    path.write_bytes(content)


def twenty_turns(store):
    add(store, "0", "other", "untouched")
    add(store, "0", "1", *TEXTS)
    return path_of(store).read_bytes()


def test_a_person_can_read_the_file(store):
    add(store, "0", "1", "¿qué tal?")
    head, line = path_of(store).read_text(encoding="utf-8").splitlines()
    assert '"content":"¿qué tal?"' in line and json.loads(line)["n"] == 1
    assert json.loads(head) | {"sum": 0} == {**HEAD, "n": 0, "owner": "0", "id": "1", "sum": 0}


def test_only_the_owner_of_the_process_may_read(store):
    add(store, "0", "1", "x")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in store.folder.rglob("*")}
    assert all(mode == (0o700 if path.is_dir() else 0o600) for path, mode in modes.items()), modes
    assert stat.S_IMODE(store.folder.stat().st_mode) == 0o700


def test_a_session_file_is_only_added_to(store):
    add(store, "0", "1", "x")
    before, inode = path_of(store).read_bytes(), path_of(store).stat().st_ino
    add(store, "0", "1", "y")
    assert path_of(store).read_bytes().startswith(before) and path_of(store).stat().st_ino == inode


def test_truncated_at_every_byte(store, tmp_path, fast):
    whole = twenty_turns(store)
    other = path_of(store, "other").read_bytes()
    head = whole.index(b"\n")
    for size in range(len(whole)):
        put(path_of(store), whole[:size])
        kept = whole[:size].count(b"\n") + (whole[size:size + 1] == b"\n")
        if size < head:
            with pytest.raises(Gone):
                store.read("0", "1")
            assert path_of(store).read_bytes() == whole[:size]
            continue
        assert kept == 1 or contents(store, "0", "1") == TEXTS[:kept - 1], size
        if size % 7 and size < len(whole) - 300:
            continue
        shutil.rmtree(tmp_path / "quarantine", ignore_errors=True)
        add(store, "0", "1", "next")
        assert contents(store, "0", "1") == [*TEXTS[:kept - 1], "next"]
        tail = whole[:size].rpartition(b"\n")[2] if whole[size:size + 1] != b"\n" else b""
        copies = [path.read_bytes() for path in (tmp_path / "quarantine").glob("*")]
        assert copies == ([tail] if tail else [])
    assert path_of(store, "other").read_bytes() == other


def test_a_torn_tail_is_told_and_left_alone_by_readers(store, caplog):
    add(store, "0", "1", "x", "y")
    torn = path_of(store).read_bytes()[:-9]
    path_of(store).write_bytes(torn)
    assert contents(store, "0", "1") == ["x"] and path_of(store).read_bytes() == torn
    with caplog.at_level(logging.WARNING, "parley.store"):
        add(store, "0", "1", "z")
    assert "cannot be read; a copy is quarantine/" in caplog.text


@pytest.mark.parametrize("hole", ["all", "front", "middle", "end"])
def test_holes_that_a_power_cut_leaves_in_the_last_line(store, hole):
    add(store, "0", "1", "x", "long " * 1000)
    data = bytearray(path_of(store).read_bytes())
    begin = data.rindex(b"\n", 0, len(data) - 1) + 1
    first, last = -(-begin // 512) * 512, len(data) // 512 * 512
    cut = {"all": (begin, len(data)), "front": (begin, first), "middle": (first, first + 512), "end": (last, len(data))}
    start, stop = cut[hole]
    data[start:stop] = bytes(stop - start)
    path_of(store).write_bytes(data)
    assert contents(store, "0", "1") == ["x"]
    add(store, "0", "1", "y")
    assert contents(store, "0", "1") == ["x", "y"]


@pytest.mark.parametrize("change", [lambda byte: byte ^ 1, lambda byte: byte ^ 0x80, lambda byte: 0,
                                    lambda byte: 10 if byte != 10 else 32])
def test_every_byte_changed(store, tmp_path, fast, change):
    add(store, "0", "other", "untouched")
    add(store, "0", "1", *TEXTS[:6])
    whole = path_of(store).read_bytes()
    for at in range(len(whole)):
        damaged = whole[:at] + bytes([change(whole[at])]) + whole[at + 1:]
        put(path_of(store), damaged)
        with pytest.raises(Gone) as caught:
            store.read("0", "1")
        assert caught.value.code == "session_damaged" and caught.value.status == 410
        if at % 29 == 0:
            with pytest.raises(Gone):
                store.open("0", "1", 1, HEAD).__enter__()
            copy = caught.value.message.partition("a copy is ")[2].partition(".jsonl")[0] + ".jsonl"
            assert (tmp_path / copy).read_bytes() == damaged
        assert path_of(store).read_bytes() == damaged
    assert contents(store, "0", "other") == ["untouched"]


@pytest.mark.parametrize("content", [b"", b"\n", bytes(65536), b"\xff" * 300 + b"\n", b"[]\n", b"null\n", b"{}\n",
                                     b'"x"\n' * 3, b"[" * 100_000 + b"\n"])
def test_files_that_are_something_else(store, content):
    add(store, "0", "other", "untouched")
    path_of(store).write_bytes(content)
    for act in (lambda: store.read("0", "1"), lambda: add(store, "0", "1", "x")):
        with pytest.raises(Gone, match="damaged"):
            act()
    assert path_of(store).read_bytes() == content
    assert store.index("0")["1"].problem and store.index("0")["other"].problem is None
    store.delete("0", "1")
    add(store, "0", "1", "begun again")
    assert contents(store, "0", "1") == ["begun again"]


def test_lines_of_another_session_or_out_of_order(store):
    add(store, "0", "1", "a", "b", "c")
    add(store, "0", "2", "d")
    rows = path_of(store).read_bytes().splitlines(keepends=True)
    for wrong in ([rows[0], rows[2], rows[1], rows[3]], [rows[0], rows[2]], [*rows, rows[3]], rows[1:],
                  path_of(store, "2").read_bytes().splitlines(keepends=True)):
        path_of(store).write_bytes(b"".join(wrong))
        with pytest.raises(Gone):
            store.read("0", "1")


def test_a_newer_schema_is_refused_without_a_write(store, tmp_path):
    (store.folder / "0").mkdir()
    head = {**new_head("2026"), "v": 2}
    path_of(store).write_bytes(lines.encode_all("0", "1", numbered("0", "1", [head, said("x")]), None))
    before = path_of(store).read_bytes()
    for act in (lambda: store.read("0", "1"), lambda: add(store, "0", "1", "y")):
        with pytest.raises(Unavailable, match="newer Parley") as caught:
            act()
        assert caught.value.code == "newer_schema"
    assert path_of(store).read_bytes() == before and not (tmp_path / "quarantine").exists()
    assert "newer" in store.index("0")["1"].problem


def test_links_are_refused(store, tmp_path):
    add(store, "0", "2", "real")
    secret = tmp_path / "passwd"
    secret.write_bytes(path_of(store, "2").read_bytes())
    path_of(store).symlink_to(secret)
    (store.folder / "k1").symlink_to(store.folder / "0")
    for act in (lambda: store.read("0", "1"), lambda: add(store, "0", "1", "y"), lambda: store.read("k1", "2"),
                lambda: store.index("k1"), lambda: store.create("k1", lambda used: "9", [HEAD])):
        with pytest.raises(Unavailable):
            act()
    assert secret.read_bytes() == path_of(store, "2").read_bytes()
    for name in ("sessions", "quarantine"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / name).symlink_to(store.folder)
    with pytest.raises(Unavailable, match="symbolic link"):
        FileStore(tmp_path / "data")
    assert "regular" in store.index("0")["1"].problem and store.owners() == ["0"]


@pytest.mark.parametrize("how", ["removed", "renamed", "replaced"])
def test_the_data_folder_goes_away(tmp_path, how):
    data = tmp_path / "data"
    store = FileStore(data)
    add(store, "0", "1", "x")
    with store.open("0", "1", 1) as log:
        os.rename(data, tmp_path / "away")
        if how == "replaced":
            FileStore(data)
        if how == "removed":
            shutil.rmtree(tmp_path / "away")
        for act in (lambda: log.append(said("y")), lambda: store.read("0", "1"), lambda: store.index("0"),
                    lambda: add(store, "0", "2", "z"), lambda: store.delete("0", "1"), store.owners):
            with pytest.raises(Unavailable, match="removed or moved"):
                act()
    assert not (data / "sessions").exists() or how == "replaced"
    if how == "renamed":
        os.rename(tmp_path / "away", data)
        assert contents(store, "0", "1") == ["x"]


def test_index_sees_what_other_processes_do(store, tmp_path):
    add(store, "0", "1", "x")
    assert store.index("0")["1"].turns == 1
    add(FileStore(tmp_path), "0", "1", "y")
    add(FileStore(tmp_path), "0", "2", "z")
    assert store.index("0")["1"].turns == 2 and "2" in store.index("0")
    FileStore(tmp_path).delete("0", "2")
    assert "2" not in store.index("0")


def test_a_session_left_by_a_crash_before_its_first_turn(store):
    store.create("0", lambda used: "1", [HEAD])
    assert store.index("0") == {}
    with pytest.raises(NotFound):
        store.open("0", "1", 1).__enter__()
    add(store, "0", "1", "x")
    assert contents(store, "0", "1") == ["x"]


@pytest.mark.parametrize("name", ["old.backup", "lost+found", "two words", "x" * 65])
def test_a_folder_of_somebody_else_is_passed_over(store, name):
    add(store, "0", "1", "x")
    (store.folder / name).mkdir()
    assert store.owners() == ["0"]
