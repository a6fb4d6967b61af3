"""A personality: who is asked, with which texts, and how a question to it is put."""

from __future__ import annotations

import fnmatch
import re
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from services.chat.messages import Message
from services.engine import catalog
from services.errors import NotFound

RAG_LENGTH = 4096               # characters of a page that go into a prompt, as in csps-llm
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")
# Not for /describe (S4.23).
_INTERNAL = {"imperative", "intro_dialogue", "keys", "clock", "feeds", "gpu_layers", "cpu_threads"}
# csps-llm's fields that change nothing here. Voices and pictures are no part of this server.
WITHOUT_EFFECT = ("flash_attention", "voice", "voice_param", "ui_style", "ui_features", "persona", "persona_seed",
                  "persona_cfg", "persona_steps")
_SHOWN_ANYWAY = ("voice", "voice_param")        # of those: what csps-llm's /describe shows


class Given(NamedTuple):
    """A text to answer from, and the words around it: csps-llm's."""

    text: str
    before: str
    after: str

    @classmethod
    def content(cls, text: str) -> Given:
        return cls(text, "Consider the following content:\n", "\nGiven the preceding content, ")

    @classmethod
    def of_text(cls, text: str) -> Given:
        return cls(text, "Consider the following text:\n", "\nGiven the preceding text, ")


class Persona(BaseModel):
    """One personality. All fields may be left out: it is the selected profile with these texts then."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    imperative: str = Field("", max_length=65_536)                  # the system text
    description: str | None = Field(None, max_length=2000)
    intro_dialogue: str | list[str] | None = None                   # what a page may greet with
    profile: str | None = Field(None, min_length=1, max_length=200)     # of config.json
    model: str | None = Field(None, min_length=1, max_length=200)   # in its place: a profile, or a file of MODELS_DIR
    rag_length: int = Field(RAG_LENGTH, ge=1, le=1 << 24)           # characters of a page that go into a prompt
    rag_helper: str | None = None                                   # the personality that chooses and judges sources
    knowledge: tuple[str, ...] = ()                                 # knowledge bases that it answers from
    search: bool = False                                            # whether it decides itself where to look
    agent_rag_source: str | None = None                             # a file beside this one, told with the imperative
    keys: list[str] | None = None                                   # ids of the keys that may use it; none: all
    clock: bool = True                                              # whether questions tell date and time
    feeds: bool = True                                              # whether words of a question bring in feeds
    local_file: str | None = None                                   # csps-llm's from here on: a file of MODELS_DIR
    hf_repo: str | None = None
    hf_filename: str | None = None                                  # a file of MODELS_DIR, or a pattern of its name
    context_window: int | None = Field(None, ge=16, le=1 << 24)
    gpu_layers: int | None = Field(None, ge=-1, le=10_000)
    cpu_threads: int | None = Field(None, ge=0, le=512)
    flash_attention: Any = None
    voice: Any = None
    voice_param: Any = None
    ui_style: Any = None
    ui_features: Any = None
    persona: Any = None
    persona_seed: Any = None
    persona_cfg: Any = None
    persona_steps: Any = None
    _source: str = PrivateAttr("")                                  # the text of agent_rag_source

    @field_validator("knowledge", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("rag_length", "context_window", "gpu_layers", "cpu_threads", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        """csps-llm's files have some numbers as texts."""
        return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value) else value

    def with_source(self, text: str) -> Persona:
        """This personality with the text of its `agent_rag_source`."""
        persona = self.model_copy()
        persona._source = text
        return persona

    @property
    def system(self) -> str | None:
        """The system text, the same for all who ask; None: the profile's."""
        source = f"Consider the following content:\n{self._source}" if self._source else ""
        return "\n\n".join(filter(None, (self.imperative.strip(), source))) or None

    def asked(self, prompt: str, given: Given | None = None, now: datetime | None = None) -> tuple[Message, ...]:
        """The question `prompt` as the model is told it: with the date and time, and what is `given` to answer from.

        They are part of the question, not of the system text, so that what is computed of that stays good for all
        questions, and what is computed of a conversation stays good when it goes on a minute later.
        """
        parts = [told_time(now or datetime.now().astimezone())] if self.clock else []
        parts.append(f"{given.before}{given.text}{given.after}{prompt}" if given else prompt)
        return (Message("user", "\n\n".join(parts)),)

    def fields(self, models_dir: Path) -> dict[str, Any]:
        """Whom to ask, as fields of an `Ask`. Raises `NotFound` for a model file that is not there."""
        model = self.model or self._file(models_dir)
        return {"system": self.system, "profile": None if model else self.profile, "model": model,
                "n_ctx": self.context_window, "n_gpu_layers": self.gpu_layers, "n_threads": self.cpu_threads}

    def _file(self, models_dir: Path) -> str | None:
        """The file of MODELS_DIR that csps-llm's fields mean; a profile that is named goes before them."""
        wanted = Path(self.local_file).name if self.local_file else self.hf_filename
        if self.profile or not wanted:
            return None
        files = catalog.list_models(models_dir)
        found = [file for file in files if fnmatch.fnmatch(file, wanted)]
        if not found:
            pull = f"; `main.py models pull {self.hf_repo} \"{wanted}\"` brings it" if self.hf_repo else ""
            raise NotFound(f"this personality needs the model file {wanted[:80]!r}, which is not there{pull}; there "
                           f"are: {', '.join(files) or 'none'}", code="model_not_found")
        return found[0]

    def described(self) -> dict[str, Any]:
        """What `/describe` tells: how it is made, without its texts and what belongs to the machine (S4.23)."""
        kept = self.model_dump(exclude=_INTERNAL | {*WITHOUT_EFFECT} - {*_SHOWN_ANYWAY})
        ours = {name: kept.pop(name) for name in ("profile", "model", "knowledge", "search")}
        return {**kept, **{name: value for name, value in ours.items() if value}}


def told_time(now: datetime) -> str:
    """`Today's date is Saturday, November 21, 2026. The current time is 04:35 PM UTC.` (S4.15)."""
    date = f"{DAYS[now.weekday()]}, {MONTHS[now.month - 1]} {now.day}, {now.year}"
    return f"Today's date is {date}. The current time is {now:%I:%M} {'AM' if now.hour < 12 else 'PM'} {now:%Z}."
