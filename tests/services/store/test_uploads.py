"""Uploads in SQLite and in Redis, plain and encrypted."""

from __future__ import annotations

import stat
import subprocess
import sys
from contextlib import suppress

import pytest
import redis

from services.errors import ConfigError, Gone, StorageFull, Unavailable
from services.settings import Settings
from services.store import redis_client, uploads_sqlite
from services.store.crypto import Cipher, SharedCipher
from services.store.uploads_redis import RedisUploads
from services.store.uploads_sqlite import FILE, SqliteUploads
from tests import redis_server
from tests.redis_server import needs_redis
from tests.services.store.uploads_contract import UploadsContract

DATA_KEY = "0123456789abcdef0123456789abcdef-data-key"


class Sqlite(UploadsContract):
    def cipher(self, folder):
        return None

    @pytest.fixture
    def another(self, tmp_path):
        return lambda: SqliteUploads(tmp_path, self.cipher(tmp_path))

    @pytest.fixture
    def store(self, another):
        return another()


class TestSqlite(Sqlite):
    pass


class TestSealedSqlite(Sqlite):
    def cipher(self, folder):
        return Cipher.open(folder, DATA_KEY)


@pytest.fixture(scope="module")
def server():
    with redis_server.running() as server:
        yield server


@needs_redis
class TestRedis(UploadsContract):
    CIPHER = None

    @pytest.fixture
    def another(self, server):
        settings = Settings(redis_url=server.url)
        redis_client.connect(settings).flushall()
        return lambda: RedisUploads(redis_client.connect(settings, text=False), cipher=self.CIPHER)

    @pytest.fixture
    def store(self, another):
        return another()


class TestSealedRedis(TestRedis):
    CIPHER = SharedCipher(DATA_KEY)


def everything(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir() if path.name.startswith(FILE))


def test_the_file_is_the_owners_alone(tmp_path):
    SqliteUploads(tmp_path).put("k1", "a", "file", {})
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())


def test_a_second_one_in_this_process_leaves_the_first_ones_locks(tmp_path):
    store = SqliteUploads(tmp_path)
    store.put("k1", "a", "file", {})
    read = [sys.executable, "-c", f"import sqlite3; db = sqlite3.connect({str(store.path)!r}); "
                                  "print(db.execute('SELECT count(*) FROM pieces').fetchone()[0]); db.close()"]
    with store._database() as db:
        db.execute("BEGIN IMMEDIATE")
        db.execute("INSERT INTO pieces (upload, data, sealed) VALUES (1, 'x', 0)")
        with suppress(Unavailable), pytest.MonkeyPatch.context() as patch:
            patch.setattr("services.store.sqlite.WAIT", 0.0)
            SqliteUploads(tmp_path)
        assert subprocess.check_output(read) == b"0\n"
        db.execute("COMMIT")
        assert subprocess.check_output(read) == b"1\n"


def test_what_was_plain_is_encrypted_at_a_start(tmp_path):
    SqliteUploads(tmp_path).put("k1", "a", "file", {"name": "secret name"}, [b"secret text"])
    assert b"secret text" in everything(tmp_path) and b"secret name" in everything(tmp_path)
    sealed = SqliteUploads(tmp_path, Cipher.open(tmp_path, DATA_KEY))
    assert (sealed.seal(), sealed.seal()) == (1, 0)
    assert b"secret" not in everything(tmp_path)
    assert sealed.get("k1", "a").about == {"name": "secret name"} and list(sealed.pieces("k1", "a")) == [b"secret text"]
    with pytest.raises(Gone) as caught:
        list(SqliteUploads(tmp_path).pieces("k1", "a"))
    assert caught.value.code == "file_damaged"


def test_a_damaged_file_and_one_of_the_future_are_told(tmp_path):
    store = SqliteUploads(tmp_path)
    with store._database() as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(ConfigError, match="newer Parley"):
        SqliteUploads(tmp_path)
    store.path.write_bytes(b"no database at all" * 100)
    with pytest.raises(ConfigError, match="is damaged"):
        SqliteUploads(tmp_path)


def test_a_full_disk_is_told_and_loses_nothing(tmp_path):
    store = SqliteUploads(tmp_path)
    store.put("k1", "a", "file", {}, [b"x"])
    with store._database() as db:
        pages, = db.execute("PRAGMA page_count").fetchone()
    whole = uploads_sqlite.connected

    def small(path):
        db = whole(path)
        db.execute(f"PRAGMA max_page_count = {pages}")
        return db
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uploads_sqlite, "connected", small)
        with pytest.raises(StorageFull):
            store.append("k1", "a", b"y" * 100_000)
    assert list(store.pieces("k1", "a")) == [b"x"]


@needs_redis
def test_redis_that_is_away_is_told(tmp_path):
    store = RedisUploads(redis_client.connect(Settings(redis_url=f"unix://{tmp_path}/none"), text=False))
    for act in (lambda: store.get("k1", "a"), lambda: store.put("k1", "a", "file", {}), lambda: list(
            store.pieces("k1", "a")), lambda: store.append("k1", "a", b""), lambda: store.all(None, "file")):
        with pytest.raises(Unavailable):
            act()


@needs_redis
def test_a_reply_that_was_lost_repeats_nothing(server, monkeypatch):
    store = RedisUploads(redis_client.connect(Settings(redis_url=server.url), text=False), "lossy")
    real, armed = redis.connection.AbstractConnection.read_response, []

    def lossy(connection, *args, **more):
        reply = real(connection, *args, **more)
        if armed:
            armed.clear()
            connection.disconnect()
            raise redis.ConnectionError("the reply was lost")
        return reply

    def losing(act, *args):
        store.get("k1", "known")            # on a connection that is open
        armed.append(1)
        return act(*args)
    store.put("k1", "known", "file", {})
    store.append("k1", "known", b"0")       # the script is there
    store.put("k1", "gone", "file", {})
    store.delete("k1", "gone")
    monkeypatch.setattr(redis.connection.AbstractConnection, "read_response", lossy)
    made = losing(store.put, "k1", "a", "file", {"x": 1}, [b"12", b"34"])
    for number in range(3):
        losing(store.append, "k1", "a", b"%d" % number)
    assert not armed and list(store.pieces("k1", "a")) == [b"12", b"34", b"0", b"1", b"2"]
    assert store.get("k1", "a").size == 7 and store.get("k1", "a").number == made.number
    assert store._client.hget("{lossy}:uploads:sizes", "k1") == b"8"
    store.append("k1", "a", b"2")           # the same once more is another piece
    assert len(list(store.pieces("k1", "a"))) == 6
    losing(store.delete, "k1", "a")
    assert store._client.hget("{lossy}:uploads:sizes", "k1") == b"1"
