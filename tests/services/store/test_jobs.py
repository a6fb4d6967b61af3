"""Jobs in SQLite, plain and encrypted."""

import sqlite3
import stat
import subprocess
import sys

import pytest

from services.errors import ConfigError, Gone, StorageFull, Unavailable
from services.settings import Settings
from services.store.crypto import FILE as KEYS
from services.store.crypto import Cipher
from services.store.jobs import CANCELLED, ERROR, SUCCESS, Limits
from services.store.jobs_redis import RedisJobs
from services.store.jobs_sqlite import FILE, SqliteJobs
from services.store.opening import open_jobs, open_store
from tests.services.store.jobs_contract import JobsContract, job, take

DATA_KEY = "0123456789abcdef0123456789abcdef-data-key"


class Sqlite(JobsContract):
    def cipher(self, folder):
        return None

    @pytest.fixture
    def another(self, tmp_path):
        opened = []

        def open(limits=Limits()):
            opened.append(SqliteJobs(tmp_path, self.cipher(tmp_path), limits))
            return opened[-1]

        yield open
        for store in opened:
            store.close()

    @pytest.fixture
    def store(self, another):
        return another()


class TestPlain(Sqlite):
    pass


class TestSealed(Sqlite):
    def cipher(self, folder):
        return Cipher.open(folder, DATA_KEY)


def everything(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_the_file_is_the_owners_alone(tmp_path):
    SqliteJobs(tmp_path).put(job("a"))
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in tmp_path.iterdir())


def test_nothing_of_a_sealed_job_is_in_the_clear(tmp_path):
    store = SqliteJobs(tmp_path, Cipher.open(tmp_path, DATA_KEY))
    store.put(job("a", payload={"text": "secrettext"}, callback={"url": "https://secrethost/"}))
    done = store.finish(take(store), SUCCESS, "secretresult")
    store.tell_callback(done, {"url": "https://secrethost/", "state": "delivered"})
    assert b"secret" not in everything(tmp_path)


def test_plain_jobs_are_sealed_when_there_is_a_key(tmp_path):
    plain = SqliteJobs(tmp_path)
    for n in range(30):
        plain.put(job(f"a{n}", payload={"text": "unmistakable" * 300}, callback={"url": "https://unmistakable/"}))
    plain.finish(take(plain), SUCCESS, "unmistakable result")
    plain.close()
    store = SqliteJobs(tmp_path, Cipher.open(tmp_path, DATA_KEY))
    assert store.get("k1", "a1").payload == {"text": "unmistakable" * 300}
    assert (store.seal(), store.seal()) == (31, 0)
    assert b"unmistakable" not in everything(tmp_path)
    assert store.get("k1", "a0").result == "unmistakable result"
    assert take(store).payload == {"text": "unmistakable" * 300}
    with pytest.raises(Gone, match="DATA_KEY"):
        SqliteJobs(tmp_path).get("k1", "a0")


def test_a_job_that_cannot_be_read_holds_nobody_up(tmp_path):
    store = SqliteJobs(tmp_path, Cipher.open(tmp_path, DATA_KEY))
    for id in ("moved", "b", "c"):
        store.put(job(id))
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("UPDATE jobs SET payload = (SELECT payload FROM jobs WHERE id = 'c') WHERE id = 'moved'")
    assert take(store).id == "b"
    letter, = store.all(None, states=[ERROR])
    assert (letter.id, letter.state, letter.code) == ("moved", ERROR, "job_damaged") and "DATA_KEY" in letter.result
    with pytest.raises(Gone, match="DATA_KEY"):
        store.get("k1", "moved")


def test_an_owner_without_a_data_key_holds_nobody_up(tmp_path):
    store = SqliteJobs(tmp_path, Cipher.open(tmp_path, DATA_KEY))
    store.put(job("a"))
    (tmp_path / KEYS).unlink()
    later = SqliteJobs(tmp_path, Cipher.open(tmp_path, DATA_KEY))
    later.put(job("b", owner="k2"))
    assert take(later).id == "b" and take(later) is None
    assert (later.sizes().delayed, later.sizes().dead) == (1, 0)


