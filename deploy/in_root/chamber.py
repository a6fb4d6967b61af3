"""Started in fresh namespaces by `start`: makes the mounts, goes into the root, becomes the user, runs the command.

It is the first process of its namespaces and becomes the command: what ends it ends everything in there, and the
mounts go with it. What to do comes as JSON through a pipe: arguments can be read by everybody on the machine.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_DEATH_SIGNAL, _NO_NEW_PRIVILEGES = 1, 38      # of prctl(2)


@dataclass(frozen=True)
class Chamber:
    """`binds`: (path outside, path inside, "rw" or "ro"). `sealed`: read-only but for binds and /tmp, and nothing can
    gain privileges, as with compose.yaml."""

    root: str
    command: Sequence[str]
    env: Mapping[str, str]
    user: str = "0:0"
    workdir: str = "/"
    binds: Sequence[tuple[str, str, str]] = field(default_factory=list)
    sealed: bool = False


def start(chamber: Chamber, **options: Any) -> subprocess.Popen[bytes]:
    """The process that waits for the command and ends with its status; when it dies the command is killed."""
    reader, writer = os.pipe()
    os.write(writer, json.dumps(asdict(chamber)).encode())         # far less than a pipe holds
    os.close(writer)
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--ipc", "--uts", "--fork",
               "--kill-child", sys.executable, "-B", __file__, str(reader)]
    try:
        return subprocess.Popen(command, pass_fds=[reader], stdin=subprocess.DEVNULL, **options)
    finally:
        os.close(reader)


def first_process(waiting: int) -> int | None:
    """The command's process id as seen from outside; None before it is there, or when it has ended."""
    try:
        children = Path(f"/proc/{waiting}/task/{waiting}/children").read_text().split()
    except OSError:
        return None
    return int(children[0]) if children else None


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, stdin=subprocess.DEVNULL)


def _prepare(chamber: dict[str, Any]) -> None:
    root = chamber["root"]
    _mount("--bind", root, root)
    for outside, inside, mode in chamber["binds"]:
        _mount("--bind", outside, root + inside)
        if mode == "ro":
            _mount("-o", "remount,bind,ro", root + inside)
    if chamber["sealed"]:
        _mount("-o", "remount,bind,ro", root)
        _mount("-t", "tmpfs", "-o", "mode=1777,nosuid,nodev", "tmpfs", f"{root}/tmp")
    _mount("-t", "proc", "-o", "nosuid,nodev,noexec", "proc", f"{root}/proc")
    _mount("--rbind", "/sys", f"{root}/sys")
    _mount("-o", "remount,bind,ro", f"{root}/sys")
    _mount("-t", "tmpfs", "-o", "mode=755,nosuid", "tmpfs", f"{root}/dev")
    for name in DEVICES:
        Path(f"{root}/dev/{name}").touch()
        _mount("--bind", f"/dev/{name}", f"{root}/dev/{name}")
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        os.symlink(f"/proc/self/fd{target}", f"{root}/dev/{name}")
    Path(f"{root}/dev/shm").mkdir(mode=0o1777)
    _mount("-t", "tmpfs", "-o", "mode=1777,nosuid,nodev", "tmpfs", f"{root}/dev/shm")


def _become(chamber: dict[str, Any]) -> None:
    """The command, as its user. For another one than root this also ends every capability."""
    os.chroot(chamber["root"])
    os.chdir(chamber["workdir"])
    os.umask(0o022)
    if chamber["sealed"]:
        _prctl(_NO_NEW_PRIVILEGES, 1)
    uid, gid = map(int, chamber["user"].split(":"))
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    _prctl(_DEATH_SIGNAL, signal.SIGKILL)       # again: what unshare asked for ends with a change of the user
    os.environ.clear()
    os.environ.update(chamber["env"])           # whose PATH the command is looked for in
    os.execvp(chamber["command"][0], chamber["command"])


def _prctl(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def main(descriptor: int) -> None:
    with os.fdopen(descriptor, "rb") as pipe:
        chamber = json.load(pipe)
    _prepare(chamber)
    _become(chamber)


if __name__ == "__main__":
    main(int(sys.argv[1]))
