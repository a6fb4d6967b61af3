"""The scheduler over a fake backend: right texts, one end each, no stalls, nothing shared between owners."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runner.sequence import BATCH, INTERACTIVE
from services.runner.slots import common_prefix
from services.wire import Done, Failed
from tests.services.runner.fakes import Desk, FakeBackend, completion, following


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
    assert desk.scheduler.counts.max_batch > 1


def test_an_end_token_and_a_stop_string_end_with_stop() -> None:
    desk = Desk(FakeBackend())
    ended = desk.ask([1, 2], max_tokens=20, ends_after=3)
    text = completion([3, 4], 20)
    stopped = desk.ask([3, 4], max_tokens=20, stop=(text[5:8],))
    desk.run()
    assert desk.ends[ended].finish_reason == desk.ends[stopped].finish_reason == "stop"     # type: ignore[union-attr]
    assert desk.texts[ended] == completion([1, 2], 3)
    assert desk.texts[stopped] == text[:text.index(text[5:8])]
    assert (desk.ends[ended].stopped_by, desk.ends[stopped].stopped_by) == ("", text[5:8])      # type: ignore[union-attr]


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


def test_an_owner_with_a_flood_delays_nobody_elses_first_token() -> None:
    """engine.md, point 5: by no more than one step's worth of work per owner."""
    desk = Desk(FakeBackend(slots=4, n_ctx=512))
    flood = [desk.ask([n] * 10, owner="flood", max_tokens=100) for n in range(20)]
    for _ in range(10):
        desk.step()
    newcomer = desk.ask([1, 2, 3], owner="modest", max_tokens=5)
    desk.step()
    assert newcomer.slot is not None and desk.scheduler.seats.preempted == 1
    desk.run()
    assert next(iter(desk.ends)) is newcomer
    for sequence in [*flood, newcomer]:
        assert desk.texts[sequence] == completion(sequence.prompt, sequence.max_tokens)
    assert desk.scheduler.counts.prompt == 203, "what was suspended is not computed again"


def test_a_share_that_was_given_back_is_not_taken_again() -> None:
    """By weight the first is entitled to three slots, by what it has used it is ahead: that must come to a rest."""
    desk = Desk(FakeBackend(slots=4, n_ctx=2000))
    desk.ask([4, 5, 6], owner="light", max_tokens=600)
    for _ in range(3):
        desk.ask([n % 20 for n in range(1000)], owner="heavy", weight=3.0, max_tokens=30)
    for _ in range(400):
        desk.step()
    desk.ask([4, 5, 7], owner="light", max_tokens=30)
    desk.run()
    assert desk.scheduler.seats.preempted <= 2


def test_what_was_suspended_and_lost_is_computed_again() -> None:
    desk = Desk(FakeBackend(slots=1, n_ctx=512))
    first = desk.ask([7] * 20, owner="a", max_tokens=400)
    desk.step()
    second = desk.ask([1], owner="b", max_tokens=3)
    for _ in range(300):
        desk.step()
    assert second.ended and desk.scheduler.seats.preempted == 1, "a slice is over at some time"
    desk.scheduler.slots.shelf.kept.clear()     # type: ignore[attr-defined]
    third = desk.ask([2], owner="b", max_tokens=3)
    desk.run()
    assert desk.texts[first] == completion([7] * 20, 400) and third.ended
    end = desk.ends[first]
    assert isinstance(end, Done) and (end.cached_tokens, end.processed_tokens) == (0, 20)


def test_batch_work_gives_way_at_once() -> None:
    desk = Desk(FakeBackend(slots=1))
    slow = desk.ask([1, 2], max_tokens=40, rank=BATCH)
    desk.step()
    quick = desk.ask([3, 4], max_tokens=2)
    desk.run()
    assert list(desk.ends) == [quick, slow]
    assert desk.texts[slow] == completion([1, 2], 40)


def test_prompts_that_somebody_waits_for_come_first() -> None:
    """Also where there is a slot for everybody."""
    desk = Desk(FakeBackend(n_ctx=4096, n_batch=64))
    slow = [desk.ask([n, 2] * 1000, owner="b", max_tokens=2, rank=BATCH) for n in range(2)]
    desk.step()
    before = [sequence.past for sequence in slow]
    quick = desk.ask([3, 4] * 200, max_tokens=2)
    while not quick.decoding:
        desk.step()
    assert any(before) and [sequence.past for sequence in slow] == before
    desk.run()
    assert next(iter(desk.ends)) is quick
    assert all(desk.texts[sequence] == completion(sequence.prompt, 2) for sequence in slow)


