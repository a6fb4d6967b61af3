"""What is remembered is bounded in every way, and who asks too often waits."""

import pytest

from services.errors import TooManyRequests
from services.knowledge.recent import Rate, Recent


class Clock:
    def __init__(self):
        self.time = 0.0

    def __call__(self):
        return self.time


def test_things_age():
    clock = Clock()
    recent = Recent(10, 5, now=clock)
    recent.put("a", "x")
    clock.time = 10
    assert recent.get("a") == "x" and recent.get("b") is None
    clock.time = 10.1
    assert recent.get("a") is None


def test_the_longest_unused_goes_first():
    recent = Recent(10, 2)
    for key in "abc":
        recent.put(key, key)
        recent.get("a")
    assert [recent.get(key) for key in "abc"] == ["a", None, "c"]


def test_room_is_bounded():
    recent = Recent(10, 100, 10, len)
    for number in range(20):
        recent.put(str(number), "1234")
    recent.put("19", "123456")
    assert recent._used == 10 and len(recent._things) == 2
    recent.put("large", "x" * 11)
    assert recent._used == 0 and recent.get("large") is None


def test_a_rate_is_each_owners():
    clock = Clock()
    rate = Rate(2, 60, owners=2, now=clock)
    rate.step("a")
    clock.time = 20
    rate.step("a")
    with pytest.raises(TooManyRequests) as caught:
        rate.step("a")
    assert caught.value.retry_after == 40
    rate.step("b")
    clock.time = 60
    rate.step("a")
    rate.step("c")
    assert set(rate._steps) == {"a", "c"}
