"""What a job of summaries wants, and how a model is asked for it: each part of a text by the same prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import msgspec

from auth.keys import Key
from services.chat.events import Ask
from services.chat.messages import Message
from services.jobs import actions, contents, prompts
from services.jobs.language import NAMES, language_of

Type = Literal["summary", "action_items", "table_of_contents", "process_text"]
Hint = Literal["conversation", "emails", "meeting", "text"]
Locale = Literal["en", "fr", "de", "it", "es"]
TYPES: tuple[str, ...] = get_args(Type)


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What a job asks for: its type and its payload."""

    type: Type
    text: str
    hint: Hint = "meeting"
    prompt: str | None = None                   # in place of the built-in one
    preferred_locale: Locale | None = None      # None: the text's own language
    max_completion_tokens: int | None = None
    profile: str | None = None

    @property
    def form(self) -> str:
        """The type that the answers are read as: what a caller's own prompt asks for is just a text."""
        return prompts.PROCESS if self.prompt else self.type

    @property
    def language(self) -> str | None:
        """The one to answer in; None leaves it to the caller's prompt, or to the text."""
        return self.preferred_locale or (None if self.prompt else language_of(self.text))


class Asking:
    """How all parts of one text are asked about. `again`: it is what came out for the parts of a longer one."""

    def __init__(self, wanted: Work, key: Key, text: str, again: bool) -> None:
        self.wanted, self.key, self.text = wanted, key, text
        self._marks = prompts.marks_for(text)
        timed = wanted.form == prompts.CONTENTS and bool(contents.times_of(text))
        task = wanted.prompt or prompts.built_in(wanted.type, wanted.hint, timed)
        self._system = prompts.system(task, wanted.form, self._marks, self._in_words(), again)

    def asks(self, parts: Sequence[str], max_tokens: int | None) -> list[Ask]:
        """The questions about its parts, each to be answered in at most so many tokens; None: as many as are wanted.
        What a part says without a time belongs to the last one before it."""
        asks, times = [], list[str]()
        for part in parts:
            times = (contents.times_of(part) or times[-1:]) if self.wanted.form == prompts.CONTENTS else times
            asks.append(self.ask(part, times, max_tokens))
        return asks

    def ask(self, part: str, times: Sequence[str] = (), max_tokens: int | None = None) -> Ask:
        """The built-in prompts are the same for all keys, a caller's is not."""
        wanted, form = self.wanted, dict[str, Any]()
        if wanted.form == prompts.CONTENTS:
            form["grammar"] = contents.grammar(times)
        elif wanted.form == prompts.ACTION_ITEMS:
            form["schema"] = actions.SCHEMA
        said = Message("user", prompts.quoted(part, wanted.form, self._marks))
        system, messages = (None, (Message("system", self._system), said)) if wanted.prompt else (self._system, (said,))
        return Ask(owner=self.key.id, messages=messages, system=system, profile=wanted.profile, temperature=0.0,
                   allowed_profiles=self.key.profiles, max_tokens=max_tokens or wanted.max_completion_tokens,
                   thinking=False, stream=False, weight=self.key.weight, batch=True, **form)

    def _in_words(self) -> str | None:
        if self.wanted.language is not None:
            return NAMES[self.wanted.language]
        return None if self.wanted.prompt else "the language of the text"
