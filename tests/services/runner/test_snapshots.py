"""Suspended state: memory, then disk; whose it is, how much of it fits, and that what is gone stays gone."""

import errno
import logging
import os
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services import kv_names
from services.runner import kvdisk, kvfile, kvindex
from services.runner.slots import common_prefix
from services.runner.snapshots import SETTLE, Snapshots
from services.store import kv_files
from services.wire import RunnerLimits

KEY, OTHER = "ab" * 32, "cd" * 32
MODEL = "f" * 32
MIB = 1 << 20


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def opened(tmp_path, clock):
    """Opens the snapshots of a data folder, as a runner does at its start."""
    every = []

    def make(memory=MIB, disk=MIB, key="", model=MODEL, rewindable=True, folder=tmp_path / "kv"):
        limits = RunnerLimits(kv_folder=str(folder) if folder else "", kv_key=key, kv_memory_bytes=memory,
                              kv_disk_bytes=disk)
        every.append(Snapshots(limits, model, rewindable, clock))
        return every[-1]
    yield make
    for snapshots in every:
        snapshots.close()


def state(name, size=1000):
    return (str(name).encode() * size)[:size]


def paths(tmp_path):
    return sorted((tmp_path / "kv").rglob("*.kv"))


def restored(snapshots, owner, prompt, better_than=0):
    match = snapshots.find(owner, prompt, better_than)
    return match and (match.count, snapshots.read(match))


def warned(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ---------------------------------------------------------------- what is found

def test_the_longest_usable_beginning(opened):
    snapshots = opened(disk=0)
    snapshots.put("a", "1", [1, 2, 3], b"short")
    snapshots.put("a", "2", [1, 2, 3, 4, 5], b"long", head=2)
    match = snapshots.find("a", [1, 2, 3, 4, 9, 9], 3)
    assert (match.count, match.tokens, match.head, match.owner, match.session) == (4, [1, 2, 3, 4, 5], 2, "a", "2")
    assert snapshots.read(match) == b"long"
    assert restored(snapshots, "a", [1, 2, 3, 9]) == (3, b"short")
    assert snapshots.find("a", [1, 2, 3, 4, 9, 9], 4) is None
    assert snapshots.find("a", [9], 0) is None and snapshots.find("a", [], 0) is None


def test_the_last_token_is_left_to_decode(opened):
    snapshots = opened(disk=0)
    snapshots.put("a", "1", [1, 2, 3], b"x")
    assert snapshots.find("a", [1, 2, 3], 0).count == 2
    assert snapshots.find("a", [1], 0) is None


def test_all_or_nothing_where_a_memory_cannot_be_rewound(opened):
    snapshots = opened(disk=0, rewindable=False)
    snapshots.put("a", "1", [1, 2, 3], b"x")
    assert snapshots.find("a", [1, 2, 3], 0) is None
    assert snapshots.find("a", [1, 2, 9, 9], 0) is None
    assert snapshots.find("a", [1, 2, 3, 4], 0).count == 3


def test_owners_are_never_mixed(opened):
    snapshots = opened(disk=0)
    snapshots.put("a", "1", [1, 2, 3, 4], b"of a")
    snapshots.put("", "", [1, 2], b"of all")
    assert restored(snapshots, "b", [1, 2, 3, 4, 5]) == (2, b"of all")
    assert restored(snapshots, "a", [1, 2, 3, 4, 5]) == (4, b"of a")
    assert restored(snapshots, "", [1, 2, 3, 4, 5]) == (2, b"of all")
    snapshots.forget("b", "1")
    assert restored(snapshots, "a", [1, 2, 3, 4, 5]) == (4, b"of a")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["", "a", "b"]), st.lists(st.integers(0, 2), min_size=1, max_size=6)),
                max_size=12),
       st.sampled_from(["", "a", "b"]), st.lists(st.integers(0, 2), max_size=7), st.integers(0, 3), st.booleans())
