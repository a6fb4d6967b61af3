"""Why a request may not begin now, by the limits of its key: what the client is told, and when to try again."""

from __future__ import annotations

from services import wire
from services.errors import QuotaSpent, TooManyRequests

NEVER = 86400.0                 # seconds after which to try again where a budget is spent for good


def no_place(most: int) -> wire.Failed:
    return _refused("max_parallel", most, 1.0, f"this key may have {most} answers at the same time (max_parallel); "
                    "wait until one has ended")


def no_request(most: int, wait: float) -> wire.Failed:
    """`wait`: seconds until one is allowed."""
    return _refused("requests_per_minute", most, max(wait, 0.1), f"this key may make {most} requests a minute "
                    f"(requests_per_minute); try again in {wait:.0f} s")


def no_tokens(most: int, wait: float) -> wire.Failed:
    return _refused("tokens_per_minute", most, wait, f"this key has used the {most} tokens that it may in a minute "
                    f"(tokens_per_minute); try again in {wait:.0f} s")


def no_budget(budget: wire.TokenBudget, left: float | None) -> wire.Failed:
    """`left`: seconds until it is given anew, None for never."""
    period = "in all" if left is None else f"a {budget.per}"
    when = "ask for a key with more" if left is None else f"they are given anew in {left:.0f} s"
    return _refused("token_budget", budget.tokens, NEVER if left is None else left, f"this key has used the "
                    f"{budget.tokens} tokens that it may {period} (token_budget); {when}", code=QuotaSpent.code)


def _refused(limit: str, value: int, retry_after: float, message: str,
             code: str = TooManyRequests.code) -> wire.Failed:
    return wire.Failed(code=code, message=message, retry_after=retry_after,
                       details={"limit": limit, "value": value})
