"""What fits, what goes for it, and what is said when nothing helps; without a process or a file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine import room
from services.engine.room import House, Room, Tenant, Want
from services.errors import NoRoom
from services.wire import RunnerSpec

GB = 10**9


def spec(name: str = "new.gguf", n_ctx: int = 4096) -> RunnerSpec:
    return RunnerSpec(model=f"/models/{name}", n_ctx=n_ctx)


def tenant(name: str, size: int, used_at: float = 0.0, *, users: int = 0, pinned: bool = False, ending: bool = False,
           idle: bool | None = None) -> Tenant:
    return Tenant(spec(name), size, users, used_at, pinned=pinned, idle=not users if idle is None else idle,
                  ending=ending)


def want(size: int = 3 * GB, n_ctx: int = 4096) -> Want:
    """Half of what it needs is its context's."""
    return Want(spec(n_ctx=n_ctx), lambda tokens: size // 2 + size // 2 * tokens // n_ctx)


def house(*tenants: Tenant, places: int = 8, budget: int | None = 10 * GB) -> House:
    return House(tenants, places, budget)


class TestEstimates:
    def test_what_was_measured_corrects_what_is_expected_of_the_same_file(self):
        rooms = Room(8, 0, lambda spec: lambda n_ctx: n_ctx * 1000)
        first = rooms.want(spec(n_ctx=1000))
        assert first.bytes == 1_000_000
        rooms.learn(first, 1_500_000)
        rooms.learn(first, 1_200_000)           # the most counts
        assert rooms.want(spec(n_ctx=2000)).bytes == 3_000_000
        assert rooms.want(spec("other.gguf", 1000)).bytes == 1_000_000

    @pytest.mark.parametrize(("measured", "believed"), [(1, 500_000), (10**12, 4_000_000)])
    def test_a_figure_that_cannot_be_right_is_believed_in_part(self, measured: int, believed: int):
        rooms = Room(8, 0, lambda spec: lambda n_ctx: n_ctx * 1000)
        rooms.learn(rooms.want(spec(n_ctx=1000)), measured)
        assert rooms.want(spec(n_ctx=1000)).bytes == believed

    def test_without_estimates_everything_fits(self):
        rooms = Room(8, 1)
        rooms.learn(rooms.want(spec()), 10 * GB)
        assert rooms.want(spec()).bytes == 0 and rooms.house([], 0, 0).fits(rooms.want(spec()))


class TestBudget:
    def test_it_is_what_is_free_and_what_the_runners_would_give_back(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(room, "available_memory", lambda: 8 * GB)
        assert Room(8, 0).house([], held=0, own=2 * GB).budget == 9.5 * GB
        assert Room(8, 0).house([], held=GB, own=2 * GB).budget == 8.5 * GB     # other replicas of the same model
        assert Room(8, 3 * GB).house([], held=GB, own=2 * GB).budget == 2 * GB

    def test_a_machine_that_says_nothing_bounds_nothing(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(room, "available_memory", lambda: None)
        assert Room(8, 0).house([tenant("a", 10**15)], 0, 0).fits(want(10**15))


class TestFits:
    def test_bytes_and_places(self):
        assert house(tenant("a", 7 * GB)).fits(want())
        assert not house(tenant("a", 7 * GB + 1)).fits(want())
        assert not house(tenant("a", 1), places=1).fits(want())

    def test_the_one_to_be_selected_may_take_one_place_more(self):
        assert house(tenant("a", 1), places=1).fits(want(), beside=True)
        assert not house(tenant("a", 1), tenant("b", 1), places=1).fits(want(), beside=True)
        assert not house(tenant("a", 1, ending=True), places=1).fits(want(), beside=True)
        assert not house(tenant("a", 8 * GB), places=1).fits(want(), beside=True)       # but no bytes more


class TestVictim:
    def test_the_idle_one_used_least_recently(self):
        tenants = tenant("busy", GB, 1, users=1), tenant("pinned", GB, 2, pinned=True), tenant("b", 4 * GB, 4), \
            tenant("a", 4 * GB, 3)
        assert house(*tenants).victim(want()) is tenants[3]

    def test_nobody_while_one_is_ending_or_all_are_busy(self):
        assert house(tenant("a", 8 * GB, ending=True), tenant("b", GB)).victim(want()) is None
        assert house(tenant("a", 8 * GB, users=1)).victim(want()) is None

    def test_what_stays_is_named_with_the_context_that_would_fit(self):
        full = house(tenant("big.gguf", 8 * GB, users=2, pinned=True), tenant("idle.gguf", 2 * GB))
        with pytest.raises(NoRoom) as caught:
            full.victim(want())
        error = caught.value
        assert (error.status, error.code) == (409, "no_room")
        assert error.details == {"needed": 3 * GB, "budget": 10 * GB, "n_ctx": 1024, "loaded": [
            {"model": "big.gguf", "memory_bytes": 8 * GB, "users": 2}]}
        assert "3.0 GB" in error.message and "big.gguf (8.0 GB, 2 using it)" in error.message
        assert "n_ctx 1024" in error.message and "MEMORY_BUDGET" in error.message

    def test_what_fits_with_no_context_at_all_is_too_large(self):
        with pytest.raises(NoRoom, match="a smaller model") as caught:
            house().victim(want(30 * GB))
        assert caught.value.details["n_ctx"] is None and caught.value.details["loaded"] == []

    def test_no_place_is_said_as_such(self):
        with pytest.raises(NoRoom, match="MAX_LOADED=1"):
            house(tenant("a", GB, pinned=True), places=1).victim(want())
        assert house(tenant("a", GB, pinned=True), places=1).fits(want(), beside=True)

    def test_who_waits_in_vain_hears_of_whom(self):
        error = house(tenant("a.gguf", 8 * GB, users=3)).later(want())
        assert (error.status, error.code) == (503, "models_in_use") and error.retry_after
        assert "a.gguf (8.0 GB, 3 using it)" in error.message


TENANTS = st.lists(st.builds(tenant, st.sampled_from("abcdef"), st.integers(0, 5 * GB), st.floats(0, 9),
                             users=st.integers(0, 2), pinned=st.booleans(), ending=st.booleans()), max_size=6)


@given(TENANTS, st.integers(0, 12 * GB), st.integers(1, 6), st.booleans())
def test_room_is_made_step_by_step_or_refused(tenants: list[Tenant], size: int, places: int, beside: bool):
    """Whoever goes is idle and not pinned; each step ends in room, in waiting for somebody, or in a refusal."""
    wanted = want(size)
    while not (current := house(*tenants, places=places)).fits(wanted, beside):
        try:
            victim = current.victim(wanted, beside)
        except NoRoom:
            assert not house(*[one for one in tenants if one.pinned and not one.ending], places=places).fits(
                wanted, beside)
            return
        ending = [one for one in tenants if one.ending]
        if victim is None and not ending:
            assert all(one.users or one.pinned for one in tenants)
            return
        if victim is not None:
            assert victim.idle and not victim.pinned and not ending
            assert victim.used_at == min(one.used_at for one in tenants if one.idle and not one.pinned)
        tenants = [one for one in tenants if one is not (victim or ending[0])]
