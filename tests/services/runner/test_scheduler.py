"""The scheduler over a fake backend: right texts, one end each, no stalls, nothing shared between owners."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runner.slots import common_prefix
from services.wire import Done, Failed
from tests.services.runner.fakes import Desk, FakeBackend, completion


def test_answers_come_from_the_whole_prompt_and_end_once() -> None:
    desk = Desk(FakeBackend())
    asked = [desk.ask([n, 1, 2, 3] * 6, max_tokens=7) for n in range(10)]
    desk.run()
    for sequence in asked:
        end = desk.ends[sequence]
        assert isinstance(end, Done) and end.finish_reason == "length"
        assert desk.texts[sequence] == completion(sequence.prompt, 7)
        assert (end.prompt_tokens, end.completion_tokens) == (24, 7)
        assert end.cached_tokens + end.processed_tokens == 24
    assert desk.scheduler.max_batch > 1


def test_an_end_token_and_a_stop_string_end_with_stop() -> None:
    desk = Desk(FakeBackend())
    ended = desk.ask([1, 2], max_tokens=20, ends_after=3)
    text = completion([3, 4], 20)
    stopped = desk.ask([3, 4], max_tokens=20, stop=(text[5:8],))
    desk.run()
    assert desk.ends[ended].finish_reason == desk.ends[stopped].finish_reason == "stop"     # type: ignore[union-attr]
    assert desk.texts[ended] == completion([1, 2], 3)
    assert desk.texts[stopped] == text[:text.index(text[5:8])]


def test_running_answers_are_in_every_batch_while_a_long_prompt_comes_in() -> None:
    desk = Desk(FakeBackend(n_ctx=4096, n_batch=512))
    talker = desk.ask([1], max_tokens=2000)
    for _ in range(5):
        desk.step()
    newcomer = desk.ask([2, 3] * 1500, max_tokens=1)
    quiet = sum(desk.backend.cost)
    while newcomer not in desk.ends:
        before, made = desk.backend.clock.now, len(desk.backend.batches)
        desk.step()
        answers, *prompts = desk.backend.batches[made:]
        assert answers == [(talker, 1, True)], "apart: the prompt's length is no burden to it"
        assert all(not decoding for batch in prompts for _, _, decoding in batch)
        assert desk.backend.clock.now - before <= 3 * quiet or len(desk.backend.batches) < 8
    assert desk.texts[newcomer] == completion([2, 3] * 1500, 1)


def test_a_prompt_alone_comes_in_by_steps_of_about_a_second() -> None:
    desk = Desk(FakeBackend(n_ctx=4096, n_batch=512))
    desk.backend.cost = (0.1, 0.05)
    asked = desk.ask([2, 3] * 500, max_tokens=1)
    for _ in range(20):
        before = desk.backend.clock.now
        desk.step()
        assert desk.backend.clock.now - before < 1.1
        assert desk.scheduler.stats().idle_seconds == 0
    assert not asked.decoding and asked.past > 250
    desk.take(desk.scheduler.cancel(asked))
    assert not desk.scheduler.runnable


def test_a_short_prompt_passes_a_long_one() -> None:
    desk = Desk(FakeBackend(n_ctx=4096, n_batch=64))
    long = desk.ask([1, 2] * 1000, owner="a", max_tokens=1)
    desk.step()
    short = desk.ask([3, 4, 5], owner="b", max_tokens=1)
    desk.step()
    assert short in desk.ends and long not in desk.ends


def test_owners_take_turns_and_each_is_served_in_order() -> None:
    desk = Desk(FakeBackend(slots=1))
    greedy = [desk.ask([n], owner="greedy", max_tokens=1) for n in range(5)]
    modest = [desk.ask([n], owner="modest", max_tokens=1) for n in range(2)]
    desk.run()
    order = list(desk.ends)
    assert order == [greedy[0], modest[0], greedy[1], modest[1], greedy[2], greedy[3], greedy[4]]


def test_a_full_queue_refuses_with_a_time_to_come_back() -> None:
    desk = Desk(FakeBackend(slots=2), max_queue=1)
    taken = [desk.ask([n], max_tokens=3) for n in range(3)]
    refused = desk.ask([9], max_tokens=3)
    end = desk.ends[refused]
    assert isinstance(end, Failed) and end.code == "unavailable" and end.retry_after and end.retry_after >= 1
    desk.run()
    assert all(isinstance(desk.ends[sequence], Done) for sequence in taken)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_cancel_takes_effect_before_the_next_step(steps: int) -> None:
    desk = Desk(FakeBackend(slots=1, n_ctx=256))
    running = desk.ask([1, 2, 3] * 10, max_tokens=50)
    queued = desk.ask([4, 5], max_tokens=5)
    for _ in range(steps):
        desk.step()
    for sequence in (queued, running):
        desk.take(desk.scheduler.cancel(sequence))
        desk.take(desk.scheduler.cancel(sequence))
        end = desk.ends[sequence]
        assert isinstance(end, Done) and end.finish_reason == "cancelled"
    assert not desk.scheduler.runnable and not desk.scheduler.step()
    again = desk.ask([1, 2, 3] * 10, max_tokens=4)
    desk.run()
    assert desk.texts[again] == completion([1, 2, 3] * 10, 4)


def test_a_failed_decode_ends_those_in_it_and_forgets_their_memory() -> None:
    desk = Desk(FakeBackend())
    first = desk.ask([1, 2, 3])
    desk.backend.fails = 1
    desk.step()
    assert isinstance(desk.ends[first], Failed)
    later = desk.ask([1, 2, 3, 4])
    desk.run()
    end = desk.ends[later]
    assert isinstance(end, Done) and end.cached_tokens == 0


def test_a_failed_decode_of_answers_spares_the_prompt_beside_them() -> None:
    desk = Desk(FakeBackend(n_ctx=256))
    talker = desk.ask([1, 2, 3])
    desk.step()
    newcomer = desk.ask([4, 5] * 40, max_tokens=3)
    desk.backend.fails = 1
    desk.run()
    assert isinstance(desk.ends[talker], Failed) and isinstance(desk.ends[newcomer], Done)
    assert desk.texts[newcomer] == completion([4, 5] * 40, 3)
    assert desk.scheduler.stats().prompt_tokens == 83


def test_a_sampler_without_a_choice_ends_its_own_request_only() -> None:
    desk = Desk(FakeBackend())
    stuck, fine = desk.ask([1], stuck=True), desk.ask([2])
    desk.run()
    assert isinstance(desk.ends[stuck], Failed) and isinstance(desk.ends[fine], Done)


def test_stats_add_up() -> None:
    desk = Desk(FakeBackend())
    for n in range(3):
        desk.ask([n, n, n], owner=str(n), max_tokens=4)
    desk.run()
    stats = desk.scheduler.stats()
    assert (stats.prompt_tokens, stats.completion_tokens, stats.requests, stats.max_batch) == (9, 12, 3, 3)
    assert (stats.running, stats.waiting, stats.slots_used) == (0, 0, 3)
    assert stats.tokens_per_second > 0 and stats.idle_seconds == 0


PROMPTS = st.tuples(st.integers(0, 2), st.integers(0, 20), st.lists(st.integers(0, 3), max_size=6))
ACTS = st.lists(st.one_of(
    st.tuples(st.just("ask"), st.sampled_from("abc"), PROMPTS, st.integers(1, 8)),
    st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("cancel"), st.integers(0, 100)),
    st.tuples(st.just("follow"), st.integers(0, 100)),
    st.tuples(st.just("fail"))), max_size=40)


@settings(deadline=None, max_examples=150)
@given(ACTS, st.booleans())
def test_whatever_happens_texts_are_right_and_owners_never_meet(acts: list[Any], rewindable: bool) -> None:
    """More cached tokens than the owner's own requests share with a prompt would be another owner's."""
    desk = Desk(FakeBackend(slots=3, rewindable=rewindable), max_queue=8)
    asked = []
    for act, *values in acts:
        if act == "ask":
            owner, (head, length, tail), most = values
            asked.append(desk.ask([*([head, 5, 6] * 8)[:length], 7, *tail], owner=owner, max_tokens=most))
        elif act == "follow" and asked:
            before = asked[values[0] % len(asked)]
            if before.ended and len(before.tokens) < 50:
                asked.append(desk.ask([*before.tokens, 8, 9], owner=before.owner))
        elif act == "cancel" and asked:
            desk.take(desk.scheduler.cancel(asked[values[0] % len(asked)]))
        elif act == "fail":
            desk.backend.fails = 1
        elif act == "step":
            for _ in range(values[0]):
                desk.step()
    desk.backend.fails = 0
    desk.run()
    for sequence in asked:
        end = desk.ends[sequence]
        assert completion(sequence.prompt, sequence.max_tokens).startswith(desk.texts[sequence])
        if isinstance(end, Done):
            assert end.cached_tokens <= most_shared(sequence, asked)
            if end.finish_reason == "length":
                assert desk.texts[sequence] == completion(sequence.prompt, sequence.max_tokens)


def most_shared(sequence: Any, asked: list[Any]) -> int:
    """The most that the same owner's other requests can have left in the memory for this prompt."""
    return max((common_prefix(sequence.prompt, other.tokens) for other in asked
                if other is not sequence and other.owner == sequence.owner), default=0)