def test_find_is_what_a_search_of_all_finds(held, owner, prompt, better_than, rewindable):
    snapshots = Snapshots(RunnerLimits(kv_memory_bytes=MIB), MODEL, rewindable)
    for number, (whose, tokens) in enumerate(held):
        snapshots.put(whose, str(number), tokens, b"x")
    best = 0
    for whose, tokens in held:
        if whose in (owner, ""):
            same = next((i for i, pair in enumerate(zip(tokens, prompt[:-1], strict=False)) if pair[0] != pair[1]),
                        min(len(tokens), len(prompt[:-1])))
            best = max(best, same if rewindable or same == len(tokens) else 0)
    match = snapshots.find(owner, prompt, better_than)
    assert (match.count if match else 0) == (best if best > better_than else 0)
    assert match is None or (match.owner in (owner, "") and match.tokens[:match.count] == prompt[:match.count])


def test_common_prefix_of_packed_tokens():
    a = kvindex.pack([1, 256, 65536, 7])
    assert common_prefix(a, kvindex.pack([1, 256, 65537]), 4) == 2
    assert common_prefix(a, a, 4) == 4 and common_prefix(a, b"", 4) == 0


# ---------------------------------------------------------------- what takes whose place

def test_a_session_has_one_and_it_is_the_newest(opened, tmp_path):
    snapshots = opened()
    snapshots.put("a", "1", [1, 2, 3], b"first")
    snapshots.flush(10)
    snapshots.put("a", "1", [7, 8, 9], b"second")
    assert len(paths(tmp_path)) == 1 and restored(snapshots, "a", [1, 2, 3, 4]) == (3, b"first")   # until it is written
    snapshots.flush(10)
    assert snapshots.find("a", [1, 2, 3, 4], 0) is None and restored(snapshots, "a", [7, 8, 9, 1]) == (3, b"second")
    assert snapshots.stats()["snapshots"] == len(paths(tmp_path)) == 1
    snapshots.put("a", "2", [7, 8, 9], b"another session")
    assert snapshots.stats()["snapshots"] == 2


@pytest.mark.parametrize("rewindable, left", [(True, 2), (False, 3)])
def test_without_a_name_only_a_part_is_replaced(opened, rewindable, left):
    snapshots = opened(disk=0, rewindable=rewindable)
    snapshots.put("a", "", [1, 2], b"12")
    snapshots.put("a", "", [1, 3], b"13")
    snapshots.put("a", "", [1, 2, 3], b"123")
    assert snapshots.stats()["snapshots"] == left
    assert restored(snapshots, "a", [1, 3, 5]) == (2, b"13")


def test_the_same_tokens_again_are_not_written_again(opened, tmp_path):
    snapshots = opened()
    for _ in range(2):
        snapshots.put("a", "1", [1, 2], b"x")
        snapshots.flush(10)
    before = paths(tmp_path)[0].stat()
    snapshots.put("a", "1", [1, 2], b"x")
    snapshots.flush(10)
    assert (snapshots.stats()["snapshots"], paths(tmp_path)[0].stat().st_ino) == (1, before.st_ino)


def test_back_to_what_was_before(opened, tmp_path):
    """A state that the disk still has comes again: the one in between goes."""
    snapshots = opened()
    snapshots.put("a", "1", [1, 2], b"x")
    snapshots.flush(10)
    snapshots.put("a", "1", [3, 4], b"y")
    snapshots.put("a", "1", [1, 2], b"x")
    snapshots.flush(10)
    assert snapshots.stats()["snapshots"] == len(paths(tmp_path)) == 1
    assert restored(snapshots, "a", [1, 2, 3]) == (2, b"x")


# ---------------------------------------------------------------- limits

def test_memory_keeps_what_was_used_last(opened):
    snapshots = opened(memory=3000, disk=0)
    for i in range(3):
        snapshots.put("a", str(i), [i, i], state(i))
    assert restored(snapshots, "a", [0, 0, 9])[1] == state(0)
    snapshots.put("a", "3", [3, 3], state(3))
    assert [bool(snapshots.find("a", [i, i, 9], 0)) for i in range(4)] == [True, False, True, True]
    assert snapshots.stats() == {"snapshots": 3, "snapshot_memory_bytes": 3000, "snapshot_disk_bytes": 0}


