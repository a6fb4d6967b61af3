"""The Go templates of a LocalAI model, evaluated in LocalAI's order (S2.14, S2.15): what a prompt is made with.

Each message goes through `chat_message` (an error: as if there were none; blank: the message is left out), or is its
role's prefix and content; all are joined, and `chat`, or `function` where there are tools, gets them as `.Input`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from services.chat.gotemplate import Exceeded, Fault, Struct, template
from services.chat.gotemplate.values import to_json
from services.errors import ConfigError, Unprocessable

log = logging.getLogger("parley.chat")
CALLED = "assistant_function_call"      # the role of an assistant's message with calls, where `roles` has one
_FUNCTION = {"Name": "name", "Description": "description", "Strict": "strict", "Parameters": "parameters"}
_CALL = {"Index": "index", "ID": "id", "Type": "type", "FunctionCall": "function"}
_CALLED = {"Name": "name", "Arguments": "arguments"}
Message = Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """The text of a template, and where it stands: `models/x.tmpl`, or `models/x.yaml, template.chat`."""

    text: str
    where: str

    def check(self) -> None:
        """`ConfigError` with file and line for what is wrong or not supported."""
        try:
            template(self.text)
        except Fault as fault:
            raise ConfigError(f"{self.where}, line {fault.line}: {fault.reason}") from None

    def render(self, data: Struct, given: int) -> str:
        """Raises `Fault`; `Unprocessable` for what would take too long or write too much."""
        try:
            return template(self.text).render(data, given)
        except Exceeded as fault:
            raise Unprocessable(f"{self.where}, line {fault.line}: the template {fault.reason}",
                                code="bad_template") from None


@dataclass(frozen=True)
class LocalAITemplates:
    """A model's templates. Equal ones render alike."""

    chat: Source | None = None
    chat_message: Source | None = None
    function: Source | None = None
    completion: Source | None = None
    edit: Source | None = None
    join: str = "\n"
    roles: tuple[tuple[str, str], ...] = ()         # role -> the prefix of its messages

    @property
    def sources(self) -> list[Source]:
        return [one for one in (self.chat, self.chat_message, self.function, self.completion, self.edit) if one]

    @property
    def plain(self) -> bool:
        """Whether there is nothing that shapes a conversation: a model with a template of its own has a better one."""
        return not (self.chat or self.chat_message or self.function or self.roles)

    @property
    def own(self) -> str:
        """All text that may come from here and not from a conversation."""
        return "\n".join([*(source.text for source in self.sources), self.join, *(text for _, text in self.roles)])

    @property
    def shows_system(self) -> bool:
        return any("SystemPrompt" in source.text for source in (self.chat, self.chat_message, self.function) if source)

    def check(self) -> list[str]:
        """What the templates cannot do with any conversation, in LocalAI neither: which is then done without them.

        `ConfigError` for a template that cannot be read.
        """
        told = []
        for source in self.sources:
            source.check()
            data = _message({}, "a", "", 0, 1, "", None) if source is self.chat_message else _prompt()
            try:
                source.render(data, 1)
            except Fault as fault:
                told.append(f"{source.where}, line {fault.line}: {fault.reason}; the template is passed over")
        return told

    def render(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None,
               system: str = "") -> str:
        """The prompt for `messages` and `tools`, which have OpenAI's shape; `system` is the profile's system text.

        Where no template shows a system text, and the conversation has none, it becomes the first message, so that it
        is not lost. Raises `Unprocessable` (`bad_template`) where a template goes beyond its bounds.
        """
        if system and not self.shows_system and all(message["role"] != "system" for message in messages):
            messages = [{"role": "system", "content": system}, *messages]
        texts, suppress = [], False
        for index, message in enumerate(messages):
            text = self._message(message, index, len(messages), system, bool(tools))
            if text is None:
                text = self._fallback(message)
                suppress = suppress or (message["role"] == "system" and bool(message.get("content")))
            elif not text:
                continue
            texts.append(text)
        source = self.function if tools and self.function else self.chat
        return _filled(source, _prompt(self.join.join(texts), system, suppress, tools or ()))

    def completion_prompt(self, text: str, system: str = "") -> str:
        """The prompt for a completion of `text`."""
        return _filled(self.completion, _prompt(text, system))

    def edit_prompt(self, instruction: str, text: str, system: str = "") -> str:
        """The prompt for `text` to be changed by `instruction`."""
        return _filled(self.edit, _prompt(text, system, instruction=instruction))

    # ------------------------------------------------------------ one message

    def _role(self, message: Message) -> str:
        called = message["role"] == "assistant" and (message.get("tool_calls") or message.get("function_call"))
        return CALLED if called and dict(self.roles).get(CALLED) else str(message["role"])

    def _message(self, message: Message, index: int, count: int, system: str, tools: bool) -> str | None:
        """What `chat_message` makes of it; None where there is none, or it fails."""
        if self.chat_message is None:
            return None
        role = self._role(message)
        data = _message(message, role, dict(self.roles).get(role, ""), index, count, system, tools)
        try:
            return self.chat_message.render(data, _length(message) + len(system))
        except Fault as fault:
            _failed(self.chat_message.where, fault.line, fault.reason)
            return None

    def _fallback(self, message: Message) -> str:
        """The role's prefix and the content, then the calls as JSON."""
        prefix = dict(self.roles).get(self._role(message), "")
        content = message.get("content") or ""
        text = prefix + content if content else ""
        for calls in (message.get("function_call"), _calls(message) if message.get("tool_calls") else None):
            if calls is not None:
                written = f"{prefix} {to_json(calls)}" if prefix else to_json(calls)
                text = f"{text}\n{written}" if content else written
        return text


