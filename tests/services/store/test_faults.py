"""Disks that fail: every call of a save, of a recovery and of a change fails once or for ever, with each error.

After each: what was acknowledged is stored, nothing is stored twice or out of order, other sessions keep their bytes,
and the next request on a working disk succeeds.
"""

import errno
import os
from functools import partial

import pytest

from services.chat.sessions import Sessions, unfold
from services.errors import NotFound, ParleyError, StorageFull, Unavailable
from services.store import disk
from services.store.crypto import Cipher
from services.store.files import FileStore
from tests.services.store.contract import add, contents, said

CODES = [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EINTR]
SHORT = 0       # not an error: writes are cut short


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture(params=["plain", "encrypted"])
def store(request, tmp_path):
    return FileStore(tmp_path, Cipher.open(tmp_path, "k" * 32) if request.param == "encrypted" else None)


def turn(sessions, sid, number, acked):
    """One turn as the server does it; `acked` gets what a client was told is saved."""
    with sessions.turn("0", sid, 1) as held:
        held.prompt(f"prompt {number}")
        acked.append(f"prompt {number}")
        held.answer(f"answer {number}", finish_reason="stop")
        acked.append(f"answer {number}")


def stored(sessions, sid):
    try:
        return [shape["content"] for shape in sessions.get("0", sid)["turns"]]
    except NotFound:
        return []


def check(sessions, sid, acked, tried):
    """acked ⊆ stored ⊆ tried, in order, none twice. A reader in another process may see what nobody was promised."""
    for reader in (sessions, Sessions(FileStore(sessions.store.data_dir, sessions.store.cipher))):
        found = stored(reader, sid)
        assert len(set(found)) == len(found)
        assert [text for text in tried if text in found] == found
        assert set(acked) <= set(found)
    return stored(sessions, sid)


def texts(*numbers):
    return [f"{role} {number}" for number in numbers for role in ("prompt", "answer")]


@pytest.mark.parametrize("for_ever", [False, True])
@pytest.mark.parametrize("code", [*CODES, SHORT])
@pytest.mark.parametrize("state", ["new", "old", "torn", "unended"])
def test_every_call_of_a_turn(store, failing, code, for_ever, state):
    sessions = Sessions(store)
    add(store, "0", "other", "untouched")
    other = (store.folder / "0" / "other.jsonl").read_bytes()
    for nth in range(1, 200):
        sid, acked = f"s{nth}", []
        path = store.folder / "0" / f"{sid}.jsonl"
        if state != "new":
            turn(sessions, sid, 1, acked)
        if state in ("torn", "unended"):
            turn(sessions, sid, 2, [])
            data = path.read_bytes()
            path.write_bytes(data[:-5 if state == "torn" else -1])
            acked += texts(2)[:1 if state == "torn" else 2]
        before = list(acked)
        with failing(nth, code, for_ever, short=3 if code == SHORT else None) as fault:
            hit = fault.hit_by(lambda sid=sid, acked=acked: turn(sessions, sid, 3, acked))
        found = check(sessions, sid, acked, texts(1, 2, 3))
        assert found in (before, acked)
        turn(sessions, sid, 4, acked)
        check(sessions, sid, acked, texts(1, 2, 3, 4))
        if not hit:
            break
    assert nth > 4
    assert (store.folder / "0" / "other.jsonl").read_bytes() == other


@pytest.mark.parametrize("for_ever", [False, True])
@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("change", ["rename", "rewind", "fork", "delete"])
def test_every_call_of_a_change(store, failing, code, for_ever, change):
    sessions = Sessions(store, now=lambda: "2026")
    for nth in range(1, 200):
        sid = f"s{nth}"
        turn(sessions, sid, 1, [])
        before = sessions.get("0", sid)
        arguments = {"rename": ["new"], "rewind": [1]}.get(change, [])
        act = partial(getattr(sessions, change), "0", sid, *arguments)
        with failing(nth, code, for_ever) as fault:
            hit = fault.hit_by(act)
        if change == "fork":
            assert sessions.get("0", sid) == before
            assert all(sessions.get("0", other)["turns"] == before["turns"] for other in sessions.list("0"))
        elif change == "delete":
            assert stored(sessions, sid) in (texts(1), [])
        elif hit:
            assert sessions.get("0", sid) == before
        if not hit:
            break
    assert nth > 2


def test_a_failed_sync_is_not_tried_again(store, failing):
    add(store, "0", "1", "x")
    with store.open("0", "1", 1) as log:
        with failing(1, errno.EIO, kind="fsync") as fault, pytest.raises(Unavailable):
            log.append(said("y"))
        assert fault.count == 1
        assert contents(store, "0", "1") == ["x"]
        log.append(said("z"))
    assert contents(store, "0", "1") == ["x", "z"]


