"""Where a download may go: to the host that the operator named, and from there by redirects to public addresses only.

A hub (or whoever can answer for it) must not be able to send this machine to its own network, nor to get its token
sent elsewhere. Every hop is checked before the request, and the connected address again after it.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.request import getproxies, proxy_bypass

import httpx

from services.engine.networks import CARRIER, HERE, PRIVATE, Address, denied, translated
from services.errors import BadRequest, Forbidden, Unavailable

_NEAR = (HERE, PRIVATE, CARRIER)        # where a hub that is no public one may lead to


def addresses(host: str) -> list[Address]:
    """All addresses of `host`. `Unavailable` when it has none, which mostly means: no network."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"cannot find the host {host} ({getattr(error, 'strerror', None) or error})") from None
    return [ipaddress.ip_address(str(entry[4][0]).split("%")[0]) for entry in found]


def parse(url: str) -> httpx.URL:
    """An absolute http or https URL with a host and without a user name in it; `BadRequest` otherwise."""
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise BadRequest(f"{url[:200]!r} is no URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.userinfo:
        raise BadRequest(f"{url[:200]!r} cannot be used: expected an http or https URL without a user name in it")
    return parsed


class Guard:
    """Checks each hop of requests that begin at `home`, the URL that the operator gave."""

    def __init__(self, home: str) -> None:
        self.home = parse(home)
        self.public = self._proxied(self.home) or not any(map(_kind, addresses(self.home.host)))

    def is_home(self, url: httpx.URL) -> bool:
        """Same scheme, host and port: only then may the token go along."""
        return _origin(url) == _origin(self.home)

    def check(self, url: httpx.URL) -> None:
        """`Forbidden` for a hop that is not to be taken."""
        if self.is_home(url):
            return
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            raise Forbidden(f"{self.home.host} redirects to {_shown(url)}: only http and https are followed")
        if self.home.scheme == "https" and url.scheme == "http":
            raise Forbidden(f"{self.home.host} redirects from https to {_shown(url)}: not followed, since anybody on "
                            "the way could change the file")
        for address in self._known_addresses(url):
            self._check_address(url, address)

    def check_peer(self, url: httpx.URL, response: httpx.Response) -> None:
        """The same for the address that was connected to, in case the name meant another one meanwhile."""
        stream = response.extensions.get("network_stream")
        try:
            peer = stream.get_extra_info("server_addr") if stream is not None else None
        except OSError as error:
            raise httpx.ReadError(f"the connection was lost: {error}") from None
        if peer and not self.is_home(url) and not self._proxied(url):
            self._check_address(url, ipaddress.ip_address(str(peer[0]).split("%")[0]))

    def _check_address(self, url: httpx.URL, address: Address) -> None:
        kind = _kind(address)
        if kind is not None and (self.public or kind not in _NEAR):
            raise Forbidden(f"{self.home.host} redirects to {_shown(url)}, whose address {address} is no public one "
                            f"({kind}): not followed")

    def _known_addresses(self, url: httpx.URL) -> list[Address]:
        """A proxy looks names up by itself: then only an address that is written out is known here."""
        if not self._proxied(url):
            return addresses(url.host)
        try:
            return [ipaddress.ip_address(url.host)]
        except ValueError:
            return []

    @staticmethod
    def _proxied(url: httpx.URL) -> bool:
        proxies = getproxies()
        return (url.scheme in proxies or "all" in proxies) and not proxy_bypass(url.host)


def _kind(address: Address) -> str | None:
    return denied(translated(address))


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host.lower(), url.port or {"http": 80, "https": 443}.get(url.scheme)


def _shown(url: httpx.URL) -> str:
    """Without path and query, which may hold a signature."""
    return f"{url.scheme}://{url.host}" + (f":{url.port}" if url.port else "")
