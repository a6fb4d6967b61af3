"""Which addresses may be connected to: an own table, since neither `is_private` nor `is_global` is one (E7).

The table follows IANA's registries of special-purpose addresses. What the operator allows (FETCH_ALLOW) passes it, and
what the operator denies (FETCH_DENY) is not fetched whatever it is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_DENIED = {
    "0.0.0.0/8": "this machine", "10.0.0.0/8": "private", "100.64.0.0/10": "of a provider's own network",
    "127.0.0.0/8": "this machine", "168.63.129.16/32": "a cloud's own", "169.254.0.0/16": "link-local",
    "172.16.0.0/12": "private", "192.0.0.0/24": "reserved", "192.0.2.0/24": "reserved for examples",
    "192.31.196.0/24": "reserved", "192.52.193.0/24": "reserved", "192.88.99.0/24": "of a 6to4 relay",
    "192.168.0.0/16": "private", "192.175.48.0/24": "reserved", "198.18.0.0/15": "reserved for measuring",
    "198.51.100.0/24": "reserved for examples", "203.0.113.0/24": "reserved for examples",
    "224.0.0.0/4": "multicast", "240.0.0.0/4": "reserved",
    # Only 2000::/3 is given out. Below lie ::1, addresses that stand for IPv4's (mapped, NAT64) and discard-only ones;
    # above it private, link-local, site-local and multicast ones.
    "::/3": "this machine, reserved, or stands for an IPv4 address", "2001::/23": "reserved (Teredo among others)",
    "2001:db8::/32": "reserved for examples", "2002::/16": "stands for an IPv4 address (6to4)",
    "2620:4f:8000::/48": "reserved", "3fff::/20": "reserved for examples", "4000::/2": "reserved",
    "8000::/1": "private, link-local, multicast or reserved",
}
_TABLE = [(ipaddress.ip_network(text), what) for text, what in _DENIED.items()]


def denied(address: Address) -> str | None:
    """What kind of address `address` is, where it is one that nothing is fetched from; else None."""
    return next((what for network, what in _TABLE if address.version == network.version and address in network), None)


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
