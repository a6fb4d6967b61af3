"""Where in an answer the calls of tools begin: behind the thought, with a trigger. The chat side reads it likewise
(services/chat/speech.py)."""

from __future__ import annotations

from dataclasses import dataclass, replace

from services.wire import Calls

START, THOUGHT, ANSWER, PLAIN = range(4)


@dataclass(frozen=True)
class Watch:
    """An answer's text so far, as far as it matters. `tail`: the end of it that something may begin in."""

    calls: Calls
    phase: int = START          # PLAIN: no call can begin any more
    inside: bool = False        # a thought that the prompt began
    tail: bytes = b""

    @classmethod
    def over(cls, calls: Calls) -> Watch:
        return cls(calls, START if calls.think else ANSWER, calls.thinking)

    def after(self, piece: bytes) -> tuple[Watch, bytes | None]:
        """Behind `piece`; and what of it stands behind the trigger, None where that is not complete."""
        watch, text = self, self.tail + piece
        while True:
            step = (watch._start, watch._thought, watch._answer, watch._plain)[watch.phase]
            watch, rest, over = step(text)
            if rest is None:
                return watch, over
            text = rest

    def _start(self, text: bytes) -> tuple[Watch, bytes | None, bytes | None]:
        think, bare = self.calls.think.encode(), text.lstrip()
        if bare.startswith(think):
            return replace(self, phase=THOUGHT, tail=b""), bare[len(think):], None
        if think.startswith(bare):
            return replace(self, tail=bare), None, None
        return replace(self, phase=THOUGHT if self.inside else ANSWER, tail=b""), text, None

    def _thought(self, text: bytes) -> tuple[Watch, bytes | None, bytes | None]:
        thought = self.calls.thought.encode()
        at = text.find(thought)
        if at < 0:
            return replace(self, tail=_end(text, thought)), None, None
        return replace(self, phase=START, inside=False, tail=b""), text[at + len(thought):], None

    def _answer(self, text: bytes) -> tuple[Watch, bytes | None, bytes | None]:
        trigger = self.calls.trigger.encode()
        if not self.calls.leads:
            at = text.find(trigger)
            return replace(self, tail=_end(text, trigger)), None, text[at + len(trigger):] if at >= 0 else None
        bare = text.lstrip()
        if bare.startswith(trigger):
            return self, None, bare[len(trigger):]
        return replace(self, phase=ANSWER if trigger.startswith(bare) else PLAIN, tail=bare), None, None

    def _plain(self, _text: bytes) -> tuple[Watch, bytes | None, bytes | None]:
        return replace(self, tail=b""), None, None


def _end(text: bytes, tag: bytes) -> bytes:
    """The end of `text` that `tag` may begin in."""
    return text[max(len(text) - len(tag) + 1, 0):]
