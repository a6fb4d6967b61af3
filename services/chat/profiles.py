"""Profiles: which model, with which settings and which prompt, from `data/config.json` (S5.3; rows C1 to C7).

The file is `{"SelectedModel": <profile's name>, <name>: {profile}, …}`, the seed's own, with further optional fields.
A seed's file loads as it is. It may be edited while the server runs: a valid one is taken over at the next request, a
wrong one is told of once and in `Profiles.problem`, and the last good one stays in use. LocalAI's model files in
MODELS_DIR are profiles beside them (`services.chat.localai`), taken over in the same way.
"""

from __future__ import annotations

import json
import logging
import math
import re
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from services.chat import localai
from services.chat.profile import Profile, validated
from services.chat.template import SEED_TEMPLATE
from services.engine import catalog
from services.errors import ConfigError, Conflict, NotFound, ParleyError, TooLarge, Unavailable, Unprocessable
from services.settings import Settings
from services.store import config, disk
from services.wire import RunnerSpec

__all__ = ["DEFAULT", "SELECTED", "Brought", "Config", "Profile", "Profiles", "brought", "ensure_default", "parse"]
log = logging.getLogger("parley.chat")
SELECTED = "SelectedModel"
_TAKEN = f"a profile cannot be called {SELECTED}; give it another name"


@dataclass(frozen=True)
class Config:
    """A valid config.json, and what LocalAI's files bring. `sources`: name of a profile of theirs -> its file;
    `left_out`: what of them is not among the profiles."""

    selected: str
    profiles: dict[str, Profile]
    sources: dict[str, str] = field(default_factory=dict)
    left_out: tuple[localai.LeftOut, ...] = ()

    def get(self, name: str | None = None) -> tuple[str, Profile]:
        """The profile called `name`, or the selected one. Raises `NotFound` naming those there are."""
        name = self.selected if name is None else name
        if name not in self.profiles:
            raise NotFound(f"no profile {name[:80]!r}{self.reason(name)}; there are: {', '.join(self.profiles)}",
                           code="profile_not_found", param="profile")
        return name, self.profiles[name]

    def reason(self, name: str) -> str:
        """Why there is no profile `name`, in brackets, where a file was to bring it; else ""."""
        return next((f" ({one.why})" for one in self.left_out if one.name == name), "")

    def for_text(self, name: str | None = None) -> tuple[str, Profile]:
        """`get`, for who wants text of it. Raises `Unprocessable` for a profile that makes embeddings."""
        return self.writing(*self.get(name))

    def writing(self, name: str, profile: Profile) -> tuple[str, Profile]:
        """Both as they are. Raises `Unprocessable` for a profile that makes embeddings."""
        if profile.embedding:
            others = ", ".join(other for other, one in self.profiles.items() if not one.embedding)
            raise Unprocessable(f"the profile {name[:80]!r} makes embeddings and cannot answer: ask it by "
                                "POST /v1/embeddings, or /v1/rerank where its model is made for ranking, or take one "
                                f"of: {others}", code="embedding_profile", param="profile")
        return name, profile

    def keep(self, profile: Profile) -> float:
        """Seconds that the runner of `profile` stays loaded without use, infinite for ever: the longest that any of
        the profiles that share it says. 0: none says so."""
        return max(math.inf if other.keep_loaded is True else float(other.keep_loaded)
                    for other in (profile, *self.profiles.values()) if other.needs == profile.needs)

    @property
    def warnings(self) -> list[str]:
        return [f"profile {name!r}: {text}" for name, profile in self.profiles.items() for text in profile.warnings]


Change = Callable[[config.Document, Config], dict[str, Any]]       # of config.json's values; raises what forbids it


@dataclass(frozen=True)
class Brought:
    """The profiles of LocalAI's files. `aliases`: name -> the profile that is meant. `sources`: name -> file."""

    profiles: dict[str, Profile] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    left_out: tuple[localai.LeftOut, ...] = ()