def test_batch_prompts_come_in_one_by_one_and_are_answered_together() -> None:
    desk = Desk(FakeBackend(n_ctx=4096, n_batch=64))
    first, second = [desk.ask([n, 2] * 300, owner="a", max_tokens=30, rank=BATCH) for n in (3, 4)]
    other = desk.ask([7, 8] * 300, owner="b", max_tokens=30, rank=BATCH)
    while not first.decoding:
        desk.step()
    assert other.past > 500 and not second.past, "owners share, an owner's own wait for each other"
    written = first.tokens[:]
    while not second.decoding:
        desk.step()
    assert first.tokens == written
    desk.run()
    assert desk.scheduler.counts.max_batch == 3
    assert all(desk.texts[sequence] == completion(sequence.prompt, 30) for sequence in (first, second, other))


def test_batch_work_that_somebody_waits_for_goes_on() -> None:
    """Both begin alike, so the later one waits for what the first computes."""
    desk = Desk(FakeBackend(n_ctx=4096, n_batch=64))
    first = desk.ask([1, 2] * 500, max_tokens=2, rank=BATCH)
    desk.step()
    follower, other = desk.ask([1, 2] * 500 + [3], max_tokens=2), desk.ask([5, 6] * 300, owner="b", max_tokens=2)
    desk.step()
    assert follower.leader is first
    desk.run()
    end = desk.ends[follower]
    assert isinstance(end, Done) and end.cached_tokens >= 900
    assert all(isinstance(desk.ends[sequence], Done) for sequence in (first, other))


def test_a_queue_of_one_owner_is_bounded_by_itself() -> None:
    desk = Desk(FakeBackend(slots=1), max_queue=8, max_queue_per_owner=2)
    mine = [desk.ask([n], max_tokens=3) for n in range(4)]
    other = desk.ask([9], owner="other", max_tokens=3)
    refused = desk.ends[mine[3]]
    assert isinstance(refused, Failed) and refused.code == "rate_limited" and refused.retry_after
    desk.run()
    assert isinstance(desk.ends[other], Done)


def test_who_waits_hears_its_place() -> None:
    desk = Desk(FakeBackend(slots=1))
    asked = [desk.ask([n], max_tokens=30) for n in range(4)]
    desk.step()
    assert [desk.places.get(sequence) for sequence in asked] == [None, [1], [2], [3]]
    desk.backend.cost = (0.5, 0.0)
    desk.run()
    assert [desk.places.get(sequence) for sequence in asked] == [None, [1], [2, 1], [3, 2, 1]]


def test_sixteen_behind_one_head_compute_it_once() -> None:
    """engine.md: what is being computed for one is shared with those that arrive meanwhile."""
    desk = Desk(FakeBackend(slots=16, n_ctx=1200, n_batch=128))
    head = [3, 1, 4] * 310
    asked = [desk.ask([*head, n, n, 5], max_tokens=4) for n in range(16)]
    desk.run()
    assert desk.scheduler.counts.prompt == 930 + 16 * 3
    for sequence in asked:
        end = desk.ends[sequence]
        assert isinstance(end, Done) and desk.texts[sequence] == completion(sequence.prompt, 4)
        assert end.cached_tokens + end.processed_tokens == 933


@pytest.mark.parametrize("rewindable", [True, False])
def test_a_leader_that_goes_leaves_what_it_had_to_the_others(rewindable: bool) -> None:
    desk = Desk(FakeBackend(slots=4, n_ctx=300, n_batch=32, rewindable=rewindable))
    head = [3, 1, 4] * 60
    asked = [desk.ask([*head, n], max_tokens=4) for n in range(4)]
    for _ in range(3):
        desk.step()
    desk.take(desk.scheduler.cancel(asked[0]))
    desk.run()
    assert all(desk.texts[sequence] == completion(sequence.prompt, 4) for sequence in asked[1:])
    assert desk.scheduler.counts.prompt < (190 + 32 if rewindable else 280)


