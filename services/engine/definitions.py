"""What a gallery's texts and LocalAI's clients say of a model, as one definition: YAML, files, templates (S2.16).

All of it was written by somebody else: names stay in the folder of models, and only GGUF files are fetched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Any

from services.engine import transfer, yaml_files
from services.engine.addresses import plain_name
from services.errors import BadRequest


@dataclass(frozen=True)
class File:
    filename: str
    uri: str
    sha256: str = ""


@dataclass(frozen=True)
class Apply:
    """What is to be put into the folder: an entry of a gallery (`id`), or the definition at `url`, or `config`."""

    id: str = ""                # "gallery@name", or a name
    url: str = ""
    name: str = ""              # of the model, instead of the definition's
    config: dict[str, Any] = field(default_factory=dict)
    files: tuple[File, ...] = ()
    templates: dict[str, str] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, body: dict[str, Any]) -> Apply:
        """From LocalAI's JSON. Raises `BadRequest` naming the field."""
        found = cls(id=_text(body, "id"), url=_text(body, "url") or _text(body, "config_url"), name=_text(body, "name"),
                    config=_config(body), files=_files(body), templates=_templates(body),
                    overrides=_mapping(body, "overrides"))
        if not (found.id or found.url or found.config):
            raise BadRequest("id, url, config_url or config_file says what to apply; one of them is needed", param="id")
        return found


@dataclass(frozen=True)
class Definition:
    """A model, ready to be installed."""

    name: str
    config: dict[str, Any]
    files: tuple[File, ...]
    templates: tuple[tuple[str, str], ...]          # name, content

    @property
    def file(self) -> str:
        """The name of its YAML file."""
        return re.sub(r"[^A-Za-z0-9_.+@=-]", "_", self.name).lstrip(".")[:190] + ".yaml"


def combined(layers: list[dict[str, Any]], wanted: Apply) -> Definition:
    """Later layers overrule earlier ones; their files and templates are all taken."""
    config: dict[str, Any] = {}
    files: list[File] = []
    templates: dict[str, str] = {}
    name = wanted.name
    for layer in layers:
        config = _merged(config, _config(layer))
        files += _files(layer)
        templates |= _templates(layer)
    for layer in reversed(layers):
        name = name or _text(layer, "name")
    config = _merged(config, wanted.config)
    for layer in layers:
        config = _merged(config, _mapping(layer, "overrides"))
    config = _merged(config, wanted.overrides)
    name = name or str(config.get("name") or "")
    if not name or not name.isprintable() or len(name) > 200:
        raise BadRequest("the model has no name of 1 to 200 printable characters: give it one with name", param="name")
    chosen = {plain_name(file.filename, "filename"): file for file in (*files, *wanted.files)}
    return Definition(name, _flat({**config, "name": name}), tuple(
        replace(file, filename=plain) for plain, file in chosen.items()),
                      tuple({**templates, **wanted.templates}.items()))


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """With the model's file named as it will be: in no folder."""
    parameters = config.get("parameters")
    if not isinstance(parameters, dict) or not isinstance(model := parameters.get("model"), str) or "://" in model:
        return config
    return {**config, "parameters": {**parameters, "model": plain_name(model, "parameters.model")}}


# ---------------------------------------------------------------- reading what others wrote

def _text(values: dict[str, Any], key: str) -> str:
    value = values.get(key)
    if value is not None and not isinstance(value, str):
        raise BadRequest(f"{key} must be a text", param=key)
    return (value or "").strip()


def _mapping(values: dict[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    if value is not None and not isinstance(value, dict):
        raise BadRequest(f"{key} must be an object", param=key)
    return value or {}


def _config(values: dict[str, Any]) -> dict[str, Any]:
    """`config_file`: a model's YAML, as a text or a mapping."""
    value = values.get("config_file")
    if isinstance(value, str):
        value = yaml_files.parse(value, "config_file").value
    if value is not None and not isinstance(value, dict):
        raise BadRequest("config_file must be a model's YAML: a mapping", param="config_file")
    return value or {}


def _files(values: dict[str, Any]) -> tuple[File, ...]:
    return tuple(_file(one) for one in _list(values, "files"))


def _file(value: dict[str, Any]) -> File:
    file = File(_text(value, "filename"), _text(value, "uri"), _text(value, "sha256").lower())
    if not file.filename or not file.uri:
        raise BadRequest("each of files needs filename and uri", param="files")
    if not plain_name(file.filename, "filename").endswith(".gguf"):
        raise BadRequest(f"files: {file.filename[:80]!r} is no .gguf file, and no other kind is fetched", param="files")
    if file.sha256 and not transfer.SHA256.fullmatch(file.sha256):
        raise BadRequest(f"files: the sha256 of {file.filename[:80]!r} is none: expected 64 hexadecimal digits",
                         param="files")
    return file


def _templates(values: dict[str, Any]) -> dict[str, str]:
    found = {}
    for one in _list(values, "prompt_templates"):
        name, content = _text(one, "name"), one.get("content")
        if not name or not isinstance(content, str):
            raise BadRequest("each of prompt_templates needs name and content", param="prompt_templates")
        found[plain_name(name, "prompt_templates")] = content
    return found


def _list(values: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = values.get(key)
    if value is not None and not (isinstance(value, list) and all(isinstance(one, dict) for one in value)):
        raise BadRequest(f"{key} must be a list of objects", param=key)
    return value or []