def brought(found: localai.Found, settings: Settings) -> Brought:
    """What `found` means as profiles; one that cannot be one is left out, logged, and told of in `left_out`."""
    result, left_out = Brought(), list(found.left_out)
    for model in found.models:
        try:
            if model.name == SELECTED:
                raise model.error(f"a model cannot be called {SELECTED}; give it another name")
            if model.alias:
                result.aliases[model.name] = model.alias
            else:
                profile = validated({**_defaults(settings), **model.values}, model.error)
                result.profiles[model.name] = profile.rendered_by(model.templates)
            result.sources[model.name] = model.document.where
        except ConfigError as error:
            log.error("%s; it is left out", error.message)
            left_out.append(localai.LeftOut(model.name, error.message))
    return Brought(result.profiles, result.aliases, result.sources, tuple(left_out))


def parse(document: config.Document, settings: Settings, others: Brought | None = None, *,
          lenient: bool = False) -> Config:
    """The configuration in `document`, and the `others`, of which it overrules those with a name of its own.

    Raises `ConfigError` with file, line, profile and field. `lenient`: the selected profile need not be there.
    """
    others = others or Brought()
    own = {name: _profile(document, name, settings) for name in document.values if name != SELECTED}
    profiles = {**own, **{name: profile for name, profile in others.profiles.items() if name not in own}}
    for name, meant in others.aliases.items():
        if name not in own and meant in profiles and meant not in others.aliases:
            profiles[name] = profiles[meant]
    sources = {name: file for name, file in others.sources.items() if name in profiles and name not in own}
    left_out = list(others.left_out)
    for name in sorted(others.sources.keys() - sources.keys()):
        why = f"{document.where} has a profile of this name" if name in own else \
            f"there is no model {others.aliases[name][:80]!r} that it could stand for"
        left_out.append(localai.LeftOut(name, f"{others.sources[name]}: the model {name!r} is left out: {why}"))
        log.warning("%s", left_out[-1].why)
    if not profiles:
        raise document.error("holds no profile; add one with at least a \"model\"")
    known = ", ".join(profiles)
    if SELECTED not in document.values:
        raise document.error(f"{SELECTED} is missing; set it to one of: {known}")
    selected = document.values[SELECTED]
    if isinstance(selected, dict):
        raise document.error(_TAKEN, SELECTED)
    if lenient and isinstance(selected, str) and selected not in profiles:
        return Config(selected, profiles, sources, tuple(left_out))
    if not isinstance(selected, str) or selected not in profiles:
        raise document.error(f"{SELECTED} is {json.dumps(selected)[:80]}, which is no profile; there are: {known}",
                             SELECTED)
    if profiles[selected].embedding:
        raise document.error(f"{SELECTED} is {selected!r}, which makes embeddings and cannot answer; set it to a "
                             "profile without \"embedding\": true", SELECTED)
    return Config(selected, profiles, sources, tuple(left_out))


def _profile(document: config.Document, name: str, settings: Settings) -> Profile:
    if problem := bad_name(name):
        raise document.error(problem, name)
    values = document.values[name]
    if not isinstance(values, dict):
        raise document.error(f"{name!r} must be a profile, an object with at least a \"model\"", name)
    return validated({**_defaults(settings), **values}, lambda message, at: document.error(
        f"profile {name!r}: {at}: {message}" if at else f"profile {name!r} {message}", name, at))


def bad_name(name: str) -> str | None:
    """Why no profile can be called `name`; None: one can."""
    if name == SELECTED:
        return _TAKEN
    if not name.strip() or len(name) > 200 or not name.isprintable():
        return f"{name[:80]!a} is no name for a profile; use 1 to 200 printable characters"
    return None


def _defaults(settings: Settings) -> dict[str, Any]:
    """What the settings say where a profile does not."""
    return {"n_ctx": settings.context_window, "n_threads": settings.runner_threads,
            "n_gpu_layers": settings.gpu_layers}


