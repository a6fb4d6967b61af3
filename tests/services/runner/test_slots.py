"""Slots: the longest prefix of the same owner, never another's, and never a rewind that the memory cannot do."""

from hypothesis import given
from hypothesis import strategies as st

from services.runner.sequence import Sequence
from services.runner.slots import WORTH, Slots, common_prefix, runs
from services.runner.text import Text
from tests.services.runner.fakes import FakeBackend, FakeSampler, FakeShelf

LISTS = st.lists(st.integers(0, 2), max_size=40)


class House:
    """Slots over a fake memory, filled as if each prompt were decoded at once."""

    def __init__(self, count: int = 2, rewindable: bool = True) -> None:
        self.backend = FakeBackend(slots=count, rewindable=rewindable)
        self.slots = Slots(count, self.backend, rewindable, FakeShelf(rewindable))

    def take(self, prompt: list[int], owner: str = "o", session: str = "") -> Sequence | None:
        sequence = Sequence(id="", owner=owner, prompt=prompt, max_tokens=1, sampler=FakeSampler(self.backend),
                            text=Text(), session=session)
        if not self.slots.place(sequence):
            return None
        assert sequence.slot is not None
        assert self.backend.memory[sequence.slot] == prompt[:sequence.cached]
        self.backend.memory[sequence.slot] += prompt[sequence.cached:]
        sequence.past = len(prompt)
        return sequence

    def pass_through(self, prompt: list[int], owner: str = "o") -> Sequence:
        sequence = self.take(prompt, owner)
        assert sequence
        self.slots.release(sequence)
        return sequence


def test_the_same_prompt_again_decodes_one_token() -> None:
    house = House()
    house.pass_through([1, 2, 3, 4])
    assert house.pass_through([1, 2, 3, 4]).cached == 3


def test_another_owner_gets_nothing() -> None:
    house = House()
    for owner in ("a", "b", "c", "d"):
        assert house.pass_through([1, 2, 3, 4], owner).cached == 0


def test_a_busy_slot_is_copied_and_goes_on_undisturbed() -> None:
    house = House()
    head = list(range(WORTH))
    busy = house.take([*head, 4, 5])
    other = house.take([*head, 9])
    assert busy and other and other.cached == WORTH and busy.slot != other.slot
    assert house.backend.memory[busy.slot or 0] == [*head, 4, 5]
    assert house.take([1]) is None


def test_a_short_shared_head_does_not_cost_a_long_conversation() -> None:
    house = House()
    """Nor is a whole slot copied for the little that all prompts begin with."""
    house.pass_through([1, 2, *range(10, 40)])
    assert house.pass_through([1, 2, 3]).cached == 0
    assert house.pass_through([1, 2, *range(10, 40), 5]).cached == 32


def test_the_slot_used_longest_ago_is_given_up() -> None:
    house = House(3)
    for owner in "abc":
        house.pass_through([1, 2, 3], owner)
    house.pass_through([1, 2, 3], "a")
    house.pass_through([4], "d")
    assert {slot.owner for slot in house.slots.slots} == {"a", "c", "d"}


def test_a_memory_that_cannot_rewind_reuses_only_what_it_holds_exactly() -> None:
    house = House(rewindable=False)
    house.pass_through([1, 2, 3])
    assert house.take([1, 2, 3, 4]).cached == 3     # type: ignore[union-attr]
    house = House(rewindable=False)
    house.pass_through([1, 2, 3])
    assert house.pass_through([1, 2, 3]).cached == 0
    assert house.pass_through([1, 2, 9, 9]).cached == 0


def test_a_cut_that_fails_means_no_reuse() -> None:
    house = House()
    house.pass_through([1, 2, 3, 4])
    house.backend.rewindable = False        # the memory refuses, against what the model promised
    assert house.pass_through([1, 2, 9]).cached == 0


def test_a_snapshot_that_is_no_good_leaves_nothing_to_reuse() -> None:
    house = House(1)
    long = list(range(40))
    house.pass_through(long)
    house.slots.shelf.put("o", "", long, bytes(long))
    house.slots.slots[0].left = long[:20]
    del house.backend.memory[0][20:]
    house.backend.loads = False
    assert house.pass_through([*long, 1]).cached == 0


@given(LISTS, LISTS)
def test_common_prefix(a: list[int], b: list[int]) -> None:
    size = common_prefix(a, b)
    assert a[:size] == b[:size]
    assert size == min(len(a), len(b)) or a[size] != b[size]


@given(st.sets(st.integers(0, 12), max_size=8))
def test_runs_of_neighbours_are_counted(indices: set[int]) -> None:
    expected = sum(index - 1 not in indices for index in indices)
    assert runs(list(indices)) == expected


def test_newcomers_stand_beside_those_that_run() -> None:
    house = House(6)
    placed = [house.take([n] * 20, str(n)) for n in range(4)]
    assert [sequence.slot for sequence in placed if sequence] == [0, 1, 2, 3]
    assert placed[1]
    house.slots.release(placed[1])
    newcomer = house.take([9] * 20, "new")
    assert newcomer and newcomer.slot == 1, "between its neighbours, though other slots are empty"


def test_a_gap_is_closed_by_a_move_that_loses_nothing() -> None:
    house = House(5)
    placed = [house.take([n] * 20, str(n), session=f"s{n}") for n in range(5)]
    for index in (1, 2):
        house.slots.release(placed[index])      # type: ignore[arg-type]
    assert runs([0, 3, 4]) == 2
    placed[0].max_tokens = 100      # type: ignore[union-attr]
    assert house.slots.close_ranks()
    assert placed[0] and placed[0].slot == 2 and house.backend.memory[2] == [0] * 20
    assert not house.slots.close_ranks(), "they stand together"
    assert house.take([*[2] * 20, 5], "2", session="s2").cached == 20, "what stood there is on the shelf"   # type: ignore[union-attr]


def test_who_is_nearly_done_is_not_moved() -> None:
    house = House(3)
    placed = [house.take([n] * 20, str(n)) for n in range(3)]
    house.slots.release(placed[1])      # type: ignore[arg-type]
    assert not house.slots.close_ranks()
