"""Pace: prompts beside running answers are dosed so that the answers hardly slow down."""

import pytest

from services.runner.pace import AMORTISED_ROOM, LEAST_ROOM, PROBE_ROOM, Pace


def run(pace: Pace, quiet: float, fixed: float, slope: float, steps: int = 200) -> list[tuple[int, float]]:
    """A long prompt beside one answer on a machine of these costs: (tokens, seconds) of each step."""
    done = []
    for _ in range(steps):
        room = pace.room(1)
        seconds = quiet + (fixed + slope * room if room else 0)
        pace.step_done(seconds, 1, room, 1)
        done.append((room, seconds))
    return done


def test_without_running_answers_a_prompt_gets_the_whole_batch() -> None:
    assert Pace(512).room(0) == 512


@pytest.mark.parametrize(("fixed", "slope"), [(0, 0.0005), (0.005, 0.0005), (0.010, 0.0005), (0.012, 0.00005)])
def test_a_step_stays_under_three_times_its_quiet_time(fixed: float, slope: float) -> None:
    pace = Pace(512)
    for _ in range(20):
        pace.step_done(0.010, 1, 0, 1)
    steps = run(pace, 0.010, fixed, slope)[40:]
    assert all(seconds < 0.030 for _, seconds in steps)
    most = (0.017 - fixed) / slope
    assert sum(room for room, _ in steps) / len(steps) > 0.5 * min(most, 512 - 1), "and no room is wasted"


def test_where_the_target_is_out_of_reach_a_prompt_gets_on_all_the_same() -> None:
    pace = Pace(512)
    pace.step_done(0.001, 1, 0, 1)
    steps = run(pace, 0.001, 0.005, 0.00002)[20:]
    assert max(room for room, _ in steps) == AMORTISED_ROOM
    slow = Pace(512)
    slow.step_done(0.010, 1, 0, 1)
    slow.step_done(10.0, 0, 100, 0)         # the prompt alone: no answer waited for it
    assert PROBE_ROOM < max(room for room, _ in run(slow, 0.010, 0.1, 0.1)[40:]) < 2 * LEAST_ROOM


def test_a_batch_is_never_overfull() -> None:
    pace = Pace(8)
    pace.step_done(1.0, 5, 0, 5)
    for _ in range(10):
        assert pace.room(5) <= 3 and pace.room(7) <= 1 and pace.room(8) == 0
        pace.step_done(1.001, 5, pace.room(5), 5)
    assert pace.room(5) == 3


def test_what_is_quiet_is_measured_again_during_a_long_prompt() -> None:
    pace = Pace(512)
    pace.step_done(0.01, 1, 0, 1)
    steps = run(pace, 0.1, 0.01, 0.005)     # all has become ten times as slow
    assert [room for room, _ in steps].count(0) >= 10
    assert 20 <= max(room for room, _ in steps[-8:]) <= 35


def test_speed_and_time_to_come_back() -> None:
    pace = Pace(8)
    assert pace.tokens_per_second == 0
    for _ in range(100):
        pace.step_done(0.1, 2, 0, 2)
    assert round(pace.tokens_per_second) == 20
    assert pace.retry_after(10, 2) == 1
    pace.request_done(10)
    assert pace.retry_after(10, 2) == 50
    assert pace.retry_after(1000, 2) == 60
