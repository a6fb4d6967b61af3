"""What a process takes, as the kernel tells it."""

from __future__ import annotations

import mmap
import os

from services.engine.machine import oom_kills, use_of


def test_what_this_process_takes_grows_with_what_it_writes_to():
    before = use_of(os.getpid())
    assert before and 1 << 20 < before.own <= before.total < 1 << 36
    with mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        for at in range(0, len(pages), mmap.PAGESIZE):
            pages[at] = 1
        after = use_of(os.getpid())
    assert after and after.own - before.own > 30 << 20


def test_of_a_process_that_is_gone_nothing_is_known():
    assert use_of((1 << 22) + 1) is None


def test_kills_are_counted():
    assert oom_kills() >= 0
