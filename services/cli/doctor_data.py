"""What `main.py doctor` says of the data folder. It looks and changes nothing; a start mends what it can."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.errors import ConfigError, ParleyError
from services.settings import Settings


@dataclass(frozen=True)
class Finding:
    """One line of the report. `state`: "ok", "note" (works, but look at it) or "broken"."""

    what: str
    state: str
    told: str
    mend: str | None = None


def data_folder(settings: Settings) -> Iterator[Finding]:
    folder = settings.data_dir
    if not folder.exists():
        yield Finding("data folder", "ok", f"{folder} will be made at the first start")
        return
    mode = stat.S_IMODE(folder.stat().st_mode)
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Finding("data folder", "broken", f"{folder} cannot be written by this user",
                      f"chown -R {os.getuid()} '{folder}', or set DATA_DIR")
    elif mode & 0o022:
        yield Finding("data folder", "note", f"{folder} can be written by other users (mode {mode:o})",
                      f"chmod 700 '{folder}'")
    else:
        yield Finding("data folder", "ok", f"{folder} (mode {mode:o})")


def config(settings: Settings) -> Iterator[Finding]:
    from services.chat.profiles import Profiles
    path = settings.data_dir / "config.json"
    if not path.exists():
        yield Finding("config.json", "ok", "will be made at the first start, with the starter model")
        return
    try:
        profiles = Profiles(path, settings)
        current = profiles.current()
    except ParleyError as error:
        yield Finding("config.json", "broken", error.message, f"edit {path}")
        return
    yield Finding("config.json", "ok", f"selected {current.selected!r} of {', '.join(current.profiles)}")
    if profiles.problem:
        yield Finding("LocalAI's files", "note", profiles.problem, f"mend or remove them in {settings.models_dir}")


def personalities(settings: Settings) -> Iterator[Finding]:
    """Whether there is somebody to answer as each of them."""
    path = settings.data_dir / "config.json"
    if not path.exists():
        return
    from services.chat import asking
    from services.chat.events import Ask
    from services.chat.personas import FOLDER, Personas
    from services.chat.profiles import Profiles
    folder = settings.data_dir / FOLDER
    try:
        found, profiles = Personas(folder, settings.rag_length, settings.rag_helper), Profiles(path, settings)
    except ParleyError:
        return                      # `config` tells of it
    wrong = [found.problem] if found.problem else []
    for name, persona in found.current().items():
        try:
            asking.profile_of(Ask("", **persona.fields(settings.models_dir)), profiles)
        except ParleyError as error:
            wrong.append(f"{name}: {error.message}")
    if wrong:
        yield Finding("personalities", "note", "; ".join(wrong), f"edit the files in {folder}")
    elif found.current():
        yield Finding("personalities", "ok", ", ".join(found.current()))


def keys(settings: Settings) -> Iterator[Finding]:
    """The files that hold keys: who can read them, and whether the server can."""
    for name in ("api_keys.json", "data_keys.json", "master_key.txt"):
        path = settings.data_dir / name
        if not os.path.lexists(path):
            continue
        mode = stat.S_IMODE(path.lstat().st_mode)
        if not path.is_symlink() and mode & 0o077:
            yield Finding(name, "broken", f"can be read by other users (mode {mode:o})", f"chmod 600 '{path}'")
        elif name != "master_key.txt":
            yield Finding(name, "ok", f"mode {mode:o}")
    if os.path.lexists(settings.data_dir / "master_key.txt"):
        yield Finding("master_key.txt", "note", "holds the master key in the clear: note it and delete it",
                      f"rm '{settings.data_dir / 'master_key.txt'}'")
    path = settings.data_dir / "api_keys.json"
    if settings.store == "files" and os.path.lexists(path):
        yield _api_keys(path, settings)


def _api_keys(path: Path, settings: Settings) -> Finding:
    """Whether a start would take the file, by the code that a start uses; but nothing is tightened or taken over."""
    from auth import edits, keyfile, records
    from services.store import disk
    wide = not path.is_symlink() and stat.S_IMODE(path.lstat().st_mode) & ~0o600     # `keyfile.read` would change it
    try:
        found = records.parse(disk.read_bytes(path) if wide else keyfile.read(path)[0], path)
    except ParleyError as error:
        return Finding("API keys", "broken", error.message, f"edit '{path}', or put a copy of it back")
    if not isinstance(found, records.Document):
        return Finding("API keys", "ok", f"{len(found)} in an old plain file, which the next start takes over")
    if settings.master_key is not None:
        try:
            edits.adopt_master([*found.keys], settings.master_key, time.time())
        except ConfigError as error:
            return Finding("API keys", "broken", error.message, "set another MASTER_KEY")
    return Finding("API keys", "ok", f"{len(found.keys)} in the list of `main.py keys list`")


def redis(settings: Settings) -> Iterator[Finding]:
    """Whether the Redis that the settings name can be used, and what it would lose."""
    from services.store import redis_client
    if not redis_client.configured(settings):
        return
    from auth.keys import Keys
    from services.store.opening import look_at_redis
    try:
        losses = look_at_redis(settings)
        keys = Keys(settings.data_dir, settings).list() if settings.store == "redis" else None
    except ParleyError as error:
        yield Finding("Redis", "broken", error.message, "start it, or set REDIS_URL (or REDIS_HOST) and DATA_KEY right")
        return
    yield Finding("Redis", "ok", "holds jobs" if keys is None else f"holds jobs, sessions and {len(keys)} keys")
    for loss in losses:
        yield Finding("Redis", "note", loss)


def sessions(settings: Settings) -> Iterator[Finding]:
    """Whether the server could open the sessions with the DATA_KEY of now."""
    folder = settings.data_dir
    if not folder.is_dir():
        return
    from services.store import crypto
    from services.store.opening import check_store
    try:
        check_store(settings)
    except ConfigError as error:
        yield Finding("sessions", "broken", error.message, _way_back(error.message, folder / crypto.FILE))
        return
    sealed = (folder / crypto.FILE).exists()
    later = "in the clear; the next start encrypts them with DATA_KEY" if settings.data_key else "in the clear"
    yield Finding("sessions", "ok", "encrypted with DATA_KEY" if sealed else later)


def _way_back(problem: str, key_file: Path) -> str:
    if "DATA_KEY" in problem:
        return "set DATA_KEY, in the server's environment or in .env, to the one used before"
    if key_file.name in problem:
        return f"put a copy of '{key_file}' back"
    return f"mend or move away what is named, in '{key_file.parent}'"
