"""What a model's chat template can show, and messages put into the shapes that it takes.

Templates agree on roles and texts and on little else. What llama.cpp does about it (common/jinja/caps.cpp,
common/chat.cpp and common/parsers/ there) is done here: a template is rendered with texts that occur nowhere else, and
what it shows of them is what it can show.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from services.chat import jinja
from services.errors import BadRequest

Shape = dict[str, Any]          # of a message or a tool, as OpenAI's API has it
Reasoning = Literal["reasoning_content", "thinking", "part", ""]

# what llama.cpp, too, knows templates by
_STEPFUN = "You have access to the following functions in JSONSchema format"    # issue 24181 there
_GEMMA, _GEMMA_LATER = "'<|tool_call>call:'", "{#- OpenAI Chat Completions:"
_USER: Shape = {"role": "user", "content": "a"}
_TOOL: Shape = {"type": "function", "function": {"name": "qzTool", "description": "b", "parameters": {
    "type": "object", "properties": {"c": {"type": "string", "description": "d"}}, "required": ["c"]}}}


@dataclass(frozen=True)
class Caps:
    """What one chat template can show, and how it wants it."""

    system_role: bool = True
    tools: bool = False                 # the tools that are offered
    tool_calls: bool = False            # `tool_calls` of an assistant's message
    parallel_tool_calls: bool = False   # more than one of them
    tool_responses: bool = False        # messages of the role "tool"
    tool_call_id: bool = False          # of a call or of a response
    object_arguments: bool = False      # a call's arguments are to be an object, not JSON text
    typed_content: bool = False         # contents are to be lists of parts, not texts
    thinking: bool = False              # `enable_thinking` makes a difference
    reasoning: Reasoning = ""           # what an assistant's thoughts are to be: a field, or a part of the content
    reasoning_alone: bool = False       # a message that calls may have thoughts or a content, not both
    embedded_responses: bool = False    # responses are to be a field of the message that calls (Gemma 4's first)
    trimmed: bool = False               # its model does badly with white space around contents


@lru_cache(maxsize=64)
def caps(source: str, bos: str = "", eos: str = "") -> Caps:
    """What the template `source` can show. Raises `Unprocessable` (`bad_template`) when it exceeds a bound."""
    return _Probe(source, bos, eos).caps()


class _Probe:
    """Renders one template with marked texts."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        self.source, self.bos, self.eos = source, bos, eos
        self.typed = False
        if "qzText" not in self.shown({**_USER, "content": "qzText"}):
            self.typed = True
            self.typed = "qzText" in self.shown({**_USER, "content": "qzText"})

    def shown(self, *messages: Shape, **options: Any) -> str:
        """What the template makes of messages; nothing when it refuses them or breaks on them."""
        shapes = [_parted(message) if self.typed else message for message in messages]
        try:
            return jinja.render(self.source, shapes, bos=self.bos, eos=self.eos, **options)
        except jinja.Broken:
            return ""

    def called(self, arguments: Any, *names: str, **fields: Any) -> str:
        """What it shows of a message that calls tools, and of the results."""
        calls = [{"id": f"qzId0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
                 for number, name in enumerate(names)]
        results = [{"role": "tool", "tool_call_id": call["id"], "name": "qzName", "content": "qzResult"}
                   for call in calls]
        return self.shown(_USER, {"role": "assistant", "content": "", "tool_calls": calls, **fields}, *results,
                          tools=[_TOOL])

    def caps(self) -> Caps:
        """What the template can show."""
        as_object = self.called({"qzKey": "qzValue"}, "qzFirst")
        objects = "qzValue" in as_object and "'qzKey'" not in as_object     # in Python's notation they are no use
        arguments: Any = {"qzKey": "qzValue"} if objects else '{"qzKey": "qzValue"}'
        called, both = self.called(arguments, "qzFirst"), self.called(arguments, "qzFirst", "qzSecond")
        reasoning = self.reasoning(arguments)
        return Caps(
            system_role="qzText" in self.shown({"role": "system", "content": "qzText"}, _USER),
            tools="qzTool" in called + self.shown(_USER, tools=[_TOOL]),
            tool_calls="qzFirst" in called, parallel_tool_calls="qzFirst" in both and "qzSecond" in both,
            tool_responses="qzResult" in called, tool_call_id="qzId00000" in called,
            object_arguments=objects, typed_content=self.typed,
            thinking=self.shown(_USER, thinking=True) != self.shown(_USER, thinking=False),
            reasoning=reasoning, reasoning_alone=reasoning == "thinking" and not self.called(
                arguments, "qzFirst", content="b", thinking="c"),
            embedded_responses=_GEMMA in self.source and _GEMMA_LATER not in self.source,
            trimmed=_STEPFUN in self.source)

    def reasoning(self, arguments: Any) -> Reasoning:
        """How the template takes the thoughts of an assistant who calls a tool, or who answers."""
        ways: tuple[Reasoning, ...] = ("reasoning_content", "thinking", "part")
        for way in ways:
            thoughts = _thinking({"content": "b", "reasoning_content": "qzThought"}, way)
            shown = [self.shown(_USER, {"role": "assistant", **thoughts}, thinking=True),
                     self.called(arguments, "qzFirst", **{**thoughts, **({} if way == "part" else {"content": ""})})]
            if any("qzThought" in text and not re.search("[\"']qzThought[\"']", text) for text in shown):
                return way
        return ""


def adapt(messages: Sequence[Shape], tools: Sequence[Shape] | None,
          able: Caps) -> tuple[list[Shape], list[Shape] | None]:
    """`messages` and `tools` as the template takes them; what it cannot show of tools is the caller's to write as text.

    Contents are texts, arguments objects or JSON text. Raises `BadRequest` for arguments that are no JSON object when
    the template wants one.
    """
    shapes = [_trimmed(message) for message in messages] if able.trimmed else list(messages)
    if not able.system_role:
        shapes = without_system(shapes)
    if able.tool_calls:
        shapes = [_called(message, able) if message.get("tool_calls") else message for message in shapes]
    if able.embedded_responses:
        shapes = _embedded(shapes)
    if able.reasoning:
        shapes = [_thinking(message, able.reasoning) for message in shapes]
    if able.typed_content:
        shapes = [_parted(message) for message in shapes]
    return shapes, list(tools) if tools else None


def _trimmed(message: Shape) -> Shape:
    return {name: value.strip() if name in ("content", "reasoning_content") else value
            for name, value in message.items()}


def without_system(messages: Sequence[Shape]) -> list[Shape]:
    """A system text opens the next turn of the user (S4.30), or is one."""
    shapes: list[Shape] = []
    system: list[str] = []
    for message in messages:
        if message["role"] == "system":
            system.append(message["content"])
        elif message["role"] == "user" and system:
            shapes.append({**message, "content": "\n".join([*system, message["content"]])})
            system = []
        else:
            shapes.append(message)
    return [*shapes, {"role": "user", "content": "\n".join(system)}] if system else shapes


def _called(message: Shape, able: Caps) -> Shape:
    """A message with calls: arguments as the template wants them."""
    calls = [{**call, "function": {**call["function"], "arguments": _arguments(call["function"], able)}}
             for call in message["tool_calls"]]
    shape = {**message, "tool_calls": calls}
    if able.reasoning_alone and message.get("reasoning_content"):
        del shape["content"]
    return shape


def _arguments(function: Shape, able: Caps) -> Any:
    given = function["arguments"]
    if not able.object_arguments:
        return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    try:
        value = json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadRequest(f"the arguments of the call of {str(function['name'])[:60]!r} must be a JSON object, as text",
                         code="bad_arguments")
    return value


def _thinking(message: Shape, way: Reasoning) -> Shape:
    """A message with its thoughts where the template looks for them."""
    thoughts = message.get("reasoning_content")
    if not thoughts or way in ("reasoning_content", ""):
        return message
    if way == "thinking":
        return {**message, "thinking": thoughts}
    shape = {name: value for name, value in message.items() if name != "reasoning_content"}
    return {**shape, "content": [{"type": "thinking", "thinking": thoughts}, *_parted(message)["content"]]}


def _parted(message: Shape) -> Shape:
    """A message with its content as a list of parts."""
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _embedded(messages: list[Shape]) -> list[Shape]:
    """Each call with its responses, and the answer that they led to, as one message."""
    shapes: list[Shape] = []
    caller: Shape | None = None
    for message in messages:
        if message["role"] == "tool" and caller is not None:
            caller["tool_responses"].append(_response(caller, message))
        elif caller is not None and message["role"] == "assistant" and not message.get("tool_calls"):
            caller["content"], caller = message["content"], None
        elif message.get("tool_calls"):
            caller = {**{name: value for name, value in message.items() if name != "content"}, "tool_responses": []}
            shapes.append(caller)
        else:
            shapes.append(message)
            caller = None
    return shapes


def _response(caller: Shape, message: Shape) -> Shape:
    """One result, with the name of the tool that stands at its place among the calls."""
    place = len(caller["tool_responses"])
    names = [call["function"]["name"] for call in caller["tool_calls"]]
    try:
        response = json.loads(message["content"])
    except (ValueError, RecursionError):
        response = message["content"]
    return {"name": names[place] if place < len(names) else message.get("tool_call_id", ""), "response": response}
