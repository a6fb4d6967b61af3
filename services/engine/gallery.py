"""LocalAI's galleries: what they offer, and how a model of theirs is put into the folder of models (S2.16, S2.17).

A gallery is an index, a YAML list of entries; an entry points to a definition (`url`) or holds one (`config_file`), and
adds `files` and `overrides`. Applying it gets the files, each under its sha256, then writes the prompt templates and,
last, `<name>.yaml`: until then nothing of it is a model.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from services import paths
from services.engine import transfer, yaml_files
from services.engine.addresses import Sources, shown
from services.engine.definitions import Apply, Definition, File, combined
from services.engine.part import CHUNK, Part, sha256_of
from services.engine.transfer import Transfer, Wanted
from services.errors import (
    BadModel,
    BadRequest,
    ConfigError,
    Conflict,
    Forbidden,
    NotFound,
    ParleyError,
    Unavailable,
)
from services.store import disk

log = logging.getLogger("parley.engine")
FRESH = 600.0               # seconds that an index is kept
AGAIN = 15.0                # seconds until one that could not be read is asked for again
SHOWN = ("name", "description", "license", "icon", "urls", "tags", "url", "files")
Progress = Callable[[int, int, str, int, "int | None"], None]   # place, of how many, file, bytes here, bytes in all


@dataclass(frozen=True)
class Gallery:
    """A gallery that the operator named."""

    name: str
    url: str


# ---------------------------------------------------------------- what there is

class Galleries:
    """The galleries' indexes, each fetched once in FRESH seconds. Any thread may ask."""

    def __init__(self, galleries: Sequence[Gallery], sources: Sources, now: Callable[[], float] = time.monotonic):
        self.galleries = tuple(galleries)
        trusted = (*sources.trusted, *(sources.expanded(one.url) for one in galleries))
        self.sources = replace(sources, trusted=trusted)
        self._now = now
        self._lock = threading.Lock()
        self._kept: dict[Gallery, tuple[float, list[dict[str, Any]] | ParleyError]] = {}

    def available(self) -> list[dict[str, Any]]:
        """All entries as LocalAI lists them. A gallery that cannot be read is left out and logged; `Unavailable` when
        that are all."""
        listed: list[dict[str, Any]] = []
        problems = []
        for gallery in self.galleries:
            try:
                entries = self.entries(gallery)
            except ParleyError as error:
                log.warning("gallery %s: %s", gallery.name, error.message)
                problems.append(f"{gallery.name}: {error.message}")
                continue
            listed += [self._listed(gallery, entry) for entry in entries]
        if problems and len(problems) == len(self.galleries):
            raise Unavailable(f"no gallery can be read: {'; '.join(problems)}")
        return listed

    def _listed(self, gallery: Gallery, entry: dict[str, Any]) -> dict[str, Any]:
        file = Definition(str(entry["name"]), {}, (), ()).file
        return {**{name: entry[name] for name in SHOWN if entry.get(name) is not None},
                "gallery": {"name": gallery.name, "url": gallery.url},
                "installed": os.path.lexists(self.sources.models_dir / file)}

    def entries(self, gallery: Gallery) -> list[dict[str, Any]]:
        """The models of `gallery`. Raises what reading it did, for a while without trying again."""
        with self._lock:
            until, kept = self._kept.get(gallery, (0.0, []))
            if self._now() >= until:
                try:
                    kept, until = self._read(gallery), self._now() + FRESH
                except ParleyError as error:
                    kept, until = error, self._now() + AGAIN
                self._kept[gallery] = until, kept
        if isinstance(kept, ParleyError):
            raise kept
        return kept

    def _read(self, gallery: Gallery) -> list[dict[str, Any]]:
        url = self.sources.expanded(gallery.url)
        value = yaml_files.parse(self.sources.text(url), shown(url)).value
        if not isinstance(value, list):
            raise ConfigError(f"{shown(url)}: expected the index of a gallery, a list of models")
        return [entry for entry in value if isinstance(entry, dict) and isinstance(entry.get("name"), str)]

    def find(self, id: str) -> tuple[Gallery, dict[str, Any]]:
        """The entry "gallery@name", or the first one called so in any gallery, whatever its case."""
        asked, name = self.asked(id)
        for gallery in asked:
            for entry in self.entries(gallery):
                if entry["name"].lower() == name.lower():
                    return gallery, entry
        raise NotFound(f"no gallery has a model {name[:80]!r}; GET /models/available lists them", param="id")

    def asked(self, id: str) -> tuple[list[Gallery], str]:
        """The galleries that `id` may mean, and the name in them. Fetches nothing."""
        if not self.galleries:
            raise BadRequest("no gallery is set: name them in GALLERIES, or apply by url", param="id")
        wanted, _, name = id.rpartition("@")
        found = [gallery for gallery in self.galleries if wanted in ("", gallery.name)]
        if not found:
            there = ", ".join(gallery.name for gallery in self.galleries)
            raise NotFound(f"there is no gallery {wanted[:80]!r}; there are: {there}", param="id")
        return found, name

    def definition(self, wanted: Apply) -> Definition:
        """What `wanted` means, with all that has to be fetched for it but its files."""
        layers: list[dict[str, Any]] = []
        if wanted.id:
            gallery, entry = self.find(wanted.id)
            if isinstance(entry.get("url"), str):
                layers.append(self._fetched(self.sources.expanded(entry["url"], self.sources.expanded(gallery.url))))
            layers.append(entry)
        if wanted.url:
            layers.append(self._fetched(self.sources.expanded(wanted.url)))
        return combined(layers, wanted)

    def _fetched(self, url: str) -> dict[str, Any]:
        value = yaml_files.parse(self.sources.text(url), shown(url)).value
        if not isinstance(value, dict):
            raise ConfigError(f"{shown(url)}: expected the definition of a model, a mapping")
        return value


