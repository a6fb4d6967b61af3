"""Who may give which rights to a key: nobody more than they have themselves (row K5)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

from auth.records import DEFAULT_SCOPES, SCOPES, Identity, Key, budget_shape
from services.errors import BadRequest, Forbidden
from services.wire import TokenBudget

LONGEST = 100 * 365 * 86400         # seconds a key may live when it has an end at all
MOST_TOKENS = 1 << 53
PERIODS = ("day", "month", "total")


@dataclass(frozen=True)
class Wish:
    """What a key shall be, as asked for. None: no limit, all profiles, never."""

    name: str = ""
    scopes: list[str] | tuple[str, ...] = DEFAULT_SCOPES
    profiles: list[str] | tuple[str, ...] | None = None
    expires_in: float | None = None             # seconds
    requests_per_minute: int | None = None
    max_parallel: int | None = None
    weight: float | None = None                 # share of a busy model beside other keys; none: 1
    tokens_per_minute: int | None = None
    token_budget: dict[str, Any] | None = None  # {"tokens", "per": "day" | "month" | "total"}
    identity: Identity | None = None            # whose tokens come in as the key

    @property
    def budget(self) -> TokenBudget | None:
        """`token_budget`, which was checked."""
        return TokenBudget(**self.token_budget) if self.token_budget else None


EDITABLE = tuple(field.name for field in fields(Wish) if field.name != "identity")


def check(wish: Wish) -> None:
    """`BadRequest` naming the field that cannot be."""
    if not isinstance(wish.name, str) or len(wish.name) > 80 or not wish.name.isprintable():
        raise BadRequest("name: expected at most 80 printable characters", param="name")
    _check_scopes(wish.scopes)
    _check_profiles(wish.profiles)
    _check_number("expires_in", wish.expires_in, 1, LONGEST, (int, float))
    _check_number("requests_per_minute", wish.requests_per_minute, 1, 1_000_000, (int,))
    _check_number("max_parallel", wish.max_parallel, 1, 100_000, (int,))
    _check_number("weight", wish.weight, 0.1, 100, (int, float))
    _check_number("tokens_per_minute", wish.tokens_per_minute, 1, MOST_TOKENS, (int,))
    _check_budget(wish.token_budget)
    check_identity(wish.identity)


def check_identity(identity: Identity | None) -> None:
    """`BadRequest` for names that no token can have."""
    if identity is None:
        return
    if not identity.kids or len({*identity.kids}) != len(identity.kids) or len(identity.kids) > 100:
        raise BadRequest("jwt_kid: expected 1 to 100 of them, none twice", param="jwt_kid")
    named = [("jwt_kid", kid) for kid in identity.kids] + [("jwt_iss", identity.iss or "-")]
    for field, name in named:
        if not 1 <= len(name) <= 200 or not name.isprintable():
            raise BadRequest(f"{field}: expected 1 to 200 printable characters", param=field)


def _check_budget(value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, dict) or set(value) != {"tokens", "per"} or value["per"] not in PERIODS:
        raise BadRequest(f'token_budget: expected {{"tokens": a number, "per": one of {", ".join(PERIODS)}}}',
                         param="token_budget")
    _check_number("token_budget.tokens", value["tokens"], 1, MOST_TOKENS, (int,))


def _check_scopes(scopes: Any) -> None:
    known = isinstance(scopes, (list, tuple)) and all(isinstance(scope, str) and scope in SCOPES for scope in scopes)
    if not known or not scopes:
        raise BadRequest(f"scopes: expected a list of one or more of {', '.join(SCOPES)}", param="scopes")


def _check_profiles(profiles: Any) -> None:
    if profiles is None:
        return
    names = isinstance(profiles, (list, tuple)) and all(isinstance(name, str) for name in profiles)
    if not names or not profiles or not all(1 <= len(name) <= 200 and name.isprintable() for name in profiles):
        raise BadRequest("profiles: expected a list of one or more profile names, or none at all for every profile",
                         param="profiles")


def _check_number(field: str, value: Any, low: float, high: float, types: tuple[type, ...]) -> None:
    if value is None:
        return
    if isinstance(value, bool) or type(value) not in types or not low <= value <= high:
        what = "a whole number" if types == (int,) else "a number"
        raise BadRequest(f"{field}: expected {what} from {low} to {high}", param=field)


def within(wish: Wish, by: Key | None, now: float) -> Wish:
    """`wish` as `by` may grant it. Limits that `by` has and `wish` leaves out pass on to the new key.

    `Forbidden` when `wish` goes beyond. `by` None is the command line, which like the master may grant all.
    """
    if by is None or by.is_master:
        return wish
    require_scopes(by, wish.scopes, "grant")
    if by.profiles is not None and not set(wish.profiles or by.profiles) <= set(by.profiles):
        raise Forbidden(f"this key may grant only its own profiles: {', '.join(by.profiles)}", param="profiles")
    left = by.ends() - now
    rate = _at_most("requests_per_minute", wish.requests_per_minute, by.requests_per_minute)
    return replace(wish, profiles=wish.profiles or by.profiles, requests_per_minute=rate,
                   tokens_per_minute=_at_most("tokens_per_minute", wish.tokens_per_minute, by.tokens_per_minute),
                   token_budget=_budget_at_most(wish, by),
                   expires_in=_at_most("expires_in", wish.expires_in, left),
                   max_parallel=_at_most("max_parallel", wish.max_parallel, by.max_parallel),
                   weight=_at_most("weight", wish.weight, by.weight))


def require_scopes(by: Key, scopes: Any, what: str) -> None:
    """`Forbidden` when `by` lacks one of `scopes`."""
    beyond = [scope for scope in scopes if scope not in by.scopes]
    if beyond:
        raise Forbidden(f"this key cannot {what} what it may not do itself: {', '.join(beyond)}",
                        code="beyond_own_rights", param="scopes")


def require_cover(by: Key | None, key: Key, now: float) -> None:
    """`Forbidden` unless `by` could have made `key` as it is: what allows to be handed a new secret of it."""
    if by is None or by.id == key.id:
        return
    same = _wish_for(key, now)
    if within(same, by, now) != same:
        raise Forbidden(f"key {key.id} has rights or a life beyond this key's own", code="beyond_own_rights")


def require_edit(by: Key | None, key: Key, after: Key, now: float) -> None:
    """`Forbidden` unless `by` could have made `key` both as it is and as it is `after` an edit.

    A key may do to itself what narrows it. Unlike a new key, an edited one is not given limits that nobody asked for:
    what `by` cannot grant without its own is refused.
    """
    require_cover(by, key, now)
    by = key if by is not None and by.id == key.id else by      # as it is now: another may have narrowed it
    wanted = _wish_for(after, now)
    granted = within(wanted, by, now)
    for field in EDITABLE:
        if getattr(granted, field) != getattr(wanted, field):
            raise Forbidden(f"{field}: this key has a limit there itself, so it cannot take one away; give one within "
                            "its own", code="beyond_own_rights", param=field)


def _wish_for(key: Key, now: float) -> Wish:
    """What would make a key like `key` now."""
    return Wish(name=key.name, scopes=key.scopes, profiles=key.profiles,
                expires_in=None if key.expires_at is None else key.ends() - now,
                requests_per_minute=key.requests_per_minute, max_parallel=key.max_parallel, weight=key.weight,
                tokens_per_minute=key.tokens_per_minute, token_budget=budget_shape(key.token_budget))


def _budget_at_most(wish: Wish, by: Key) -> dict[str, Any] | None:
    """A key with a budget gives away no more than that, and in the same periods."""
    own, asked = by.token_budget, wish.budget
    if own is None:
        return wish.token_budget
    if asked is not None and (asked.per != own.per or asked.tokens > own.tokens):
        raise Forbidden(f"token_budget: this key may grant at most its own {own.tokens} tokens per {own.per}",
                        code="beyond_own_rights", param="token_budget")
    return wish.token_budget or budget_shape(own)


def _at_most(field: str, asked: Any, own: float | None) -> Any:
    if own is None or own == math.inf:
        return asked
    if asked is not None and asked > own:
        raise Forbidden(f"{field}: this key may grant at most its own {own:g}", code="beyond_own_rights", param=field)
    return own if asked is None else asked

