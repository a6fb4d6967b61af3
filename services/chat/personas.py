"""Personalities: who answers at /gpt/<name> and its like, from `data/personalities.d/*.json` (S4.4, S4.28).

Each file is `{<name>: {fields}, …}`; the files are merged in the order of their names, field by field, as csps-llm
does, whose own files can be used as they are. They may be edited while the server runs: what is valid is taken over at
the next request; what is wrong is told of once and in `Personas.problem`, and the last good state stays in use. At the
start, when there is none, what is wrong is left out.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from auth.records import MASTER_ID
from services import paths
from services.chat.persona import WITHOUT_EFFECT, Persona
from services.chat.shipped_personas import SHIPPED
from services.errors import ConfigError, Forbidden, NotFound, ParleyError
from services.store import config, disk

log = logging.getLogger("parley.chat")
FOLDER = "personalities.d"
MAX_SOURCE = 256 * 1024         # characters of an agent_rag_source
_NAME = re.compile(r"[^\s/\\?#%\x00-\x1f\x7f](?:[^/\\?#%\x00-\x1f\x7f]{0,98}[^\s/\\?#%\x00-\x1f\x7f])?")


@dataclass(frozen=True)
class _State:
    """What the files say. `problems`: what was left out, and why."""

    personas: dict[str, Persona]
    problems: tuple[str, ...] = ()


class Personas:
    """The personalities in `folder`, as they are now. Any thread may ask. `rag_length` and `rag_helper` are of those
    that do not say (S4.29)."""

    def __init__(self, folder: Path, rag_length: int | None = None, rag_helper: str | None = None) -> None:
        self.folder = folder
        self._common: dict[str, Any] = {} if rag_length is None else {"rag_length": rag_length}
        self._helper = rag_helper
        self._lock = threading.Lock()               # guards all below
        self._told: set[str] = set()                # fields without effect that the log has told of
        self._wrong: str | None = None              # why the files are not what is used
        self._sources: set[str] = set()             # files that personalities name
        self._seen: tuple[tuple[str, config.Signature | None], ...] | None = None      # of the files that were read
        self._state = _State({})
        while self._changed():
            self._state = self._load(lenient=True)
        for problem in self._state.problems:
            log.error("%s; it is left out", problem)

    @property
    def problem(self) -> str | None:
        """Why the files of now are not what is used; None when all are."""
        there = self.current()
        unknown = f"LLM_RAG_HELPER={self._helper[:80]!r} is no personality; there are: {', '.join(there)}" \
            if self._helper and self._helper not in there else None
        return self._wrong or "; ".join([*self._state.problems, *filter(None, [unknown])]) or None

    def helper(self, persona: Persona) -> Persona | None:
        """Who chooses and judges the sources of `persona`; None: itself does."""
        return self.current().get(persona.rag_helper or self._helper or "")

    def current(self) -> dict[str, Persona]:
        """The personalities by name."""
        with self._lock:
            if self._changed():
                self._read()
            return self._state.personas

    def allowed(self, key_id: str) -> dict[str, Persona]:
        """Those that the key may use."""
        return {name: one for name, one in self.current().items()
                if one.keys is None or key_id in (MASTER_ID, *one.keys)}

    def get(self, name: str, key_id: str) -> Persona:
        """The personality `name`, for a key. Raises `NotFound` naming those there are, `Forbidden`."""
        mine = self.allowed(key_id)
        if name in mine:
            return mine[name]
        known = f"there are: {', '.join(mine)}" if mine else "there is none"
        if name in self.current():
            raise Forbidden(f"this key may not use the personality {name[:80]!r}; {known}",
                            code="personality_forbidden", param="personality")
        raise NotFound(f"no personality {name[:80]!r}; {known}", code="personality_not_found", param="personality")

    # ------------------------------------------------------------ the files

    def _read(self) -> None:
        """Takes over what the files say; again while they change, and told of once."""
        again = True
        while again:
            try:
                self._state, self._wrong = self._load(), None
            except ConfigError as error:
                self._wrong = error.message
            again = self._changed()
        if self._wrong:
            log.error("%s; the last good personalities stay in use", self._wrong)
        else:
            log.info("%s was changed and is in use", config.shown(self.folder))

    def _changed(self) -> bool:
        """Whether the files are others than when this was last asked: also those that are named since then."""
        before, self._seen = self._seen, self._signature()
        return self._seen != before

    def _signature(self) -> tuple[tuple[str, config.Signature | None], ...]:
        files = (*_files(self.folder), *(self.folder / name for name in sorted(self._sources)))
        return tuple((path.name, config.signature(path)) for path in files)

    def _load(self, lenient: bool = False) -> _State:
        """Raises `ConfigError` with file and line; `lenient` leaves out what is wrong."""
        wrong, documents, personas = _Wrong(lenient), [], {}
        for path in _files(self.folder):
            with wrong:
                documents.append(config.read(path, "personalities"))
        merged = _Merged(self.folder, documents, self._common)
        self._sources = merged.sources
        for name in dict.fromkeys(name for document in documents for name in document.values):
            with wrong:
                personas[name] = merged.persona(name)
        for name, persona in list(personas.items()):
            with wrong:
                if persona.rag_helper and persona.rag_helper not in personas:
                    del personas[name]
                    raise merged.error(name, f"rag_helper: {persona.rag_helper[:80]!r} is no personality; there are: "
                                             f"{', '.join(personas)}", "rag_helper")
        self._tell_without_effect(personas)
        return _State(personas, tuple(wrong.told))

    def _tell_without_effect(self, personas: dict[str, Persona]) -> None:
        given = {field for one in personas.values() for field in WITHOUT_EFFECT if field in one.model_fields_set}
        if new := sorted(given - self._told):
            self._told |= given
            log.info("%s: without effect here: %s", config.shown(self.folder), ", ".join(new))


class _Wrong:
    """`with` it, a `ConfigError` is told of and the rest goes on where that is `lenient`; else it is raised."""

    def __init__(self, lenient: bool) -> None:
        self.told: list[str] = []
        self._lenient = lenient

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        if not self._lenient or not isinstance(error, ConfigError):
            return False
        self.told.append(error.message)
        return True


@dataclass(frozen=True)
class _Merged:
    """The documents of a folder as one; knows which of them a field comes from."""

    folder: Path
    documents: Sequence[config.Document]
    common: dict[str, Any]          # of those that do not say
    sources: set[str] = field(default_factory=set)      # files that were looked for, whether they are there or not

    def error(self, name: str, message: str, *at: str) -> ConfigError:
        """Told of the last file that has the field `at`, or at least the personality."""
        of_field = [document for document in self.documents if (name, *at) in document.lines]
        of_name = [document for document in self.documents if name in document.values]
        return (of_field or of_name)[-1].error(f"personality {name[:80]!r}: {message}", name, *at)

    def persona(self, name: str) -> Persona:
        values: dict[str, Any] = {}
        for document in self.documents:
            if name in document.values:
                _update(values, document.values, name)
        found = values[name]
        if not _NAME.fullmatch(name):
            raise self.error(name, "is no name for a personality: use 1 to 100 characters that an address can have")
        if not isinstance(found, dict):
            raise self.error(name, "should be an object with fields such as \"imperative\"")
        try:
            persona = Persona.model_validate({**self.common, **found})
        except ValidationError as error:
            raise self._invalid(name, error) from None
        return persona.with_source(self._source(name, persona.agent_rag_source)) if persona.agent_rag_source \
            else persona

    def _invalid(self, name: str, error: ValidationError) -> ConfigError:
        fault = error.errors(include_url=False)[0]
        at = str(fault["loc"][0])
        if fault["type"] == "extra_forbidden":
            known = ", ".join(sorted({*Persona.model_fields} - {*WITHOUT_EFFECT}))
            return self.error(name, f"{at[:80]}: unknown field; known are: {known}", at)
        what = fault["msg"].removeprefix("Input ").replace("a valid tuple", "a list").replace("a valid list", "a list")
        return self.error(name, f"{at}: {what[:1].lower()}{what[1:]}, not "
                                f"{json.dumps(fault['input'], default=str)[:60]}", at)

    def _source(self, name: str, file: str) -> str:
        """The text of a file beside the personality's."""
        try:
            path = paths.inside(self.folder, file, what="agent_rag_source")
            self.sources.add(file)
            text = disk.read_bytes(path).decode("utf-8").strip()
        except FileNotFoundError:
            raise self._no_source(name, f"there is no file {file[:80]!r} beside it") from None
        except UnicodeDecodeError:
            raise self._no_source(name, f"{file} is not UTF-8 text") from None
        except ParleyError as error:
            raise self._no_source(name, error.message) from None
        if len(text) > MAX_SOURCE:
            raise self._no_source(name, f"{file} has {len(text)} characters; at most {MAX_SOURCE} are taken")
        return text

    def _no_source(self, name: str, why: str) -> ConfigError:
        return self.error(name, f"agent_rag_source: {why}", "agent_rag_source")


def _update(into: dict[str, Any], values: dict[str, Any], name: str) -> None:
    """csps-llm's recursive update of one name."""
    value = values[name]
    if isinstance(value, dict) and isinstance(into.get(name), dict):
        for field in value:
            _update(into[name], value, field)
    else:
        into[name] = dict(value) if isinstance(value, dict) else value


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))


def ensure_default(data_dir: Path) -> Path:
    """The folder of `data_dir`'s personalities, which is made, with those that ship, when there is none."""
    folder = data_dir / FOLDER
    if folder.exists() or folder.is_symlink():
        return folder
    try:
        disk.make_dirs(folder)
        text = json.dumps(SHIPPED, indent=4, ensure_ascii=False)
        disk.write_atomic(folder / "10-parley.json", f"{text}\n".encode())
    except ParleyError as error:
        raise ConfigError(f"{config.shown(folder)} cannot be written: {error.message}") from error
    return folder
