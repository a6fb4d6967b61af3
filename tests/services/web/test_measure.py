"""What an answer is charged with: once, whichever way it ends."""

from __future__ import annotations

import msgspec
import pytest

from services.chat.events import Ask, Beat, Delta, Spent
from services.errors import NotFound, RunnerCrashed
from services.web import measure
from services.web.measure import measured
from tests.services.web.conftest import FakeAdmissions, FakeChat, FakeTicket, final


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets; monotonic time for the measures."""
    now = [100.0]
    monkeypatch.setattr(measure.time, "monotonic", lambda: now[0])
    return now


def charges(events, leave_after=None):
    """What is charged for `events`, whose reader leaves after so many of them."""
    admissions, ask = FakeAdmissions(), Ask(owner="k1", prompt="x", spent=Spent(profile="one"))
    stream = measured(FakeChat(events).answer(ask), FakeTicket(admissions), ask.spent)
    try:
        for number, _ in enumerate(stream):
            if number == leave_after:
                break
    except Exception as error:
        assert error in events
    stream.close()
    return admissions.charges


def test_a_whole_answer_tells_its_counts_and_times(clock):
    def wait(seconds):
        return lambda: clock.__setitem__(0, clock[0] + seconds)

    whole = final("a b c")
    whole = measure.Final(**{**vars(whole), "done": msgspec.structs.replace(whole.done, queue_ms=250,
                                                                            completion_tokens=5)})
    [charge] = charges([Beat(), wait(2), Delta("a"), wait(1), Delta(" b"), wait(3), Delta(" c"), wait(1), whole])
    assert (charge.outcome, charge.profile, charge.prompt_tokens, charge.completion_tokens) == ("stop", "one", 7, 5)
    assert (charge.cached_tokens, charge.processed_tokens) == (3, 4)
    assert (charge.first_seconds, charge.token_seconds, charge.queue_seconds, charge.seconds) == (2, 1, 0.25, 7)


def test_an_answer_without_text_has_no_time_between_tokens(clock):
    [charge] = charges([final()])
    assert charge.first_seconds == 0 and charge.token_seconds is None


def test_an_answer_that_is_told_again_has_no_times(clock):
    again = final("a")
    again = measure.Final(**{**vars(again), "done": msgspec.structs.replace(again.done, id="")})
    [charge] = charges([Delta("a"), again])
    assert charge.first_seconds is charge.token_seconds is charge.queue_seconds is None and charge.outcome == "stop"


@pytest.mark.parametrize("error, outcome", [(RunnerCrashed("x"), "runner_crashed"), (KeyError("x"), "internal_error"),
                                            (NotFound("x", code="profile_not_found"), "profile_not_found")])
def test_an_error_is_the_outcome(error, outcome):
    [charge] = charges([Delta("a"), Delta("b"), error])
    assert (charge.outcome, charge.profile, charge.completion_tokens) == (outcome, "one", 2)
    assert charge.first_seconds is not None and charge.queue_seconds is None


def test_who_leaves_is_charged_what_came():
    [charge] = charges([Delta("a"), Beat(), Delta("b"), final("ab")], leave_after=1)
    assert (charge.outcome, charge.completion_tokens, charge.prompt_tokens) == ("cancelled", 1, 0)


def test_who_leaves_with_the_whole_answer_is_charged_once():
    [charge] = charges([Delta("a"), final("a"), Delta("never")], leave_after=1)
    assert charge.outcome == "stop"
