"""A conversation as chat clients speak of it: messages, calls of tools and their results. Shapes are OpenAI's."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from services.errors import BadRequest

MAX_DEPTH = 64              # of a call's arguments, as of a request's body
Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True)
class Call:
    """The model wants a tool called. `arguments` is JSON text."""

    id: str
    name: str
    arguments: str

    def shape(self) -> dict[str, Any]:
        """As in an OpenAI message's `tool_calls`."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}

    def parsed(self) -> dict[str, Any]:
        """The arguments as a value. Raises `BadRequest` (`bad_arguments`) for what is no JSON object, or too deep."""
        try:
            value = json.loads(self.arguments)
            json.dumps(value, ensure_ascii=False).encode()      # no halves of surrogate pairs are among its texts
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict) or _deeper(value, MAX_DEPTH):
            raise BadRequest(f"the arguments of the call of {self.name[:60]!r} must be a JSON object, as text, of at "
                             f"most {MAX_DEPTH} levels", code="bad_arguments")
        return value


@dataclass(frozen=True)
class Message:
    """One message. `calls` and `reasoning` are an assistant's, `call_id` and `name` a tool result's."""

    role: Role
    content: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str = ""           # of the call that this is the result of
    name: str = ""              # of the tool, where it is known
    reasoning: str = ""         # what the model thought before it answered

    def shape(self) -> dict[str, Any]:
        """As OpenAI's API has it; fields without a value are left out."""
        shape: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            shape["tool_calls"] = [call.shape() for call in self.calls]
        if self.call_id:
            shape["tool_call_id"] = self.call_id
        if self.name:
            shape["name"] = self.name
        if self.reasoning:
            shape["reasoning_content"] = self.reasoning
        return shape

    @property
    def size(self) -> int:
        """Bytes of its texts that may go into a prompt."""
        texts = [self.content, self.call_id, self.name, self.reasoning]
        for call in self.calls:
            texts += [call.id, call.name, call.arguments]
        return sum(len(text.encode()) for text in texts)

    @classmethod
    def of_shape(cls, shape: dict[str, Any]) -> Message:
        """What `shape` made, again."""
        calls = tuple(Call(call["id"], call["function"]["name"], call["function"]["arguments"])
                      for call in shape.get("tool_calls", ()))
        return cls(shape["role"], shape["content"], calls, shape.get("tool_call_id", ""), shape.get("name", ""),
                   shape.get("reasoning_content", ""))


def _deeper(value: Any, levels: int) -> bool:
    """Whether there are more than so many lists and objects in each other."""
    if not isinstance(value, dict | list):
        return False
    items = value.values() if isinstance(value, dict) else value
    return not levels or any(_deeper(item, levels - 1) for item in items)


class Interaction(NamedTuple):
    """What was asked, and its answer."""

    asked: tuple[Message, ...]
    answer: Message

    @classmethod
    def of_texts(cls, user: str, assistant: str) -> Interaction:
        return cls((Message("user", user),), Message("assistant", assistant))

    @property
    def messages(self) -> tuple[Message, ...]:
        return (*self.asked, self.answer)

    @property
    def asks(self) -> bool:
        """Whether it begins with a question: else it goes on with the one before, by results of tools."""
        return any(message.role == "user" for message in self.asked)

    @property
    def size(self) -> int:
        """Bytes of all texts."""
        return sum(message.size for message in self.messages)


@dataclass(frozen=True)
class Tool:
    """A function that the model may have called. `parameters`: JSON Schema of its arguments, an object. `strict`:
    where no grammar can hold them to all of it the request is refused; else they comply as far as one can."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False

    def shape(self) -> dict[str, Any]:
        """As in an OpenAI request's `tools`, and in the chat templates of models."""
        return {"type": "function", "function": {"name": self.name, "description": self.description,
                                                 "parameters": self.parameters}}


@dataclass(frozen=True)
class Toolbox:
    """The tools of one request. `choice` "required": the answer is a call; of the tool `named`, if that is not ""."""

    tools: tuple[Tool, ...]
    choice: Literal["auto", "required"] = "auto"
    named: str = ""
    parallel: bool = True       # whether one answer may hold several calls

    @property
    def offered(self) -> tuple[Tool, ...]:
        """The tools that may be called."""
        return tuple(tool for tool in self.tools if self.named in ("", tool.name))
