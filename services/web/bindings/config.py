"""Which chat platforms are bound to which personalities: `data/bindings.json`, which may be edited while serving.

The file is `{<name>: {"kind": "slack", "personality": …, "key": <id of a key>, …}, …}`; what else a binding has is its
platform's. A valid file is taken over at the next message; a wrong one is told of once and in `Bindings.problem`, and
the last good one stays in use. Without the file nothing is bound.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError

from auth.authentication import PREFIX
from services import settings
from services.errors import ConfigError
from services.store import config
from services.store.base import is_owner

FILE_NAME = "bindings.json"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
log = logging.getLogger("parley.bindings")


def _secret(value: object) -> object:
    """A secret as it is, or `{"env": <variable>}`: what the server's environment or `.env` has there."""
    if not isinstance(value, dict):
        return value
    if [*value] != ["env"] or not isinstance(value["env"], str):
        raise ValueError('expected the secret, or {"env": "NAME"} for a variable of the server\'s environment')
    found = settings.variable(value["env"])
    if not found:
        raise ValueError(f"the variable {value['env'][:80]} is not set in the server's environment")
    return found


def _address(text: str) -> str:
    """An address to send to; without TLS only on this machine, since a secret goes along."""
    try:
        url = urlsplit(text)
        safe = url.scheme == "https" or (url.scheme == "http" and url.hostname in LOOPBACK)
        if not safe or not url.hostname or url.port == 0 or url.username or url.fragment:
            raise ValueError
    except ValueError:
        raise ValueError("expected an address that begins with https:// (http:// only for this machine)") from None
    return text.rstrip("/")


def _secret_address(secret: SecretStr) -> SecretStr:
    _address(secret.get_secret_value())
    return secret


Secret = Annotated[SecretStr, BeforeValidator(_secret), Field(min_length=1, max_length=1000)]
Address = Annotated[str, Field(max_length=2000), AfterValidator(_address)]
SecretAddress = Annotated[SecretStr, BeforeValidator(_secret), Field(max_length=2000), AfterValidator(_secret_address)]


def _key_id(value: str) -> str:
    """The error does not quote it: it may be a key."""
    if value.startswith(PREFIX) or not is_owner(value):
        raise ValueError("expected the id of a key, as `main.py keys list` shows it, not the key itself")
    return value


class Binding(BaseModel):
    """What every binding has."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,23}$")
    kind: str
    personality: str = Field(min_length=1, max_length=200)
    key: Annotated[str, AfterValidator(_key_id)]        # the id of the key whose limits and sessions its answers use


class Bindings:
    """The bindings of `path`, as it is now. `kinds`: the platforms there are. Any thread may ask."""

    def __init__(self, path: Path, kinds: Mapping[str, type[Binding]]) -> None:
        self.path, self._kinds = path, kinds
        self._lock = threading.Lock()               # guards all below
        self._bindings: dict[str, Binding] = {}
        self._wrong: str | None = None
        self._seen: config.Signature | None = None

    @property
    def problem(self) -> str | None:
        """Why the file of now is not what is used; None when it is."""
        self.current()
        return self._wrong

    def current(self) -> dict[str, Binding]:
        """The bindings by their names."""
        with self._lock:
            seen = config.signature(self.path)
            if seen != self._seen:
                self._seen = seen
                self._load(there=seen is not None)
            return self._bindings

    def _load(self, there: bool) -> None:
        try:
            self._bindings = self._parsed() if there else {}
            self._wrong = None
            log.info("%s is in use, with %d bindings", config.shown(self.path), len(self._bindings))
        except ConfigError as error:
            self._wrong = error.message
            log.error("%s; the last good bindings stay in use", error.message)

    def _parsed(self) -> dict[str, Binding]:
        document = config.read(self.path, "bindings by name")
        if document.mode & 0o077:
            log.warning("%s may hold secrets and can be read by others: chmod 600", document.where)
        return {name: self._binding(document, name, value) for name, value in document.values.items()}

    def _binding(self, document: config.Document, name: str, value: Any) -> Binding:
        kinds = ", ".join(self._kinds)
        if not isinstance(value, dict):
            raise document.error(f'binding {name[:80]!r}: expected an object with "kind", one of {kinds}', name)
        kind = value.get("kind")
        if not isinstance(kind, str) or kind not in self._kinds:
            raise document.error(f"binding {name[:80]!r}: kind: expected one of {kinds}", name, "kind")
        try:
            return self._kinds[kind].model_validate({**value, "name": name})
        except ValidationError as error:
            raise _fault(document, name, self._kinds[kind], error) from None


def _fault(document: config.Document, name: str, model: type[Binding], error: ValidationError) -> ConfigError:
    """The first fault. Quotes nothing of the file but names: it may hold secrets."""
    fault = error.errors(include_url=False, include_input=False)[0]
    at = str(fault["loc"][0])
    message = fault["msg"].removeprefix("Value error, ")
    if at == "name":
        message = "expected up to 24 small letters, digits and '-', since it stands in an address"
    elif fault["type"] == "extra_forbidden":
        message = f"unknown field; known are: {', '.join(sorted(set(model.model_fields) - {'name'}))}"
    elif fault["type"] == "missing":
        needed = sorted(field for field, info in model.model_fields.items() if info.is_required() and field != "name")
        message = f"missing; such a binding needs {', '.join(needed)}"
    return document.error(f"binding {name[:80]!r}: {at}: {message}", name, at)
