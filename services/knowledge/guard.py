"""Which URLs may be asked for: their ports, and every address that their host has, are checked before a connection."""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from services.engine.networks import Address, Network, denied
from services.errors import BadRequest, FetchFailed
from services.knowledge.urls import PORTS, Url
from services.settings import Settings

Resolve = Callable[[str, float], Sequence[str]]     # host and seconds -> its addresses; OSError when it has none


@dataclass(frozen=True)
class Places:
    """Hosts and networks that an operator named: `wiki.example`, `*.example` (all below it), `10.1.0.0/16`, `::1`."""

    hosts: frozenset[str]
    networks: tuple[Network, ...]

    @classmethod
    def of(cls, entries: Iterable[str]) -> Places:
        hosts, networks = set(), []
        for entry in entries:
            try:
                networks.append(ipaddress.ip_network(entry))
            except ValueError:
                hosts.add(entry.lower())
        return cls(frozenset(hosts), tuple(networks))

    def has_host(self, host: str) -> bool:
        labels = host.split(".")
        above = {"*." + ".".join(labels[at:]) for at in range(1, len(labels))}
        return host in self.hosts or not above.isdisjoint(self.hosts)

    def has_address(self, address: Address) -> bool:
        return any(address.version == network.version and address in network for network in self.networks)


class Guard:
    """What the operator allows (FETCH_ALLOW) may be private, what the operator denies (FETCH_DENY) is not fetched
    whatever it is."""

    def __init__(self, settings: Settings, resolve: Resolve) -> None:
        self._allowed, self._denied = Places.of(settings.fetch_allow), Places.of(settings.fetch_deny)
        self._ports = {*PORTS.values(), *settings.fetch_ports}
        self._resolve = resolve

    def addresses(self, url: Url, until: float) -> list[Address]:
        """Where `url` may be connected to: all of its host's addresses, or `BadRequest` (`url_blocked`) if any of them
        is none to be asked (row R7). They are resolved once; a connection is made to nothing else."""
        self.check(url)
        if url.address:
            return [url.address]
        found = self._found(url, until)
        for address in found:
            self._check(url, address)
        return found

    def check(self, url: Url) -> None:
        """The part of it that needs no name to be resolved."""
        if url.port not in self._ports:
            _blocked(url, f"port {url.port} is not one of {', '.join(map(str, sorted(self._ports)))} (FETCH_PORTS)")
        if self._denied.has_host(url.host):
            _blocked(url, "this server's operator has excluded the host")
        if url.address:
            self._check(url, url.address)

    def _check(self, url: Url, address: Address) -> None:
        if self._denied.has_address(address):
            _blocked(url, "this server's operator has excluded its address")
        if self._allowed.has_host(url.host) or self._allowed.has_address(address):
            return
        if (what := denied(address)) is not None:
            _blocked(url, f"its address is {what}, and only public ones are asked (FETCH_ALLOW may name others)")

    def _found(self, url: Url, until: float) -> list[Address]:
        try:
            texts = self._resolve(url.host, max(until - time.monotonic(), 0.0))
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise FetchFailed(f"cannot find the host {url.host} ({why})", param="url") from None
        addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in dict.fromkeys(texts)]
        if not addresses:
            raise FetchFailed(f"the host {url.host} has no address", param="url")
        return addresses


def resolve(host: str, seconds: float) -> list[str]:
    """The addresses of `host` as the system knows them. Raises OSError, also after `seconds`: the system's own wait
    cannot be cut short, so it goes on in a thread that nobody waits for."""
    answers: queue.SimpleQueue[list[str] | OSError | UnicodeError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put([str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)])
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=ask, name=f"resolve {host[:60]}", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError("no answer in time") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _blocked(url: Url, why: str) -> NoReturn:
    raise BadRequest(f"{url.origin} is not fetched: {why}", code="url_blocked", param="url")