@pytest.mark.parametrize("rewindable", [True, False])
def test_the_profiles_head_is_computed_once_for_all_owners(rewindable: bool) -> None:
    desk = Desk(FakeBackend(slots=2, n_ctx=200, n_batch=64, rewindable=rewindable))
    head = [9, 8, 7] * 20
    first = desk.ask([*head, 1, 1, 1, 2], owner="a", head=60)
    desk.run()
    for owner in "bcdef":
        asked = desk.ask([*head, 1, 1, 1, 3], owner=owner, head=60)
        desk.run()
        end = desk.ends[asked]
        assert isinstance(end, Done) and end.cached_tokens == 60, "the head, and nothing of another owner's text"
    assert first.cached == 0


@pytest.mark.parametrize("rewindable", [True, False])
def test_what_is_prepared_is_not_computed_when_it_is_asked(rewindable: bool) -> None:
    desk = Desk(FakeBackend(slots=2, n_ctx=300, rewindable=rewindable))
    desk.prepare([5, 6] * 50, "s")
    desk.run()
    assert desk.scheduler.counts.prepared == 100 and not desk.ends
    asked = desk.ask([*[5, 6] * 50, 1, 2, 3], session="s", max_tokens=4)
    desk.run()
    end = desk.ends[asked]
    assert isinstance(end, Done) and (end.cached_tokens, end.processed_tokens) == (100, 3)
    assert desk.texts[asked] == completion([*[5, 6] * 50, 1, 2, 3], 4)


def test_preparing_gives_way_and_goes_on() -> None:
    desk = Desk(FakeBackend(slots=2, n_ctx=300))
    desk.prepare([5, 6] * 100, "s")
    desk.step()
    done = desk.scheduler.counts.prepared
    assert 0 < done < 100, "in small chunks"
    asked = desk.ask([1], owner="other", max_tokens=8)
    for _ in range(5):
        desk.step()
    assert desk.scheduler.counts.prepared == done, "nothing while somebody waits for an answer"
    desk.run()
    assert asked.ended and desk.scheduler.counts.prepared == 200


def test_the_same_sessions_question_takes_what_is_prepared_so_far() -> None:
    desk = Desk(FakeBackend(slots=1, n_ctx=300))
    prompt = [5, 6] * 100
    desk.prepare(prompt, "s")
    desk.step()
    done = desk.scheduler.counts.prepared
    asked = desk.ask([*prompt, 1], session="s")
    desk.run()
    end = desk.ends[asked]
    assert isinstance(end, Done) and end.cached_tokens == done and end.processed_tokens == 201 - done


def test_a_forgotten_session_is_nowhere_also_when_it_is_suspended_after_that() -> None:
    desk = Desk(FakeBackend(slots=1, n_ctx=200))
    slow = desk.ask([4, 2] * 30, session="s", max_tokens=20, rank=BATCH)
    desk.step()
    desk.step()
    desk.take(desk.scheduler.forget("o", "s"))
    desk.ask([3], max_tokens=2)
    desk.run()
    assert desk.scheduler.seats.preempted == 1 and desk.texts[slow] == completion(slow.prompt, 20)
    assert not any(session == "s" for _, session, _, _ in desk.shelf.kept)      # type: ignore[attr-defined]


def test_a_suspended_state_is_saved_once() -> None:
    desk = Desk(FakeBackend(slots=1, n_ctx=200))
    desk.ask([4, 2] * 30, session="s", max_tokens=20, rank=BATCH)
    for _ in range(8):
        desk.step()
    desk.ask([3], max_tokens=2)
    desk.step()
    assert len(desk.shelf.kept) == 1                # type: ignore[attr-defined]


def test_a_forgotten_session_is_nowhere() -> None:
    desk = Desk(FakeBackend(slots=2, n_ctx=200))
    prompt = [4, 2] * 30
    for number in range(4):
        desk.ask([number, *prompt], session=f"s{number}", max_tokens=2)
    desk.run()
    running = desk.ask([1, *prompt, 7], session="s1", max_tokens=20)
    desk.step()
    for number in range(4):
        desk.take(desk.scheduler.forget("o", f"s{number}"))
    desk.run()
    assert running.ended and not desk.shelf.kept    # type: ignore[attr-defined]
    for number in range(4):
        again = desk.ask([number, *prompt, 7], max_tokens=1)
        desk.run()
        assert again.cached == 0


