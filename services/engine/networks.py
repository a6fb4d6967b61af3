"""Which addresses are public: an own table, since neither `is_private` nor `is_global` is one (E7).

The table follows IANA's registries of special-purpose addresses. Downloads of models and the fetcher of pages ask it.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

HERE, PRIVATE, CARRIER, CLOUD = "this machine", "private", "of a provider's own network", "a cloud's own"
_DENIED = {                 # the first that fits says what it is
    "168.63.129.16/32": CLOUD, "100.100.100.200/32": CLOUD, "fd00:ec2::254/128": CLOUD,
    "0.0.0.0/8": HERE, "10.0.0.0/8": PRIVATE, "100.64.0.0/10": CARRIER, "127.0.0.0/8": HERE,
    "169.254.0.0/16": "link-local", "172.16.0.0/12": PRIVATE, "192.0.0.0/24": "reserved",
    "192.0.2.0/24": "reserved for examples", "192.31.196.0/24": "reserved", "192.52.193.0/24": "reserved",
    "192.88.99.0/24": "of a 6to4 relay", "192.168.0.0/16": PRIVATE, "192.175.48.0/24": "reserved",
    "198.18.0.0/15": "reserved for measuring", "198.51.100.0/24": "reserved for examples",
    "203.0.113.0/24": "reserved for examples", "224.0.0.0/4": "multicast", "240.0.0.0/4": "reserved",
    # Only 2000::/3 is given out. Below lie addresses that stand for IPv4's (mapped, NAT64) and discard-only ones;
    # above it link-local, site-local and multicast ones.
    "::1/128": HERE, "fc00::/7": PRIVATE,
    "::/3": "reserved, or stands for an IPv4 address", "2001::/23": "reserved (Teredo among others)",
    "2001:db8::/32": "reserved for examples", "2002::/16": "stands for an IPv4 address (6to4)",
    "2620:4f:8000::/48": "reserved", "3fff::/20": "reserved for examples", "4000::/2": "reserved",
    "8000::/1": "link-local, multicast or reserved",
}
_TABLE = [(ipaddress.ip_network(text), what) for text, what in _DENIED.items()]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def denied(address: Address) -> str | None:
    """What kind of address `address` is, where it is no public one; else None."""
    return next((what for network, what in _TABLE if address.version == network.version and address in network), None)


def translated(address: Address) -> Address:
    """The IPv4 address that a NAT64 one stands for (RFC 6052), which is all that an IPv6-only machine is told of a
    host with IPv4; any other one as it is."""
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address
