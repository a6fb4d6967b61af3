"""How a model wants a conversation written: by the profile's text template, by its own chat template, or by LocalAI's.

A model whose template knows no tools is told of them in the system text, and its earlier calls stand in the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from services.chat import caps, jinja, tools
from services.chat.localai_templates import LocalAITemplates
from services.chat.messages import Message, Toolbox
from services.chat.profiles import Profile
from services.chat.template import SEED_TEMPLATE, compiled, fields, stop_strings
from services.errors import Unprocessable
from services.wire import Ready

Shape = dict[str, Any]  # a message or tool as OpenAI's API has it, the arguments of calls as values


@dataclass(frozen=True)
class Form:
    """All that makes a prompt but what was said: equal ones render alike."""

    system: str
    template: str | None        # the text template; None: the model's own
    chat: str                   # the model's own, of which nothing is known when there is a text template
    bos: str
    eos: str
    go: LocalAITemplates | None = None      # of LocalAI's files, in place of both
    thinks: bool = True                     # whether a model that can shall think before it answers

    @property
    def own(self) -> str:
        """All text that may come from here."""
        return (self.template or "") + self.chat + self.bos + self.eos + (self.go.own if self.go else "")

    @property
    def tools(self) -> tools.Form:
        """How tools are told of and called."""
        if self.go and self.go.function:
            return tools.HERMES
        return tools.form_of(self.chat or None)

    @property
    def objects(self) -> bool:
        """Whether it wants arguments of calls as values, not as the text that the model wrote."""
        return bool(self.chat) and self._caps.object_arguments

    @property
    def _caps(self) -> caps.Caps:
        return caps.caps(self.chat, self.bos, self.eos)

    @property
    def stops(self) -> list[str]:
        """Strings that end an answer."""
        return stop_strings(self.template) if self.template else []

    def adapted(self, messages: Sequence[Message], toolbox: Toolbox | None) -> tuple[list[Message], Toolbox | None]:
        """The conversation as this form can render it, led by the system text, if there is one."""
        shown = messages[0].role == "system" or bool(self.go and self.go.shows_system)
        system = [] if shown or not self.system else [Message("system", self.system)]
        messages = self._told([*system, *messages])
        if toolbox and not self.tools.native:
            messages, toolbox = _led(messages, self.tools.instructions(toolbox)), None
        return messages, toolbox

    def _told(self, messages: Sequence[Message]) -> list[Message]:
        """Each as this form takes it. Where results are said by the user, all in a row and what the user says behind
        them are one message: templates want turns."""
        told: list[Message] = []
        for index, message in enumerate(messages):
            shown = self._adapted(message)
            if shown.role == "user" and index and messages[index - 1].role == "tool" and not self.tools.native:
                told[-1] = Message("user", f"{told[-1].content}\n{shown.content}")
            else:
                told.append(shown)
        return told

    def _adapted(self, message: Message) -> Message:
        if not message.calls and message.role != "tool":
            return message
        if not self.tools.native:
            return Message("assistant" if message.calls else "user", self.tools.said(message))
        calls = tuple(replace(call, id=self.tools.id_for(call.id)) for call in message.calls)
        return replace(message, calls=calls, call_id=message.call_id and self.tools.id_for(message.call_id))

    def render(self, messages: Sequence[Shape], offered: Sequence[Shape]) -> str:
        """The prompt of a conversation that was `adapted`."""
        if self.go:
            return self.go.render(messages, offered or None, self.system)
        if self.template is not None:
            led = "system" in fields(self.template)
            return _text(self.template, messages if led else caps.without_system(messages))
        shapes, shown = caps.adapt(messages, offered, self._caps)
        return jinja.render(self.chat, shapes, bos=self.bos, eos=self.eos, tools=shown,
                            thinking=self.thinks if self._caps.thinking else None)


def form_of(profile: Profile, ready: Ready, thinks: bool = True) -> Form:
    """Raises `Unprocessable` (`no_chat_template`) when the profile wants a template that the model does not have."""
    if profile.go and not (profile.go.plain and ready.chat_template):
        return Form(profile.system or "", None, "", "", "", profile.go)
    template = profile.text_template(bool(ready.chat_template))
    if template is not None:
        return Form(profile.system or "", template, "", "", "")
    if not ready.chat_template:
        raise Unprocessable(f"{ready.model} has no chat template of its own; give the profile a text template "
                            "(chat_format \"template\")", code="no_chat_template")
    return Form(profile.system or "", None, ready.chat_template, ready.bos, ready.eos, thinks=thinks)


def warm() -> None:
    """Imports what rendering needs (about 0.3 s), so that no request pays for it."""
    _text(SEED_TEMPLATE, [{"role": "user", "content": ""}] * 2)


def _led(messages: list[Message], text: str) -> list[Message]:
    """The conversation with `text` at the end of its system text."""
    if messages[0].role != "system":
        return [Message("system", text), *messages]
    return [Message("system", f"{messages[0].content}\n\n{text}"), *messages[1:]]


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
