"""Encryption at rest: nothing legible on the disk, lines that cannot be moved, and a wrong key that is told at once."""

import json
import signal
import stat

import pytest

from services.errors import ConfigError, Gone, Unavailable
from services.settings import Settings
from services.store import crypto, sealing
from services.store.crypto import Cipher
from services.store.files import FileStore
from services.store.opening import open_store
from tests.services.store.contract import HEAD, add, contents
from tests.services.store.test_disk import python

KEY, OTHER = "k" * 32, "o" * 32


def settings(folder, key=None):
    return Settings(data_dir=folder, data_key=key)


def legible(folder, text="secret words"):
    return [path.name for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.fixture
def sealed(tmp_path):
    store = open_store(settings(tmp_path, KEY))
    add(store, "0", "1", "secret words")
    add(store, "k1", "1", "secret words")
    return store


def test_nothing_is_legible(sealed, tmp_path):
    assert contents(sealed, "0", "1") == ["secret words"]
    assert legible(tmp_path) == [] and legible(tmp_path, KEY) == []
    assert stat.S_IMODE((tmp_path / crypto.FILE).stat().st_mode) == 0o600
    assert sealed.index("0")["1"].name == "secret words"
    keys = json.loads((tmp_path / crypto.FILE).read_bytes())["keys"]
    assert set(keys) == {"0", "k1"} and keys["0"] != keys["k1"]
    assert contents(open_store(settings(tmp_path, KEY)), "k1", "1") == ["secret words"]


def test_a_wrong_key_is_told_and_nothing_is_made(sealed, tmp_path):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="DATA_KEY is not the one") as caught:
        open_store(settings(tmp_path, OTHER))
    assert OTHER not in caught.value.message and KEY not in caught.value.message
    with pytest.raises(ConfigError, match="DATA_KEY is not set"):
        open_store(settings(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("key", [KEY, None])
def test_a_lost_key_file_is_told(sealed, tmp_path, key):
    (tmp_path / crypto.FILE).unlink()
    with pytest.raises(ConfigError, match="is missing, but there are encrypted sessions"):
        open_store(settings(tmp_path, key))
    assert not (tmp_path / crypto.FILE).exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": 1}', b"\xff", b"[" * 100_000,
                                     b'{"version": 1, "salt": "!", "check": "", "keys": {}}',
                                     b'{"version": 1, "salt": "", "check": 5, "keys": {}}'])
def test_a_damaged_key_file_is_told(sealed, tmp_path, content):
    (tmp_path / crypto.FILE).write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged: restore it"):
        open_store(settings(tmp_path, KEY))
    assert (tmp_path / crypto.FILE).read_bytes() == content


def test_a_newer_key_file_is_told(sealed, tmp_path):
    stored = json.loads((tmp_path / crypto.FILE).read_bytes())
    (tmp_path / crypto.FILE).write_text(json.dumps({**stored, "version": 2}))
    with pytest.raises(ConfigError, match="newer Parley"):
        open_store(settings(tmp_path, KEY))


def test_lines_cannot_be_moved_between_sessions_owners_or_places(sealed):
    add(sealed, "0", "1", "second")
    add(sealed, "0", "2", "other")
    mine = sealed.folder / "0" / "1.jsonl"
    rows = mine.read_bytes().splitlines(keepends=True)
    for wrong in (sealed.folder / "k1" / "1.jsonl", sealed.folder / "0" / "2.jsonl"):
        mine.write_bytes(rows[0] + wrong.read_bytes().splitlines(keepends=True)[1])
        with pytest.raises(Gone, match="box does not open"):
            sealed.read("0", "1")
    mine.write_bytes(rows[0])
    with sealed.open("0", "1", 1, HEAD) as log:
        log.append({"type": "user", "at": "", "content": "x"})
    assert mine.read_bytes() != b"".join(rows[:2])


def test_an_owner_without_a_key_is_told(sealed, tmp_path):
    stored = json.loads((tmp_path / crypto.FILE).read_bytes())
    del stored["keys"]["k1"]
    (tmp_path / crypto.FILE).write_text(json.dumps(stored))
    store = open_store(settings(tmp_path, KEY))
    with pytest.raises(Unavailable, match="no key for owner k1"):
        store.read("k1", "1")
    assert contents(store, "0", "1") == ["secret words"]


def test_a_key_file_damaged_while_in_use_is_told_without_its_folder(sealed, tmp_path):
    store = open_store(settings(tmp_path, KEY))
    (tmp_path / crypto.FILE).write_text("{")
    with pytest.raises(Unavailable, match="damaged") as caught:
        store.read("k1", "1")
    assert str(tmp_path) not in caught.value.message


def test_keys_made_by_another_process_are_found(tmp_path):
    one, two = Cipher.open(tmp_path, KEY), Cipher.open(tmp_path, KEY)
    assert two.unseal("k9", "x", one.seal("k9", "x", b"text")) == b"text"
    assert one.unseal("k8", "x", two.seal("k8", "x", b"text")) == b"text"
    with pytest.raises(ValueError, match="wrong key"):
        one.unseal("k8", "y", two.seal("k8", "x", b"text"))


def plain_sessions(folder):
    store = open_store(settings(folder))
    for number in range(6):
        add(store, "0", str(number), f"secret words {number}", "more")
    add(store, "k1", "a", "secret words")
    return {(owner, sid): store.read(owner, sid) for owner in store.owners() for sid in store.index(owner)}


def test_plain_sessions_are_encrypted_at_the_next_start(tmp_path, caplog):
    before = plain_sessions(tmp_path)
    (tmp_path / "sessions.json.bak").write_text("secret words")
    with pytest.raises(ConfigError, match="not encrypted yet: start the server once"):
        open_store(settings(tmp_path, KEY), prepare=False)
    assert not (tmp_path / crypto.FILE).exists()
    with pytest.raises(Gone, match="next start of the server encrypts it"):
        FileStore(tmp_path, Cipher.open(tmp_path, KEY)).read("0", "1")
    store = open_store(settings(tmp_path, KEY))
    assert {key: store.read(*key) for key in before} == before
    assert legible(tmp_path / "sessions") == [] and sealing.seal_plain(store) == 0
    assert "sessions.json.bak" in caplog.text
    with pytest.raises(ConfigError):
        open_store(settings(tmp_path))


def test_damaged_plain_sessions_stay(tmp_path):
    plain_sessions(tmp_path)
    damaged = tmp_path / "sessions/0/1.jsonl"
    damaged.write_bytes(b"broken\n")
    store = open_store(settings(tmp_path, KEY))
    assert damaged.read_bytes() == b"broken\n" and store.index("0")["1"].problem
    assert contents(store, "0", "2")[0] == "secret words 2"


@pytest.mark.parametrize("point", ["before_seal", "after_tmp", "before_rename", "after_rename", "after_seal"])
def test_killed_while_encrypting(tmp_path, point):
    before = plain_sessions(tmp_path)
    for nth in (2, 4):
        child = python("import sys; from pathlib import Path; from services.settings import Settings\n"
                       "from services.store.opening import open_store\n"
                       "open_store(Settings(data_dir=Path(sys.argv[1]), data_key=sys.argv[2]))", tmp_path, KEY,
                       FAILPOINT=f"{point}:kill@{nth}")
        child.communicate(timeout=60)
        assert child.returncode in (-signal.SIGKILL, 0)
    store = open_store(settings(tmp_path, KEY))
    assert {key: store.read(*key) for key in before} == before
    assert legible(tmp_path / "sessions") == []


def test_the_key_of_snapshots(sealed, tmp_path):
    """One for each DATA_KEY and data folder, and none that opens sessions."""
    key = crypto.kv_key(tmp_path, KEY)
    assert len(key) == 32 and key == crypto.kv_key(tmp_path, KEY)
    stored = json.loads((tmp_path / crypto.FILE).read_bytes())
    with pytest.raises(ValueError):
        crypto._unbox(key, stored["check"], b"check")
    open_store(settings(tmp_path / "other", KEY))
    assert crypto.kv_key(tmp_path / "other", KEY) != key
    with pytest.raises(ConfigError, match="DATA_KEY is not the one"):
        crypto.kv_key(tmp_path, OTHER)
    (tmp_path / crypto.FILE).unlink()
    with pytest.raises(ConfigError, match="is missing: restore it"):
        crypto.kv_key(tmp_path, KEY)
