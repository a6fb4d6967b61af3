"""The seam under the data folder: whole files or none, locks that die with their holder, no links, honest errors."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.errors import ConfigError, ParleyError, StorageFull, Unavailable
from services.store import disk

ROOT = Path(__file__).resolve().parents[3]


def python(code: str, *args: object, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), *map(str, args)], cwd=ROOT, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **env})


def test_write_atomic_replaces_and_keeps_the_mode(tmp_path):
    path = tmp_path / "a.json"
    disk.write_atomic(path, b"one")
    disk.write_atomic(path, b"two", mode=0o640)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR, errno.EROFS])
@pytest.mark.parametrize("for_ever", [False, True])
def test_every_failure_of_write_atomic_leaves_old_or_new(tmp_path, failing, code, for_ever):
    path = tmp_path / "a.json"
    for nth in range(1, 50):
        disk.watcher = None
        disk.write_atomic(path, b"old" * 100)
        with failing(nth, code, for_ever) as fault:
            if not fault.hit_by(lambda: disk.write_atomic(path, b"new" * 100)):
                break
        assert path.read_bytes() in (b"old" * 100, b"new" * 100)
        assert os.listdir(tmp_path) == ["a.json"]
    assert nth > 4


def test_short_writes_are_finished(tmp_path, failing):
    with failing(1, 0, for_ever=True, kind="write", short=3):
        disk.write_atomic(tmp_path / "a", b"0123456789")
    assert (tmp_path / "a").read_bytes() == b"0123456789"


@pytest.mark.parametrize(("code", "kind", "name"), [
    (errno.ENOSPC, StorageFull, "storage_full"), (errno.EDQUOT, StorageFull, "storage_full"),
    (errno.EFBIG, StorageFull, "storage_full"), (errno.EROFS, Unavailable, "store_readonly"),
    (errno.EACCES, Unavailable, "store_readonly"), (errno.EIO, Unavailable, "store_failed")])
def test_errors_by_their_code(tmp_path, code, kind, name):
    error = disk.storage_error(OSError(code, os.strerror(code)), tmp_path / "x")
    assert isinstance(error, kind) and error.code == name and str(tmp_path) not in error.message


def test_links_and_fifos_are_refused(tmp_path):
    (tmp_path / "real").write_bytes(b"secret")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "folder").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    for act in (lambda: disk.write_atomic(tmp_path / "link", b"x"), lambda: disk.read_bytes(tmp_path / "link"),
                lambda: disk.make_dirs(tmp_path / "folder", follow=False), lambda: disk.read_bytes(tmp_path / "fifo")):
        with pytest.raises(Unavailable):
            act()
    assert (tmp_path / "real").read_bytes() == b"secret"


def test_the_data_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk")
    disk.make_dirs(tmp_path / "data")
    with disk.lock_data_folder(tmp_path / "data"):
        disk.write_atomic(tmp_path / "data" / "a", b"x")
    assert (tmp_path / "disk" / "a").read_bytes() == b"x"


def test_absent_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        disk.read_bytes(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        disk.unlink_durable(tmp_path / "x")
    with pytest.raises(Unavailable):
        disk.write_atomic(tmp_path / "gone" / "x", b"")


def test_locked_keeps_others_out_and_times_out(tmp_path):
    path = tmp_path / "keys.json"
    with disk.locked(path), pytest.raises(TimeoutError), disk.locked(path, wait=0.05):
        pass
    order = []

    def add(number):
        with disk.locked(path):
            seen = len(order)
            order.append(number)
            assert len(order) == seen + 1
    threads = [threading.Thread(target=add, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(order) == list(range(8))


def test_of_many_threads_in_line_one_asks_for_the_lock(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(disk, "watcher", lambda op: asked.append(op.path) if op.kind == "lock" else None)
    coming = threading.Barrier(21)

    def enter(patience):
        coming.wait(30)
        with disk.locked(tmp_path / "x", patience):
            return True
    with ThreadPoolExecutor(20) as pool:
        with disk.locked(tmp_path / "x"):
            entered = [pool.submit(enter, 30 if number else 0.05) for number in range(20)]
            coming.wait(30)
            with pytest.raises(TimeoutError):
                entered[0].result(30)
            assert len(asked) <= 2
        assert all(one.result(30) for one in entered[1:])
    assert len(set(asked)) == 1 and len(asked) in (20, 21)


def test_failpoints(tmp_path, monkeypatch):
    disk.failpoint("nothing")
    monkeypatch.setenv("FAILPOINT", "other:kill,before_rename:raise")
    with pytest.raises(Unavailable):
        disk.write_atomic(tmp_path / "a", b"x")
    assert os.listdir(tmp_path) == []
    monkeypatch.setenv("FAILPOINT", "here:explode")
    with pytest.raises(ConfigError, match="explode"):
        disk.failpoint("here")
    monkeypatch.setenv("FAILPOINT", "nap:sleep=0.01")
    disk.failpoint("nap")


@pytest.mark.parametrize("name", ["before_tmp", "after_tmp", "before_fsync", "after_fsync", "before_rename",
                                  "after_rename"])
def test_killed_in_write_atomic(tmp_path, name):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    child = python("import sys; from pathlib import Path; from services.store import disk\n"
                   "disk.write_atomic(Path(sys.argv[1]), b'new')", path, FAILPOINT=f"{name}:kill")
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert path.read_bytes() == (b"new" if name == "after_rename" else b"old")
    disk.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["a"]


def test_sweep_leaves_the_living_alone(tmp_path):
    mine = tmp_path / f".a.json.{os.getpid()}.0011aabb.tmp"
    mine.write_bytes(b"")
    disk.sweep(tmp_path)
    assert mine.exists()


def test_one_server_per_data_folder_also_after_a_kill(tmp_path):
    code = """
        import sys, time; from pathlib import Path; from services.store import disk
        lock = disk.lock_data_folder(Path(sys.argv[1])); print("held", flush=True); time.sleep(60)
    """
    child = python(code, tmp_path / "data")
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match=f"in use by pid {child.pid};"):
            disk.lock_data_folder(tmp_path / "data")
    finally:
        child.kill()
        child.communicate(timeout=30)
    with disk.lock_data_folder(tmp_path / "data"):
        assert (tmp_path / "data/parley.lock").read_text() == f"{os.getpid()}\n"
        assert (tmp_path / "data/parley.lock").stat().st_mode & 0o777 == 0o600
        with pytest.raises(ConfigError, match="in use by pid"):
            disk.lock_data_folder(tmp_path / "data")
    disk.lock_data_folder(tmp_path / "data").close()


def test_data_folder_that_cannot_be(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(ConfigError, match="cannot be used"):
        disk.lock_data_folder(tmp_path / "data")


def test_too_many_open_files_is_a_503_that_passes(tmp_path):
    import resource
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [os.open("/dev/null", os.O_RDONLY)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, old[1]))
        with pytest.raises(OSError, match="Too many"):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        with pytest.raises(ParleyError) as caught:
            disk.write_atomic(tmp_path / "a", b"x")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
        for fd in held:
            os.close(fd)
    assert caught.value.status == 503
    disk.write_atomic(tmp_path / "a", b"x")
