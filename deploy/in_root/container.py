"""Starts what `build` made, as compose.yaml starts it: its user, a read-only root, /data and /models from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from deploy.in_root import chamber
from deploy.in_root.build import image_of, mount_points, say, within

VOLUMES = ("/data", "/models")
_LOOK = 0.1             # seconds between two looks


class Container:
    """The command of an image, running. `with` kills it at the end."""

    def __init__(self, folder: Path, env: Mapping[str, str], binds: Sequence[tuple[str, str, str]],
                 command: Sequence[str] = (), **options: Any) -> None:
        self.image = image_of(folder)
        root = (folder / "root").resolve()
        self._env = {"HOME": "/data", **self.image.env, **env}
        arguments = [*self.image.entrypoint, *(command or self.image.cmd)]
        binds = [("/etc/resolv.conf", "/etc/resolv.conf", "ro"), ("/etc/hosts", "/etc/hosts", "ro"), *binds]
        self.unhealthy = ""             # what HEALTHCHECK said last
        self._points = mount_points(root, binds)
        self._points.__enter__()
        self.process = chamber.start(
            chamber.Chamber(str(root), arguments, self._env, self.image.user, self.image.workdir, binds, sealed=True),
            **options)

    def __enter__(self) -> Container:
        return self

    def __exit__(self, *_error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        self._points.__exit__(None, None, None)

    @property
    def first(self) -> int | None:
        """The process id, outside, of the image's command."""
        return chamber.first_process(self.process.pid)

    def signal(self, number: int) -> None:
        if (first := self.first) is not None:
            os.kill(first, number)

    def execute(self, command: Sequence[str], timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Another command in there, as the image's user; status 1 while there is nothing to go into."""
        if (first := self.first) is None:
            return subprocess.CompletedProcess(command, 1, "", "it is not running")
        uid, gid = self.image.user.split(":")
        inside = ["nsenter", "--target", str(first), "--mount", "--pid", "--ipc", "--uts", "--root",
                  "--wd", "--setuid", uid, "--setgid", gid]
        return subprocess.run([*inside, *command], env=self._env, capture_output=True, text=True, timeout=timeout,
                              stdin=subprocess.DEVNULL)

    def healthy(self) -> bool:
        """Whether HEALTHCHECK says so, within as many tries as Docker would make before it says `unhealthy`."""
        health = self.image.health
        assert health is not None
        until = time.monotonic() + health.start_period + health.retries * health.interval
        while self.process.poll() is None and time.monotonic() < until:
            tried = self.execute(health.command, health.timeout)
            if tried.returncode == 0:
                return True
            self.unhealthy = tried.stderr.strip()[-300:]
            time.sleep(_LOOK)
        return False


def run(folder: Path, env: Mapping[str, str], binds: Sequence[tuple[str, str, str]], command: Sequence[str]) -> int:
    """Until it ends by itself or by a signal, which is passed on; the exit status."""
    ready = [volume(folder, *bind) for bind in binds]
    given = {inside for _, inside, _ in binds}
    ready += [volume(folder, str(folder / "volumes" / path.strip("/")), path, "rw")
              for path in VOLUMES if path not in given]
    with Container(folder, env, ready, command) as container, _passed_on(container):
        return container.process.wait()


@contextmanager
def _passed_on(container: Container) -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, _: container.signal(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def volume(folder: Path, outside: str, inside: str, mode: str) -> tuple[str, str, str]:
    """The bind; where there is no such folder outside it is made with what the image has there, as Docker does with a
    new volume."""
    if not Path(outside).exists():
        say(f"{outside} is made, for {inside}")
        origin = within((folder / "root").resolve(), inside)
        Path(outside).parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            subprocess.run(["cp", "-a", origin, outside], check=True)
        else:
            Path(outside).mkdir()
    return outside, inside, mode
