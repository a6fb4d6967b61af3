"""Answers in the shapes of OpenAI's completions: chunks while they come, and the whole at the end."""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from flask import g

from services.chat.events import Beat, Called, Delta, Event, Final, Reasoned, Waiting
from services.chat.profiles import Profiles
from services.chat.several import Indexed
from services.errors import ParleyError
from services.knowledge.choose import Step
from services.web import sse
from services.web.openai import common
from services.web.sse import Payload
from services.wire import Logprob


@dataclass(frozen=True)
class Shaper(ABC):
    """Shapes one request's answers. `n`: answers to each prompt; `usage`: a stream's last chunk tells it."""

    id: str
    model: str                  # the profile's name
    fingerprint: str
    stream: bool
    usage: bool
    logprobs: bool              # were asked for
    n: int = 1

    CHUNK, WHOLE = "", ""       # values of `object`
    PARAMS: ClassVar[dict[str, str]] = {}       # a field's name in the pipeline -> this family's

    def payloads(self, events: Iterator[Indexed]) -> Iterator[Payload]:
        """As `Answering.respond` wants them."""
        created, finals, begun = int(time.time()), dict[int, Final](), set[int]()
        head = {"id": self.id, "object": self.CHUNK if self.stream else self.WHOLE, "created": created,
                "model": self.model, "system_fingerprint": self.fingerprint}
        for index, event in self._named(events):
            if isinstance(event, Beat | Waiting | Step):
                yield sse.BEAT
                continue
            if isinstance(event, Final):
                finals[index] = event
            if self.stream:
                for choice in self.chunks(index, event, index not in begun):
                    yield self._chunk(head, [choice], event)
                begun.add(index)
        yield from self._end(head, [finals[index] for index in sorted(finals)])

    def _named(self, events: Iterator[Indexed]) -> Iterator[Indexed]:
        """Errors name the field that this family has."""
        try:
            yield from events
        except ParleyError as error:
            error.param = self.PARAMS.get(error.param or "", error.param)
            raise

    def _chunk(self, head: Payload, choices: list[Payload], event: Event) -> Payload:
        more = common.extras([event]) if isinstance(event, Final) else {}
        return {**head, "choices": choices, **({"usage": None} if self.usage else {}), **more}

    def _end(self, head: Payload, finals: Sequence[Final]) -> Iterator[Payload]:
        usage = common.usage(finals, self.n)
        if not self.stream:
            choices = [self.choice(index, final) for index, final in enumerate(finals)]
            yield {"done": True, **head, "choices": choices, "usage": usage, **common.extras(finals)}
            return
        if self.usage:
            yield {**head, "choices": [], "usage": usage}
        yield {"done": True}

    @abstractmethod
    def chunks(self, index: int, event: Event, first: bool) -> Iterator[Payload]:
        """The choices of the chunks that say `event`; `first`: it is the first of this answer."""

    @abstractmethod
    def choice(self, index: int, final: Final) -> Payload:
        """A whole answer."""


@dataclass(frozen=True)
class ChatShaper(Shaper):
    CHUNK, WHOLE = "chat.completion.chunk", "chat.completion"
    PARAMS: ClassVar[dict[str, str]] = {"prompt": "messages", "schema": "response_format"}

    def chunks(self, index: int, event: Event, first: bool) -> Iterator[Payload]:
        if first:
            yield self._piece(index, {"role": "assistant", "content": None if isinstance(event, Called) else ""})
        if isinstance(event, Delta) and (event.text or event.logprobs):
            yield self._piece(index, {"content": event.text}, event.logprobs)
        elif isinstance(event, Reasoned):
            yield self._piece(index, {"reasoning_content": event.text})
        elif isinstance(event, Called):
            yield self._piece(index, {"tool_calls": [_call_piece(event)]})
        elif isinstance(event, Final):
            yield self._piece(index, {}, reason=event.finish_reason)

    def _piece(self, index: int, delta: Payload, logprobs: Sequence[Logprob] = (),
               reason: str | None = None) -> Payload:
        return {"index": index, "delta": delta, "logprobs": self._logprobs(logprobs) if logprobs else None,
                "finish_reason": reason}

    def _logprobs(self, logprobs: Sequence[Logprob]) -> Payload:
        return {"content": [common.logprob_shape(one) for one in logprobs], "refusal": None}

    def choice(self, index: int, final: Final) -> Payload:
        message: dict[str, Any] = {"role": "assistant", "content": final.result, "refusal": None}
        if final.calls:
            message |= {"content": final.result or None, "tool_calls": [call.shape() for call in final.calls]}
        if final.reasoning:
            message["reasoning_content"] = final.reasoning
        return {"index": index, "message": message, "finish_reason": final.finish_reason,
                "logprobs": self._logprobs(final.logprobs) if self.logprobs else None}


def _call_piece(event: Called) -> Payload:
    if not event.id:
        return {"index": event.index, "function": {"arguments": event.arguments}}
    return {"index": event.index, "id": event.id, "type": "function",
            "function": {"name": event.name, "arguments": event.arguments}}


def shaped_as(profiles: Profiles, wanted: str | None) -> tuple[str, str]:
    """What an answer by the model `wanted` says of itself: the profile's name, and a `system_fingerprint` that is the
    same as long as the profile is."""
    name, profile = profiles.current().for_text() if wanted is None else profiles.named(wanted, g.key.profiles)
    return name, "fp_" + hashlib.sha256(profile.model_dump_json().encode()).hexdigest()[:10]