def test_a_failed_append_that_cannot_be_taken_back_counts_for_nothing(store, failing):
    add(store, "0", "1", "x")

    class Stuck(failing):
        def __call__(self, op):
            if op.kind in ("fsync", "truncate"):
                raise OSError(errno.EIO, "on purpose")

    with Stuck(0, 0), pytest.raises(Unavailable):
        add(store, "0", "1", "y")
    assert contents(store, "0", "1") == ["x"]           # whole on the disk, but nobody was promised it
    with Stuck(0, 0), pytest.raises(Unavailable):
        add(store, "0", "1", "z")
    add(store, "0", "1", "w")
    assert contents(store, "0", "1") == ["x", "w"]
    assert contents(FileStore(store.data_dir, store.cipher), "0", "1") == ["x", "w"]


def test_a_failed_copy_leaves_the_torn_tail_alone(store, failing):
    add(store, "0", "1", "x", "y")
    path = store.folder / "0" / "1.jsonl"
    torn = path.read_bytes()[:-3]
    path.write_bytes(torn)

    class NoQuarantine(failing):
        def __call__(self, op):
            if "quarantine" in op.path:
                raise OSError(errno.ENOSPC, "on purpose")

    with NoQuarantine(0, 0), pytest.raises(StorageFull):
        add(store, "0", "1", "z")
    assert path.read_bytes() == torn
    path.write_bytes(b"damaged\n")
    with NoQuarantine(0, 0), pytest.raises(ParleyError, match="no copy could be made") as caught:
        store.read("0", "1")
    assert caught.value.status == 410


# ---------------------------------------------------------------- power cuts

class Trace:
    """Records the calls of a run, then builds each state that a power cut may leave: names and contents that were not
    synced may be there or not, an unsynced append up to any of a few lengths."""

    def __init__(self, root):
        self.root, self.ops = str(root), []

    def __call__(self, op):
        self.ops.append(op)

    def ack(self, text):
        self.ops.append(text)

    def states(self):
        for end in range(len(self.ops) + 1):
            acked = [op for op in self.ops[:end] if isinstance(op, str)]
            now, safe, files = self._replay([op for op in self.ops[:end] if isinstance(op, disk.Op)])
            for names in {tuple(sorted(now.items())), tuple(sorted(safe.items()))}:
                for part in (0.0, 0.01, 0.3, 0.7, 0.999, 1.0):
                    yield acked, {path: self._content(files[inode], part) for path, inode in names}

    @staticmethod
    def _content(file, part):
        synced, current = file
        if not current.startswith(synced):
            return current if part == 1.0 else synced
        return current[:len(synced) + int(part * (len(current) - len(synced)))]

    def _replay(self, ops):
        """Names as they are, names that are safe, and each file's synced and current bytes."""
        now, safe, files = {}, {}, []
        for op in ops:
            if op.kind == "write":
                if op.path not in now:
                    now[op.path] = len(files)
                    files.append((b"", b""))
                synced, current = files[now[op.path]]
                files[now[op.path]] = (synced, current[:op.at] + op.data)
            elif op.kind == "truncate":
                synced, current = files[now[op.path]]
                files[now[op.path]] = (synced, current[:op.size])
            elif op.kind == "fsync":
                files[now[op.path]] = (files[now[op.path]][1],) * 2
            elif op.kind == "replace":
                now[op.target] = now.pop(op.path)
            elif op.kind == "unlink":
                now.pop(op.path, None)
            elif op.kind == "fsync_dir":
                inside = [path for path in {*now, *safe} if os.path.dirname(path) == op.path]
                for path in inside:
                    safe.pop(path, None)
                    if path in now:
                        safe[path] = now[path]
        return now, safe, files


def test_every_power_cut_recovers(tmp_path):
    home = tmp_path / "data"
    sessions = Sessions(FileStore(home))
    trace = Trace(home)
    disk.watcher = trace
    try:
        for number in (1, 2, 3):
            with sessions.turn("0", "1", 1) as held:
                held.prompt(f"prompt {number}")
                trace.ack(f"prompt {number}")
                held.answer(f"answer {number} " + "long " * 200, finish_reason="stop")
                trace.ack(f"answer {number} " + "long " * 200)
    finally:
        disk.watcher = None
    tried = [op for op in trace.ops if isinstance(op, str)]
    seen = set()
    for acked, state in trace.states():
        key = (len(acked), tuple(sorted(state.items())))
        if key in seen:
            continue
        seen.add(key)
        _recovers(tmp_path / f"cut{len(seen)}", home, acked, tried, state)
    assert len(seen) > 30


def _recovers(folder, home, acked, tried, state):
    sessions = Sessions(FileStore(folder))
    (folder / "sessions" / "0").mkdir(mode=0o700)
    for path, content in state.items():
        (folder / os.path.relpath(path, home)).write_bytes(content)
    found = stored(sessions, "1")
    assert found == tried[:len(found)] and len(found) >= len(acked)
    with sessions.turn("0", "1", 1) as held:
        held.prompt("next")
        held.answer("after", finish_reason="stop")
    assert stored(sessions, "1") == [*found, "next", "after"]
    turns = unfold(sessions.store.read("0", "1"))
    assert [turn.role for turn in turns if not turn.interrupted][-2:] == ["user", "assistant"]
