"""LocalAI's model files: `*.yaml` in the folder of models, with their `.tmpl`, as values for profiles (S2.11 to S2.13).

A file holds one model or a list of them. What it says that means something here becomes a profile's values; the rest is
named once in the log. A file that is wrong is left out and told of in `Found.left_out`; the others are not touched.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from services import paths
from services.chat.localai_templates import LocalAITemplates, Source
from services.engine import yaml_files
from services.engine.machine import gpu_backends
from services.engine.yaml_files import Document, Key
from services.errors import BadRequest, ConfigError

log = logging.getLogger("parley.chat")
PATIENCE = 1.0              # seconds between two looks at the folder
ENDINGS = (".yaml", ".yml")
CONTEXT = 512               # tokens, where a file says none
DEFAULTS: dict[str, Any] = {"temperature": 0.9, "top_p": 0.95, "top_k": 40, "repeat_penalty": 1.1, "repeat_last_n": 64}
MAX_STOPS = 16
TEXT_BACKENDS = ("llama", "gguf", "bert")       # in the names of those that serve GGUF models for text
PARAMETERS = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p", "seed": "seed",
              "max_tokens": "max_tokens", "frequency_penalty": "frequency_penalty",
              "presence_penalty": "presence_penalty", "repeat_penalty": "repeat_penalty",
              "repeat_last_n": "repeat_last_n", "model": "model"}
FIELDS = {"context_size": "n_ctx", "threads": "n_threads", "gpu_layers": "n_gpu_layers", "stopwords": "stop",
          "system_prompt": "system", "embeddings": "embedding", "description": "description"}
TEMPLATES = ("chat", "chat_message", "function", "completion", "edit")
_OURS = ("name", "parameters", "template", "roles", "alias", "disabled", "backend", *FIELDS)
_OUR_TEMPLATES = (*TEMPLATES, "use_tokenizer_template", "join_chat_messages_by_character")
_BACK = {ours: (theirs,) for theirs, ours in FIELDS.items()} | {
    ours: ("parameters", theirs) for theirs, ours in PARAMETERS.items()}


@dataclass(frozen=True)
class Model:
    """One model of a file. `values` are a profile's fields; `templates` None: the model's own chat template."""

    name: str
    values: dict[str, Any]
    templates: LocalAITemplates | None
    alias: str | None               # the name of the model that is meant instead
    ignored: tuple[str, ...]        # fields of the file that mean nothing here
    warnings: tuple[str, ...]
    document: Document
    path: Key                       # of the model in the document

    def error(self, message: str, field: str = "") -> ConfigError:
        """`message` about the profile's `field`, in the file's words, with its line."""
        theirs = _BACK.get(field, (field,) if field else ())
        said = f"{'.'.join(theirs)}: {message}" if field else message
        return self.document.error(f"model {self.name!r}: {said}", *self.path, *theirs)

    @property
    def notes(self) -> list[str]:
        """What of the file is not as it says."""
        told = [f"these fields mean nothing here: {', '.join(self.ignored)}"] if self.ignored else []
        return [f"{self.document.at(*self.path)}: model {self.name!r}: {text}" for text in (*told, *self.warnings)]


@dataclass(frozen=True)
class LeftOut:
    """A model that is not served: the name that it would have had, and why, with the file."""

    name: str
    why: str


@dataclass(frozen=True)
class Found:
    """What the folder holds."""

    models: tuple[Model, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


class Folder:
    """The files in `models_dir`, as they are now: looked at once in PATIENCE seconds. For one thread at a time."""

    def __init__(self, models_dir: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._dir = models_dir
        self._now = now
        self._next = -1.0
        self._seen: object = None
        self._found = Found()
        self._told: set[str] = set()

    def current(self) -> Found:
        """The same object for as long as nothing has changed."""
        if (now := self._now()) < self._next:
            return self._found
        self._next = now + PATIENCE
        if (seen := _signature(self._dir)) != self._seen:
            self._seen = seen
            self._found = read_folder(self._dir)
            self._tell()
        return self._found

    def _tell(self) -> None:
        """Into the log, what was not told since it last was otherwise."""
        notes = {note for model in self._found.models for note in model.notes}
        problems = {f"{one.why}; it is left out" for one in self._found.left_out}
        for level, lines in ((logging.WARNING, notes), (logging.ERROR, problems)):
            for line in sorted(lines - self._told):
                log.log(level, "%s", line)
        self._told = notes | problems


def _signature(folder: Path) -> object:
    """What changes when a file of LocalAI's comes, goes or is written again."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith((*ENDINGS, ".tmpl")):
                    status = entry.stat(follow_symlinks=False)
                    found.append((entry.name, status.st_mtime_ns, status.st_size, status.st_ino, status.st_mode))
    except OSError:             # gone while we looked: it is looked at again in a second
        return None
    return sorted(found)


