"""A response as it comes: the pipeline's events become those of OpenAI's Responses API, in its order, numbered from 0.

    response.created, response.in_progress
      for each item of the output, one after the other:
        response.output_item.added
          of a message, or of reasoning: content_part.added, output_text.delta …, output_text.done, content_part.done
          of a function call: function_call_arguments.delta …, function_call_arguments.done
        response.output_item.done
    response.completed, response.incomplete or response.failed

The last payload has `done` and is the response itself, so the JSON answer is the fold of the stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from services.chat.background import Cancelled
from services.chat.events import Called, Delta, Event, Final, Reasoned
from services.chat.several import Indexed
from services.errors import ParleyError
from services.web import sse
from services.web.openai.common import logprob_shape
from services.web.sse import Payload
from services.wire import Logprob

Status = Literal["completed", "incomplete", "cancelled"]
STATUS: dict[str, Status] = {"length": "incomplete", "cancelled": "cancelled"}      # by finish_reason, else completed


@dataclass
class _Item:
    """An item of the output that is being written."""

    index: int
    shape: Payload
    stem: str                           # of its events: output_text, reasoning_text, function_call_arguments
    texts: list[str] = field(default_factory=list)
    logprobs: list[Payload] = field(default_factory=list)
    call: int = -1                      # `Called.index`

    @property
    def place(self) -> Payload:
        return {"item_id": self.shape["id"], "output_index": self.index}

    def part(self, text: str = "") -> Payload:
        """The one content part of a message or of reasoning."""
        if self.stem == "reasoning_text":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": self.logprobs}


class Shaper:
    """Makes the payloads of one response. `response`: what is known of it before; `tail`: part of its items' ids."""

    def __init__(self, response: Payload, tail: str, now: Callable[[], float] = time.time) -> None:
        self.response: Payload = {**response, "status": "in_progress", "output": []}
        self.error: ParleyError | None = None       # that ended it
        self._now = now
        self._tail = tail
        self._number = 0
        self._item: _Item | None = None
        self._unsaid: list[Logprob] = []    # of the first tokens, while they have no text

    def payloads(self, events: Iterable[Indexed], stream: bool, queued: bool = False) -> Iterator[Payload]:
        """All of them. Nothing is said before the first news, so that an error can still be an HTTP status; `queued`:
        the response was begun before and is told at once. An error after that ends a `stream` as response.failed."""
        begun = queued
        if queued:
            yield from self.begin(queued)
        try:
            for _, event in events:
                if not begun and isinstance(event, Delta | Reasoned | Called | Final):
                    begun = True
                    yield from self.begin()
                yield from self.take(event)
        except ParleyError as error:
            if not (begun and stream):
                raise
            yield from self.fail(error)

    def begin(self, queued: bool = False) -> Iterator[Payload]:
        if queued:
            self.response["status"] = "queued"
        yield self._told("created")
        if queued:
            yield self._told("queued")
            self.response["status"] = "in_progress"
        yield self._told("in_progress")

    def take(self, event: Event) -> Iterator[Payload]:
        if isinstance(event, Delta):
            yield from self._say(event)
        elif isinstance(event, Reasoned):
            yield from self._write("reasoning_text", event.text)
        elif isinstance(event, Called):
            yield from self._call(event)
        elif isinstance(event, Final):
            yield from self._end(event)
        else:
            yield sse.BEAT

    def fail(self, error: ParleyError) -> Iterator[Payload]:
        """The response is as it is, and says why."""
        self.error = error
        yield from self._close("incomplete")
        if isinstance(error, Cancelled):
            self.response.update(status="cancelled")
        else:
            self.response.update(status="failed", error=failure(error.status, error.message))
        yield self._told("incomplete" if isinstance(error, Cancelled) else "failed")
        yield {"done": True, **self.response}

    # ------------------------------------------------------------ items

    def _say(self, event: Delta) -> Iterator[Payload]:
        """Tokens without a text begin no message: those of a call and of thoughts are not told, and what may be the
        first bytes of a character is told with it."""
        if self._item is not None and self._item.stem != "output_text" and not event.text:
            return
        self._unsaid += event.logprobs
        if event.text or self._item is not None:
            logprobs, self._unsaid = self._unsaid, []
            yield from self._write("output_text", event.text, logprobs)

    def _write(self, stem: str, text: str, logprobs: Sequence[Logprob] = ()) -> Iterator[Payload]:
        if self._item is None or self._item.stem != stem:
            yield from self._open_text(stem)
        assert self._item is not None
        self._item.texts.append(text)
        more: Payload = {}
        if stem == "output_text":
            more["logprobs"] = [logprob_shape(one) for one in logprobs]
            self._item.logprobs += more["logprobs"]
        yield self._event(f"{stem}.delta", **self._item.place, content_index=0, delta=text, **more)

    def _open_text(self, stem: str) -> Iterator[Payload]:
        yield from self._close("completed")
        shape: Payload = ({"id": self._id("rs"), "type": "reasoning", "status": "in_progress", "summary": [],
                           "content": []} if stem == "reasoning_text" else
                          {"id": self._id("msg"), "type": "message", "status": "in_progress", "role": "assistant",
                           "content": []})
        self._item = item = self._new(shape, stem)
        yield self._event("output_item.added", output_index=item.index, item=dict(shape))
        yield self._event("content_part.added", **item.place, content_index=0, part=item.part())

    def _call(self, event: Called) -> Iterator[Payload]:
        if self._item is None or self._item.call != event.index:
            yield from self._close("completed")
            shape = {"id": self._id("fc"), "type": "function_call", "status": "in_progress", "arguments": "",
                     "call_id": event.id, "name": event.name}
            self._item = self._new(shape, "function_call_arguments", event.index)
            yield self._event("output_item.added", output_index=self._item.index, item=dict(shape))
        if event.arguments:
            self._item.texts.append(event.arguments)
            yield self._event("function_call_arguments.delta", **self._item.place, delta=event.arguments)

    def _new(self, shape: Payload, stem: str, call: int = -1) -> _Item:
        self._unsaid = []
        return _Item(len(self.response["output"]), shape, stem, call=call)

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._tail}{len(self.response['output']):02d}"

    def _close(self, status: Status) -> Iterator[Payload]:
        """The item that is being written, if any, is complete, or all that there will be of it."""
        if (item := self._item) is None:
            return
        self._item, text = None, "".join(item.texts)
        item.shape["status"] = "completed" if status == "completed" else "incomplete"
        if item.call >= 0:
            item.shape["arguments"] = text
            yield self._event("function_call_arguments.done", **item.place, name=item.shape["name"], arguments=text)
        else:
            yield from self._close_part(item, text)
        self.response["output"].append(item.shape)
        yield self._event("output_item.done", output_index=item.index, item=item.shape)

    def _close_part(self, item: _Item, text: str) -> Iterator[Payload]:
        more: Payload = {"logprobs": item.logprobs} if item.stem == "output_text" else {}
        part = item.part(text)
        item.shape["content"] = [part]
        yield self._event(f"{item.stem}.done", **item.place, content_index=0, text=text, **more)
        yield self._event("content_part.done", **item.place, content_index=0, part=part)

    # ------------------------------------------------------------ the response

    def _end(self, final: Final) -> Iterator[Payload]:
        status = STATUS.get(final.finish_reason, "completed")
        if self._item is None and not self.response["output"]:
            yield from self._open_text("output_text")       # an answer of nothing is a message all the same
        yield from self._close(status)
        self.response.update(status=status, usage=usage_shape(final.usage))
        if final.warnings:
            self.response["warnings"] = list(final.warnings)
        if status == "incomplete":
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        if status == "completed":
            self.response["completed_at"] = int(self._now())
        yield self._told("completed" if status == "completed" else "incomplete")
        yield {"done": True, **self.response}

    def _told(self, kind: str) -> Payload:
        return self._event(kind, response={**self.response, "output": list(self.response["output"])})

    def _event(self, kind: str, **fields: Any) -> Payload:
        self._number += 1
        return {"type": f"response.{kind}", "sequence_number": self._number - 1, **fields}


def failure(status: int, message: str) -> Payload:
    """`error` of a response that failed, with the code that OpenAI has for an HTTP status."""
    code = "rate_limit_exceeded" if status == 429 else "invalid_prompt" if status < 500 else "server_error"
    return {"code": code, "message": message}


def usage_shape(usage: dict[str, Any]) -> Payload:
    """`Final.usage` as the Responses API has it."""
    details = usage["prompt_tokens_details"]
    return {"input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": details["cached_tokens"],
                                     "cache_write_tokens": details["processed_tokens"]},
            "output_tokens": usage["completion_tokens"], "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"]}
