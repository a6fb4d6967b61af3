"""What `serve` and `work` have in common: a data folder that is theirs, the engine, and the executor of jobs."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from services.cli.executor import Work
from services.errors import ConfigError
from services.settings import ROOT, Settings

LONGEST_RUN_DIR = 80                # bytes of the sockets' folder: a socket's path must stay below 104


class Core:
    """`stopping` is set by the first SIGTERM or SIGINT. Who makes one closes it."""

    def __init__(self, settings: Settings) -> None:
        from auth.limits import open_limiter
        from services.chat.profiles import Profiles, ensure_default
        from services.engine.catalog import needs, precheck
        from services.engine.supervisor import Supervisor
        from services.metrics import Figures
        from services.store import disk
        from services.store.opening import open_store
        self.settings = settings
        disk.make_dirs(settings.data_dir)
        self.lock = disk.lock_data_folder(settings.data_dir)
        self.profiles = Profiles(ensure_default(settings.data_dir), settings)
        open_store(settings)                    # takes over a seed's sessions, refuses a wrong DATA_KEY
        self.run_dir = make_run_dir(settings.data_dir)
        self.authkey = secrets.token_bytes(32)
        self.limiter = open_limiter(settings)
        figures = Figures(settings.metrics_keys)
        self.supervisor = Supervisor(settings, self.run_dir, self.authkey, self.limiter, figures, precheck, needs)
        self.work = Work(settings, self.supervisor.address, self.authkey, figures.forced_exit)
        self.stopping = threading.Event()

    def close(self) -> None:
        self.work.end()
        self.limiter.close()
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.lock.close()


def make_run_dir(data_dir: Path) -> Path:
    """An empty folder of mode 0700 for the sockets, the same for each start on `data_dir`: nothing is left behind by
    a killed server. Its path leaves room for their names."""
    name = hashlib.sha256(os.fsencode(data_dir.resolve())).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"parley-{os.getuid()}-{name}"
    if len(os.fsencode(folder)) > LONGEST_RUN_DIR:
        raise ConfigError(f"TMPDIR={tempfile.gettempdir()!r} is too long a path for local sockets: set TMPDIR to a "
                          "shorter one, such as /tmp")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ConfigError(f"{folder} is not this user's folder: remove it, or set TMPDIR to another place")
    folder.chmod(0o700)
    for left in folder.iterdir():
        left.unlink()
    return folder


def check_models_dir(path: Path) -> None:
    if path == ROOT / "models":
        path.mkdir(exist_ok=True)
    if not path.is_dir():
        raise ConfigError(f"MODELS_DIR={str(path)!r}: there is no such folder; make it or set another")