def read_folder(folder: Path) -> Found:
    """All models of all files, sorted by file; of two with one name the first."""
    models: dict[str, Model] = {}
    left_out: list[LeftOut] = []
    for name in _names(folder):
        try:
            document = yaml_files.read(paths.inside(folder, name, what="file"))
            found = _models(document, folder)
        except (ConfigError, BadRequest) as error:
            why = error.message if isinstance(error, ConfigError) else f"{folder.name}/{error.message}"
            left_out.append(LeftOut(PurePosixPath(name).stem, why))
            continue
        for model in found:
            if isinstance(model, LeftOut):
                left_out.append(model)
            elif model.name in models:
                first = models[model.name].document.where
                left_out.append(LeftOut(model.name, model.error(f"{first} has one of this name already").message))
            else:
                models[model.name] = model
    return Found(tuple(models.values()), tuple(left_out))


def _names(folder: Path) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(ENDINGS) and not name.startswith("."))
    except OSError:
        return []


def _models(document: Document, folder: Path) -> list[Model | LeftOut]:
    """The models of a file, also those that are wrong. None for a gallery's file, which is no model's."""
    values = document.value
    entries = list(enumerate(values)) if isinstance(values, list) else [(None, values)]
    if not entries or any(_is_gallery(value) for _, value in entries):
        log.debug("%s is a gallery's: no model is taken from it", document.where)
        return []
    found: list[Model | LeftOut] = []
    for index, value in entries:
        path: Key = () if index is None else (index,)
        try:
            if (model := _Reader(document, path, value, folder).model()) is not None:
                found.append(model)
        except ConfigError as error:
            named = value.get("name") if isinstance(value, dict) else None
            found.append(LeftOut(str(named or PurePosixPath(document.where).stem), error.message))
    return found


def _is_gallery(value: Any) -> bool:
    """An entry of a gallery's index, or what it points to."""
    return isinstance(value, dict) and "parameters" not in value and ("config_file" in value or "url" in value)


