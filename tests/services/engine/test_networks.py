"""The one table of addresses that are not public, and what a download's guard makes of it."""

from __future__ import annotations

import ipaddress

import pytest

from services.engine import guard
from services.engine.guard import Guard
from services.engine.networks import denied, translated
from services.errors import Forbidden

PUBLIC = ["8.8.8.8", "1.1.1.1", "100.63.255.255", "100.128.0.1", "172.32.0.1", "192.0.1.1", "223.255.255.255",
          "2606:4700::1111", "2a00:1450::1", "2001:4860:4860::8888", "2001:200::1", "3ffe::1"]
OWN = {"127.0.0.1": "this machine", "0.0.0.0": "this machine", "::1": "this machine", "10.1.2.3": "private",
       "172.31.0.1": "private", "192.168.0.9": "private", "fd00::9": "private",
       "100.64.0.1": "of a provider's own network"}
NEVER = ["169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fe80::1", "::ffff:169.254.169.254",
         "::ffff:10.0.0.1", "::127.0.0.1", "::", "64:ff9b::a9fe:a9fe", "64:ff9b:1::7f00:1", "2002:a9fe:a9fe::1",
         "fec0::1", "ff02::1", "224.0.0.1", "240.0.0.1", "192.0.0.192", "2001:db8::1", "4000::1"]


def test_what_is_public():
    assert [text for text in PUBLIC if denied(ipaddress.ip_address(text))] == []
    assert {text: denied(ipaddress.ip_address(text)) for text in OWN} == OWN
    assert [text for text in NEVER if not denied(ipaddress.ip_address(text))] == []


def test_what_a_machine_without_ipv4_is_told_stands_for_it():
    assert str(translated(ipaddress.ip_address("64:ff9b::808:808"))) == "8.8.8.8"
    for text in ("8.8.8.8", "64:ff9b:1::1", "::1"):
        assert str(translated(ipaddress.ip_address(text))) == text


@pytest.mark.parametrize("home", ["93.184.216.34", "10.0.0.5", "127.0.0.1"])
def test_a_hub_leads_to_public_addresses_and_one_at_home_to_its_neighbours(home, monkeypatch):
    monkeypatch.setattr(guard, "getproxies", dict)
    watch = Guard(f"http://{home}:8000")

    def follows(text):
        monkeypatch.setattr(guard, "addresses", lambda host: [ipaddress.ip_address(text)])
        try:
            watch.check(guard.parse("http://cdn.example/x"))
        except Forbidden as error:
            assert str(ipaddress.ip_address(text)) in error.message
            return False
        return True
    assert all(follows(text) for text in [*PUBLIC, "64:ff9b::808:808"])
    assert [text for text in OWN if follows(text)] == ([] if home == "93.184.216.34" else list(OWN))
    assert [text for text in NEVER if follows(text)] == []
