"""Pace: prompts beside running answers are dosed so that the answers hardly slow down."""

from services.runner.pace import LEAST_ROOM, Pace


def test_without_running_answers_a_prompt_gets_the_whole_batch() -> None:
    assert Pace(512).room(0) == 512


def test_the_room_follows_what_steps_were_measured_to_take() -> None:
    pace = Pace(512)
    for _ in range(50):
        pace.step_done(0.010, 1, 0, 1)
        pace.step_done(0.010 + pace.room(1) * 0.0005, 1, pace.room(1), 1)
    pace.step_done(0.010, 1, 0, 1)
    assert 0.010 + pace.room(1) * 0.0005 <= 0.030
    assert pace.room(1) >= 25
    slow = Pace(512)
    slow.step_done(0.010, 1, 0, 1)
    slow.step_done(10.0, 0, 100, 0)
    assert slow.room(1) == LEAST_ROOM


def test_a_batch_is_never_overfull() -> None:
    pace = Pace(8)
    assert pace.room(5) == 3
    pace.step_done(1.0, 5, 0, 5)
    pace.step_done(1.0, 5, 3, 5)
    assert pace.room(5) == 3
    assert pace.room(8) == 0


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


def test_what_is_quiet_is_measured_again_during_a_long_prompt() -> None:
    pace = Pace(512)
    rooms = []
    for _ in range(200):        # all steps have become ten times as slow
        rooms.append(pace.room(1))
        pace.step_done(0.1 + rooms[-1] * 0.005, 1, rooms[-1], 1)
    assert rooms.count(0) >= 10
    assert 20 <= rooms[-2] <= 30
