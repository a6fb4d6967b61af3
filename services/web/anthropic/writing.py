"""An answer as Anthropic's API tells it: the events of a message, and the message that they make."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from services.chat.events import Beat, Called, Delta, Final, Reasoned, Waiting
from services.chat.several import Indexed
from services.knowledge.choose import Step
from services.web import sse
from services.web.openai.common import new_id
from services.web.sse import Payload

_PIECES = {"text": ("text", "text_delta"), "thinking": ("thinking", "thinking_delta"),
           "tool_use": ("partial_json", "input_json_delta")}         # type of a block -> field and type of its deltas
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use", "cancelled": "end_turn"}


class Writer:
    """The message of one answer, block by block. `thinking`: whether what the model thinks is told."""

    def __init__(self, model: str, thinking: bool, stops: list[str]) -> None:
        self._thinking = thinking
        self._stops = stops
        self._message: dict[str, Any] = {
            "id": new_id("msg_"), "type": "message", "role": "assistant", "model": model, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": _usage(0, 0, 0)}
        self._begun = False
        self._key: Any = None           # of the block that is open: the type, or the number of a call
        self._pieces: list[str] = []    # of that block

    def payloads(self, events: Iterator[Indexed]) -> Iterator[Payload]:
        """The events of the stream, the last payload the whole message. The first tells nothing that may still turn
        out to be an error."""
        for _, event in events:
            if isinstance(event, Beat | Waiting | Step):
                yield sse.BEAT
                continue
            if not self._begun:
                self._begun = True
                yield {"type": "message_start", "message": {**self._message, "content": []}}
                yield {"type": "ping"}
            if isinstance(event, Delta) and event.text:
                yield from self._add("text", event.text, {"type": "text", "text": ""})
            elif isinstance(event, Reasoned) and self._thinking:
                yield from self._add("thinking", event.text, {"type": "thinking", "thinking": "", "signature": ""})
            elif isinstance(event, Called):
                yield from self._add(event.index, event.arguments,
                                     {"type": "tool_use", "id": event.id, "name": event.name, "input": {}})
            elif isinstance(event, Final):
                yield from self._end(event)

    def _add(self, key: str | int, piece: str, block: dict[str, Any]) -> Iterator[Payload]:
        """`piece` goes to the block of `key`, a new one like `block` when another is open."""
        content = self._message["content"]
        if self._key != key:
            yield from self._close()
            self._key = key
            content.append(block)
            yield {"type": "content_block_start", "index": len(content) - 1, "content_block": dict(block)}
        if piece:
            self._pieces.append(piece)
            field, kind = _PIECES[content[-1]["type"]]
            yield {"type": "content_block_delta", "index": len(content) - 1, "delta": {"type": kind, field: piece}}

    def _close(self) -> Iterator[Payload]:
        if self._key is None:
            return
        content = self._message["content"]
        block, text = content[-1], "".join(self._pieces)
        if block["type"] == "tool_use":
            block["input"] = _input(text)
        else:
            block[block["type"]] = text
        self._key, self._pieces = None, []
        yield {"type": "content_block_stop", "index": len(content) - 1}

    def _end(self, final: Final) -> Iterator[Payload]:
        yield from self._close()
        done, reason = final.done, _REASONS[final.finish_reason]
        stop = done.stopped_by if reason == "end_turn" and done.stopped_by in self._stops else None
        ended = {"stop_reason": "stop_sequence" if stop else reason, "stop_sequence": stop}
        usage = _usage(done.prompt_tokens, done.cached_tokens, done.completion_tokens)
        yield {"type": "message_delta", "delta": ended, "usage": usage}
        yield {"type": "message_stop"}
        yield {"done": True, **self._message, **ended, "usage": usage}


def _usage(prompt: int, cached: int, completion: int) -> dict[str, int]:
    """Anthropic's `input_tokens` are those that were not cached."""
    return {"input_tokens": prompt - cached, "cache_read_input_tokens": cached, "cache_creation_input_tokens": 0,
            "output_tokens": completion}


def _input(arguments: str) -> dict[str, Any]:
    """Arguments that max_tokens cut off are no value; `stop_reason` tells of that."""
    try:
        value = json.loads(arguments)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
