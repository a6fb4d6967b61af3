"""Encryption at rest: one AES-256-GCM data key per owner, each wrapped by a key derived from `DATA_KEY`.

`data_keys.json`: `{"version": 1, "salt", "check", "keys": {owner: wrapped data key}}`, all base64. Without it what is
encrypted is lost, so it is never made anew where encrypted sessions exist. `check` tells a wrong `DATA_KEY` at once.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import threading
from pathlib import Path
from typing import Any, Protocol

from services.errors import ConfigError, Unavailable
from services.store import disk

VERSION = 1
FILE = "data_keys.json"
_NONCE = 12


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _box(key: bytes, data: bytes, context: bytes) -> str:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    nonce = os.urandom(_NONCE)
    return _b64(nonce + AESGCM(key).encrypt(nonce, data, context))


def _unbox(key: bytes, box: str, context: bytes) -> bytes:
    """ValueError when `box` was not made with this key and context."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    try:
        raw = base64.b64decode(box, validate=True)
        return AESGCM(key).decrypt(raw[:_NONCE], raw[_NONCE:], context)
    except (InvalidTag, binascii.Error, ValueError):
        raise ValueError("wrong key, or changed or moved") from None


def _wrapping_key(data_key: str, salt: bytes) -> bytes:
    return _derived(data_key, salt, b"parley data keys v1")


def _derived(data_key: str, salt: bytes, purpose: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=purpose).derive(data_key.encode())


class Seals(Protocol):
    """What of a cipher stores need."""

    def seal(self, owner: str, context: str, data: bytes) -> str: ...
    def unseal(self, owner: str, context: str, box: str) -> bytes: ...


class Cipher:
    """Seals and opens texts of owners. Shared by threads; other processes may add keys to the file meanwhile."""

    def __init__(self, path: Path, wrapping: bytes) -> None:
        self._path = path
        self._wrapping = wrapping
        self._keys: dict[str, bytes] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(cls, data_dir: Path, data_key: str) -> Cipher:
        """The cipher of a data folder; its key file is made when there is none. ConfigError for a wrong DATA_KEY."""
        if not data_dir.is_dir():
            disk.make_dirs(data_dir)
        path = data_dir / FILE
        with disk.locked(path):
            try:
                stored = _load(path)
            except FileNotFoundError:
                stored = _fresh(path, data_key)
        return cls(path, _checked(path, stored, data_key))

    def seal(self, owner: str, context: str, data: bytes) -> str:
        """`data` as base64 that only opens for the same owner and context."""
        return _box(self._key(owner, make=True), data, context.encode())

    def unseal(self, owner: str, context: str, box: str) -> bytes:
        """ValueError when `box` was changed, or sealed for another owner or context."""
        return _unbox(self._key(owner, make=False), box, context.encode())

    def _key(self, owner: str, make: bool) -> bytes:
        with self._lock:
            if owner not in self._keys:
                self._keys[owner] = self._fetch(owner, make)
            return self._keys[owner]

    def _fetch(self, owner: str, make: bool) -> bytes:
        try:
            with disk.locked(self._path):
                stored = _load(self._path)
                if owner not in stored["keys"]:
                    if not make:
                        raise Unavailable(f"{FILE} has no key for owner {owner}: restore it from a backup",
                                          code="store_failed")
                    stored["keys"][owner] = _box(self._wrapping, os.urandom(32), owner.encode())
                    disk.write_atomic(self._path, _dump(stored))
        except (FileNotFoundError, TimeoutError, ConfigError) as error:
            raise Unavailable(f"{FILE} is gone, damaged or in use: restore it from a backup",
                              code="store_failed") from error
        try:
            return _unbox(self._wrapping, stored["keys"][owner], owner.encode())
        except ValueError:
            raise Unavailable(f"the key of owner {owner} in {FILE} does not open: restore the file from a backup",
                              code="store_failed") from None


class SharedCipher:
    """For stores that several machines share, which have no key file in common: an owner's key comes of `DATA_KEY`
    alone. Shared by threads."""

    def __init__(self, data_key: str) -> None:
        self._secret = _derived(data_key, b"", b"parley shared stores v1")

    def seal(self, owner: str, context: str, data: bytes) -> str:
        return _box(self._key(owner), data, context.encode())

    def unseal(self, owner: str, context: str, box: str) -> bytes:
        """ValueError when `box` was changed, or sealed for another owner, context or `DATA_KEY`."""
        return _unbox(self._key(owner), box, context.encode())

    def _key(self, owner: str) -> bytes:
        return _derived(self._secret.hex(), b"", owner.encode())


def kv_key(data_dir: Path, data_key: str) -> bytes:
    """The 32 bytes that seal a data folder's snapshots of computed state: all that a runner learns of `data_key`.

    The folder's sessions were opened before. ConfigError for a wrong DATA_KEY or a key file that is gone.
    """
    path = data_dir / FILE
    try:
        stored = _load(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing: restore it from a backup, or start the server again") from None
    _checked(path, stored, data_key)
    return _derived(data_key, base64.b64decode(stored["salt"]), b"parley kv snapshots v1")


def check(path: Path, data_key: str) -> None:
    """ConfigError unless `data_key` opens the key file `path`, which is there. Changes nothing, takes no lock."""
    _checked(path, _load(path), data_key)


def _checked(path: Path, stored: dict[str, Any], data_key: str) -> bytes:
    """The wrapping key. ConfigError for a wrong DATA_KEY."""
    wrapping = _wrapping_key(data_key, base64.b64decode(stored["salt"]))
    try:
        _unbox(wrapping, stored["check"], b"check")
    except ValueError:
        raise ConfigError(f"DATA_KEY is not the one that {path} was made with: set the DATA_KEY used before "
                          "(sessions are encrypted with it and cannot be read without it)") from None
    return wrapping


def _fresh(path: Path, data_key: str) -> dict[str, Any]:
    salt = os.urandom(16)
    stored = {"version": VERSION, "salt": _b64(salt), "keys": {},
              "check": _box(_wrapping_key(data_key, salt), b"parley", b"check")}
    disk.write_atomic(path, _dump(stored))
    return stored


def _dump(stored: dict[str, Any]) -> bytes:
    return json.dumps(stored, indent=1).encode() + b"\n"


def _load(path: Path) -> dict[str, Any]:
    """The key file. FileNotFoundError; ConfigError for one that is damaged or newer than this program."""
    raw = disk.read_bytes(path)
    try:
        stored = json.loads(raw)
        version, texts = stored["version"], [stored["salt"], stored["check"], *stored["keys"].values()]
        base64.b64decode(stored["salt"], validate=True)
        sound = isinstance(version, int) and all(isinstance(text, str) for text in texts)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        sound, version = False, 0
    if not sound:
        raise ConfigError(f"{path} is damaged: restore it from a backup (sessions cannot be decrypted without it)")
    if version > VERSION:
        raise ConfigError(f"{path} was written by a newer Parley (version {version}, this one knows {VERSION}): "
                          "install that one again")
    return stored