# ---------------------------------------------------------------- putting it there

def installed(definition: Definition, models_dir: Path) -> bool:
    """Whether all of it is there, as far as names tell."""
    names = [definition.file, *(file.filename for file in definition.files)]
    return all(os.path.lexists(models_dir / name) for name in names)


def install(definition: Definition, sources: Sources, progress: Progress) -> None:
    """Get the files, then write templates and YAML. Every error is a ParleyError of one line; what came so far of a
    file is kept, and the same call goes on from there."""
    folder = sources.models_dir
    targets = {paths.inside(folder, definition.file, what="name"): yaml_files.dump(definition.config)}
    templates = {paths.inside(folder, f"{name}.tmpl", what="prompt_templates"): content
                 for name, content in definition.templates}
    missing = [file for file in definition.files if not _is_there(file, folder)]
    with ExitStack() as stack:
        parts = [stack.enter_context(Part(folder, file.filename)) for file in missing]
        for place, (file, part) in enumerate(zip(missing, parts, strict=True)):
            _fetch(file, part, sources, partial(progress, place, len(missing)))
        for part in reversed(parts):
            part.publish()
    for path, text in {**templates, **targets}.items():
        disk.write_atomic(path, text.encode(), mode=0o644)


def _is_there(file: File, folder: Path) -> bool:
    """A file of the name is kept as it is, unless it is known to be another one."""
    path = paths.inside(folder, file.filename, what="filename")
    if not path.exists():
        return False
    if file.sha256:
        with path.open("rb") as stream:
            if sha256_of(lambda at: os.pread(stream.fileno(), CHUNK, at)) != file.sha256:
                raise Conflict(f"{folder.name}/{file.filename} is there and is not the file that would be downloaded: "
                               "move it away first")
    return True


def _fetch(file: File, part: Part, sources: Sources, progress: transfer.Progress) -> None:
    url = sources.expanded(file.uri)
    if url.startswith("file://"):
        _copy(sources.local(url), file, part, progress)
        return
    guard, token = sources.guard(url)
    wanted = Wanted(url=url, name=file.filename, sha256=file.sha256 or None)
    try:
        Transfer(wanted, part, guard, token, progress).run()
    except Forbidden as error:
        raise Forbidden(f"{shown(url)} is not fetched: {error.message}") from None


def _copy(path: Path, file: File, part: Part, progress: transfer.Progress) -> None:
    size = path.stat().st_size
    transfer.check_space(path.parent, size)
    part.clear()
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            part.append(block)
            progress(file.filename, part.size, size)
    if file.sha256 and (found := part.sha256()) != file.sha256:
        part.clear()
        raise BadModel(f"{path.name} is not what was promised (sha256 {found[:12]}…, expected {file.sha256[:12]}…)")
    part.check()