class Guess:
    """Guesses rightly so many tokens, then wrongly."""

    def __init__(self, right: int) -> None:
        self.right, self.said = right, [0, 0]

    def draft(self, tokens: list[int], most: int) -> list[int]:
        known = list(tokens)
        for _ in range(min(self.right, most)):
            known.append(following(known))
        wrong = [(following(known) + 1) % 26] if len(known) - len(tokens) < most else []
        return [*known[len(tokens):], *wrong]

    def told(self, drafted: int, accepted: int) -> None:
        self.said[0] += drafted
        self.said[1] += accepted


@pytest.mark.parametrize("right", [0, 1, 3, 9])
def test_with_guesses_the_text_is_the_same_in_fewer_steps(right: int) -> None:
    desk = Desk(FakeBackend(slots=2))
    guess = Guess(right)
    asked = desk.ask([1, 2, 3], max_tokens=30, drafter=guess)
    beside = desk.ask([4, 5], max_tokens=30, stop=(completion([4, 5], 30)[10:13],), drafter=Guess(3))
    desk.run()
    assert desk.texts[asked] == completion([1, 2, 3], 30)
    assert desk.texts[beside] == completion([4, 5], 10)
    end = desk.ends[asked]
    assert isinstance(end, Done) and [end.drafted_tokens, end.accepted_tokens] == guess.said
    assert end.completion_tokens == 30 and (right == 0 or end.accepted_tokens > 0)
    assert len(desk.backend.batches) <= 32 if right == 0 else len(desk.backend.batches) < 25


PROMPTS = st.tuples(st.integers(0, 2), st.integers(0, 20), st.lists(st.integers(0, 3), max_size=6))
ACTS = st.lists(st.one_of(
    st.tuples(st.just("ask"), st.sampled_from("abc"), PROMPTS, st.sampled_from([1, 2, 5, 8, 30]),
              st.sampled_from(["", "s", "t"]), st.integers(0, 2), st.sampled_from([INTERACTIVE, BATCH]),
              st.integers(0, 18)),
    st.tuples(st.just("prepare"), st.sampled_from("abc"), PROMPTS, st.sampled_from(["s", "t"])),
    st.tuples(st.just("forget"), st.sampled_from("abc"), st.sampled_from(["s", "t"])),
    st.tuples(st.just("lose")),
    st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("cancel"), st.integers(0, 100)),
    st.tuples(st.just("follow"), st.integers(0, 100)),
    st.tuples(st.just("fail"))), max_size=40)


@settings(deadline=None, max_examples=150)
@given(ACTS, st.booleans())
def test_whatever_happens_texts_are_right_and_owners_never_meet(acts: list[Any], rewindable: bool) -> None:
    """More cached tokens than the owner's own requests share with a prompt would be another owner's."""
    desk = Desk(FakeBackend(slots=4, rewindable=rewindable), max_queue=8)
    asked, prepared = [], []
    for act, *values in acts:
        if act == "ask":
            owner, (head, length, tail), most, session, guesses, rank, shared = values
            prompt = [*([head, 5, 6] * 8)[:length], 7, *tail]
            asked.append(desk.ask(prompt, owner=owner, max_tokens=most, session=session, rank=rank,
                                  drafter=Guess(guesses) if guesses and rewindable else None,
                                  head=min(shared, length) if head == 0 else 0))
        elif act == "prepare":
            owner, (head, length, tail), session = values
            prompt = [*([head, 5, 6] * 8)[:length], 7, *tail]
            desk.prepare(prompt, session, owner)
            prepared.append((owner, prompt))
        elif act == "forget":
            desk.take(desk.scheduler.forget(*values))
        elif act == "lose":
            desk.shelf.kept.clear()     # type: ignore[attr-defined]
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
            assert end.cached_tokens <= most_shared(sequence, asked, prepared)
            if end.finish_reason == "length":
                assert desk.texts[sequence] == completion(sequence.prompt, sequence.max_tokens)


def most_shared(sequence: Any, asked: list[Any], prepared: list[tuple[str, list[int]]]) -> int:
    """The most that the same owner's other requests can have left in the memory for this prompt, or all profiles'
    heads."""
    own = [other.tokens for other in asked if other is not sequence and other.owner == sequence.owner]
    own += [prompt for owner, prompt in prepared if owner == sequence.owner]
    heads = [other.tokens[:other.head] for other in asked]
    return max((common_prefix(sequence.prompt, tokens) for tokens in [*own, *heads]), default=0)
