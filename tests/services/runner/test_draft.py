"""Drafts: what is copied is guessed, what is not costs nothing, and rows that do not pay are not asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runner.draft import FORGET, STRIDE, Drafter, Payoff

MOST = 15
Cost = Callable[[int], float]       # rows -> seconds of a step


def between(known: dict[int, float]) -> Cost:
    """Costs measured at some numbers of rows, and between them."""
    def cost(rows: int) -> float:
        below, above = max(n for n in known if n <= rows), min(n for n in known if n >= rows)
        return known[below] + (known[above] - known[below]) * (rows - below) / max(1, above - below)
    return cost


# Measured on two cores, Q4_0: of 135 and 500 million parameters.
small = between({1: 0.0122, 2: 0.0186, 3: 0.0226, 4: 0.0195, 5: 0.0256, 6: 0.0303, 8: 0.0325, 12: 0.0437, 16: 0.0439})
medium = between({1: 0.0327, 2: 0.0421, 3: 0.0495, 4: 0.0341, 5: 0.0480, 6: 0.0582, 8: 0.0597, 12: 0.0821, 16: 0.0852})


def large(rows: int) -> float:
    """A large one: reading the weights is what takes the time."""
    return 0.100 + 0.002 * rows


def answer(prompt: list[int], text: list[int], cost: Cost, payoff: Payoff | None = None,
           noise: float = 0.0) -> tuple[float, int, int]:
    """A model that writes `text` behind `prompt`, alone: its seconds, its steps and the rows of guesses in them."""
    payoff, dice = payoff or Payoff(), random.Random(7)
    drafter, tokens, ends = Drafter(payoff), prompt + text[:1], len(prompt) + len(text)
    seconds, steps, rows = 0.0, 0, 0
    whole = prompt + text
    while len(tokens) < ends:
        draft = drafter.draft(tokens, min(MOST, ends - len(tokens) - 1))
        right = 0
        while right < len(draft) and draft[right] == whole[len(tokens) + right]:
            right += 1
        if draft:
            drafter.told(len(draft), right)
        took = cost(1 + len(draft)) * (1 + noise * dice.random())
        payoff.told(1 + len(draft), took)
        tokens = whole[:len(tokens) + right + 1]
        seconds, steps, rows = seconds + took, steps + 1, rows + len(draft)
    return seconds, steps, rows


def words(seed: int, count: int, vocabulary: int = 50_000) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(vocabulary) for _ in range(count)]


def copying(prompt: list[int], seed: int) -> Iterator[int]:
    """Passages of the prompt, with a few new words between."""
    dice = random.Random(seed)
    while True:
        start = dice.randrange(len(prompt) - 40)
        yield from prompt[start:start + 40]
        yield from words(dice.randrange(1000), 5)


@pytest.mark.parametrize(("cost", "gain"), [(small, 1.5), (medium, 2.5), (large, 4.0)])
@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_copying_is_several_times_as_fast(cost: Cost, gain: float, noise: float) -> None:
    prompt = words(1, 1000)
    text = [token for token, _ in zip(copying(prompt, 2), range(600), strict=False)]
    seconds, _, _ = answer(prompt, text, cost, noise=noise)
    without = 600 * cost(1) * (1 + noise / 2)
    assert seconds * gain < without


@pytest.mark.parametrize("cost", [small, medium, large])
@pytest.mark.parametrize("vocabulary", [2, 5, 50, 50_000])
def test_random_text_costs_next_to_nothing(cost: Cost, vocabulary: int) -> None:
    text = words(3, 2000, vocabulary)
    seconds, _, rows = answer(words(4, 500, vocabulary), text, cost)
    assert seconds < 1.02 * len(text) * cost(1)
    assert rows < 0.02 * len(text) or seconds < 1.01 * len(text) * cost(1), "rows are spent only where they nearly pay"


def test_it_begins_again_when_the_text_begins_to_copy() -> None:
    prompt = words(1, 500)
    noise = words(2, 1000, 3)           # matches everywhere, and nearly always wrongly
    _, steps, _ = answer(prompt + noise[:500], noise[500:] + prompt, large)
    _, before, _ = answer(prompt + noise[:500], noise[500:], large)
    assert steps - before < 100


def test_the_longest_match_is_continued_and_the_latest_of_them() -> None:
    payoff = Payoff()
    for rows in [*range(1, 17)] * 2:      # rows are free
        payoff.told(rows, 1.0)
    text = [1, 2, 3, 4, 50, 51, 9, 3, 4, 60, 61, 9, 1, 2, 3, 4]
    assert Drafter(payoff).draft(text, 2) == [50, 51]
    text = [1, 2, 3, 50, 51, 9, 1, 2, 3, 60, 61, 9, 1, 2, 3]
    assert Drafter(payoff).draft(text, 2) == [60, 61]
    assert Drafter(payoff).draft([5, 6, 7, 5, 6, 7, 5, 6], 5) == [7, 5, 6, 7, 5], "a loop goes on as a loop"
    assert not Drafter(payoff).draft([1, 2, 3, 4], 4) and not Drafter(payoff).draft([1], 4)


def test_a_long_prompt_is_read_over_some_steps() -> None:
    payoff, text = Payoff(), words(1, 3 * STRIDE)
    payoff.told(1, 1.0)
    drafter = Drafter(payoff)
    tokens = text + text[:20]
    assert [bool(drafter.draft(tokens, 4)) for _ in range(5)] == [False, False, False, True, True]


def test_with_many_answers_drafts_pay_less() -> None:
    payoff = Payoff()
    lengths = []
    for payoff.answers in (1, 4, 8):
        for rows in [*range(payoff.answers, 17)] * 10:
            payoff.told(rows, small(rows))
        lengths.append([payoff.length(rate, MOST) for rate in (0.1, 0.5, 0.8, 0.95)])
    assert lengths[0][0] == 0 and lengths[0][3] > 3
    assert all(few >= many for few, many in zip(lengths[0], lengths[2], strict=True))


def test_what_rows_cost_is_learnt_anew_when_it_changes() -> None:
    payoff = Payoff()
    for rows in (1, 2, 3, 4, 5) * 20:
        payoff.told(rows, large(rows))
    assert payoff.length(0.8, 4) == 4
    for rows in (1, 2, 3, 4, 5) * 100:
        payoff.told(rows, 0.01 * rows)
    assert payoff.length(0.8, 4) == 0


def test_a_hiccup_is_forgotten_and_a_slower_machine_is_no_dearer_row() -> None:
    payoff = Payoff()
    for rows in (1, 2, 3, 4, 5):
        payoff.told(rows, 9.0 if rows == 5 else large(rows))
    assert payoff.length(0.9, 4) == 3
    for _ in range(FORGET):
        payoff.told(1, 3 * large(1))
    assert payoff.length(0.9, 4) == 4
    payoff.told(5, 3 * large(5))
    assert payoff.length(0.9, 4) == 4


@given(st.lists(st.integers(0, 3), max_size=80), st.integers(0, 8))
def test_a_guess_is_always_what_stood_behind_the_same_two_tokens(tokens: list[int], most: int) -> None:
    payoff = Payoff()
    payoff.told(1, 1.0)
    drafter = Drafter(payoff)
    for end in range(1, len(tokens) + 1):
        text = tokens[:end]
        draft = drafter.draft(text, most)
        assert len(draft) <= most
        if draft:
            drafter.told(len(draft), 0)
            assert any(text[i:i + 2] == text[-2:] and text[i + 2] == draft[0] for i in range(end - 2))
