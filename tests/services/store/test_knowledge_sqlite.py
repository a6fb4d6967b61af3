"""Knowledge bases in SQLite files, plain and encrypted."""

import os
import sqlite3
import stat

import pytest

from services.errors import Gone, NotFound
from services.store import knowledge_sqlite
from services.store.crypto import Cipher
from services.store.knowledge import Chunk, Document, Source
from services.store.knowledge_sqlite import SqliteLibrary
from tests.services.store.knowledge_contract import KnowledgeContract, filled, names, vector

DATA_KEY = "0123456789abcdef0123456789abcdef-data-key"


class TestPlain(KnowledgeContract):
    @pytest.fixture
    def library(self, tmp_path):
        return SqliteLibrary(tmp_path)


class TestSealed(KnowledgeContract):
    @pytest.fixture
    def library(self, tmp_path):
        return SqliteLibrary(tmp_path, Cipher.open(tmp_path, DATA_KEY))


def everything(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_files_are_the_owners_alone(tmp_path):
    library = SqliteLibrary(tmp_path)
    filled(library.create("0", "facts", {}), one=("a text", vector(1, 0)))
    files = [path for path in (tmp_path / "knowledge").rglob("*") if path.is_file()]
    assert files and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert not [path for path in files if path.name.endswith(".tmp")]
    library.delete("0", "facts")
    assert not [path for path in (tmp_path / "knowledge").rglob("*") if path.is_file()]


def test_nothing_of_a_sealed_base_is_in_the_clear(tmp_path):
    library = SqliteLibrary(tmp_path, Cipher.open(tmp_path, DATA_KEY))
    numbers = vector(0.123, 0.456, 0.789)
    base = library.create("0", "facts", {"profile": "secretprofile"})
    base.add_source(Source(id="s", kind="file", name="secretname", options={"title": "secretoption"}), b"secretpayload")
    id = base.put_document(Document(title="secrettitle", name="secretfile", text="secrettext", source="s"))
    base.put_chunks(id, [Chunk(0, 0, "secretheading", "secretchunk", numbers)])
    assert names(base, base.matching(["secretchunk"], 1)) == names(base, base.near(numbers, 1)) == ["secretfile"]
    stored = everything(tmp_path)
    assert b"secret" not in stored and numbers not in stored
    again = SqliteLibrary(tmp_path, Cipher.open(tmp_path, DATA_KEY)).open("0", "facts")
    assert names(again, again.matching(["secretchunk"], 1)) == names(again, again.near(numbers, 1)) == ["secretfile"]


def test_plain_bases_are_sealed_when_there_is_a_key(tmp_path):
    plain = SqliteLibrary(tmp_path)
    base = plain.create("0", "facts", {"profile": "small"})
    filled(base, one=("unmistakable words", vector(1, 0)), two=("others", vector(0, 1)))
    base.add_source(Source(id="t", kind="file", name="unmistakable.txt"), b"unmistakable payload")
    cipher = Cipher.open(tmp_path, DATA_KEY)
    library = SqliteLibrary(tmp_path, cipher)
    assert (library.seal(), library.seal()) == (1, 0)
    assert b"unmistakable" not in everything(tmp_path / "knowledge")
    sealed = library.open("0", "facts")
    assert sealed.about() == {"profile": "small"} and sealed.payload("t") == b"unmistakable payload"
    assert names(sealed, sealed.matching(["unmistakable"], 5)) == names(sealed, sealed.near(vector(1, 0), 1)) == ["one"]
    assert [document.title for document in sealed.documents()] == ["One", "Two"]
    same = Document(title="One", name="one", text="unmistakable words", source="s")
    assert sealed.put_document(same) == sealed.documents()[0].id and not sealed.unindexed()


def test_a_sealed_base_that_was_moved_does_not_open(tmp_path):
    library = SqliteLibrary(tmp_path, Cipher.open(tmp_path, DATA_KEY))
    library.create("0", "one", {})
    folder = tmp_path / "knowledge" / "0"
    os.rename(folder / "one.sqlite3", folder / "two.sqlite3")
    with pytest.raises(Gone, match="cannot be decrypted"):
        library.open("0", "two").about()


def test_a_damaged_file_is_told_and_can_be_deleted(tmp_path):
    library = SqliteLibrary(tmp_path)
    library.create("0", "facts", {})
    (tmp_path / "knowledge" / "0" / "facts.sqlite3").write_bytes(b"no database" * 1000)
    with pytest.raises(Gone, match="damaged"):
        library.open("0", "facts").about()
    library.delete("0", "facts")
    assert library.names() == []


def test_a_link_is_no_base(tmp_path):
    library = SqliteLibrary(tmp_path)
    library.create("0", "facts", {})
    folder = tmp_path / "knowledge" / "0"
    (folder / "link.sqlite3").symlink_to(folder / "facts.sqlite3")
    assert library.names() == [("0", "facts")]
    with pytest.raises(NotFound):
        library.open("0", "link")


def test_memory_holds_the_bases_used_last(tmp_path, monkeypatch):
    monkeypatch.setattr(knowledge_sqlite, "MEMORY", 50)
    library = SqliteLibrary(tmp_path)
    bases = [library.create("0", f"b{n}", {}) for n in range(3)]
    for base in bases:
        filled(base, **{f"d{n}": ("text", vector(1, n)) for n in range(3)})
    for base in bases * 2:
        assert len(base.near(vector(1, 0), 20)) == 3
    assert len(library._loaded) <= 2


def test_words_that_are_sealed_count_as_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(knowledge_sqlite, "MEMORY", 5000)
    library = SqliteLibrary(tmp_path, Cipher.open(tmp_path, DATA_KEY))
    for number in range(4):
        base = library.create("0", f"b{number}", {})
        filled(base, one=("word " * 400, vector(1, 0)))
        assert names(base, base.matching(["word"], 1)) == ["one"]
    base.near(vector(1, 0), 1)
    assert len(library._loaded) <= 2


def test_no_more_files_stay_open_than_may(tmp_path, monkeypatch):
    monkeypatch.setattr(knowledge_sqlite, "MOST_IDLE", 5)
    here, elsewhere = SqliteLibrary(tmp_path), SqliteLibrary(tmp_path)
    bases = [here.create("0", f"b{n}", {}) for n in range(20)]
    before = len(os.listdir("/proc/self/fd"))
    for base in bases * 2:
        assert base.sources() == []
    assert len(os.listdir("/proc/self/fd")) <= before + 3 * 5      # each has a log and its index
    for n in range(20):
        elsewhere.delete("0", f"b{n}")
    assert len(os.listdir("/proc/self/fd")) <= before + 3 * 5


def test_a_base_that_another_process_made_anew_is_another_one(tmp_path):
    here, elsewhere = SqliteLibrary(tmp_path), SqliteLibrary(tmp_path)
    base = here.create("0", "facts", {})
    filled(base, one=("old", vector(1, 0)), two=("older", vector(0, 1)))
    assert names(base, base.near(vector(1, 0), 1)) == ["one"]
    elsewhere.delete("0", "facts")
    filled(elsewhere.create("0", "facts", {}), three=("new", vector(0, 1)), four=("newer", vector(1, 0)))
    base = here.open("0", "facts")
    assert names(base, base.near(vector(1, 0), 1)) == ["four"]


def test_a_writer_that_was_killed_leaves_whole_documents(tmp_path):
    base = SqliteLibrary(tmp_path).create("0", "facts", {})
    filled(base, one=("a text", vector(1, 0)))
    other = sqlite3.connect(tmp_path / "knowledge" / "0" / "facts.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM chunks")
    other.close()               # without COMMIT, as a process that dies
    assert names(base, base.matching(["text"], 5)) == ["one"] and base.size().chunks == 1
