"""The window: the last k that fit, counted only when needed, stored history untouched (row G1)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chat import window
from services.chat.messages import Interaction, Message
from services.errors import ContextOverflow


class Counter:
    """Counts words as tokens, and how often and for how many prompts it was asked."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, prompts: list[list[str]]) -> list[int]:
        self.calls.append(len(prompts))
        return [len("".join(prompt).split()) for prompt in prompts]


def build(turns: Sequence[Interaction]) -> list[str]:
    return ["".join(f"{message.content} " for turn in turns for message in turn.messages) + "new words"]


def talk(*words: int) -> list[Interaction]:
    return [Interaction.of_texts("w " * count, "a") for count in words]


def test_results_of_tools_are_part_of_the_exchange_that_they_are_for() -> None:
    def result(text: str, answer: str) -> Interaction:
        return Interaction((Message("tool", text),), Message("assistant", answer))
    first, second = Interaction.of_texts("a", "b"), Interaction.of_texts("e", "f")
    found = window.exchanges([first, result("c", "d"), result("x", "y"), second])
    assert [[message.content for message in one.messages] for one in found] == [["a", "b", "c", "d", "x", "y"],
                                                                                ["e", "f"]]
    assert window.exchanges([]) == [] and window.exchanges([result("c", "d"), first]) == [result("c", "d"), first]


def test_a_short_prompt_is_not_counted() -> None:
    count = Counter()
    found = window.fit(build, talk(1, 2, 3), 512, 128, count)
    assert (found.used, found.dropped, count.calls) == (3, 0, []) and found.prompt == build(talk(1, 2, 3))


def test_the_limit_leaves_room_for_the_answer() -> None:
    assert window.limit(512, 96) == 416 and window.limit(512, 16000) == 384 and window.limit(16, 1) == 15


def test_exactly_the_limit_fits_and_one_more_drops_the_oldest() -> None:
    assert window.fit(build, talk(40, 19, 8), 100, 28, Counter()).used == 3     # 40 + 19 + 8 + 3 + 2 of 72, and
    assert window.fit(build, talk(41, 18, 8), 100, 28, Counter()).dropped == 0  # 75 are for the prompt
    found = window.fit(build, talk(48, 18, 8), 100, 28, Counter())              # 79
    assert (found.used, found.dropped) == (2, 1) and found.prompt == build(talk(18, 8))


def test_no_history_fits_beside_a_long_text_and_too_long_a_text_is_an_error() -> None:
    long = ["w " * 70]

    def alone(turns: Sequence[Interaction]) -> list[str]:
        return [*long, *("w " * 9 for _ in turns)]
    assert window.fit(alone, talk(1, 1), 100, 50, Counter()).used == 0
    long = ["w " * 76]
    with pytest.raises(ContextOverflow) as caught:
        window.fit(alone, talk(1, 1), 100, 50, Counter())
    assert caught.value.details == {"prompt_tokens": 76, "limit": 75, "n_ctx": 100}
    assert (caught.value.status, caught.value.param) == (400, "prompt")


def test_megabytes_of_history_are_dropped_before_they_are_counted() -> None:
    earlier = [Interaction.of_texts("x" * 3_000_000, "y" * 2_000_000), *talk(2)]
    found = window.fit(build, earlier, 512, 10, Counter())
    assert (found.used, found.dropped) == (1, 1)


@given(st.lists(st.integers(0, 60), max_size=40), st.integers(16, 400), st.integers(1, 500))
def test_the_most_that_fit_are_taken(words: list[int], n_ctx: int, max_tokens: int) -> None:
    earlier, count, most = talk(*words), Counter(), window.limit(n_ctx, max_tokens)
    found = window.fit(build, earlier, n_ctx, max_tokens, count)
    costs = [count([build(earlier[len(earlier) - turns:])])[0] for turns in range(len(earlier) + 1)]
    assert found.used == max(turns for turns, tokens in enumerate(costs) if tokens <= most)
    assert found.used + found.dropped == len(earlier)
    asked = count.calls[:-len(costs)]
    assert len(asked) <= 3 and max(asked, default=0) <= window.PROBES
