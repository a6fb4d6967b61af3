"""Takes in what somebody wrote on a platform, and answers it in a thread of its own, after the platform was told so."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask import Flask, g

from auth import gate
from auth.keys import Key
from services.chat.events import Ask, Final, Spent
from services.chat.idempotency import digest_of
from services.chat.sessions import parse_id
from services.errors import Forbidden, NotFound, Unauthorized
from services.web import sources
from services.web.bindings.claims import Claims
from services.web.bindings.config import FILE_NAME, Binding, Bindings
from services.web.bindings.post import Post
from services.web.frame import Trace, as_error
from services.web.measure import measured
from services.web.routes import taken

if TYPE_CHECKING:
    from services.web.app import Room

AT_ONCE = 32                # messages of this process that are being answered
OFF = "This bot is switched off."
BROKEN = "This bot cannot answer now; what is wrong stands in the server's log under {id}."
NO_QUESTION = "Ask me something, and I answer here."
NO_ANSWER = "(I have no answer to that.)"
TELLING = (400, 409, 413, 415, 429, 502, 503, 504)      # errors whose message helps who asked
log = logging.getLogger("parley.bindings")


@dataclass(frozen=True)
class Question:
    """What somebody wrote. `where`: what tells its conversation from others; `known_by`: what a second delivery of it
    has too."""

    binding: Binding
    text: str
    where: tuple[str, ...]
    known_by: str

    @property
    def session(self) -> str:
        """The id of the conversation, among those of the binding's key."""
        return parse_id(f"{self.binding.kind}-{self.binding.name}-{digest_of(*self.where)[:24]}")

    @property
    def digest(self) -> str:
        return digest_of(self.binding.kind, self.binding.name, self.known_by)


class Switched(Forbidden):
    """The key of a binding does not let anybody in."""

    code = "binding_off"


class Desk:
    """One a process. `kinds`: the platforms there are. Any thread may bring a question."""

    def __init__(self, room: Room, kinds: Mapping[str, type[Binding]]) -> None:
        self._room = room
        self._seats = threading.BoundedSemaphore(AT_ONCE)
        self.bindings = Bindings(room.settings.data_dir / FILE_NAME, kinds)
        self.folder = room.settings.data_dir / "bindings"
        self.claims = Claims(self.folder / "claims")
        self.post = Post(lambda: room.drain.over)

    def take(self, app: Flask, signature: str, question: Question, deliver: Callable[[str], None]) -> bool:
        """Has `question` answered, and the answer given to `deliver`, which may raise `Undelivered`; False when it was
        taken in before. `Unauthorized` for a `signature` that was seen before, `Unavailable` when there is no place."""
        with ExitStack() as held:
            held.enter_context(taken(self._seats))
            held.enter_context(self._room.drain.work())
            if not self.claims.first(digest_of("signature", question.binding.kind, question.binding.name, signature)):
                raise refused(question.binding, "it was sent before")
            if not self.claims.first(question.digest):
                log.info("id=%s binding=%s was sent again: answered once", g.trace.id, question.binding.name)
                return False
            ready = held.pop_all()
            try:
                threading.Thread(target=self._work, args=(app, g.trace, question, deliver, ready), name="binding",
                                 daemon=True).start()
            except RuntimeError:        # of a machine that has no more threads
                ready.close()
                raise
        return True

    # ------------------------------------------------------------ the question's thread

    def _work(self, app: Flask, trace: Trace, question: Question, deliver: Callable[[str], None],
              held: ExitStack) -> None:
        began, binding = time.monotonic(), question.binding
        with held, app.app_context():
            g.trace = trace
            outcome, text = self._answered(question)
            try:
                deliver(text)
            except Exception as error:
                outcome = "undelivered"
                log.error("id=%s binding=%s the answer was not delivered: %s", trace.id, binding.name,
                          as_error(error).message)
            self._room.parts.tally.count_message(binding.kind, outcome)
            log.info("id=%s key=%s binding=%s session=%s %s %.1fs", trace.id, binding.key, binding.name,
                     question.session, outcome, time.monotonic() - began)

    def _answered(self, question: Question) -> tuple[str, str]:
        """(how it went, what is said to who asked)."""
        try:
            return "answered", self._answer(question)
        except Exception as error:
            told = as_error(error)
        log.warning("id=%s binding=%s %s: %s", g.trace.id, question.binding.name, told.code, told.message)
        if isinstance(told, Switched):
            return told.code, OFF
        return told.code, told.message if told.status in TELLING else BROKEN.format(id=g.trace.id)

    def _answer(self, question: Question) -> str:
        if not question.text:
            return NO_QUESTION
        room, key = self._room, self._key(question.binding)
        persona = room.parts.personas.get(question.binding.personality, key.id)
        with room.parts.admissions.admit(key, place=True) as ticket, taken(room.places):
            prompt, given = sources.of_question(room, persona, question.text, key.id)
            ask = Ask(owner=key.id, prompt=question.text, messages=persona.asked(prompt, given), weight=key.weight,
                      session_id=question.session, allowed_profiles=key.profiles, request_id=g.trace.id, stream=False,
                      idempotency=question.digest, spent=Spent(), **persona.fields(room.settings.models_dir),
                      **sources.grounded(room, persona, key.id, (), False if given else None))
            with closing(measured(room.parts.chat.answer(ask), ticket, ask.spent)) as events:
                for event in events:
                    if isinstance(event, Final):
                        return event.result.strip() or NO_ANSWER
                    room.drain.check_running()
        raise AssertionError("an answer has an end")

    def _key(self, binding: Binding) -> Key:
        """The key that the binding acts as, as it is now."""
        try:
            key = self._room.parts.keys.get(binding.key)
            gate.check_scope(key, "answer")
        except (NotFound, Forbidden) as error:
            raise Switched(f"the key {binding.key[:80]!r} of this binding: {error.message}") from None
        if key.revoked_at is not None or key.ends() <= time.time():
            raise Switched(f"the key {binding.key[:80]!r} of this binding is revoked or has expired")
        return key


def refused(binding: Binding, why: str) -> Unauthorized:
    """What anybody is told who is not the platform; `why` is for the log alone."""
    log.warning("id=%s binding=%s refused: %s", g.trace.id, binding.name, why)
    return Unauthorized("Unauthorized", hint="the signature of the platform is missing, wrong, too old or used before")
