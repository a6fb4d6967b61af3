"""The one parser of URLs to be fetched: what it takes is what is connected to, and what is in doubt is refused.

Rows R1 to R4 and R13 of the fault list, E6 and E7. No part of a URL is read again by another parser: the fetcher gets
the scheme, host, port and target from here, so nothing can mean one host to the check and another to the connection.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import quote, urljoin

from services.errors import BadRequest

LONGEST = 2048              # characters of a URL
PORTS = {"http": 80, "https": 443}
_ABSOLUTE = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<rest>.*)", re.DOTALL)
_AUTHORITY = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*)(?::(?P<port>[0-9]{1,5}))?")
_UNSEEN = re.compile(r"[\x00-\x20\x7f-\xa0\\\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff\ud800-\udfff]")
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_TARGET = "%/?:@!$&'()*+,;=~-._[]"


@dataclass(frozen=True)
class Url:
    """A URL taken apart. `host`: lower case, an address without brackets. `target`: path and query, ASCII."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def address(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The address that the host is, where it is no name."""
        return _address(self.host)

    @property
    def authority(self) -> str:
        """Host and port as the header Host has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"

    def __str__(self) -> str:
        return self.origin + self.target


def parse(text: str) -> Url:
    """`text` as a `Url`. Raises `BadRequest`: `bad_url` for what is no http(s) URL, `url_blocked` for hosts that are
    written so that programs differ on what they mean."""
    if len(text) > LONGEST:
        raise BadRequest(f"the URL has {len(text)} characters; expected at most {LONGEST}", code="bad_url", param="url")
    if _UNSEEN.search(text):
        _bad(text, "it has a backslash, a space or a character that cannot be seen; write them as %5C, %20, …")
    parts = _ABSOLUTE.fullmatch(text)
    if parts is None or parts["scheme"].lower() not in PORTS:
        _bad(text, "expected one that begins with http:// or https://")
    if "@" in parts["authority"]:
        _bad(text, "it has a user name in it; leave that away")
    found = _AUTHORITY.fullmatch(parts["authority"])
    if found is None:
        _bad(text, "expected a host, or a host and :port, after //")
    scheme = parts["scheme"].lower()
    port = int(found["port"] or PORTS[scheme])
    if not 0 < port < 65536:
        _bad(text, f"there is no port {port}")
    return Url(scheme, _host(text, found["host"].lower()), port, _target(text, parts["rest"]))


def join(base: Url, reference: str) -> Url:
    """Where `reference`, found at `base`, leads: a Location or a link. Raises `BadRequest` as `parse` does."""
    if len(reference) > LONGEST or _UNSEEN.search(reference):
        return parse(reference)
    try:
        return parse(urljoin(str(base), reference))
    except ValueError as error:
        _bad(reference, str(error))


def _host(text: str, host: str) -> str:
    if host.startswith("["):
        if (address := _address(host[1:-1])) is None or address.version != 6:
            _bad(text, "what is in brackets is no IPv6 address")
        return str(address)
    if not host or len(host) > 253:
        _bad(text, "expected a host of 1 to 253 characters")
    if host.endswith("."):
        _bad(text, "the host ends with a dot; leave that away")
    labels = host.split(".")
    if not all(_LABEL.fullmatch(label) for label in labels):
        _blocked(text, "the host has characters that no host has; write international names as xn--…")
    if _NUMBER.fullmatch(labels[-1]) and _address(host) is None:
        _blocked(text, "the host is a number that may be read as an address; write addresses as 192.0.2.1")
    return host


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host) if "%" not in host else None
    except ValueError:
        return None


def _target(text: str, rest: str) -> str:
    target = rest.partition("#")[0]
    if "%00" in target:
        _bad(text, "it has a zero byte (%00)")
    return quote(target if target.startswith("/") else "/" + target, safe=_TARGET)


def _bad(text: str, why: str) -> NoReturn:
    raise BadRequest(f"{text[:200]!a} is not a URL that can be fetched: {why}", code="bad_url", param="url")


def _blocked(text: str, why: str) -> NoReturn:
    raise BadRequest(f"{text[:200]!a} is not fetched: {why}", code="url_blocked", param="url")
