"""Carries out a plan: a root for each stage, the first ones from debootstrap, below one folder that can be deleted.

    <folder>/bases/<suite>          what debootstrap made
    <folder>/stages/<name>-<print>  a stage's root; found again while nothing that it is made of has changed
    <folder>/root -> stages/...     the last stage, and image.json: how it is started
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from deploy.in_root import chamber, ignore
from deploy.in_root.dockerfile import Refused, read
from deploy.in_root.plan import Built, Copy, Folder, Health, Image, Run, plan

_DEBIAN = re.compile(r"debian:([a-z]+)(?:-slim)?")


@dataclass(frozen=True)
class Lent:
    """What of this machine the commands of a build may use and the result does not hold: its name server, and what the
    caller names, such as pip.conf."""

    binds: Sequence[tuple[str, str, str]] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    mirror: str | None = None           # for debootstrap; unset: its own


def build(context: Path, dockerfile: Path, folder: Path, arguments: Mapping[str, str], lent: Lent) -> Path:
    """The root of the last stage, <folder>/root."""
    builder = _Builder(context, folder, lent)
    stages = plan(read(dockerfile.read_text(), arguments), arguments)
    for built in stages:
        root = builder.stage(built)
    (folder / "image.json").write_text(json.dumps(asdict(stages[-1].image), indent=1))
    link = folder / "root"
    link.unlink(missing_ok=True)
    link.symlink_to(root.relative_to(folder))
    return link


def image_of(folder: Path) -> Image:
    """How the root that `build` made in `folder` is started."""
    found = json.loads((folder / "image.json").read_text())
    health = found.pop("health")
    return Image(health=Health(**health) if health else None, **found)


class _Builder:
    def __init__(self, context: Path, folder: Path, lent: Lent) -> None:
        self._context, self._folder, self._lent = context, folder, lent
        self._roots: dict[str, Path] = {}
        for name in ("bases", "stages"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def stage(self, built: Built) -> Path:
        """The stage's root, made unless an equal one is there. One without steps is its base's."""
        name = built.stage.name
        base = self._roots.get(built.stage.base) or self._bootstrap(built.stage.base)
        self._roots[name] = base if not built.steps else self._made(built, base)
        return self._roots[name]

    def _made(self, built: Built, base: Path) -> Path:
        name = built.stage.name
        root = self._folder / "stages" / f"{name}-{self._print(built, base)}"
        if root.exists():
            say(f"stage {name}: nothing has changed")
            return root
        partial = root.with_suffix(".partial")
        remove(partial)
        subprocess.run(["cp", "-a", "--reflink=auto", base, partial], check=True)
        for number, step in enumerate(built.steps, 1):
            say(f"stage {name}, step {number} of {len(built.steps)}: {shown(step)}")
            self._do(step, partial)
        for old in self._folder.glob(f"stages/{name}-*"):
            if old != partial:
                remove(old)
        return partial.rename(root)

    def _print(self, built: Built, base: Path) -> str:
        """Of everything that the stage's files come from."""
        parts: list[object] = [base.name]
        for step in built.steps:
            parts.append(asdict(step))
            if isinstance(step, Copy) and step.origin is not None:
                parts.append(self._roots[step.origin].name)
            elif isinstance(step, Copy):
                parts += [[path, hashlib.sha256((self._context / path).read_bytes()).hexdigest()]
                          for path in ignore.files(self._context, step.sources)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    def _bootstrap(self, image: str) -> Path:
        """debootstrap's smallest root. Docker's own image of that name is the same without documentation."""
        match = _DEBIAN.fullmatch(image)
        if match is None:
            raise Refused(f"FROM {image}: only debian:<suite> can be had without a Docker engine")
        root = self._folder / "bases" / match[1]
        if not root.exists():
            say(f"debootstrap {match[1]}")
            partial = root.with_suffix(".partial")
            remove(partial)
            subprocess.run(["debootstrap", "--variant=minbase", match[1], partial,
                            *([self._lent.mirror] if self._lent.mirror else [])], check=True, stdout=subprocess.DEVNULL)
            for package in partial.glob("var/cache/apt/archives/*.deb"):
                package.unlink()
            partial.rename(root)
        return root

    def _do(self, step: Run | Copy | Folder, root: Path) -> None:
        if isinstance(step, Folder):
            within(root, step.path).mkdir(parents=True, exist_ok=True)
        elif isinstance(step, Copy):
            self._copy(step, root)
        else:
            binds = [("/etc/resolv.conf", "/etc/resolv.conf", "ro"), *self._lent.binds]
            with mount_points(root, binds):
                env = {**step.env, **self._lent.env}
                status = chamber.start(chamber.Chamber(str(root), step.command, env, step.user, step.workdir,
                                                       binds)).wait()
            if status:
                raise Refused(f"the command ended with status {status}: {shown(step)}")

    def _copy(self, step: Copy, root: Path) -> None:
        """Folders stand for what is in them, as in Docker."""
        origin = self._context if step.origin is None else self._roots[step.origin]
        for source in step.sources:
            start = origin / source
            target = within(root, step.target)
            if not start.is_dir() and step.target.endswith("/"):
                target /= start.name
            target.parent.mkdir(parents=True, exist_ok=True)
            if step.origin is None:
                _copy_files(origin, source, target)
            else:
                subprocess.run(["cp", "-aT", start, target], check=True)
            subprocess.run(["chown", "-hR", step.owner, target], check=True)


def _copy_files(context: Path, source: str, target: Path) -> None:
    paths = ignore.files(context, [source])
    if not paths:
        raise Refused(f"COPY {source}: there is no such file, or .dockerignore leaves it out")
    for path in paths:
        place = target / os.path.relpath(path, source) if path != source else target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(context / path, place, follow_symlinks=False)


def within(root: Path, path: str) -> Path:
    """`path` of the root as seen from outside; refused where a link leads out of the root."""
    place = Path(f"{root}/{path}")
    if not place.resolve().is_relative_to(root.resolve()):
        raise Refused(f"{path} is a link out of {root}")
    return place


@contextmanager
def mount_points(root: Path, binds: Sequence[tuple[str, str, str]]) -> Iterator[None]:
    """What is bound into `root` needs a place there; those that were not there go again."""
    made: list[Path] = []
    try:
        for outside, inside, _ in binds:
            place = within(root, inside)
            missing = [above for above in (place, *place.parents) if not above.exists()]
            if not missing:
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir() if Path(outside).is_dir() else place.touch()
            made += missing
        yield
    finally:
        for place in sorted(made, reverse=True):
            if not place.is_dir():
                place.unlink()
            elif not any(place.iterdir()):
                place.rmdir()


def remove(root: Path) -> None:
    """Nothing is mounted below it: mounts are made in namespaces that are gone."""
    if root.exists():
        shutil.rmtree(root)


def shown(step: Run | Copy | Folder) -> str:
    if isinstance(step, Run):
        return re.sub(r"\s+", " ", step.command[-1])[:100]
    return f"{step.sources} -> {step.target}" if isinstance(step, Copy) else step.path


def say(text: str) -> None:
    print(f"in_root: {text}", file=sys.stderr, flush=True)