def test_what_leaves_memory_is_found_on_disk(opened, tmp_path):
    snapshots = opened(memory=2000)
    for i in range(6):
        snapshots.put("a", str(i), [i, i], state(i))
    assert all(restored(snapshots, "a", [i, i, 9]) == (2, state(i)) for i in range(6))
    snapshots.flush(10)
    assert all(restored(snapshots, "a", [i, i, 9]) == (2, state(i)) for i in range(6))
    figures = snapshots.stats()
    assert figures["snapshots"] == 6 and figures["snapshot_memory_bytes"] == 2000
    assert figures["snapshot_disk_bytes"] == sum(path.stat().st_size for path in paths(tmp_path))


def test_what_is_larger_than_a_tier_is_not_kept_there(opened, tmp_path):
    both = opened(memory=500, disk=5000)
    both.put("a", "1", [1, 1], state(1, 400))
    both.put("a", "2", [2, 2], state(2, 2000))
    both.put("a", "3", [3, 3], state(3, 5000))
    both.flush(10)
    assert both.find("a", [3, 3, 9], 0) is None
    assert restored(both, "a", [1, 1, 9])[1] == state(1, 400) and restored(both, "a", [2, 2, 9])[1] == state(2, 2000)
    assert both.stats()["snapshot_memory_bytes"] == 400 and len(paths(tmp_path)) == 2


def test_a_state_that_is_not_kept_leaves_the_older_one(opened):
    snapshots = opened(memory=500, disk=0)
    snapshots.put("a", "1", [1, 1], b"old")
    snapshots.put("a", "1", [1, 1, 1], state(1))
    assert restored(snapshots, "a", [1, 1, 1, 1]) == (2, b"old")


def test_nothing_is_kept_without_tiers(opened, tmp_path):
    for snapshots in (opened(memory=0, disk=0), opened(memory=0, folder=None)):
        snapshots.put("a", "1", [1, 1], b"x")
        snapshots.settle(), snapshots.flush(10), snapshots.forget("a", "1")
        assert snapshots.find("a", [1, 1, 1], 0) is None and snapshots.stats()["snapshots"] == 0
    assert not (tmp_path / "kv").exists()


def test_the_disk_alone(opened):
    snapshots = opened(memory=0)
    snapshots.put("a", "1", [1, 1], b"x")
    snapshots.flush(10)
    assert restored(snapshots, "a", [1, 1, 1]) == (2, b"x") and snapshots.stats()["snapshot_memory_bytes"] == 0


def age(path, seconds):
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))


def test_the_disk_keeps_what_was_used_last_of_all_models(opened, tmp_path):
    snapshots, other = opened(disk=5500), opened(disk=5500, model="e" * 32)
    other.put("a", "0", [0, 0], state(0))
    other.flush(10)
    age(paths(tmp_path)[0], 1000)
    for i in (1, 2):
        snapshots.put("a", str(i), [i, i], state(i))
        snapshots.flush(10)
    for path in (tmp_path / "kv" / MODEL).iterdir():
        age(path, 100)
    again = opened(memory=0, disk=5500)
    assert restored(again, "a", [1, 1, 9])[1] == state(1)       # which counts as a use
    for i in (3, 4, 5):
        again.put("a", str(i), [i, i], state(i))
        again.flush(10)
    assert [bool(again.find("a", [i, i, 9], 0)) for i in range(1, 6)] == [True, False, True, True, True]
    assert not (tmp_path / "kv" / ("e" * 32)).exists()
    assert sum(path.stat().st_size for path in paths(tmp_path)) <= 5500
    assert other.find("a", [0, 0, 9], 0) is not None            # it has it in memory still


def test_a_lower_limit_holds_from_the_start(opened, tmp_path):
    snapshots = opened()
    for i in range(6):
        snapshots.put("a", str(i), [i, i], state(i))
    snapshots.flush(10)
    assert opened(disk=3500).stats()["snapshots"] == len(paths(tmp_path)) == 2
    opened(disk=0)
    assert paths(tmp_path) == []


def test_more_than_the_disk_takes_in_time_is_lost(opened, monkeypatch, caplog):
    monkeypatch.setattr("services.runner.snapshots.BACKLOG", 2500)
    gate = Gate(monkeypatch)
    snapshots = opened(memory=1000)
    for i in range(8):
        snapshots.put("a", str(i), [i, i], state(i))        # the last in memory, one in hand, two that wait
    snapshots.flush(0)
    assert warned(caplog)[0].endswith("not written in time")
    gate.open()
    snapshots.flush(10)
    assert 2 < snapshots.stats()["snapshots"] < 6 and restored(snapshots, "a", [7, 7, 7])[1] == state(7)


