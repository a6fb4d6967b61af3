"""What the stores in SQLite files have in common: how a file is connected to, and what its failures mean."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from services.errors import ConfigError, ParleyError, StorageFull, Unavailable
from services.store import disk

WAIT = 10.0                 # seconds that a writer waits for another


def made(path: Path) -> None:
    """An empty file of mode 0600, where there is none. One that is there is opened by SQLite alone: to close it would
    free the locks that this process holds on it (sqlite.org/howtocorrupt.html, 2.2)."""
    if path.exists():
        return
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    with disk.told(fresh):
        os.close(disk.open_file(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        try:
            with suppress(FileExistsError):         # another process was faster
                os.link(fresh, path)
        finally:
            os.unlink(fresh)
        disk.fsync_dir(path.parent)


def connected(path: Path) -> sqlite3.Connection:
    """A connection to a file that is there, durable at each commit. sqlite3.Error."""
    db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=WAIT, isolation_level=None,
                         check_same_thread=False)
    db.execute("PRAGMA synchronous = FULL")
    return db


def upgrade(db: sqlite3.Connection, path: Path, schema: int, statements: Sequence[str]) -> None:
    """Bring a file that has none of our tables to `schema` by `statements`, in the transaction that `db` is in.
    ConfigError for a file of a newer Parley."""
    version, = db.execute("PRAGMA user_version").fetchone()
    if version > schema:
        raise ConfigError(f"{path} was written by a newer Parley (version {version}, this one knows {schema}): install "
                          "that one again")
    for statement in statements if version < schema else ():
        db.execute(statement)


def rewrite(db: sqlite3.Connection) -> None:
    """After sealing: else what was plain stays in pages that are free."""
    db.execute("VACUUM")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def failure(error: sqlite3.Error, path: Path) -> ParleyError | None:
    """What a client hears when the disk refuses; None when it is the file that is damaged."""
    why = f"{path.name}: {error}"
    if "full" in str(error):
        return StorageFull(f"the data folder cannot take more ({why}); free some space, nothing that was saved is lost")
    if "readonly" in str(error):
        return Unavailable(f"the data folder cannot be written ({why}); check its owner, mode and mount",
                           code="store_readonly")
    if isinstance(error, sqlite3.OperationalError):
        return Unavailable(f"the data folder does not work ({why})", code="store_failed")
    return None
