"""What a start does about encryption: finds the right key or refuses, and encrypts sessions that are still plain."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from services.errors import ConfigError
from services.store import crypto, disk, lines
from services.store.files import FileStore
from services.store.listing import INDEX, OLD, SUFFIX, remove

log = logging.getLogger("parley.store")
_BOXED = re.compile(rb'\{"n":0,"v":\d+,"box":')


def open_cipher(data_dir: Path, data_key: str | None, make: bool = True) -> crypto.Cipher | None:
    """The cipher of a data folder, None for a plain one without DATA_KEY. ConfigError when key and folder differ.

    `make`: begin to encrypt a folder that was plain so far, else that is a ConfigError, too.
    """
    path = data_dir / crypto.FILE
    _check_files(data_dir, data_key)
    if data_key is None:
        return None
    if not make and not path.exists():
        raise ConfigError(f"DATA_KEY is set, but {data_dir} is not encrypted yet: start the server once, which does it")
    return crypto.Cipher.open(data_dir, data_key)


def check_key(data_dir: Path, data_key: str | None) -> None:
    """ConfigError where a start would refuse the key. Changes nothing."""
    _check_files(data_dir, data_key)
    if data_key is not None and (data_dir / crypto.FILE).exists():
        crypto.check(data_dir / crypto.FILE, data_key)


def _check_files(data_dir: Path, data_key: str | None) -> None:
    path = data_dir / crypto.FILE
    if data_key is None and path.exists():
        raise ConfigError(f"DATA_KEY is not set, but {path} says that the sessions are encrypted: set the DATA_KEY "
                          "used before (or remove that file, if no session is to be kept)")
    if not path.exists() and any(_is_boxed(file) for file in session_files(data_dir)):
        raise ConfigError(f"{path} is missing, but there are encrypted sessions: restore it from a backup "
                          "(they cannot be decrypted without it)")


def session_files(data_dir: Path) -> Iterator[Path]:
    """All session files, in no order; links are left out."""
    try:
        owners = [entry.path for entry in os.scandir(data_dir / "sessions") if entry.is_dir(follow_symlinks=False)]
    except FileNotFoundError:
        return
    for owner in owners:
        for entry in os.scandir(owner):
            if entry.name.endswith(SUFFIX) and entry.is_file(follow_symlinks=False):
                yield Path(entry.path)


def _is_boxed(path: Path) -> bool:
    with disk.told(path):
        fd = disk.open_file(path, os.O_RDONLY)
        try:
            return _BOXED.match(disk.read_fd(fd, path, 64)) is not None
        finally:
            os.close(fd)


def seal_plain(store: FileStore) -> int:
    """Encrypts the sessions that are plain, each by an atomic replacement; returns how many.

    Begun again after a kill, it goes on. A damaged one stays as it is. Nothing is done without a cipher.
    """
    if store.cipher is None:
        return 0
    plain = [path for path in session_files(store.data_dir) if not _is_boxed(path)]
    for folder in {path.parent for path in plain}:
        remove(folder, (INDEX, *OLD))
    with ThreadPoolExecutor(16) as pool:        # they wait for the disk, which takes many at once well
        sealed = sum(pool.map(partial(_seal, store), plain))
    if sealed:
        log.warning("%d sessions that were plain are encrypted now", sealed)
    _tell_leftovers(store.data_dir)
    return sealed


def _seal(store: FileStore, path: Path) -> bool:
    owner, sid = path.parent.name, path.name[:-len(SUFFIX)]
    with disk.told(path):
        fd = disk.open_file(path, os.O_RDWR)
    try:
        disk.lock_fd(fd, path, 10.0)
        with disk.told(path):
            content = disk.read_fd(fd, path)
        parsed = lines.parse(owner, sid, content, None)
        disk.failpoint("before_seal")
        disk.write_atomic(path, lines.encode_all(owner, sid, parsed.records, store.cipher))
        disk.failpoint("after_seal")
    except (lines.Damaged, lines.Newer) as error:
        log.warning("session %s/%s stays plain, since it cannot be read: %s", owner, sid, error)
        return False
    finally:
        os.close(fd)
    return True


def _tell_leftovers(data_dir: Path) -> None:
    """Names what else holds sessions in the clear; a person kept or asked for it, so a person removes it."""
    plain = [path.name for path in sorted(data_dir.glob("sessions.json.bak*"))]
    if any(not _is_boxed(path) for path in (data_dir / "quarantine").glob("*" + SUFFIX)):
        plain.append("quarantine/")
    if plain:
        log.warning("DATA_KEY is set, but these hold sessions in the clear; remove them when they are not needed: %s",
                    ", ".join(plain))