# ---------------------------------------------------------------- when it is written

class Gate:
    """Holds the writer when it has written a file and not yet given it its name."""

    def __init__(self, monkeypatch):
        self.reached, self._go, write = threading.Event(), threading.Event(), kvfile.write

        def slow(*args):
            done = write(*args)
            self.reached.set()
            assert self._go.wait(30)
            return done
        monkeypatch.setattr(kvfile, "write", slow)

    def open(self):
        self._go.set()


def test_what_settles_is_written(opened, clock, tmp_path):
    snapshots = opened()
    assert snapshots.settle() is None
    snapshots.put("a", "1", [1, 1], b"x")
    assert snapshots.settle() == SETTLE and paths(tmp_path) == []
    clock.now += 1
    snapshots.put("a", "2", [2, 2], b"y")
    clock.now += SETTLE - 1
    assert snapshots.settle() == 1
    clock.now += 1
    assert snapshots.settle() is None
    while not snapshots._idle():
        with snapshots._lock:
            snapshots._lock.wait(1)
    assert len(paths(tmp_path)) == 2 and snapshots.stats()["snapshot_memory_bytes"] == 2


def test_a_put_does_not_wait_for_the_disk(opened, monkeypatch):
    gate = Gate(monkeypatch)
    snapshots = opened(memory=0)
    snapshots.put("a", "1", [1, 1], b"x")
    assert gate.reached.wait(30)
    snapshots.put("a", "2", [2, 2], b"y")
    assert restored(snapshots, "a", [1, 1, 1]) == (2, b"x") and restored(snapshots, "a", [2, 2, 2]) == (2, b"y")
    gate.open()
    snapshots.flush(10)
    assert restored(snapshots, "a", [1, 1, 1]) == (2, b"x")


def test_flush_writes_no_more_than_the_disk_holds(opened, tmp_path):
    snapshots = opened(disk=3500)
    for i in range(6):
        snapshots.put("a", str(i), [i, i], state(i))
    snapshots.flush(10)
    again = opened(memory=0, disk=3500)
    assert [bool(again.find("a", [i, i, 9], 0)) for i in range(6)] == [False] * 4 + [True] * 2


OPS = st.lists(st.tuples(st.sampled_from(["put", "read", "forget", "settle", "flush", "steal"]), st.sampled_from("ab"),
                         st.sampled_from(["", "1", "2"]), st.integers(1, 5)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(OPS, st.sampled_from([0, 1500, 9000]), st.sampled_from([0, 2500, 9000]), st.booleans())
def test_whatever_happens_the_books_are_right(tmp_path_factory, ops, memory, disk, rewindable):
    """`steal`: another process removes a file. Ended by a restart, which finds the same."""
    folder, clock = tmp_path_factory.mktemp("books") / "kv", Clock()
    limits = RunnerLimits(kv_folder=str(folder), kv_memory_bytes=memory, kv_disk_bytes=disk)
    snapshots = Snapshots(limits, MODEL, rewindable, clock)
    for op, owner, session, number in ops:
        clock.now += 1
        if op == "put":
            snapshots.put(owner, session, [1] * number, f"{owner}{number}".encode() * 150 * number)
        elif op == "read" and (match := snapshots.find(owner, [1] * 6, 0)):
            assert match.owner == owner
            assert snapshots.read(match) in (None, f"{owner}{len(match.tokens)}".encode() * 150 * len(match.tokens))
        elif op == "forget":
            snapshots.forget(owner, session)
            assert not any(path.name.startswith(kv_names.stem(owner, session)) for path in folder.rglob("*.kv"))
        elif op == "settle":
            snapshots.settle()
        elif op == "flush":
            snapshots.flush(10)
        elif op == "steal" and (files := sorted(folder.rglob("*.kv"))):
            files[number % len(files)].unlink(missing_ok=True)
        with snapshots._lock:
            assert snapshots._memory_bytes == sum(len(each.state) for each in snapshots._memory) <= memory
            assert snapshots._index.disk_bytes == sum(each.length for each in snapshots._index._files.values())
    snapshots.flush(10)
    snapshots.find("a", [1] * 6, 0)
    files = list(folder.rglob("*.kv"))
    assert snapshots.stats()["snapshot_disk_bytes"] == sum(path.stat().st_size for path in files) <= disk
    again = Snapshots(limits, MODEL, rewindable)
    assert again.stats()["snapshots"] == len(files)
    snapshots.close(), again.close()


# ---------------------------------------------------------------- restart

@pytest.mark.parametrize("key", ["", KEY])
def test_a_restart_finds_them(opened, tmp_path, key):
    snapshots = opened(key=key)
    snapshots.put("a", "1", [1, 2, 3], state("secret words"), head=2)
    snapshots.put("", "", [1, 2], b"head", head=2)
    snapshots.flush(10)
    again = opened(key=key)
    match = again.find("a", [1, 2, 3, 4], 0)
    assert (match.count, match.head, match.session) == (3, 2, "1") and again.read(match) == state("secret words")
    assert restored(again, "b", [1, 2, 3, 4]) == (2, b"head")
    assert again.stats()["snapshots"] == 2 and again.stats()["snapshot_memory_bytes"] == len(b"head")
    assert all((b"secret" in path.read_bytes()) <= (key == "") for path in paths(tmp_path))
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths(tmp_path)} == {0o600}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "kv", tmp_path / "kv" / MODEL)} == {0o700}


