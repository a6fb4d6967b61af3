"""kill -9 at every step of a save, two processes at once, real full disks: no acknowledged turn is lost or doubled."""

import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from services.chat.sessions import Sessions, unfold
from services.errors import ParleyError
from services.store import disk
from services.store.crypto import Cipher
from services.store.files import FileStore
from tests.services.store.contract import add, contents

ROOT = Path(__file__).resolve().parents[3]
KEY = "k" * 32
IN_APPEND = ["before_append", "mid_append", "after_append", "before_fsync", "after_fsync", "after_prompt_saved",
             "before_ack"]
IN_MAKING = ["before_tmp", "after_tmp", "before_rename", "after_rename"]


class Writers:
    """Forks writers that are killed, and compares the sessions with what those writers promised."""

    def __init__(self, home, key=None):
        self.home, self.key, self.ledger, self.runs = home, key, home.parent / "ledger", 0
        command = [sys.executable, "-m", "tests.services.store.writer", str(home), str(self.ledger)]
        self.process = subprocess.Popen(command + ([key] if key else []), cwd=ROOT, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)

    def run(self, spec, turns=6):
        self.runs += 1
        self.process.stdin.write(f"{spec} r{self.runs} {turns}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)

    def store(self):
        return FileStore(self.home, Cipher.open(self.home, self.key) if self.key else None)

    def check(self):
        rows = [line.split("\t") for line in self.ledger.read_text().splitlines()]
        sessions = Sessions(self.store())
        for sid in sessions.list("0"):
            turns = sessions.get("0", sid)["turns"]
            found = [turn["content"] for turn in turns]
            assert len(found) == len(set(found)), "doubled"
            promised = [row[2] for row in rows if row[0] in ("saved", "acked") and row[1] == sid]
            assert [text for text in found if text in set(promised)] == promised, "lost or out of order"
            tried = {text for row in rows if row[0] == "try" and row[1] == sid
                     for text in (f"prompt {row[2]}", f"answer {row[2]}")}
            assert set(found) <= tried, "nobody asked for this"
            for turn, following in zip(turns, [*turns[1:], None], strict=True):
                if turn["role"] == "user" and not turn.get("interrupted"):
                    assert following["content"] == turn["content"].replace("prompt", "answer")
        missing = {row[1] for row in rows if row[0] == "saved"} - set(sessions.list("0"))
        assert not missing


@pytest.fixture(params=[None, KEY], ids=["plain", "encrypted"])
def writers(request, tmp_path):
    writers = Writers(tmp_path / "data", request.param)
    yield writers
    writers.close()


def test_killed_at_each_failpoint(writers):
    chance = random.Random(7)
    for name in IN_APPEND:
        for nth in (1, 2, chance.randint(3, 6)):
            assert writers.run(f"{name}:kill@{nth}") == signal.SIGKILL, name
            writers.check()
    for name in IN_MAKING:
        for nth in (1, 2):
            shutil.rmtree(writers.home / "sessions", ignore_errors=True)
            writers.ledger.write_text("")
            assert writers.run(f"{name}:kill@{nth}") == signal.SIGKILL, name
            writers.check()
            assert writers.run("nothing:kill", turns=3) == 0
            writers.check()
            disk.sweep(writers.home)
            assert not list(writers.home.rglob("*.tmp"))


def test_killed_at_random_moments(writers):
    chance = random.Random(11)
    for _ in range(25):
        writers.run(f"after={chance.uniform(0.001, 0.06):.4f}", turns=30)
        writers.check()
    assert writers.run("nothing:kill") == 0
    writers.check()


def test_failing_at_each_failpoint(writers):
    for name in [*IN_APPEND[:5], *IN_MAKING]:
        assert writers.run(f"{name}:raise@2") == 0
        writers.check()


def test_two_processes_and_two_threads_200_rounds(tmp_path):
    code = """
import sys, threading
from pathlib import Path
from services.chat.sessions import Sessions
from services.store.files import FileStore
sessions = Sessions(FileStore(Path(sys.argv[1])))
def work(name):
    for number in range(50):
        with sessions.turn("0", "1", 120) as turn:
            turn.prompt(f"{name} {number}")
            turn.answer(f"to {name} {number}", finish_reason="stop")
threads = [threading.Thread(target=work, args=(sys.argv[2] + letter,)) for letter in "ab"]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""
    children = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=ROOT) for name in "xy"]
    assert [child.wait(150) for child in children] == [0, 0]
    turns = unfold(FileStore(tmp_path).read("0", "1"))
    assert len(turns) == 400 and [turn.role for turn in turns] == ["user", "assistant"] * 200
    assert all(answer.content == f"to {prompt.content}" for prompt, answer in zip(turns[::2], turns[1::2], strict=True))
    for name in ("xa", "xb", "ya", "yb"):
        mine = [turn.content for turn in turns[::2] if turn.content.startswith(name)]
        assert mine == [f"{name} {number}" for number in range(50)]


def test_a_file_size_limit_is_507_and_passes(tmp_path):
    store = FileStore(tmp_path)
    add(store, "0", "1", "x")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
        with pytest.raises(ParleyError) as caught:
            add(store, "0", "1", "y" * 8192)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.status == 507
    assert contents(store, "0", "1") == ["x"]
    add(store, "0", "1", "y" * 8192)


FULL_DISK = """
import os, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from services.chat.sessions import Sessions
from services.errors import StorageFull
from services.store.files import FileStore
home = Path(sys.argv[1])
sessions = Sessions(FileStore(home))
saved = []
try:
    for number in range(1000):
        with sessions.turn("0", "1", 1) as turn:
            turn.prompt(f"prompt {number} " + "x" * 500)
            saved.append(f"prompt {number} " + "x" * 500)
            turn.answer(f"answer {number}", finish_reason="stop")
            saved.append(f"answer {number}")
    raise SystemExit("never full")
except StorageFull as error:
    assert error.status == 507
found = [turn["content"] for turn in sessions.get("0", "1")["turns"]]
assert found == saved, (found[-2:], saved[-2:])
(home / "ballast").unlink()
with sessions.turn("0", "1", 1) as turn:
    turn.prompt("space again")
assert sessions.get("0", "1")["turns"][-1]["content"] == "space again"
print("fine")
"""


def in_namespace(script, *arguments):
    """A shell script with mounts of its own, as (in there) root; None where that is not allowed or the script fails."""
    if not shutil.which("unshare"):
        return None
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", *map(str, arguments)], cwd=ROOT, text=True,
                          capture_output=True, timeout=120, check=False)
    return done if done.returncode == 0 else None


def test_a_full_disk_of_64_kib(tmp_path):
    mount = 'mount -t tmpfs -o size=64k none "$1"'
    if not in_namespace(mount, tmp_path):
        pytest.skip("this system does not let a user mount a tmpfs of his own")
    done = in_namespace(f'{mount} && head -c 20000 /dev/zero > "$1/ballast" && exec "$2" -c "$3" "$1"', tmp_path,
                        sys.executable, FULL_DISK)
    assert done and done.stdout == "fine\n", done


READ_ONLY = """
import os, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from services.chat.sessions import Sessions
from services.errors import Unavailable
from services.store import disk
from services.store.files import FileStore
home = Path(sys.argv[1])
with disk.lock_data_folder(home):
    sessions = Sessions(FileStore(home))
    assert [turn["content"] for turn in sessions.get("0", "1")["turns"]] == ["x"]
    for sid in ("1", "2"):
        try:
            with sessions.turn("0", sid, 1) as turn:
                turn.prompt("y")
            raise SystemExit("written")
        except Unavailable as error:
            assert error.code == "store_readonly", error.code
print("fine")
"""


def test_a_read_only_folder_can_be_read(tmp_path):
    add(FileStore(tmp_path), "0", "1", "x")
    mount = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"'
    if not in_namespace(mount, tmp_path):
        pytest.skip("this system does not let a user mount a folder read-only for himself")
    done = in_namespace(f'{mount} && exec "$2" -c "$3" "$1"', tmp_path, sys.executable, READ_ONLY)
    assert done and done.stdout == "fine\n", done
    assert "cannot be written" in done.stderr


def test_readers_beside_a_writer_see_whole_turns_only(tmp_path):
    store, seen, stop = FileStore(tmp_path), [], threading.Event()

    def read():
        while not stop.is_set():
            seen.append(contents(store, "0", "1"))
    add(store, "0", "1", "0" * 3000)
    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 60):
        add(store, "0", "1", str(number) * 3000)
    stop.set()
    reader.join(30)
    whole = [str(number) * 3000 for number in range(60)]
    assert seen and all(found == whole[:len(found)] for found in seen)
