"""Editing keys: who may change what of which key (row K5), and that it holds at once, everywhere."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auth import edits, grants
from auth.grants import Wish
from auth.keys import Keys
from auth.limits import Admissions
from auth.records import LOCAL_ID, SCOPES, Key, Record, key_of
from services import wire
from services.errors import BadRequest, Conflict, Forbidden, NotFound, TooManyRequests
from services.wire import TokenBudget
from tests.auth.test_limits import until

ROOT = Path(__file__).resolve().parents[2]
Open = Callable[..., Keys]
NOW = 1_800_000_000.0
LIMITS = {"profiles": ["a", "b"], "expires_in": 1000, "requests_per_minute": 10, "max_parallel": 2,
          "tokens_per_minute": 100, "token_budget": {"tokens": 50, "per": "day"}, "weight": 0.5}
MORE = {"profiles": ["c"], "expires_in": 1001, "requests_per_minute": 11, "max_parallel": 3, "tokens_per_minute": 101,
        "token_budget": {"tokens": 51, "per": "day"}, "weight": 0.6}
LESS = {"profiles": ["a"], "expires_in": 900, "requests_per_minute": 9, "max_parallel": 1, "tokens_per_minute": 99,
        "token_budget": {"tokens": 49, "per": "day"}, "weight": 0.4}


def who(keys: Keys, secret: str) -> Key | None:
    return keys.authenticate(secret.encode())


# ---------------------------------------------------------------- what changes

def test_what_is_given_changes_and_the_rest_stays(keys: Keys, open_keys: Open, clock: list[float],
                                                  caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    secret, made = keys.create(name="old", **LIMITS)
    other = open_keys()
    assert who(other, secret) == made
    edited = open_keys().edit(made.id, name="a secret name", requests_per_minute=60)
    assert edited == replace(made, name="a secret name", requests_per_minute=60)
    assert who(keys, secret) == who(other, secret) == edited
    assert f"key {made.id} was edited by the command line: name, requests_per_minute" in caplog.text
    assert "a secret name" not in caplog.text and secret not in caplog.text
    clock[0] += 500
    bare = keys.edit(made.id, scopes=["admin", "answer"], **dict.fromkeys(LIMITS))
    assert bare == replace(made, name="a secret name", scopes=("answer", "admin"), profiles=None, expires_at=None,
                           requests_per_minute=None, max_parallel=None, tokens_per_minute=None, token_budget=None,
                           weight=1.0)
    limited = keys.edit(made.id, **LIMITS)
    assert limited.ends() == clock[0] + 1000 and limited.token_budget == TokenBudget(tokens=50, per="day")
    clock[0] += 1000
    assert who(other, secret) is None


def test_another_process_edits(data: Path, keys: Keys) -> None:
    secret, key = keys.create()
    script = ("import sys; from pathlib import Path\n"
              "from auth.keys import Keys; from services.settings import Settings\n"
              "data = Path(sys.argv[1]); Keys(data, Settings(data_dir=data)).edit(sys.argv[2], max_parallel=3)")
    subprocess.run([sys.executable, "-c", script, str(data), key.id], cwd=ROOT, check=True, timeout=60)
    assert who(keys, secret) == replace(key, max_parallel=3)


@pytest.mark.parametrize(("changes", "param"), [
    ({}, None), ({"name": None}, "name"), ({"scopes": None}, "scopes"), ({"scopes": []}, "scopes"),
    ({"profiles": []}, "profiles"), ({"expires_in": 0}, "expires_in"), ({"weight": 0}, "weight"),
    ({"token_budget": {"tokens": 1}}, "token_budget"), ({"max_parallel": True}, "max_parallel")])
def test_what_cannot_be_is_named(changes: dict[str, Any], param: str | None, keys: Keys) -> None:
    _, key = keys.create(max_parallel=4)
    with pytest.raises(BadRequest) as caught:
        keys.edit(key.id, **changes)
    assert caught.value.param == param and keys.get(key.id) == key
    assert param or all(field in caught.value.message for field in grants.EDITABLE)


def test_what_has_ended_is_not_edited(keys: Keys, clock: list[float]) -> None:
    (_, gone), (_, over) = keys.create(), keys.create(expires_in=10)
    keys.revoke(gone.id)
    clock[0] += 10
    for key in (gone, over):
        with pytest.raises(Conflict, match="make a new one"):
            keys.edit(key.id, expires_in=None)
    with pytest.raises(Conflict, match="master"):
        keys.edit("0", name="x", by=keys.get("0"))
    with pytest.raises(NotFound):
        keys.edit("kNobody", name="x")


def test_limits_of_requests_without_a_key(open_keys: Open) -> None:
    keys = open_keys(bypass_authorization=True)
    keys.ensure_local()
    secret = keys.local_secret or ""
    with pytest.raises(Conflict, match="scopes cannot be edited"):
        keys.edit(LOCAL_ID, scopes=["answer", "keys"], max_parallel=1)
    with pytest.raises(Conflict, match="expires_in cannot be edited here"):
        keys.edit(LOCAL_ID, expires_in=60)
    keys.edit(LOCAL_ID, **{field: value for field, value in LIMITS.items() if field != "expires_in"})
    key = who(keys, secret)
    assert key is not None and key.scopes == ("answer",) and key.profiles == ("a", "b") and key.max_parallel == 2
    assert (key.requests_per_minute, key.tokens_per_minute, key.weight) == (10, 100, 0.5)
    open_keys(bypass_authorization=True).ensure_local()         # a start leaves them as they are
    assert who(keys, secret) == key


# ---------------------------------------------------------------- K5

@pytest.mark.parametrize("field", LIMITS)
def test_nobody_lifts_a_limit_of_their_own(field: str, keys: Keys) -> None:
    _, own = keys.create(scopes=["keys", "answer"], **LIMITS)
    _, child = keys.create(by=own, scopes=["answer"])
    for key in (own, child):
        for value in (MORE[field], None):
            with pytest.raises(Forbidden) as caught:
                keys.edit(key.id, by=own, **{field: value})
            assert caught.value.param == field and keys.get(key.id) == key
    for key in (child, own):        # a key may narrow itself, and then gives away no more than that
        assert keys.edit(key.id, by=own, **{field: LESS[field]}) != key
        with pytest.raises(Forbidden):
            keys.edit(key.id, by=keys.get(own.id), **{field: MORE[field]})
    with pytest.raises(Forbidden):
        keys.edit(own.id, by=own, **{field: LIMITS[field]})     # `own` is what it was before it narrowed itself
    assert keys.edit(own.id, by=keys.get("0"), **{field: None}).scopes == own.scopes


def test_nobody_gives_scopes_they_have_not_nor_touches_a_stronger_key(keys: Keys) -> None:
    _, own = keys.create(scopes=["keys", "answer"])
    _, child = keys.create(by=own, scopes=["answer"])
    _, admin = keys.create(scopes=["admin", "keys", "answer"])
    _, plain = keys.create()
    for key in (own, child):
        with pytest.raises(Forbidden) as caught:
            keys.edit(key.id, by=own, scopes=["answer", "admin"])
        assert caught.value.param == "scopes"
    for key, changes in ((admin, {"scopes": ["answer"]}), (admin, {"name": "x"}), (plain, {"scopes": ["answer"]})):
        with pytest.raises(Forbidden):
            keys.edit(key.id, by=own, **changes)
    with pytest.raises(Forbidden):
        keys.edit(plain.id, by=admin, scopes=["models:read"])
    assert keys.edit(child.id, by=own, scopes=["keys"], name="deputy").scopes == ("keys",)
    assert keys.edit(own.id, by=own, scopes=["answer"]).scopes == ("answer",)


PARTS: dict[str, st.SearchStrategy[Any]] = {
    "scopes": st.lists(st.sampled_from(SCOPES), min_size=1, unique=True), "name": st.sampled_from(["x", "y"]),
    "profiles": st.none() | st.lists(st.sampled_from("abc"), min_size=1, unique=True),
    "expires_in": st.none() | st.integers(1, 3), "requests_per_minute": st.none() | st.integers(1, 3),
    "max_parallel": st.none() | st.integers(1, 3), "tokens_per_minute": st.none() | st.integers(1, 3),
    "token_budget": st.none() | st.builds(lambda tokens, per: {"tokens": tokens, "per": per}, st.integers(1, 3),
                                          st.sampled_from(["day", "month"])),
    "weight": st.none() | st.sampled_from([0.5, 1, 2])}
TERMS = st.fixed_dictionaries({}, optional=PARTS)


def beyond(key: Key, by: Key) -> bool:
    """Whether `key` may anything that `by` may not."""
    def limits(one: Key) -> list[float]:
        return [one.requests_per_minute or math.inf, one.max_parallel or math.inf, one.tokens_per_minute or math.inf,
                one.weight, one.ends(), one.token_budget.tokens if one.token_budget else math.inf]
    budgets = key.token_budget, by.token_budget
    return (not {*key.scopes} <= {*by.scopes} or any(a > b for a, b in zip(limits(key), limits(by), strict=True))
            or (by.profiles is not None and not {*(key.profiles or ["any"])} <= {*by.profiles})
            or (budgets[0] is not None and budgets[1] is not None and budgets[0].per != budgets[1].per))


@settings(max_examples=300, deadline=None)
@given(granter=TERMS, target=TERMS, changes=TERMS, itself=st.booleans())
def test_an_edit_is_allowed_where_both_keys_could_have_been_made(granter: dict[str, Any], target: dict[str, Any],
                                                                changes: dict[str, Any], itself: bool) -> None:
    found: list[Record] = []
    by = key_of(edits.add(found, "one", Wish(**granter), NOW))
    key = by if itself else key_of(edits.add(found, "two", Wish(**target), NOW))
    before = [*found]
    free: list[Record] = [*found]
    after = key_of(edits.edit(free, key.id, changes, None, NOW))
    if beyond(key, by) or beyond(after, by):
        with pytest.raises(Forbidden):
            edits.edit(found, key.id, changes, by, NOW)
        assert found == before
    else:
        edits.edit(found, key.id, changes, by, NOW)
        assert found == free


# ---------------------------------------------------------------- what is being counted

def test_a_changed_rate_is_no_new_window(keys: Keys, admissions: Admissions) -> None:
    _, key = keys.create(requests_per_minute=3)
    for _ in range(3):
        admissions.admit(key)
    for rate in (3, 2, 1):
        key = keys.edit(key.id, requests_per_minute=rate)
        with pytest.raises(TooManyRequests, match=f"{rate} request"):
            admissions.admit(key)
    key = keys.edit(key.id, requests_per_minute=5)
    assert [admissions.admit(key).headers["RateLimit-Remaining"] for _ in range(2)] == ["1", "0"]
    with pytest.raises(TooManyRequests):
        admissions.admit(key)
    assert admissions.admit(keys.edit(key.id, requests_per_minute=None)).headers == {}


def test_a_changed_budget_counts_what_was_used(keys: Keys, admissions: Admissions) -> None:
    _, key = keys.create()
    with admissions.admit(key, place=True) as ticket:
        ticket.charge(wire.Charge(key="", prompt_tokens=4, completion_tokens=2))
    until(lambda: admissions.usage(key.id).completion_tokens == 2)
    for per in ("day", "month", "total"):
        for least, limit in ((6, {"token_budget": {"tokens": 6, "per": per}}), (6, {"tokens_per_minute": 6})):
            key = keys.edit(key.id, **limit)
            with pytest.raises(TooManyRequests, match=f"{least} tokens"):
                admissions.admit(key, place=True)
            key = keys.edit(key.id, token_budget={"tokens": 7, "per": per}, tokens_per_minute=7)
            admissions.admit(key, place=True).close()


def test_fewer_at_once_wait_for_those_that_run(keys: Keys, admissions: Admissions) -> None:
    _, key = keys.create()
    free, *tickets = [admissions.admit(key, place=True) for _ in range(3)]
    key = keys.edit(key.id, max_parallel=3)
    with pytest.raises(TooManyRequests):
        admissions.admit(key, place=True)
    free.close()
    tickets.append(admissions.admit(key, place=True))
    key = keys.edit(key.id, max_parallel=1)
    for ticket in tickets:
        with pytest.raises(TooManyRequests):
            admissions.admit(key, place=True)
        ticket.close()
    with admissions.admit(key, place=True), pytest.raises(TooManyRequests):
        admissions.admit(key, place=True)
    more = keys.edit(key.id, max_parallel=None)
    for _ in range(3):
        admissions.admit(more, place=True).close()
