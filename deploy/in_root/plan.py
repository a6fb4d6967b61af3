"""What a Dockerfile's stages come to: the steps that change files, in order, and how the result is started. Nothing is
done here; `build` does it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from deploy.in_root.dockerfile import Dockerfile, Instruction, Refused, Stage, argument, expand, words

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Health:
    command: list[str]
    interval: float = 30.0          # seconds, all of them; Docker's defaults
    timeout: float = 30.0
    start_period: float = 0.0       # in which a failure does not count
    retries: int = 3


@dataclass(frozen=True)
class Image:
    """How a root is started; what an OCI image's configuration says."""

    env: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    user: str = "0:0"
    workdir: str = "/"
    entrypoint: list[str] = field(default_factory=list)
    cmd: list[str] = field(default_factory=list)
    health: Health | None = None
    stop_signal: str = "SIGTERM"


@dataclass(frozen=True)
class Run:
    command: list[str]
    env: dict[str, str]
    user: str
    workdir: str


@dataclass(frozen=True)
class Copy:
    origin: str | None              # a stage, or None: the folder that is built
    sources: list[str]
    target: str                     # absolute; ends with / where it is a folder to copy into
    owner: str                      # uid:gid


@dataclass(frozen=True)
class Folder:
    path: str


Step = Run | Copy | Folder


@dataclass(frozen=True)
class Built:
    """A stage, worked out."""

    stage: Stage
    steps: tuple[Step, ...]
    image: Image


def plan(dockerfile: Dockerfile, asked: Mapping[str, str]) -> list[Built]:
    """The stages that the last one needs, in order."""
    done: dict[str, Built] = {}
    for stage in dockerfile.needed():
        base = done[stage.base].image if stage.base in done else Image()
        planner = _Planner(base, dockerfile.arguments, asked)
        steps = tuple(step for item in stage.instructions for step in planner.take(item))
        for step in steps:
            if isinstance(step, Copy) and step.origin is not None and step.origin not in done:
                raise Refused(f"COPY --from={step.origin}: there is no such stage before this one")
        done[stage.name] = Built(stage, steps, planner.image)
    return list(done.values())


class _Planner:
    """One stage: its image so far and its build arguments."""

    def __init__(self, base: Image, outside: Mapping[str, str], asked: Mapping[str, str]) -> None:
        self.image = base
        self._outside, self._asked = outside, asked
        self._arguments: dict[str, str] = {}

    @property
    def variables(self) -> dict[str, str]:
        return self._arguments | self.image.env

    def take(self, item: Instruction) -> Iterator[Step]:
        """The steps of one instruction; what it says of the image is kept."""
        word = item.word
        if word == "RUN":
            yield Run(item.command(), self.variables, self.image.user, self.image.workdir)
        elif word == "COPY":
            yield self._copy(item)
        elif word == "WORKDIR":
            self.image = replace(self.image, workdir=self._path(expand(item, item.text, self.variables)))
            yield Folder(self.image.workdir)
        elif word == "ARG":
            name, default = argument(item, self.variables)
            known = self._asked.get(name, self._outside.get(name, "") if default is None else default)
            self._arguments[name] = known
        else:
            self.image = replace(self.image, **self._configuration(item))

    def _configuration(self, item: Instruction) -> dict[str, Any]:
        word = item.word
        if word == "ENV":
            return {"env": self.image.env | item.pairs(self.variables)}
        if word == "USER":
            return {"user": _numeric(item, expand(item, item.text, self.variables))}
        if word == "ENTRYPOINT":
            return {"entrypoint": item.command(), "cmd": []}
        if word == "CMD":
            return {"cmd": item.command()}
        if word == "HEALTHCHECK":
            return {"health": _health(item)}
        if word == "STOPSIGNAL":
            return {"stop_signal": item.text}
        if word == "LABEL":
            item.pairs(self.variables)
        return {}                                               # EXPOSE and LABEL: for people

    def _path(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self.image.workdir, path))

    def _copy(self, item: Instruction) -> Copy:
        *sources, target = [expand(item, part, self.variables) for part in item.listed() or words(item, item.text)]
        if not sources or (len(sources) > 1 and not target.endswith("/")):
            raise item.refuse("expected COPY <source> <target>, or COPY <source> ... <folder>/")
        if any(set(source) & set("*?[") or ".." in source.split("/") for source in sources):
            raise item.refuse("patterns and .. are not supported")
        slash = "/" if target.endswith("/") else ""
        return Copy(item.flags.get("from"), [source.strip("/") for source in sources],
                    self._path(target).rstrip("/") + slash, _numeric(item, item.flags.get("chown", "0:0")))


def _numeric(item: Instruction, user: str) -> str:
    if not re.fullmatch(r"\d+:\d+", user):
        raise item.refuse(f"{user!r} is not <uid>:<gid> in numbers")
    return user


def _health(item: Instruction) -> Health | None:
    word, _, rest = item.text.partition(" ")
    if word.upper() == "NONE":
        return None
    if word.upper() != "CMD":
        raise item.refuse("expected HEALTHCHECK [--interval=...] CMD <command>, or HEALTHCHECK NONE")
    command = replace(item, text=rest.strip()).command()
    times = {name.replace("-", "_"): _seconds(item, value) for name, value in item.flags.items() if name != "retries"}
    return Health(command, retries=int(item.flags.get("retries", "3")), **times)


def _seconds(item: Instruction, text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text)
    if match is None:
        raise item.refuse(f"{text!r} is not a time such as 15s")
    return float(match[1]) * _SECONDS[match[2]]
