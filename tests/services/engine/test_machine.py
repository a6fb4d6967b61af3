"""What a process takes, as the kernel tells it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from services.engine.machine import oom_kills, use_of

ROOT = Path(__file__).resolve().parents[3]


GROWING = """
import mmap, os
from services.engine.machine import use_of
before = use_of(os.getpid())
with mmap.mmap(-1, 32 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
    for at in range(0, len(pages), mmap.PAGESIZE):
        pages[at] = 1
    after = use_of(os.getpid())
print(before.own, before.total, after.own)
"""


def test_what_a_process_takes_grows_with_what_it_writes_to():
    """In a process of its own: this one may have threads that let go of memory meanwhile."""
    ran = subprocess.run([sys.executable, "-c", GROWING], cwd=ROOT, capture_output=True, text=True, timeout=60,
                         check=True)
    own, total, grown = map(int, ran.stdout.split())
    assert 1 << 20 < own <= total < 1 << 36 and grown - own > 30 << 20


def test_of_a_process_that_is_gone_nothing_is_known():
    assert use_of((1 << 22) + 1) is None


def test_kills_are_counted():
    assert oom_kills() >= 0
