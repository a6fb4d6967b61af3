"""Input items of the Responses API: what they say to the model, and how they are told again.

Taken are messages of text, function calls with their outputs, and reasoning, which goes back to the model beside the
answer or the calls that it led to. Everything else is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from services.chat.messages import Call, Message, Role
from services.errors import BadRequest

Item = dict[str, Any]
MAX_ID = 200
_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXT_PARTS = {"input_text": "text", "output_text": "text", "refusal": "refusal", "text": "text"}   # type -> its text
_PREFIX = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def messages(items: Sequence[Item], called: Mapping[str, str] | None = None) -> list[Message]:
    """What `items` say; BadRequest naming the field that is wrong. What one answer consists of is one message.

    `called`: the calls before them, id to tool; None: they are not known, so an output may be of any call.
    """
    said: list[Message] = []
    names = dict(called or {})
    for index, item in enumerate(items):
        kind = _kind(item, index)
        message = _READERS[kind](item, f"input.{index}")
        if message.role == "tool":
            message = _result(message, names, called is not None, f"input.{index}.call_id")
        names |= {call.id: call.name for call in message.calls}
        if said and (whole := _joined(said[-1], message, kind)) is not None:
            said[-1] = whole
        else:
            said.append(message)
    return [message for message in said if message.role != "assistant" or message.content or message.calls]


def told(given: str | Sequence[Item], tail: str) -> list[Item]:
    """The input as a list of items, each with an id, which ends in `tail` and its place unless it has one."""
    items = [{"type": "message", "role": "user", "content": given}] if isinstance(given, str) else given
    return [_told(item, f"{tail}{index:02d}") for index, item in enumerate(items)]


def _result(message: Message, names: Mapping[str, str], known: bool, param: str) -> Message:
    """With the tool's name. `known`: whether all calls are in `names`."""
    if known and message.call_id not in names:
        raise BadRequest(f"No tool call found for function call output with call_id {message.call_id[:80]}.",
                         param=param)
    return replace(message, name=names.get(message.call_id, ""))


def _told(item: Item, tail: str) -> Item:
    kind = item.get("type", "message")
    shape = {**item, "type": kind, "id": item.get("id") or f"{_PREFIX[kind]}_{tail}"}
    if kind == "message" and isinstance(item["content"], str):
        part = "output_text" if item["role"] == "assistant" else "input_text"
        more: Item = {"annotations": []} if part == "output_text" else {}
        shape["content"] = [{"type": part, "text": item["content"], **more}]
    return shape if kind == "reasoning" else {**shape, "status": item.get("status") or "completed"}


def _kind(item: Any, index: int) -> str:
    param = f"input.{index}"
    if not isinstance(item, dict):
        raise BadRequest(f"{param}: expected an item, which is an object", param=param)
    given = item.get("id")
    if given is not None and not (isinstance(given, str) and len(given) <= MAX_ID):
        raise BadRequest(f"{param}.id: expected a string of at most {MAX_ID} characters", param=f"{param}.id")
    kind = item.get("type", "message" if "role" in item else None)
    if not isinstance(kind, str) or kind not in _READERS:
        shown = repr(kind)[:80] if kind is not None else "nothing"
        raise BadRequest(f"{param}.type: {shown} is not taken; expected one of {', '.join(sorted(_READERS))}",
                         param=f"{param}.type", code="unsupported_value")
    return kind


# ---------------------------------------------------------------- one item

def _message(item: Item, param: str) -> Message:
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise BadRequest(f"{param}.role: expected one of {', '.join(_ROLES)}", param=f"{param}.role")
    return Message(_ROLES[role], _text(item.get("content"), f"{param}.content"))


def _function_call(item: Item, param: str) -> Message:
    call_id, name, arguments = (_string(item, name, param) for name in ("call_id", "name", "arguments"))
    return Message("assistant", calls=(Call(call_id, name, arguments),))


def _function_call_output(item: Item, param: str) -> Message:
    return Message("tool", _text(item.get("output"), f"{param}.output"), call_id=_string(item, "call_id", param))


def _reasoning(item: Item, param: str) -> Message:
    """The reasoning itself where it is there, else its summary; one that is only encrypted says nothing."""
    shown = item.get("content") or item.get("summary") or []
    if not isinstance(shown, list) or not all(isinstance(part, dict) and isinstance(part.get("text"), str)
                                              for part in shown):
        raise BadRequest(f"{param}.content: expected a list of reasoning_text parts", param=f"{param}.content")
    return Message("assistant", reasoning="\n\n".join(part["text"] for part in shown))


_READERS: dict[str, Callable[[Item, str], Message]] = {
    "message": _message, "function_call": _function_call, "function_call_output": _function_call_output,
    "reasoning": _reasoning}


def _joined(last: Message, following: Message, kind: str) -> Message | None:
    """Both as one message, where they are parts of one answer: reasoning, then text, then calls."""
    if last.role != "assistant" or following.role != "assistant" or kind == "reasoning":
        return None
    if kind == "function_call":
        return replace(last, calls=last.calls + following.calls)
    bare = not last.content and not last.calls
    return replace(last, content=following.content) if bare else None


def _string(item: Item, name: str, param: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or (name != "arguments" and not value):
        raise BadRequest(f"{param}.{name}: expected a string" + ("" if name == "arguments" else " that is not empty"),
                         param=f"{param}.{name}")
    return value


def _text(content: Any, param: str) -> str:
    """Text, or a list of text parts, which are joined."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise BadRequest(f"{param}: expected a string or a list of content parts", param=param)
    return "".join(_part(part, f"{param}.{index}") for index, part in enumerate(content))


def _part(part: Any, param: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _TEXT_PARTS:
        shown = repr(kind)[:80] if kind is not None else "nothing"
        raise BadRequest(f"{param}.type: {shown} is not taken: the model reads text, in parts of type input_text or "
                         "output_text", param=f"{param}.type", code="unsupported_content")
    text = part.get(_TEXT_PARTS[kind])
    if not isinstance(text, str):
        raise BadRequest(f"{param}.{_TEXT_PARTS[kind]}: expected a string", param=f"{param}.{_TEXT_PARTS[kind]}")
    return text