# ---------------------------------------------------------------- what templates see

def _message(message: Message, role: str, prefix: str, index: int, count: int, system: str,
             tools: bool | None) -> Struct:
    last = index == count - 1
    calls = _calls(message) if message.get("tool_calls") else message.get("function_call")
    return Struct("message", {
        "SystemPrompt": system, "Role": prefix, "RoleName": role, "FunctionName": message.get("name") or "",
        "Content": message.get("content") or "", "MessageIndex": index, "Function": bool(tools) and last,
        "FunctionCall": calls, "LastMessage": last})


def _prompt(text: str = "", system: str = "", suppress: bool = False, tools: Sequence[Mapping[str, Any]] = (),
            instruction: str = "") -> Struct:
    return Struct("prompt", {
        "SystemPrompt": system, "SuppressSystemPrompt": suppress, "Input": text, "Instruction": instruction,
        "Functions": [_function(tool["function"]) for tool in tools], "MessageIndex": 0, "ReasoningEffort": "",
        "Metadata": {}})


def _function(tool: Mapping[str, Any]) -> Struct:
    return Struct("function", {"Name": tool["name"], "Description": tool.get("description") or "",
                               "Strict": bool(tool.get("strict")), "Parameters": tool.get("parameters")}, _FUNCTION)


def _calls(message: Message) -> list[Struct]:
    """An assistant's calls, which JSON shows in this order of fields."""
    return [Struct("call", {"Index": index, "ID": call.get("id") or "", "Type": call.get("type") or "function",
                            "FunctionCall": Struct("function call", {"Name": call["function"]["name"],
                                                                     "Arguments": _arguments(call)},
                                                   _CALLED, ("Name",))}, _CALL)
            for index, call in enumerate(message["tool_calls"])]


def _arguments(call: Mapping[str, Any]) -> str:
    """JSON text, also where they come as a value."""
    arguments = call["function"]["arguments"]
    return arguments if isinstance(arguments, str) else to_json(arguments, html=False)


def _length(message: Message) -> int:
    return len(message.get("content") or "") + sum(len(_arguments(call)) for call in message.get("tool_calls") or ())


def _filled(source: Source | None, data: Struct) -> str:
    """`source` with `data`; the input as it is where there is no template, or it fails."""
    text = str(data.fields["Input"])
    if source is None:
        return text
    try:
        return source.render(data, len(text) + len(data.fields["SystemPrompt"]) + len(data.fields["Instruction"])
                             + len(to_json(data.fields["Functions"])))
    except Fault as fault:
        _failed(source.where, fault.line, fault.reason)
        return text


@lru_cache(maxsize=256)
def _failed(where: str, line: int, reason: str) -> None:
    """Told once for each fault."""
    log.warning("%s, line %d: %s; the template is passed over", where, line, reason)