class Profiles:
    """The configuration in `path`, as it is now. Any thread may ask. `ConfigError` when it is wrong at the start."""

    def __init__(self, path: Path, settings: Settings) -> None:
        self.path = path
        self._settings = settings
        self._lock = threading.Lock()           # guards all below
        self._wrong: str | None = None          # why config.json is not what is used
        self._folder = localai.Folder(settings.models_dir)
        self._found = self._folder.current()
        self._brought = brought(self._found, settings)
        self._seen = config.signature(path)
        self._config = self._load(lenient=bool(self._brought.left_out))

    @property
    def problem(self) -> str | None:
        """Why files are not what is used; None when all are."""
        left_out = (*self._brought.left_out, *self._config.left_out)
        told = [*([self._wrong] if self._wrong else []), *(one.why for one in left_out), *self._missing()]
        return "; ".join(dict.fromkeys(told)) or None

    def _missing(self) -> list[str]:
        """Of LocalAI's models, those whose file is not there."""
        files, folder = catalog.list_models(self._settings.models_dir), self._settings.models_dir.name
        return [model.error(f"there is no {model.values['model']} in {folder}/", "model").message
                for model in self._found.models
                if not model.alias and model.name in self._config.sources and model.values["model"] not in files]

    def _load(self, lenient: bool = False) -> Config:
        loaded = parse(config.read(self.path), self._settings, self._brought, lenient=lenient)
        for warning in loaded.warnings:
            log.warning("%s: %s", config.shown(self.path), warning)
        return loaded

    def current(self) -> Config:
        """The files' content, or the last valid one."""
        with self._lock:
            signature, found = config.signature(self.path), self._folder.current()
            if signature == self._seen and found is self._found:
                return self._config
            if found is not self._found:
                self._found, self._brought = found, brought(found, self._settings)
            self._seen = signature
            try:
                self._config = self._load()
            except ConfigError as error:
                self._wrong = error.message
                log.error("%s; the last good one stays in use", error.message)
                return self._config
            self._wrong = None
            log.info("%s, or a model file of LocalAI's, was changed and is in use", config.shown(self.path))
            return self._config

    def named(self, model: str, allowed: Collection[str] | None = None) -> tuple[str, Profile]:
        """`any_named`, for who wants text of it. Raises `Unprocessable` for what makes embeddings."""
        return self.current().writing(*self.any_named(model, allowed))

    def any_named(self, model: str, allowed: Collection[str] | None = None) -> tuple[str, Profile]:
        """What `model` names: a profile, or a file of MODELS_DIR, which is served with the selected profile if that
        is its model, else with the first that has it, of those `allowed` to a key if there are any; else with a profile
        of nothing but defaults, called as the file.

        Raises `NotFound` naming what there is, or the profiles that are allowed.
        """
        current = self.current()
        if model in current.profiles:
            return model, current.profiles[model]
        users = [name for name in (current.selected, *current.profiles)
                 if name in current.profiles and current.profiles[name].model == model]
        if users:
            name = next((name for name in users if allowed is None or name in allowed), users[0])
            return name, current.profiles[name]
        if (free := self.of_file(model)) is not None:
            return model, free
        files = catalog.list_models(self._settings.models_dir)
        known = [*current.profiles, *files] if allowed is None else filter(current.profiles.__contains__, allowed)
        why = current.reason(model) if allowed is None else ""
        raise NotFound(f"no model {model[:80]!r}{why}; there are: {', '.join(known)}", code="model_not_found",
                       param="model")

    def of_file(self, model: str) -> Profile | None:
        """A profile of nothing but defaults for a file of MODELS_DIR; None where there is no such file, or a profile
        has it or its name."""
        current, folder = self.current(), self._settings.models_dir
        used = model in current.profiles or any(profile.model == model for profile in current.profiles.values())
        if used or model not in catalog.list_models(folder):
            return None
        return Profile(model=model, embedding=catalog.made_for(folder, model) != "text", **_defaults(self._settings))

    def candidate(self, name: str, model: str | None = None) -> Profile:
        """The profile `name`, which is to answer, as it would be with `model`. Changes nothing. Raises `NotFound`,
        `BadRequest`, `Conflict`, `Unprocessable`."""
        return _with_model(self.current(), name, model)

    def made(self, fields: dict[str, Any], wrong: Callable[[str, str], ParleyError]) -> Profile:
        """The profile that `fields` in config.json would be, or the error that `wrong` makes of what is wrong, and of
        which field."""
        return validated({**_defaults(self._settings), **fields}, wrong)

    @property
    def defaults(self) -> dict[str, Any]:
        """What fields are that a profile does not give."""
        return {**Profile.model_validate({"model": "any"}).model_dump(exclude={"model"}), **_defaults(self._settings)}

    def select(self, name: str, model: str | None = None) -> Config:
        """Make `name` the selected profile, with `model` as its file, durably; the rest of the file stays as it is.

        Raises `NotFound` for an unknown profile, and what `rewrite` does.
        """
        def change(document: config.Document, current: Config) -> dict[str, Any]:
            _with_model(current, name, model)
            values = {**document.values, SELECTED: name}
            if model is not None and name not in current.sources:
                values[name] = {**values[name], "model": model}
            return values
        self.rewrite(change)
        return self.current()

    def stored(self) -> tuple[config.Document, Config]:
        """config.json as it is on the disk now, and what it means. Raises `Conflict` when it is not valid."""
        try:
            document = config.read(self.path)
            return document, parse(document, self._settings, self._others())
        except ConfigError as error:
            raise Conflict(f"{error.message}; mend it first", code="bad_config") from None

    def rewrite(self, change: Change) -> tuple[config.Document, Config]:
        """Have config.json hold the values that `change` makes of what is `stored`, durably; what that was. One change
        at a time, in whichever process. Raises `Conflict` when the file is not valid or would not be, `TooLarge`,
        storage errors, and what `change` raises."""
        try:
            with disk.locked(self.path):
                document, current = self.stored()
                values = change(document, current)
                if json.dumps(values) != json.dumps(document.values):       # True is equal to 1
                    self._check(replace(document, values=values, lines={}))
                    disk.write_atomic(self.path, _written(values, document.text), document.mode)
        except TimeoutError:
            raise Unavailable(f"{config.shown(self.path)} is being changed by somebody else") from None
        return document, current

    def _check(self, document: config.Document) -> None:
        """`Conflict` for what could not be read again: the selected profile may stand for the one that changes."""
        try:
            parse(document, self._settings, self._others())
        except ConfigError as error:
            raise Conflict(f"nothing is changed: with that, {error.message}", code="bad_config") from None

    def _others(self) -> Brought:
        """What LocalAI's files bring now, which `current` may not have seen yet."""
        with self._lock:
            found = self._folder.current()
            return self._brought if found is self._found else brought(found, self._settings)

    @staticmethod
    def spec(profile: Profile, models_dir: Path) -> RunnerSpec:
        """What the runner of `profile` is started with. Raises `NotFound` naming the files there are."""
        return RunnerSpec(model=str(catalog.resolve(models_dir, profile.model).absolute()), n_ctx=profile.n_ctx,
                          parallel=1 if profile.embedding else profile.parallel, n_threads=profile.n_threads,
                          n_gpu_layers=profile.n_gpu_layers, embedding=profile.embedding)


