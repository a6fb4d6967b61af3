"""Profiles of config.json, one by one: how one stands there, another one in its place, none any more.

Who changes one may say in which state it should be (`Check`), so that nobody's change is undone unseen. LocalAI's files
are not written: their profiles are told of, and refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.chat.profiles import Config, Profile, Profiles, bad_name
from services.engine import catalog
from services.errors import BadRequest, Conflict, NotFound, Unprocessable
from services.store import config

Check = Callable[[str | None], None]        # is told the tag of what there is, None: nothing; raises what forbids it


@dataclass(frozen=True)
class Stored:
    """A profile as its file has it."""

    name: str
    fields: dict[str, Any]      # those that the file gives; of LocalAI's, those that are not as by default
    profile: Profile
    selected: bool
    source: str                 # the file, with its folder
    editable: bool              # whether that is config.json

    @property
    def tag(self) -> str:
        return tag_of(self.fields)


def tag_of(fields: dict[str, Any]) -> str:
    """The same for the same fields, in whatever order."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]


def stored(profiles: Profiles, name: str) -> Stored:
    """Raises `NotFound`, or `Conflict` when config.json is not valid."""
    document, current = profiles.stored()
    _, profile = current.get(name)
    source = current.sources.get(name)
    fields = profile.model_dump(exclude_defaults=True) if source else document.values[name]
    return Stored(name, fields, profile, name == current.selected, source or document.where, source is None)


def checked(profiles: Profiles, fields: dict[str, Any], models_dir: Path, prefix: str = "") -> Profile:
    """What `fields` come to as a profile. Raises `BadRequest`, or `NotFound` for a model file that is not there; their
    `param` is the field, after `prefix`."""
    def wrong(message: str, at: str) -> BadRequest:
        return BadRequest(f"{at[:80]}: {message}" if at else f"the profile {message}",
                          param=f"{prefix}{at}"[:200].rstrip(".") or None)
    profile = profiles.made(fields, wrong)
    try:
        catalog.resolve(models_dir, profile.model)
    except (BadRequest, NotFound) as error:
        raise type(error)(error.message, code=error.code, param=f"{prefix}model") from None
    return profile


def put(profiles: Profiles, name: str, fields: dict[str, Any], models_dir: Path, check: Check) -> tuple[Stored, bool]:
    """Make `name` the profile of these `fields`, durably; whether there was none. Raises what `checked`,
    `Profiles.rewrite` and `check` do, `Conflict` for one of LocalAI's, `Unprocessable` for what makes embeddings in the
    selected one's place."""
    if problem := bad_name(name):
        raise BadRequest(problem, param="name")
    profile = checked(profiles, fields, models_dir)

    def change(document: config.Document, current: Config) -> dict[str, Any]:
        _refuse_foreign(current, name)
        before = document.values.get(name)
        check(None if before is None else tag_of(before))
        if profile.embedding and name == current.selected:
            raise Unprocessable(f"{name[:80]!r} is the selected profile, which answers, and one that makes embeddings "
                                "cannot: select another one first", code="embedding_profile", param="embedding")
        return {**document.values, name: _in_place(before or {}, fields)}
    document, current = profiles.rewrite(change)
    now = _in_place(document.values.get(name, {}), fields)
    return Stored(name, now, profile, name == current.selected, document.where, True), name not in document.values


def delete(profiles: Profiles, name: str, check: Check) -> None:
    """Strike a profile out, durably. Raises `NotFound`, `Conflict` for the selected one and LocalAI's, and what `check`
    and `Profiles.rewrite` do."""
    def change(document: config.Document, current: Config) -> dict[str, Any]:
        current.get(name)
        _refuse_foreign(current, name)
        check(tag_of(document.values[name]))
        if name == current.selected:
            raise Conflict(f"{name[:80]!r} is the selected profile: select another one first", code="profile_selected",
                           param="name")
        return {other: value for other, value in document.values.items() if other != name}
    profiles.rewrite(change)


def _refuse_foreign(current: Config, name: str) -> None:
    if name in current.sources:
        raise Conflict(f"the profile {name[:80]!r} comes from {current.sources[name]}: change it there",
                       code="not_in_config", param="name")


def _in_place(before: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """`fields` in the order of those `before`, and written as there where they say the same: 1.0 is 1."""
    def kept(field: str) -> Any:
        old, new = before[field], fields[field]
        return old if old == new and isinstance(old, bool) == isinstance(new, bool) else new
    return {**{field: kept(field) for field in before if field in fields}, **{
        field: value for field, value in fields.items() if field not in before}}
