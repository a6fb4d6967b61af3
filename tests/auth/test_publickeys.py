"""Where public keys come from: a server that is there, slow, gone or odd, and a folder."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from auth import publickeys
from auth.publickeys import PublicKeys
from services.errors import Unauthorized, Unavailable
from services.settings import Settings
from tests.auth.key_server import KID, OTHER_KID, KeyServer, key_server, name_of, new_key, pem_of


@pytest.fixture(scope="module")
def key() -> Any:
    return new_key()


@pytest.fixture
def server(key: Any) -> Iterator[KeyServer]:
    with key_server() as running:
        running.put(KID, key)
        yield running


def opened(at: Any, **settings: Any) -> PublicKeys:
    return PublicKeys(Settings(**{"asap_keys": at, "asap_folder": "prod", "asap_audiences": ("a",), **settings}))


def test_a_key_is_asked_for_once_and_kept(server: KeyServer, key: Any) -> None:
    keys = opened(server.url)
    assert keys.get(KID).public_numbers() == key.public_key().public_numbers() and keys.get(KID)
    assert server.asked == [f"/prod/{name_of(KID)}"]


def test_all_who_ask_at_once_share_one_look_up(server: KeyServer) -> None:
    keys, found = opened(server.url), []
    server.hold.clear()
    threads = [threading.Thread(target=lambda: found.append(keys.get(KID))) for _ in range(8)]
    for thread in threads:
        thread.start()
    server.hold.set()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(server.asked) == 1


def test_no_more_than_a_few_wait(server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publickeys, "MOST_WAITING", 0)
    with pytest.raises(Unavailable):
        opened(server.url).get(KID)


def test_the_second_folder_has_what_the_first_has_not(server: KeyServer, key: Any) -> None:
    server.put(OTHER_KID, key, "old")
    keys = opened(server.url, asap_fallback="old")
    assert keys.get(OTHER_KID) and keys.get(KID)
    assert server.asked == [f"/{folder}/{name_of(kid)}" for folder, kid in
                            (("prod", OTHER_KID), ("old", OTHER_KID), ("prod", KID))]


@pytest.mark.parametrize("status", [403, 404, 410])
def test_that_there_is_no_key_is_kept_for_a_while(server: KeyServer, status: int,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    keys = opened(server.url)
    server.answer = (status, {}, b"no")
    for _ in range(3):
        with pytest.raises(Unauthorized, match=f"Failed to retrieve public key {KID}"):
            keys.get(KID)
    assert len(server.asked) == 1
    monkeypatch.setattr(publickeys, "ABSENT", 0.0)
    monkeypatch.setattr(publickeys.time, "monotonic", lambda: 1e12)
    server.answer = None
    assert keys.get(KID)


ODD = {"redirect": (302, {"Location": "/prod/" + name_of(KID)}, b""), "error": (500, {}, b"no"),
       "too many": (429, {}, b""), "empty": (200, {}, b""), "a page": (200, {}, b"<html>hello</html>"),
       "huge": (200, {}, b"x" * (publickeys.MOST_BYTES + 1)), "zipped": (200, {"Content-Encoding": "gzip"}, b"x" * 99)}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_server_is_503_and_what_was_there_goes_on(server: KeyServer, odd: str,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    keys = opened(server.url)
    monkeypatch.setattr(publickeys, "FRESH", 0.0)
    old = keys.get(KID)
    server.answer = ODD[odd]
    assert keys.get(KID) == old
    assert len(server.asked) == 2
    assert keys.get(KID) == old and len(server.asked) == 2      # it is left alone for a while
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            keys.get(OTHER_KID)
    assert caught.value.retry_after and len(server.asked) == 3


def test_a_server_that_is_gone(key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with key_server() as server:
        server.put(KID, key)
        keys = opened(server.url)
        monkeypatch.setattr(publickeys, "FRESH", 0.0)
        old = keys.get(KID)
    assert keys.get(KID) == old
    with pytest.raises(Unavailable):
        keys.get(OTHER_KID)


def test_a_slow_server_holds_nobody_for_long(server: KeyServer, key: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECONDS", "SHORT"):
        monkeypatch.setattr(publickeys, name, 0.2)
    monkeypatch.setattr(publickeys, "FRESH", 0.0)
    keys = opened(server.url)
    old = keys.get(KID)
    server.put(OTHER_KID, key)
    server.hold.clear()
    assert keys.get(KID) == old
    with pytest.raises(Unavailable):
        keys.get(OTHER_KID)


def test_a_key_that_was_taken_away_ends(server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publickeys, "FRESH", 0.0)
    keys = opened(server.url)
    assert keys.get(KID)
    server.files.clear()
    with pytest.raises(Unauthorized):
        keys.get(KID)


def test_the_cache_has_an_end(server: KeyServer, key: Any) -> None:
    kids = [f"kid {number}" for number in range(4)]
    for kid in kids:
        server.put(kid, key)
    keys = opened(server.url, asap_cached=2)
    for kid in [*kids, kids[3], kids[2], kids[0]]:
        keys.get(kid)
    assert len(server.asked) == 5 and len(keys._known) == 2


def wrong_keys() -> dict[str, bytes]:
    elliptic, own = ec.generate_private_key(ec.SECP256R1()), new_key(1024)
    private = own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return {"elliptic": pem_of(elliptic), "short": pem_of(own), "private": private}


def test_keys_that_are_none_of_ours_are_not_taken(server: KeyServer) -> None:
    for name, pem in wrong_keys().items():
        server.files[f"/prod/{name_of(name)}"] = pem
        with pytest.raises(Unavailable):
            opened(server.url).get(name)


def test_a_folder_of_this_machine(tmp_path: Path, key: Any) -> None:
    (tmp_path / "prod").mkdir()
    (tmp_path / "prod" / name_of(KID)).write_bytes(pem_of(key))
    keys = opened(tmp_path)
    assert keys.get(KID)
    with pytest.raises(Unauthorized):
        keys.get("../../" + KID)
    (tmp_path / "prod" / name_of("a folder")).mkdir()
    with pytest.raises(Unavailable):
        keys.get("a folder")
    if os.geteuid():
        (tmp_path / "prod").chmod(0)
        with pytest.raises(Unavailable):
            opened(tmp_path).get(KID)
