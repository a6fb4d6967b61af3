from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from pathlib import Path

import pytest

from auth.usage import UsageBook
from services.store import disk
from services.wire import Usage


def test_what_is_counted_is_there_after_a_restart(tmp_path: Path) -> None:
    book = UsageBook(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: book.add("k1", 1, 10, 2), range(100)))
    book.save()
    assert UsageBook(tmp_path).get("k1") == Usage(requests=100, prompt_tokens=1000, completion_tokens=200)
    assert UsageBook(tmp_path).get("k2") == Usage()
    assert (tmp_path / "usage.json").stat().st_mode & 0o777 == 0o600


def test_nothing_is_written_when_nothing_changed(tmp_path: Path) -> None:
    book = UsageBook(tmp_path / "data")
    book.save()
    assert not (tmp_path / "data").exists()
    book.add("k1", 1)
    book.save()
    before = (tmp_path / "data" / "usage.json").stat().st_mtime_ns
    book.save()
    assert (tmp_path / "data" / "usage.json").stat().st_mtime_ns == before


def test_taking_back_stops_at_zero(tmp_path: Path) -> None:
    book = UsageBook(tmp_path)
    book.add("k1", 1, 10, 5)
    book.add("k1", 0, -4, -50)
    assert book.get("k1") == Usage(requests=1, prompt_tokens=6, completion_tokens=0)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff", b"[]", b'{"version":1,"keys":{"k1":{"requests":"x"}}}'])
def test_a_damaged_file_is_set_aside(damage: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "usage.json").write_bytes(damage)
    book = UsageBook(tmp_path)
    assert book.get("k1") == Usage() and "damaged" in caplog.text
    assert (tmp_path / "quarantine" / "usage.json").read_bytes() == damage


def test_a_disk_that_fails_is_told_once_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                        caplog: pytest.LogCaptureFixture) -> None:
    def full(op: disk.Op) -> None:
        if op.kind == "write":
            raise OSError(28, "No space left on device")
    book = UsageBook(tmp_path)
    book.add("k1", 1)
    monkeypatch.setattr(disk, "watcher", full)
    book.save()
    book.save()
    assert len(caplog.messages) == 1
    monkeypatch.setattr(disk, "watcher", None)
    book.save()
    assert UsageBook(tmp_path).get("k1").requests == 1


def test_memory_is_bounded(tmp_path: Path) -> None:
    book = UsageBook(tmp_path, max_keys=100)
    for number in range(1000):
        book.add(f"k{number}", 1)
    assert book.get("k0") == Usage() and book.get("k999").requests == 1 and len(book._used) == 100


def test_days_and_months_begin_anew(tmp_path: Path) -> None:
    now = [datetime(2026, 11, 30, 23, 0, tzinfo=timezone.utc).timestamp()]
    book = UsageBook(tmp_path, now=lambda: now[0])
    book.add("k1", 1, 10, 5)
    assert [book.spent("k1", per) for per in ("day", "month", "total")] == [15, 15, 15]
    assert [book.renewal(per) for per in ("day", "month", "total")] == [3600, 3600, None]
    book.save()
    book = UsageBook(tmp_path, now=lambda: now[0])
    assert book.spent("k1", "day") == 15
    now[0] += 3600
    assert [book.spent("k1", per) for per in ("day", "month", "total")] == [0, 0, 15]
    assert [book.renewal(per) for per in ("day", "month")] == [86400, 31 * 86400]
    book.add("k1", 1, 1, 1)
    now[0] += 86400
    assert [book.spent("k1", per) for per in ("day", "month", "total")] == [0, 2, 17]


def test_a_file_without_days_is_taken(tmp_path: Path) -> None:
    (tmp_path / "usage.json").write_text('{"version":1,"keys":{"k1":{"requests":1,"prompt_tokens":2}}}')
    book = UsageBook(tmp_path)
    assert (book.get("k1").prompt_tokens, book.spent("k1", "day"), book.spent("k1", "total")) == (2, 0, 2)