@pytest.mark.parametrize("before, after", [(KEY, OTHER), (KEY, ""), ("", KEY)])
def test_another_data_key_removes_them(opened, tmp_path, caplog, before, after):
    for model in (MODEL, "e" * 32):
        snapshots = opened(key=before, model=model)
        snapshots.put("a", "1", [1, 2, 3], b"x")
        snapshots.flush(10)
    again = opened(key=after)
    assert again.find("a", [1, 2, 3, 4], 0) is None
    other_models = [path for path in paths(tmp_path) if path.parent.name != MODEL]
    assert len(other_models) == (1 if before and after else 0) and len(paths(tmp_path)) == len(other_models)
    assert len(warned(caplog)) == 2 - len(other_models) and all("DATA_KEY" in line for line in warned(caplog))


@pytest.mark.parametrize("key", ["", KEY])
@pytest.mark.parametrize("cut", [0, 5, 40, -500, -1])
def test_a_truncated_file_is_removed_at_the_start(opened, tmp_path, caplog, key, cut):
    snapshots = opened(key=key)
    snapshots.put("a", "1", [1, 2, 3], state(1))
    snapshots.flush(10)
    path = paths(tmp_path)[0]
    path.write_bytes(path.read_bytes()[:cut])
    assert opened(key=key).stats()["snapshots"] == 0 and not path.exists()
    assert len(warned(caplog)) == 1 and path.name in warned(caplog)[0] and "ignored and removed" in warned(caplog)[0]


@pytest.mark.parametrize("key", ["", KEY])
@pytest.mark.parametrize("at", [0, 8, 9, 12, 27, 35, 50, 80, -900, -1])
def test_a_flipped_byte_is_never_believed(opened, tmp_path, caplog, key, at):
    snapshots = opened(key=key)
    snapshots.put("a", "1", [1, 2, 3], state(1))
    snapshots.flush(10)
    path = paths(tmp_path)[0]
    content = bytearray(path.read_bytes())
    content[at] ^= 16
    path.write_bytes(content)
    assert restored(opened(key=key), "a", [1, 2, 3, 4]) in (None, (3, None))
    assert not path.exists() and len(warned(caplog)) == 1


def test_a_changed_key_is_not_told_a_thousand_times(opened, tmp_path, caplog):
    snapshots = opened(key=KEY)
    for i in range(20):
        snapshots.put("a", str(i), [i, i], b"x")
    snapshots.flush(10)
    assert opened(key=OTHER).stats()["snapshots"] == 0 and paths(tmp_path) == []
    assert len(warned(caplog)) == kvdisk.TELL + 1 and warned(caplog)[-1].startswith(f"{20 - kvdisk.TELL} more")


