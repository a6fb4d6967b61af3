"""Turns, new text and profile to the prompt's segments: the seed's text template, or the model's own chat template.

History in a text template is what langchain's ConversationBufferWindowMemory made of it: `Human: …` and `AI: …`, one
turn after the other. What a person or a model wrote is never formatted and never parsed for special tokens, and
neither is a profile's system text; the text of the template itself is.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, takewhile
from typing import NamedTuple

from services.chat import jinja, special
from services.chat.profiles import Profile
from services.chat.special import segments
from services.chat.template import SEED_TEMPLATE, compiled, stop_strings
from services.errors import Unprocessable
from services.wire import Ready

SHOWN = "\ue0f3"        # stands for a system text that nothing else looks like


class Interaction(NamedTuple):
    """One question and its answer."""

    user: str
    assistant: str


@dataclass(frozen=True)
class _Form:
    """All that makes a prompt but what was said: equal ones render alike."""

    system: str
    template: str | None        # the text template; None: the model's own
    chat: str                   # the model's own, of which nothing is known when there is a text template
    bos: str
    eos: str

    @property
    def own(self) -> str:
        """All text that may come from here."""
        return (self.template or "") + self.chat + self.bos + self.eos

    def render(self, contents: Sequence[str]) -> str:
        """`contents`: the system text, the earlier turns by turns, the new text."""
        return _chat(self, contents) if self.template is None else _text(self.template, contents)


def _form(profile: Profile, ready: Ready) -> _Form:
    template = profile.text_template(bool(ready.chat_template))
    if template is not None:
        return _Form(profile.system or "", template, "", "", "")
    if not ready.chat_template:
        raise Unprocessable(f"{ready.model} has no chat template of its own; give the profile a text template "
                            "(chat_format \"template\")", code="no_chat_template")
    return _Form(profile.system or "", None, ready.chat_template, ready.bos, ready.eos)


def build(profile: Profile, ready: Ready, earlier: Sequence[Interaction], text: str) -> list[str]:
    """The prompt for `text` after the interactions `earlier`, as segments for `wire.Generate`.

    Raises `Unprocessable` (`bad_template`, `no_chat_template`) when the model's own template cannot be used.
    """
    form = _form(profile, ready)
    contents = [form.system, *chain.from_iterable(earlier), text]
    return segments(ready.special_tokens, contents, form.own, form.render)


def opening(profile: Profile, ready: Ready, earlier: Sequence[Interaction]) -> tuple[list[str], str]:
    """What each prompt after `earlier` begins with, as segments up to where the new text stands; and what follows it.

    No segments when the template does not show the new text as it is. Raises what `build` does.
    """
    form = _form(profile, ready)
    return special.opening(ready.special_tokens, [form.system, *chain.from_iterable(earlier)], form.own, form.render)


def head(profile: Profile, ready: Ready, prompt: Sequence[str], turns: int) -> int:
    """How many characters at the start of `prompt`, which holds `turns` earlier interactions, are the profile's own:
    before anything that a person or a model said. They are the same for everybody."""
    whole, own = "".join(prompt), _head(_form(profile, ready), turns > 0, datetime.date.today())
    return len(own) if whole.startswith(own) else len(_common(own, whole))


@lru_cache(maxsize=64)
def _head(form: _Form, talk: bool, _day: datetime.date) -> str:
    """What two prompts have in common in which all that was said differs. A template may tell the day."""
    turns = 3 if talk else 1
    try:
        return _common(*(form.render([form.system, *[said] * turns]) for said in ("a", "77")))
    except Unprocessable:
        return ""       # a template that takes real texts and not these


def _common(one: str, other: str) -> str:
    """What both begin with."""
    return one[:sum(1 for _ in takewhile(lambda chars: chars[0] == chars[1], zip(one, other, strict=False)))]


def stops(profile: Profile, ready: Ready) -> list[str]:
    """Strings that end an answer: those that the text template implies, and the profile's."""
    template = profile.text_template(bool(ready.chat_template))
    implied = stop_strings(template) if template else []
    return list(dict.fromkeys([*implied, *profile.stop]))


def _text(template: str, contents: Sequence[str]) -> str:
    prompt = compiled(template)
    values = {"system": contents[0], "chat_history": _lines(contents[1:-1]), "input": contents[-1]}
    return prompt.format(**{name: values[name] for name in prompt.input_variables})


def warm() -> None:
    """Imports what rendering needs (about 0.3 s), so that no request pays for it."""
    _lines(["", ""])
    _text(SEED_TEMPLATE, ["", ""])


def _lines(said: Sequence[str]) -> str:
    if not said:
        return ""
    from langchain_core.messages import AIMessage, HumanMessage, get_buffer_string

    return get_buffer_string([AIMessage(text) if index % 2 else HumanMessage(text) for index, text in enumerate(said)])


def _chat(form: _Form, contents: Sequence[str]) -> str:
    system, *said = contents
    turns = [{"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(said)]
    if system and _shows_system(form.chat, form.bos, form.eos):
        turns = [{"role": "system", "content": system}, *turns]
    elif system:
        turns[0] = {**turns[0], "content": f"{system}\n\n{turns[0]['content']}"}
    return jinja.render(form.chat, turns, bos=form.bos, eos=form.eos)


@lru_cache(maxsize=64)
def _shows_system(source: str, bos: str, eos: str) -> bool:
    """Whether a chat template has a place for a system text: one refuses it, another leaves it out."""
    try:
        return SHOWN in jinja.render(source, [{"role": "system", "content": SHOWN}, {"role": "user", "content": "a"}],
                                     bos=bos, eos=eos)
    except jinja.Raised:
        return False        # what else it refuses, it refuses again with the real texts
