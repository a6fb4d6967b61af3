"""How a model wants a conversation written: by the profile's text template, by its own chat template, or by LocalAI's.

A model whose template knows no tools is told of them in the system text, and its earlier calls stand in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from services.chat import jinja, tools
from services.chat.messages import Message, Toolbox
from services.chat.profiles import Profile
from services.chat.template import SEED_TEMPLATE, compiled, fields, stop_strings
from services.errors import Unprocessable
from services.wire import Ready

SHOWN = "\ue0f3"        # stands for a system text that nothing else looks like
Shape = dict[str, Any]  # a message or tool as OpenAI's API has it, the arguments of calls as values


@dataclass(frozen=True)
class Form:
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

    @property
    def tools(self) -> tools.Form:
        """How tools are told of and called."""
        return tools.form_of(self.chat or None)

    @property
    def stops(self) -> list[str]:
        """Strings that end an answer."""
        return stop_strings(self.template) if self.template else []

    def adapted(self, messages: Sequence[Message], toolbox: Toolbox | None) -> tuple[list[Message], Toolbox | None]:
        """The conversation as this form can render it, led by the system text, if there is one."""
        system = [] if messages[0].role == "system" or not self.system else [Message("system", self.system)]
        messages = [self._adapted(message) for message in (*system, *messages)]
        if toolbox and not self.tools.native:
            messages, toolbox = _led(messages, self.tools.instructions(toolbox)), None
        return (messages if self._shows_system else _without_system(messages)), toolbox

    def _adapted(self, message: Message) -> Message:
        if not message.calls and message.role != "tool":
            return message
        if not self.tools.native:
            return Message("assistant" if message.calls else "user", self.tools.said(message))
        calls = tuple(replace(call, id=self.tools.id_for(call.id)) for call in message.calls)
        return replace(message, calls=calls, call_id=message.call_id and self.tools.id_for(message.call_id))

    def render(self, messages: Sequence[Shape], offered: Sequence[Shape]) -> str:
        """The prompt of a conversation that was `adapted`."""
        if self.template is not None:
            return _text(self.template, messages)
        return jinja.render(self.chat, list(messages), bos=self.bos, eos=self.eos, tools=list(offered) or None)

    @property
    def _shows_system(self) -> bool:
        if self.template is not None:
            return "system" in fields(self.template)
        return _shows_system(self.chat, self.bos, self.eos)


def form_of(profile: Profile, ready: Ready) -> Form:
    """Raises `Unprocessable` (`no_chat_template`) when the profile wants a template that the model does not have."""
    template = profile.text_template(bool(ready.chat_template))
    if template is not None:
        return Form(profile.system or "", template, "", "", "")
    if not ready.chat_template:
        raise Unprocessable(f"{ready.model} has no chat template of its own; give the profile a text template "
                            "(chat_format \"template\")", code="no_chat_template")
    return Form(profile.system or "", None, ready.chat_template, ready.bos, ready.eos)


def warm() -> None:
    """Imports what rendering needs (about 0.3 s), so that no request pays for it."""
    _text(SEED_TEMPLATE, [{"role": "user", "content": ""}] * 2)


def _led(messages: list[Message], text: str) -> list[Message]:
    """The conversation with `text` at the end of its system text."""
    if messages[0].role != "system":
        return [Message("system", text), *messages]
    return [Message("system", f"{messages[0].content}\n\n{text}"), *messages[1:]]


def _without_system(messages: list[Message]) -> list[Message]:
    """For models without such a role: what is said there stands before the next thing that the user says."""
    told: list[str] = []
    kept: list[Message] = []
    for message in messages:
        if message.role == "system":
            told.append(message.content)
        elif message.role == "user" and told:
            kept.append(Message("user", "\n\n".join([*told, message.content])))
            told = []
        else:
            kept.append(message)
    return [*kept, Message("user", "\n\n".join(told))] if told else kept


def _text(template: str, messages: Sequence[Shape]) -> str:
    """The seed's: the system text, what was said so far, and the new text, which is the last message."""
    prompt = compiled(template)
    led = messages[0]["role"] == "system"
    asked = messages[-1]["role"] == "user"
    earlier = messages[led:len(messages) - asked]
    values = {"system": messages[0]["content"] if led else "", "chat_history": _lines(earlier),
              "input": messages[-1]["content"] if asked else ""}
    return prompt.format(**{name: values[name] for name in prompt.input_variables})


def _lines(messages: Sequence[Shape]) -> str:
    """As langchain's ConversationBufferWindowMemory has it: `Human: …` and `AI: …`, one turn after the other."""
    if not messages:
        return ""
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, get_buffer_string

    kinds = {"user": HumanMessage, "assistant": AIMessage, "system": SystemMessage}
    return get_buffer_string([kinds[message["role"]](message["content"]) for message in messages])


@lru_cache(maxsize=64)
def _shows_system(source: str, bos: str, eos: str) -> bool:
    """Whether a chat template has a place for a system text: one refuses it, another leaves it out."""
    try:
        return SHOWN in jinja.render(source, [{"role": "system", "content": SHOWN}, {"role": "user", "content": "a"}],
                                     bos=bos, eos=eos)
    except jinja.Raised:
        return False        # what else it refuses, it refuses again with the real texts