def test_damage_that_comes_later_is_found(opened, tmp_path, caplog):
    snapshots = opened(memory=0)
    for i in range(3):
        snapshots.put("a", str(i), [i, i], state(i))
    snapshots.flush(10)
    matches = [snapshots.find("a", [i, i, 9], 0) for i in range(3)]
    files = [tmp_path / "kv" / MODEL / match.snapshot.file for match in matches]
    files[0].write_bytes(files[0].read_bytes()[:-1])
    files[1].unlink()
    files[2].write_bytes(b"")
    assert [snapshots.read(match) for match in matches] == [None] * 3
    assert [snapshots.read(match) for match in matches] == [None] * 3
    assert paths(tmp_path) == [] and len(warned(caplog)) == 2
    assert snapshots.stats() == {"snapshots": 0, "snapshot_memory_bytes": 0, "snapshot_disk_bytes": 0}


def test_another_models_file_in_the_folder_is_removed(opened, tmp_path, caplog):
    snapshots = opened(model="e" * 32)
    snapshots.put("a", "1", [1, 2, 3], b"x")
    snapshots.flush(10)
    (tmp_path / "kv" / ("e" * 32)).rename(tmp_path / "kv" / MODEL)
    assert opened().stats()["snapshots"] == 0 and paths(tmp_path) == []
    assert "another model" in warned(caplog)[0]


def test_a_file_under_another_name_is_removed(opened, tmp_path, caplog):
    """What forgetting would not find may not stay."""
    snapshots = opened()
    snapshots.put("a", "1", [1, 2, 3], b"x")
    snapshots.flush(10)
    path = paths(tmp_path)[0]
    path.rename(path.with_name(kv_names.stem("b", "1") + path.name[32:]))
    assert opened().stats()["snapshots"] == 0 and paths(tmp_path) == []


