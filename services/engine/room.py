"""The memory that runners may take: what one will need, what all may have, and which model goes for another.

A need is estimated from the file's header, its context and its slots, and corrected by what runners of the same file
were seen to take. Nothing is started or ended here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.engine.catalog import SPARE
from services.engine.machine import available_memory, in_words
from services.errors import NoRoom, Unavailable
from services.wire import RunnerSpec

WORST, BEST = 4.0, 0.5              # bounds of a correction: a figure beyond them was measured at a bad moment
CONTEXTS = tuple(1 << power for power in range(24, 8, -1))          # tokens, one of which is offered instead
Needs = Callable[[int], int]        # tokens of context -> bytes


@dataclass(frozen=True)
class Tenant:
    """A loaded model, as one sees it who looks for room. `bytes` are of all its replicas."""

    spec: RunnerSpec
    bytes: int
    users: int
    used_at: float
    pinned: bool                    # selected, or kept for ever
    idle: bool
    ending: bool                    # its room is free as soon as its process is gone

    @property
    def name(self) -> str:
        return os.path.basename(self.spec.model)


@dataclass(frozen=True)
class Want:
    """A runner that looks for room."""

    spec: RunnerSpec
    estimate: Needs
    factor: float = 1.0             # what was measured of such runners, as a part of their estimates

    @property
    def name(self) -> str:
        return os.path.basename(self.spec.model)

    @property
    def bytes(self) -> int:
        return self.at(self.spec.n_ctx)

    def at(self, n_ctx: int) -> int:
        return round(self.estimate(n_ctx) * self.factor)


class Room:
    """`places`: models at once. `budget`: bytes, 0 for what the machine has. `needs(spec)` reads a model file's header
    and raises what is wrong with it; without it every model needs nothing."""

    def __init__(self, places: int, budget: int, needs: Callable[[RunnerSpec], Needs] | None = None) -> None:
        self.places = places
        self._budget = budget
        self._needs = needs
        self._seen: dict[str, float] = {}       # model file -> the most that was measured, as a part of its estimate

    def want(self, spec: RunnerSpec) -> Want:
        """What a runner of `spec` will take, as far as is known."""
        estimate = self._needs(spec) if self._needs else lambda n_ctx: 0
        return Want(spec, estimate, min(WORST, max(BEST, self._seen.get(spec.model, 1.0))))

    def learn(self, want: Want, measured: int) -> None:
        """What came of `want` takes `measured` bytes, without what it keeps of sessions that wait."""
        if estimate := want.estimate(want.spec.n_ctx):
            self._seen[want.spec.model] = max(self._seen.get(want.spec.model, 0.0), measured / estimate)

    def house(self, tenants: Sequence[Tenant], held: int, own: int) -> House:
        """`tenants` beside the model that wants in, which holds `held` bytes already, in other replicas. `own`: what
        only the end of a runner gives back, of all that are loaded."""
        budget = self._budget
        if not budget:
            free = available_memory()
            if free is None:
                return House(tenants, self.places, None)
            budget = round((free + own) * (1 - SPARE))
        return House(tenants, self.places, budget - held)


@dataclass(frozen=True)
class House:
    """What is loaded, and `budget` bytes and `places` for it and for one more. None: nobody knows the machine's memory.

    `beside`, here and there: the newcomer is selected, or is to be, so it may take one place more than there are.
    """

    tenants: Sequence[Tenant]
    places: int
    budget: int | None

    def fits(self, want: Want, beside: bool = False) -> bool:
        places = self.places + (beside and not any(tenant.ending for tenant in self.tenants))
        return len(self.tenants) < places and self._short(want, self.tenants) <= 0

    def victim(self, want: Want, beside: bool = False) -> Tenant | None:
        """Who is to go next for one that does not fit: the idle one that was used least recently.

        None: wait, for one that is ending or in use. Raises `NoRoom` when waiting would not help.
        """
        staying = [tenant for tenant in self.tenants if tenant.pinned and not tenant.ending]
        if self._short(want, staying) > 0:
            raise self._too_big(want, staying)
        if len(staying) >= self.places + beside:
            raise NoRoom(f"{want.name} finds no place beside {_shown(staying)}: MAX_LOADED={self.places} models may be "
                         "loaded at once; raise it, or select another profile, or end keep_loaded",
                         needed=want.bytes, budget=self.budget, loaded=_told(staying), n_ctx=None)
        if any(tenant.ending for tenant in self.tenants):
            return None
        return min((tenant for tenant in self.tenants if tenant.idle and not tenant.pinned),
                   key=lambda tenant: tenant.used_at, default=None)

    def later(self, want: Want) -> Unavailable:
        """Those that could go did not become idle in time."""
        return Unavailable(f"{want.name} has to wait until there is room beside {_shown(self.tenants)} (MEMORY_BUDGET, "
                           f"MAX_LOADED={self.places}): ask again later", code="models_in_use")

    def _short(self, want: Want, tenants: Sequence[Tenant]) -> int:
        """Bytes that are missing beside `tenants`; 0 or less: it fits."""
        return 0 if self.budget is None else sum(tenant.bytes for tenant in tenants) + want.bytes - self.budget

    def _too_big(self, want: Want, staying: Sequence[Tenant]) -> NoRoom:
        assert self.budget is not None
        room = self.budget - sum(tenant.bytes for tenant in staying)
        fits = next((n for n in CONTEXTS if n < want.spec.n_ctx and want.at(n) <= room), None)
        advice = [f"it fits with n_ctx {fits}"] if fits else []
        advice += ["it would fit if those went: select another profile, or end keep_loaded"] \
            if staying and want.bytes <= self.budget else []
        left = f"{in_words(max(0, room))} are left beside {_shown(staying)}" if staying else "and that is not enough"
        return NoRoom(f"{want.name} needs {in_words(want.bytes)} for {want.spec.parallel} x {want.spec.n_ctx} tokens; "
                      f"models may take {in_words(max(0, self.budget))} (MEMORY_BUDGET), {left}: "
                      f"{'; '.join(advice) or 'take a smaller model'}",
                      needed=want.bytes, budget=self.budget, loaded=_told(staying), n_ctx=fits)


def _told(tenants: Sequence[Tenant]) -> list[dict[str, object]]:
    return [{"model": tenant.name, "memory_bytes": tenant.bytes, "users": tenant.users} for tenant in tenants]


def _shown(tenants: Sequence[Tenant]) -> str:
    return ", ".join(f"{tenant.name} ({in_words(tenant.bytes)}, {tenant.users} using it)" for tenant in tenants)