class _Reader:
    """Makes a `Model` of one mapping. Raises `ConfigError` with file and line."""

    def __init__(self, document: Document, path: Key, value: Any, folder: Path) -> None:
        self.document, self.path, self.folder = document, path, folder
        if not isinstance(value, dict):
            raise self.error("expected a model: a mapping with at least name and parameters.model")
        self.value: dict[str, Any] = value
        self.parameters = self.mapping("parameters")
        self.template = self.mapping("template")
        self.warnings: list[str] = []

    def error(self, message: str, *path: str | int) -> ConfigError:
        return self.document.error(message, *self.path, *path)

    def mapping(self, field: str) -> dict[str, Any]:
        value = self.value.get(field)
        if value is not None and not isinstance(value, dict):
            raise self.error(f"{field} must be a mapping", field)
        return value or {}

    def model(self) -> Model | None:
        """None for one that is disabled."""
        name = self.name()
        if self.flag(self.value, "disabled"):
            log.info("%s: the model %r is disabled", self.document.where, name)
            return None
        alias = self.text(self.value, "alias")
        if alias:
            return Model(name, {}, None, alias, (), (), self.document, self.path)
        self.check_backend(name)
        values = self.values()
        templates = None if self.flag(self.template, "use_tokenizer_template", "template") else self.templates()
        if templates is None:
            values["chat_format"] = "model"
        return Model(name, values, templates, None, self.ignored(), tuple(self.warnings), self.document, self.path)

    def name(self) -> str:
        name = self.text(self.value, "name")
        if not name and not self.path:
            name = PurePosixPath(self.document.where).stem
        if not name or len(name) > 200 or not name.isprintable():
            raise self.error("a model needs a name of 1 to 200 printable characters", "name")
        return name

    def check_backend(self, name: str) -> None:
        backend = self.text(self.value, "backend").lower()
        if backend and not any(word in backend for word in TEXT_BACKENDS):
            raise self.error(f"model {name!r}: the backend {backend[:40]!r} is not one for texts with GGUF models",
                             "backend")

    # ------------------------------------------------------------ values

    def values(self) -> dict[str, Any]:
        """A profile's fields. What the file does not say is as in LocalAI, where it matters."""
        values = dict(DEFAULTS)
        for theirs, ours in PARAMETERS.items():
            if self.parameters.get(theirs) is not None:
                values[ours] = self.parameters[theirs]
        for theirs, ours in FIELDS.items():
            if self.value.get(theirs) is not None:
                values[ours] = self.value[theirs]
        self.check_model(values)
        values["embedding"] = self.flag(self.value, "embeddings")
        self.adapt(values)
        return values

    def check_model(self, values: dict[str, Any]) -> None:
        model = values.get("model")
        if not isinstance(model, str) or not model:
            raise self.error("parameters.model is missing; it names a .gguf file", "parameters")
        if "://" in model or "/" in model:
            raise self.error(f"parameters.model {model[:80]!r}: expected the name of a .gguf file in "
                             f"{self.folder.name}/; get it first", "parameters", "model")
        if not model.endswith(".gguf"):
            raise self.error(f"parameters.model {model[:80]!r} is no .gguf file, and no other kind can be served",
                             "parameters", "model")

    def adapt(self, values: dict[str, Any]) -> None:
        """LocalAI's words for "not set", "without end" and "all" are not a profile's."""
        if not values.get("n_ctx"):
            values["n_ctx"] = CONTEXT
            self.warnings.append(f"context_size is not set: {CONTEXT} tokens, as in LocalAI")
        n_ctx = values["n_ctx"]
        if values.get("max_tokens", 0) in (0, -1) and isinstance(n_ctx, int):
            values["max_tokens"] = max(1, n_ctx)
        if values.get("seed") == -1:
            del values["seed"]
        if values.get("repeat_last_n") == -1:
            values["repeat_last_n"] = n_ctx
        for field, off in (("repeat_penalty", 1.0), ("top_p", 1.0)):
            if values.get(field) == 0:
                values[field] = off
        if values.get("n_threads") == 0:
            del values["n_threads"]
        self.adapt_gpu(values)
        stop = values.get("stop")
        if isinstance(stop, list):
            values["stop"] = [text for text in dict.fromkeys(map(_text, stop)) if text][:MAX_STOPS]
            if len(stop) > MAX_STOPS:
                self.warnings.append(f"stopwords: the first {MAX_STOPS} of {len(stop)} are used")

    def adapt_gpu(self, values: dict[str, Any]) -> None:
        layers = values.get("n_gpu_layers")
        if isinstance(layers, int) and layers > 0 and not gpu_backends():
            values["n_gpu_layers"] = 0
            self.warnings.append("gpu_layers: this llama-cpp-python is built for the CPU only")
        elif isinstance(layers, int) and layers > 10_000:
            values["n_gpu_layers"] = -1

    def text(self, values: dict[str, Any], field: str) -> str:
        value = values.get(field)
        if value is not None and not isinstance(value, str | int | float):
            raise self.error(f"{field} must be a text", field)
        return "" if value is None else str(value)

    def flag(self, values: dict[str, Any], field: str, *within: str) -> bool:
        value = values.get(field)
        if isinstance(value, str) and value.lower() in ("yes", "on", "y", "no", "off", "n"):
            return value.lower() in ("yes", "on", "y")      # as Go reads them where a truth value is wanted
        if value is not None and not isinstance(value, bool):
            raise self.error(f"{field} must be true or false", *within, field)
        return bool(value)

    def ignored(self) -> tuple[str, ...]:
        return (*(f"{name}" for name in self.value if name not in _OURS),
                *(f"parameters.{name}" for name in self.parameters if name not in PARAMETERS),
                *(f"template.{name}" for name in self.template if name not in _OUR_TEMPLATES))

    # ------------------------------------------------------------ templates

    def templates(self) -> LocalAITemplates:
        sibling = self.source(str(self.parameters.get("model")), "parameters", "model", beside=True)
        found = {kind: self.source(str(self.template[kind]), "template", kind) for kind in TEMPLATES
                 if self.template.get(kind) not in (None, "")}
        for kind in ("chat", "completion", "edit"):
            if sibling is not None:
                found.setdefault(kind, sibling)
        join = self.template.get("join_chat_messages_by_character")
        roles = self.mapping("roles")
        templates = LocalAITemplates(**found, join="\n" if join is None else str(join),
                                     roles=tuple((role, str(text)) for role, text in roles.items() if text is not None))
        self.warnings += templates.check()
        return templates

    def source(self, name: str, *path: str, beside: bool = False) -> Source | None:
        """The text of the template `name`: that of `<name>.tmpl` in the folder, else `name` itself; with `beside` None
        where there is no such file. It never lies outside of the folder."""
        file = f"{name}.tmpl"
        if len(name) < 200 and "\n" not in name and "\0" not in name and os.path.lexists(self.folder / file):
            try:
                found = paths.inside(self.folder, file, what="template")
            except BadRequest as error:
                raise self.error(f"{'.'.join(path)}: {error.message}", *path) from None
            return Source(yaml_files.read_text(found), yaml_files.shown(found))
        if beside:
            return None
        if "{{" not in name and not any(map(str.isspace, name)):
            raise self.error(f"{'.'.join(path)}: there is no {self.folder.name}/{file[:80]}, and a single word is no "
                             "template: write that file, or the template itself", *path)
        if "{{" not in name:
            self.warnings.append(f"{'.'.join(path)}: there is no {self.folder.name}/{file[:80]}: the text itself is "
                                 "the template, which shows no conversation")
        return Source(name, f"{self.document.where}, {'.'.join(map(str, (*self.path, *path)))}")


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