def test_leftovers_of_dead_processes_are_removed(opened, tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (tmp_path / "kv" / MODEL).mkdir(parents=True)
    names = [f".a.kv.{dead.pid}.00.tmp", f".a.kv.{os.getpid()}.00.tmp", f".a.kv.{os.getppid()}.00.tmp", ".x.tmp"]
    for name in names:
        (tmp_path / "kv" / MODEL / name).write_bytes(b"x")
    opened()
    assert [path.name for path in (tmp_path / "kv" / MODEL).iterdir()] == [names[2]]     # it lives


# ---------------------------------------------------------------- forgetting

@pytest.mark.parametrize("key", ["", KEY])
def test_what_is_forgotten_is_gone(opened, tmp_path, key):
    snapshots, other = opened(key=key), opened(key=key, model="e" * 32)
    for each in (snapshots, other):
        for session in "12":
            each.put("a", session, [1, 2, int(session)], b"x")
        each.flush(10)
    snapshots.put("a", "1", [1, 2, 1, 1], b"y")
    match = snapshots.find("a", [1, 2, 1, 9], 2)
    snapshots.forget("a", "1")
    assert snapshots.read(match) is None and snapshots.find("a", [1, 2, 1, 9], 2) is None
    snapshots.flush(10)
    assert len(paths(tmp_path)) == 2 and all(path.name.startswith(kv_names.stem("a", "2")) for path in paths(tmp_path))
    assert snapshots.find("a", [1, 2, 2, 9], 2) is not None
    snapshots.put("a", "1", [1, 2, 1], b"anew")
    snapshots.flush(10)
    assert restored(opened(key=key), "a", [1, 2, 1, 9], 2) == (3, b"anew")


@pytest.mark.parametrize("memory", [0, MIB])
def test_what_is_forgotten_while_it_is_written_does_not_come_back(opened, tmp_path, monkeypatch, memory):
    gate = Gate(monkeypatch)
    snapshots = opened(memory=memory)
    snapshots.put("a", "1", [1, 2, 3], b"in hand")
    snapshots.flush(0)
    assert gate.reached.wait(30)
    snapshots.put("a", "2", [1, 2, 4], b"waits")
    snapshots.flush(0)
    snapshots.forget("a", "1")
    snapshots.forget("a", "2")
    assert paths(tmp_path) == []
    gate.open()
    snapshots.flush(10)
    assert list((tmp_path / "kv" / MODEL).iterdir()) == []
    assert snapshots.stats() == {"snapshots": 0, "snapshot_memory_bytes": 0, "snapshot_disk_bytes": 0}


def test_what_a_newer_one_replaced_while_it_was_written_does_not_come_back(opened, tmp_path, monkeypatch):
    gate = Gate(monkeypatch)
    snapshots = opened()
    snapshots.put("a", "1", [1, 2, 3], b"older")
    snapshots.flush(0)
    assert gate.reached.wait(30)
    snapshots.put("a", "1", [1, 2, 4], b"newer")
    gate.open()
    snapshots.flush(10)
    assert len(paths(tmp_path)) == 1 and restored(opened(), "a", [1, 2, 4, 5]) == (3, b"newer")


def test_files_are_forgotten_without_a_runner(opened, tmp_path):
    snapshots = opened(key=KEY)
    for owner, session in (("a", "1"), ("a", "2"), ("b", "1")):
        snapshots.put(owner, session, [1, 2], b"x")
    snapshots.flush(10)
    assert kv_files.forget_files(tmp_path / "kv", "a", "1") == 1
    assert kv_files.forget_files(tmp_path / "kv", "a", "1") == kv_files.forget_files(tmp_path / "no", "a", "1") == 0
    assert {path.name[:32] for path in paths(tmp_path)} == {kv_names.stem("b", "1"), kv_names.stem("a", "2")}
    assert restored(opened(memory=0, key=KEY), "b", [1, 2, 3]) == (2, b"x")


def test_names_tell_neither_sessions_nor_a_guess_of_the_text(opened, tmp_path):
    sealed = opened(key=KEY)
    sealed.put("a", "b\0../c", [1, 2], b"x")
    sealed.flush(10)
    (tmp_path / "clear").mkdir()
    clear = opened(folder=tmp_path / "clear" / "kv")
    clear.put("a", "b\0../c", [1, 2], b"x")
    clear.flush(10)
    names = [path.name for path in (*paths(tmp_path), *paths(tmp_path / "clear"))]
    assert names[0][:33] == names[1][:33] and names[0][33:] != names[1][33:]
    assert kv_names.stem("a\0b", "c") != kv_names.stem("a", "b\0c")


# ---------------------------------------------------------------- a disk that fails

def failing(monkeypatch, number):
    def write(*_):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(kvfile, "write", write)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_is_left_alone_for_a_while(opened, tmp_path, clock, monkeypatch, caplog, number):
    snapshots = opened(memory=1000)
    with monkeypatch.context() as patch:
        failing(patch, number)
        for i in range(4):
            snapshots.put("a", str(i), [i, i], state(i))
        snapshots.flush(10)
        assert len(warned(caplog)) == 1 and os.strerror(number) in warned(caplog)[0]
        assert snapshots.stats() == {"snapshots": 1, "snapshot_memory_bytes": 1000, "snapshot_disk_bytes": 0}
        assert restored(snapshots, "a", [3, 3, 9])[1] == state(3)
        clock.now += SETTLE
        assert snapshots.settle() is None
    clock.now += kvdisk.PAUSE
    snapshots.settle()
    snapshots.flush(10)
    assert len(paths(tmp_path)) == 1 and len(warned(caplog)) == 1


def test_what_cannot_be_removed_is_not_found_again(opened, monkeypatch, caplog):
    snapshots = opened(memory=0)
    snapshots.put("a", "1", [1, 1], b"x")
    snapshots.flush(10)

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(os, "unlink", refuse)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    snapshots.forget("a", "1")
    snapshots.flush(10)
    assert snapshots.find("a", [1, 1, 1], 0) is None and len(warned(caplog)) == 2


def test_a_real_disk_that_is_full(opened, tmp_path, monkeypatch, caplog):
    """The file's beginning is written and the rest is not: nothing of it stays."""
    def parts(*_):
        yield b"some bytes"
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(kvfile, "_parts", parts)
    snapshots = opened(memory=0)
    snapshots.put("a", "1", [1, 1], b"x")
    snapshots.flush(10)
    assert list((tmp_path / "kv" / MODEL).iterdir()) == [] and len(warned(caplog)) == 1


def test_a_folder_that_cannot_be(opened, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    snapshots = opened(memory=1000, folder=tmp_path / "file")
    for i in range(3):
        snapshots.put("a", str(i), [i, i], state(i))
    snapshots.flush(10), snapshots.forget("a", "1"), snapshots.flush(10)
    assert restored(snapshots, "a", [2, 2, 9])[1] == state(2) and 1 <= len(warned(caplog)) <= 2


# ---------------------------------------------------------------- several at once

def test_a_runner_of_the_same_model_finds_what_another_wrote(opened, tmp_path):
    one, two = opened(), opened(memory=0)
    one.put("a", "1", [1, 2, 3], b"x")
    one.flush(10)
    match = two.find("a", [1, 2, 3, 4], 0)
    assert (match.count, two.read(match)) == (3, b"x")
    two.forget("a", "1")
    two.flush(10)
    assert paths(tmp_path) == [] and two.stats()["snapshots"] == 0
    assert two.find("a", [1, 2, 3, 4], 0) is None
    assert restored(one, "a", [1, 2, 3, 4]) == (3, b"x") and one.stats()["snapshot_disk_bytes"] == 0


WRITER = """
import sys
from services.runner.snapshots import Snapshots
from services.wire import RunnerLimits
folder, number, key = sys.argv[1:]
limits = RunnerLimits(kv_folder=folder, kv_key=key, kv_memory_bytes=3000, kv_disk_bytes=30000)
snapshots = Snapshots(limits, "f" * 32, True)
for turn in range(60):
    session = str(turn % 7)
    tokens = [int(session), *range(turn % 11 + 1)]
    snapshots.put("a", session, tokens, bytes([int(session)]) * 1000)
    if turn % 5 == 4:
        snapshots.forget("a", session)
    for wanted in range(7):
        if match := snapshots.find("a", [wanted, *range(20)], 0):
            state = snapshots.read(match)
            assert match.tokens[0] == wanted and state in (None, bytes([wanted]) * 1000)
    snapshots.flush(10)
"""


@pytest.mark.parametrize("key", ["", KEY])
def test_processes_that_share_a_folder(opened, tmp_path, key):
    folder = tmp_path / "kv"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(n), key], stderr=subprocess.PIPE,
                                text=True) for n in range(3)]
    said = [writer.communicate(timeout=60)[1] for writer in writers]
    assert [(writer.returncode, "ignored" in text) for writer, text in zip(writers, said, strict=True)] \
        == [(0, False)] * 3, said
    snapshots = opened(key=key)
    assert snapshots.stats()["snapshots"] == len(paths(tmp_path)) <= 30
    assert not list(folder.rglob("*.tmp"))
    for wanted in range(7):
        match = snapshots.find("a", [wanted, *range(20)], 0)
        assert match is None or snapshots.read(match) == bytes([wanted]) * 1000


