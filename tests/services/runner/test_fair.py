"""Fair queueing: whoever got least is next, by weight; batch work last; places as they are told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runner.fair import Queue
from services.runner.sequence import BATCH, INTERACTIVE, Sequence, Silent
from services.runner.text import Text


def asked(owner: str, rank: int = INTERACTIVE, weight: float = 1.0) -> Sequence:
    return Sequence(id="", owner=owner, prompt=[1], max_tokens=1, sampler=Silent(), text=Text(), rank=rank,
                    weight=weight)


def served(queue: Queue, count: int, tokens: int = 10) -> list[str]:
    """The owners of the next `count`, each of which takes `tokens` and leaves."""
    order = []
    for _ in range(count):
        sequence = queue.peek()
        assert sequence
        queue.take(sequence)
        queue.charge(sequence, tokens)
        queue.left(sequence)
        order.append(sequence.owner)
    return order


def test_owners_take_turns_however_many_requests_one_has() -> None:
    queue = Queue()
    for _ in range(200):
        queue.add(asked("flood"))
    for _ in range(3):
        queue.add(asked("modest"))
    assert sorted(served(queue, 6)) == ["flood"] * 3 + ["modest"] * 3


def test_an_owners_requests_come_in_the_order_of_arrival() -> None:
    queue = Queue()
    sequences = [asked("a") for _ in range(5)]
    for sequence in sequences:
        queue.add(sequence)
    taken = []
    while sequence := queue.peek():     # type: ignore[assignment]
        queue.take(sequence)
        taken.append(sequence)
    assert taken == sequences


def test_weights_divide_the_tokens() -> None:
    queue = Queue()
    for _ in range(90):
        queue.add(asked("heavy", weight=2.0))
        queue.add(asked("light"))
    order = served(queue, 90)
    assert abs(order.count("heavy") - 60) <= 1


def test_batch_work_waits_for_everything_interactive() -> None:
    queue = Queue()
    queue.add(asked("a", BATCH))
    queue.add(asked("b"))
    queue.add(asked("b"))
    assert served(queue, 3) == ["b", "b", "a"]


def test_who_comes_back_from_a_rest_has_no_claim() -> None:
    queue = Queue()
    for _ in range(50):
        queue.add(asked("busy"))
    served(queue, 20)
    for _ in range(20):
        queue.add(asked("late"))
    order = served(queue, 20)
    assert abs(order.count("late") - 10) <= 1


def test_who_ran_already_goes_before_its_owners_others() -> None:
    queue = Queue()
    first, second = asked("a"), asked("a")
    queue.add(first)
    queue.add(second)
    queue.take(first)
    queue.add(first, first=True)
    assert queue.peek() is first


def test_shares_follow_the_weights() -> None:
    queue = Queue()
    queue.add(asked("a", weight=3.0))
    queue.add(asked("b"))
    assert queue.share("a", 8) == 6 and queue.share("b", 8) == 2
    for name in "cdefghijkl":
        queue.add(asked(name))
    assert queue.share("b", 7) == 0.5


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30))
def test_places_are_those_in_which_they_are_served(arrivals: list[str]) -> None:
    queue = Queue()
    sequences = [asked(owner) for owner in arrivals]
    for sequence in sequences:
        queue.add(sequence)
    places = {sequence: queue.position(sequence) for sequence in sequences}
    for number in range(1, len(sequences) + 1):
        sequence = queue.peek()
        assert sequence and abs(places[sequence] - number) <= 2     # owners with the same account: in either order
        queue.take(sequence)
        queue.charge(sequence, 1)
        queue.left(sequence)
    assert len(queue) == 0 and not queue.owners
    with pytest.raises(KeyError):
        queue.remove(sequences[0])


def test_batch_work_has_its_place_behind_the_rest() -> None:
    queue = Queue()
    late = asked("a", BATCH)
    queue.add(late)
    for owner in "bbc":
        queue.add(asked(owner))
    assert queue.position(late) == 4