def test_another_store_of_the_same_process_frees_no_lock(tmp_path):
    """SQLite's locks are the process's: who opens and closes the file by hand lets go of all of them. Another process
    then takes itself for the last one and removes the log that is in use."""
    store = SqliteJobs(tmp_path)
    store.put(job("a"))
    SqliteJobs(tmp_path).close()
    act = ("import pathlib, sys\nfrom services.store.jobs_sqlite import SqliteJobs\n"
           "store = SqliteJobs(pathlib.Path(sys.argv[1])); store.cancel('k1', 'a'); store.close()")
    assert subprocess.run([sys.executable, "-c", act, str(tmp_path)], timeout=60).returncode == 0
    assert (tmp_path / f"{FILE}-wal").exists() and store.get("k1", "a").state == CANCELLED


def test_a_damaged_file_is_told(tmp_path):
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    with pytest.raises(ConfigError, match="damaged"):
        SqliteJobs(tmp_path)


def test_a_newer_file_is_left_alone(tmp_path):
    SqliteJobs(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigError, match="newer Parley"):
        SqliteJobs(tmp_path)


def test_a_file_that_is_gone_is_told(tmp_path):
    store = SqliteJobs(tmp_path)
    store.close()
    (tmp_path / FILE).unlink()
    with pytest.raises(Unavailable) as told:
        store.put(job("a"))
    assert told.value.code == "store_failed"


def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path):
    store = SqliteJobs(tmp_path)
    store.put(job("a"))
    with store._database() as db:
        pages, = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull):
        store.put(job("b", payload={"text": "x" * 1_000_000}))
    assert [one.id for one in SqliteJobs(tmp_path).all(None)] == ["a"]


def test_what_was_put_outlives_a_kill(tmp_path):
    act = ("import os, signal, sys, pathlib\nfrom services.store.jobs import Job\n"
           "from services.store.jobs_sqlite import SqliteJobs\n"
           "store = SqliteJobs(pathlib.Path(sys.argv[1]))\n"
           "store.put(Job('k1', 'echo', {}, 'a')); store.put(Job('k1', 'echo', {}, 'b'))\n"
           "store.take('w', ['echo'], 30.0)\nos.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", act, str(tmp_path)], timeout=60).returncode == -9
    store = SqliteJobs(tmp_path)
    assert store.requeue_worker("w") == 1 and [take(store).id, take(store).id] == ["a", "b"]


def test_the_settings_say_where_the_jobs_are(tmp_path):
    store = open_jobs(Settings(data_dir=tmp_path, job_kept=60.0, jobs_per_key=7))
    assert isinstance(store, SqliteJobs) and (store.limits.kept, store.limits.per_owner) == (60.0, 7)
    shared = open_jobs(Settings(data_dir=tmp_path, redis_host="nowhere.invalid", data_key=DATA_KEY))
    assert isinstance(shared, RedisJobs) and shared.codec.cipher is not None
    open_store(Settings(data_dir=tmp_path))
    SqliteJobs(tmp_path).put(job("a", payload={"text": "unmistakable"}))
    open_store(Settings(data_dir=tmp_path, data_key=DATA_KEY))
    assert b"unmistakable" not in (tmp_path / FILE).read_bytes()


def test_the_secret_is_made_once_and_sealed_later(tmp_path):
    plain = SqliteJobs(tmp_path)
    found = plain.secret()
    assert len(found) == 32 and SqliteJobs(tmp_path).secret() == found
    plain.close()
    store = SqliteJobs(tmp_path, Cipher.open(tmp_path, DATA_KEY))
    store.seal()
    assert store.secret() == found and found.hex().encode() not in everything(tmp_path)
