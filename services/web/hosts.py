"""Which names this server answers to: a page elsewhere can give its own name this address (DNS rebinding)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from services.errors import Misdirected

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9_.-]{1,253})(?::[0-9]{1,5})?")


def check(host: str | None, allowed: Sequence[str], loopback: bool) -> None:
    """`Misdirected` where `host`, the header, is none of `allowed`: names, in lower case. Addresses and names without
    a dot, which nobody elsewhere can own, always are. Without `allowed` all are, but where only this machine can
    come (`loopback`)."""
    if "*" in allowed or not (allowed or loopback):
        return
    found = _HOST.fullmatch(host or "")
    name = found["name"].lower().rstrip(".") if found else ""
    if not name or not (name in allowed or _own(name)):
        raise Misdirected("this server does not go by the name in the header Host; ALLOWED_HOSTS on the server lists "
                          "the names it goes by, besides its addresses and localhost")


def _own(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return bool(re.search("[a-z]", name)) and ("." not in name or name.endswith(".localhost"))
    return True
