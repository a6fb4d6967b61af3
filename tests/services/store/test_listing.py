"""Lists of many sessions: right whatever happens to the index file, and without reading all of them again."""

import os

import pytest

from services.errors import StorageFull
from services.store import disk, lines, listing
from services.store.base import new_head, numbered
from services.store.crypto import Cipher
from services.store.files import FileStore
from tests.services.store.contract import add, said


@pytest.fixture(params=["plain", "encrypted"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setattr(listing, "WORTH", 20)
    store = FileStore(tmp_path, Cipher.open(tmp_path, "k" * 32) if request.param == "encrypted" else None)
    (store.folder / "0").mkdir()
    for number in range(30):
        records = numbered("0", str(number), [new_head("2026"), said(f"secret words {number}")])
        (store.folder / "0" / f"{number}.jsonl").write_bytes(lines.encode_all("0", str(number), records, store.cipher))
    return store


def restarted(store):
    return FileStore(store.data_dir, store.cipher)


def reads(store):
    """What a list shows, and how many files it opened for that."""
    opened = []
    disk.watcher = lambda op: opened.append(op.path) if op.kind == "open" and op.path.endswith(".jsonl") else None
    try:
        return store.index("0"), len(opened)
    finally:
        disk.watcher = None


def test_a_restart_reads_only_what_changed(store):
    index, opened = reads(store)
    assert opened == 30 and index["7"].name == "secret words 7"
    assert reads(store) == (index, 0) and reads(restarted(store)) == (index, 0)
    add(store, "0", "7", "more")
    store.delete("0", "8")
    add(store, "0", "new", "x")
    now, opened = reads(store)
    assert opened == 0 and now["7"].turns == 2 and "8" not in now and now["new"].name == "x"
    assert reads(restarted(store)) == (now, 2)
    if store.cipher:
        assert b"secret" not in (store.folder / "0" / listing.INDEX).read_bytes()


def test_an_index_of_an_earlier_version_is_replaced(store):
    old = store.folder / "0" / ".index.1"
    old.write_bytes(b"secret words 1")
    assert len(store.index("0")) == 30 and not old.exists() and (store.folder / "0" / listing.INDEX).exists()


@pytest.mark.parametrize("content", [b"", b"\n", b"x\n{}", os.urandom(500)])
def test_a_damaged_index_is_made_again(store, content):
    index = store.index("0")
    path = store.folder / "0" / listing.INDEX
    whole = path.read_bytes()
    for wrong in (content, whole[:-9], whole.replace(b"2026", b"2027") if not store.cipher else whole[:70] + content):
        path.write_bytes(wrong)
        assert reads(restarted(store)) == (index, 30)
        assert reads(restarted(store)) == (index, 0)


def test_problems_are_not_kept(store):
    path = store.folder / "0" / "3.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"broken\n")
    assert store.index("0")["3"].problem
    found, opened = reads(restarted(store))
    assert found["3"].problem and opened == 2      # it is read twice before it is called damaged
    path.write_bytes(whole)
    assert restarted(store).index("0")["3"].name == "secret words 3"


def test_a_disk_that_takes_no_index(store, monkeypatch):
    def full(*_):
        raise StorageFull("full")
    monkeypatch.setattr(disk, "write_atomic", full)
    assert len(store.index("0")) == 30


def test_memory_does_not_grow_with_sessions_that_are_gone(store):
    for number in range(20):
        add(store, "0", f"gone{number}", "x")
        store.delete("0", f"gone{number}")
        with store.open("0", f"unused{number}", 1, new_head("2026")):
            pass
    assert store.listing._known == {"0": {}}