def _with_model(current: Config, name: str, model: str | None) -> Profile:
    """The profile `name` with `model`. `Conflict` where that is for another file than config.json to say."""
    _, profile = current.for_text(name)
    if name in current.sources and model not in (None, profile.model):
        raise Conflict(f"the profile {name[:80]!r} comes from {current.sources[name]}, which says that its model is "
                       f"{profile.model}: change it there, or name that model", code="not_in_config", param="model")
    return profile.overridden(model=model)


def _written(values: dict[str, Any], before: str) -> bytes:
    """`values` as JSON, indented as the text `before` is."""
    indent = re.search(r"\n([ \t]+)\"", before)
    text = json.dumps(values, indent=indent.group(1) if indent else 4, ensure_ascii=False)
    data = (text + "\n").encode()
    if len(data) > config.MAX_BYTES:
        raise TooLarge(f"config.json would have {len(data)} bytes, and has at most {config.MAX_BYTES}: make it shorter")
    return data


_STARTER = {"model": "starter.gguf", "n_ctx": 1024, "n_threads": 1, "temperature": 0, "max_tokens": 128, "top_p": 0.95,
            "top_k": 40, "repeat_penalty": 1.0, "k": 5, "parallel": 4}
DEFAULT = {
    SELECTED: "starter",
    "starter": {"description": "the small model that ships with Parley: shows that everything works", **_STARTER,
                "template": SEED_TEMPLATE},
    "starter-chat": {"description": "the same model with its own chat template", **_STARTER, "chat_format": "model"},
}


def ensure_default(data_dir: Path) -> Path:
    """The path of `data_dir`'s config.json, which is written (with the starter model) when there is none."""
    path = data_dir / "config.json"
    if not path.exists() and not path.is_symlink():
        try:
            disk.write_atomic(path, _written(DEFAULT, ""))
        except ParleyError as error:
            raise ConfigError(f"{config.shown(path)} cannot be written: {error.message}") from error
    return path