def test_a_killed_writer_leaves_nothing_half(opened, tmp_path):
    code = WRITER.replace("range(60)", "range(10**6)")
    writer = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "kv"), "0", ""], stderr=subprocess.DEVNULL)
    while len(paths(tmp_path)) < 3:
        with suppress(subprocess.TimeoutExpired):
            writer.wait(0.02)
        assert writer.poll() is None
    writer.kill()
    writer.wait()
    snapshots = opened()
    assert snapshots.stats()["snapshots"] == len(paths(tmp_path)) >= 2 and not list((tmp_path / "kv").rglob("*.tmp"))
    assert any(snapshots.find("a", [wanted, *range(20)], 0) for wanted in range(7))


def test_what_belongs_to_no_session_stays_in_memory(tmp_path: Path) -> None:
    shelf = Snapshots(RunnerLimits(kv_folder=str(tmp_path), kv_memory_bytes=100, kv_disk_bytes=1 << 20), "f" * 32, True)
    shelf.put("a", "", [1, 2, 3], b"x" * 60)
    shelf.put("a", "", [4, 5, 6], b"y" * 60)
    shelf.flush(10)
    assert not list(tmp_path.rglob("*.kv"))
    assert shelf.find("a", [1, 2, 3, 9], 0) is None and shelf.find("a", [4, 5, 6, 9], 0)
    shelf.close()
