"""Who may give which rights to a new key: nobody more than they have themselves (row K5)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from auth.records import DEFAULT_SCOPES, SCOPES, Key
from services.errors import BadRequest, Forbidden

LONGEST = 100 * 365 * 86400         # seconds a key may live when it has an end at all
LATER = ("tokens_per_minute", "token_budget")


@dataclass(frozen=True)
class Wish:
    """What a new key shall be, as asked for. None: no limit, all profiles, never."""

    name: str = ""
    scopes: list[str] | tuple[str, ...] = DEFAULT_SCOPES
    profiles: list[str] | tuple[str, ...] | None = None
    expires_in: float | None = None             # seconds
    requests_per_minute: int | None = None
    max_parallel: int | None = None
    weight: float | None = None                 # share of a busy model beside other keys; none: 1
    tokens_per_minute: Any = None               # these two are refused: a limit must not be taken and then not hold
    token_budget: Any = None


def check(wish: Wish) -> None:
    """`BadRequest` naming the field that cannot be."""
    for field in LATER:
        if getattr(wish, field) is not None:
            raise BadRequest(f"{field} is not supported by this version; leave it out", code="not_supported",
                             param=field)
    if not isinstance(wish.name, str) or len(wish.name) > 80 or not wish.name.isprintable():
        raise BadRequest("name: expected at most 80 printable characters", param="name")
    _check_scopes(wish.scopes)
    _check_profiles(wish.profiles)
    _check_number("expires_in", wish.expires_in, 1, LONGEST, (int, float))
    _check_number("requests_per_minute", wish.requests_per_minute, 1, 1_000_000, (int,))
    _check_number("max_parallel", wish.max_parallel, 1, 100_000, (int,))
    _check_number("weight", wish.weight, 0.1, 100, (int, float))


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
    left = None if key.expires_at is None else key.ends() - now
    same = Wish(scopes=key.scopes, profiles=key.profiles, expires_in=left,
                requests_per_minute=key.requests_per_minute, max_parallel=key.max_parallel, weight=key.weight)
    if within(same, by, now) != same:
        raise Forbidden(f"key {key.id} has rights or a life beyond this key's own", code="beyond_own_rights")


def _at_most(field: str, asked: Any, own: float | None) -> Any:
    if own is None or own == math.inf:
        return asked
    if asked is not None and asked > own:
        raise Forbidden(f"{field}: this key may grant at most its own {own:g}", code="beyond_own_rights", param=field)
    return own if asked is None else asked

