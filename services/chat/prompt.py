"""Turns, new text and profile to the prompt's segments: the seed's text template, or the model's own chat template.

History in a text template is what langchain's ConversationBufferWindowMemory made of it: `Human: …` and `AI: …`, one
turn after the other. What a person or a model wrote is never formatted and never parsed for special tokens, and
neither is a profile's system text; the text of the template itself is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from services.chat import jinja
from services.chat.profiles import Profile
from services.chat.special import segments
from services.chat.template import SEED_TEMPLATE, compiled, stop_strings
from services.errors import Unprocessable
from services.wire import Ready


class Interaction(NamedTuple):
    """One question and its answer."""

    user: str
    assistant: str


class Said(Protocol):
    """A turn of a session, as far as a prompt needs it."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...


def interactions(history: Iterable[Said]) -> list[Interaction]:
    """The complete interactions among `history`, oldest first; a question without an answer is none."""
    found: list[Interaction] = []
    asked: str | None = None
    for turn in history:
        if turn.role == "user":
            asked = turn.content
        elif asked is not None:
            found.append(Interaction(asked, turn.content))
            asked = None
    return found


def build(profile: Profile, ready: Ready, earlier: Sequence[Interaction], text: str) -> list[str]:
    """The prompt for `text` after the interactions `earlier`, as segments for `wire.Generate`.

    Raises `Unprocessable` (`bad_template`, `no_chat_template`) when the model's own template cannot be used.
    """
    said = [part for interaction in earlier for part in interaction]
    contents = [profile.system or "", *said, text]
    template = profile.text_template(bool(ready.chat_template))
    if template is not None:
        return segments(ready.special_tokens, contents, template, lambda marked: _text(template, marked))
    source = ready.chat_template
    if not source:
        raise Unprocessable(f"{ready.model} has no chat template of its own; give the profile a text template "
                            "(chat_format \"template\")", code="no_chat_template")
    return segments(ready.special_tokens, contents, source + ready.bos + ready.eos,
                    lambda marked: _chat(source, ready, marked))


def stops(profile: Profile, ready: Ready) -> list[str]:
    """Strings that end an answer: those that the text template implies, and the profile's."""
    template = profile.text_template(bool(ready.chat_template))
    implied = stop_strings(template) if template else []
    return list(dict.fromkeys([*implied, *profile.stop]))


def _text(template: str, contents: Sequence[str]) -> str:
    """`contents`: the system text, the earlier turns by turns, the new text."""
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


def _chat(source: str, ready: Ready, contents: Sequence[str]) -> str:
    system, *said = contents
    turns = [{"role": "assistant" if index % 2 else "user", "content": text} for index, text in enumerate(said)]
    if not system:
        return jinja.render(source, turns, bos=ready.bos, eos=ready.eos)
    try:
        rendered = jinja.render(source, [{"role": "system", "content": system}, *turns], bos=ready.bos, eos=ready.eos)
        if system.strip() in rendered:
            return rendered
    except jinja.Raised:
        pass        # a model without a system role refuses one; what else it refuses, it refuses again below
    first = {**turns[0], "content": f"{system}\n\n{turns[0]['content']}"}
    return jinja.render(source, [first, *turns[1:]], bos=ready.bos, eos=ready.eos)
