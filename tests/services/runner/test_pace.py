"""Pace: prompts beside running answers are dosed so that the answers hardly slow down."""

import pytest

from services.runner.pace import AMORTISED_ROOM, FIRST_ROOM, LEAST_ALONE, LEAST_ROOM, PROBE_ROOM, STRETCH, Pace


def run(pace: Pace, quiet: float, fixed: float, slope: float, steps: int = 200) -> list[tuple[int, float]]:
    """A long prompt beside one answer on a machine of these costs: (tokens, seconds) of each step."""
    done = []
    for _ in range(steps):
        room = pace.room(1)
        seconds = quiet + (fixed + slope * room if room else 0)
        pace.step_done(seconds, 1, room, 1)
        done.append((room, seconds))
    return done


def alone(pace: Pace, fixed: float, slope: float, steps: int = 50) -> list[tuple[int, float]]:
    """A long prompt and nothing else: (tokens, seconds) of each step."""
    done = []
    for _ in range(steps):
        room = pace.room(0)
        done.append((room, fixed + slope * room))
        pace.step_done(done[-1][1], 0, room, 0)
    return done


@pytest.mark.parametrize(("fixed", "slope"), [(0, 0.001), (0.1, 0.001), (0.05, 0.0001)])
def test_without_running_answers_a_fast_machine_gets_whole_batches(fixed: float, slope: float) -> None:
    pace = Pace(512)
    assert all(room == 512 for room, _ in alone(pace, fixed, slope)[4:])
    pace.step_done(fixed + slope, 0, 1, 1)
    assert pace.room(0) == 512, "a short prompt, which pays a step's fixed price alone, changes nothing"


@pytest.mark.parametrize(("fixed", "slope"), [(0.2, 0.01), (0.5, 0.05), (0, 0.1), (0.01, 0.005)])
def test_without_running_answers_a_step_takes_about_a_second_at_most(fixed: float, slope: float) -> None:
    pace = Pace(512)
    steps = alone(pace, fixed, slope)
    assert all(seconds <= max(1.001, fixed + FIRST_ROOM * slope) for _, seconds in steps)
    assert all(seconds > 0.8 for _, seconds in steps[20:]), "and no more steps are made than that takes"
    slower = alone(pace, 4 * fixed, 4 * slope)
    assert all(seconds <= max(1.001, 4 * (fixed + LEAST_ALONE * slope)) for _, seconds in slower[5:])
    assert alone(pace, fixed, slope)[-1][1] > 0.8, "a machine that was busy for a while is found to be quick again"


def test_where_a_second_is_out_of_reach_steps_are_worth_their_price() -> None:
    assert {room for room, _ in alone(Pace(512), 2.0, 0.1)[1:]} == {LEAST_ALONE}
    assert {room for room, _ in alone(Pace(512, least=64), 2.0, 0.1)} == {64}
    assert {room for room, _ in alone(Pace(32, least=64), 2.0, 0.1)} == {32}


@pytest.mark.parametrize(("fixed", "slope"), [(0, 0.0005), (0.005, 0.0005), (0.010, 0.0005), (0.012, 0.00005)])
def test_a_step_stays_under_three_times_its_quiet_time(fixed: float, slope: float) -> None:
    pace = Pace(512)
    for _ in range(20):
        pace.step_done(0.010, 1, 0, 1)
    steps = run(pace, 0.010, fixed, slope)[40:]
    assert all(seconds < 0.030 for _, seconds in steps)
    most = ((STRETCH - 1) * 0.010 - fixed) / slope
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


def rested(quiet: float = 0.010, price: float = 0.001) -> Pace:
    """A pace that knows what a prompt token costs in bulk, and that one answer has run undisturbed for a while."""
    pace = Pace(512)
    alone(pace, 0.0, price, 20)
    for _ in range(200):
        pace.step_done(quiet, 1, 0, 1)
    return pace


def test_a_prompt_that_is_soon_done_comes_in_at_once() -> None:
    pace = rested()
    assert pace.room(1, 1, 200) == 200
    pace.step_done(0.010 + 0.200, 1, 200, 1)
    assert pace.room(1, 1, 200) == 200
    pace.step_done(0.010 + 0.200, 1, 200, 1)
    assert pace.room(1, 1, 200) < 50, "what answers had to give is given"
    for _ in range(50):
        pace.step_done(0.010, 1, 0, 1)
    assert pace.room(1, 1, 200) == 200, "and comes back while they run undisturbed"


def test_a_long_prompt_never_makes_a_long_gap_not_even_at_its_end() -> None:
    pace, left = rested(), 4000
    while left:
        room = min(left, pace.room(1, 1, left))
        seconds = 0.010 + (0.002 + 0.002 * room if room else 0)
        assert seconds < 0.031
        pace.step_done(seconds, 1, room, 1)
        left -= room


def test_where_more_wait_than_run_they_get_more_of_a_step() -> None:
    pace = rested()
    assert pace.room(1, 15, 4000) > 100 > pace.room(1, 1, 4000)
    assert pace.room(15, 1, 4000) < 100
