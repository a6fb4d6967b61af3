"""What is said on a websocket: frames in are prompts, frames out pieces of answers, `<END>` ends each (S4.8, S4.12).

A model is held only while it answers. What follows is the next turn of the same conversation: of a session where one is
named, else of one that ends with the socket.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask import Flask, g

from auth import gate
from auth.keys import Key
from auth.limits import Ticket
from services.chat.events import Ask, Delta, Event, Final, Spent, Waiting
from services.chat.messages import Interaction, Message
from services.chat.persona import Given, Persona
from services.chat.sessions import parse_id
from services.errors import BadRequest, Forbidden, NotFound, ParleyError, Unauthorized
from services.knowledge.choose import Step
from services.web import sources
from services.web.frame import Trace, as_error
from services.web.measure import measured
from services.web.routes import taken
from services.web.sockets import frames
from services.web.sockets.line import NO_KEY, POLICY, Line
from services.web.watch import ClientGone

if TYPE_CHECKING:
    from services.web.app import Room

KEY_SECONDS = 10.0          # for the key, where it comes in the first frame
MOST_WAITING = 8            # prompts that wait for an answer's end
MOST_KEPT = 100             # turns of a conversation without a session
END, FORGED = "<END>", "<END"
READING = "Reading the provided context..."
access = logging.getLogger("parley.access")
log = logging.getLogger("parley.web")


@dataclass(frozen=True)
class Wish:
    """What the address asks for. `session`: the conversation to go on with; `tell_session`: `<END id>` for `<END>`."""

    personality: str
    session: str | None = None
    tell_session: bool = False
    status: bool = True             # frames that tell what is being done, before an answer's first piece


class Talk:
    """A `switchboard.Call`. Answers one prompt after the other, in a thread that there is only while there is one."""

    def __init__(self, app: Flask, room: Room, wish: Wish, trace: Trace, address: str) -> None:
        self._app, self._room, self._wish, self._trace, self._address = app, room, wish, trace, address
        self._secret: str | None = None         # asked again for each turn: a key may be revoked meanwhile
        self.owner = ""
        self._session = wish.session
        self._earlier: list[Interaction] = []
        self._lock = threading.Lock()           # owns the two below
        self._waiting: deque[str] = deque()
        self._answering = False
        self._opened = self._asked = time.monotonic()
        self._turns = 0
        self._line: Line | None = None

    def known(self, key: Key, secret: str) -> None:
        """The key came with the handshake."""
        self.owner, self._secret = key.id, secret

    # ------------------------------------------------------------ the switchboard's thread

    @property
    def busy(self) -> bool:
        return self._answering

    def begin(self, line: Line) -> None:
        self._line = line

    def heard(self, text: str) -> None:
        self._asked = time.monotonic()
        with self._lock:
            if len(self._waiting) >= MOST_WAITING:
                self.line.end(POLICY, f"more than {MOST_WAITING} prompts wait for an answer's end")
                return
            self._waiting.append(text)
            if self._answering:
                return
            self._answering = True
        threading.Thread(target=self._answer_all, name="websocket", daemon=True).start()

    def tick(self, now: float) -> None:
        idle = self._room.settings.socket_idle
        if self._answering:
            self._asked = now
        elif self._secret is None and now - self._opened >= KEY_SECONDS:
            self.line.end(NO_KEY, f"no key came in {KEY_SECONDS:g} s")
        elif now - self._asked >= idle:
            self.line.end(POLICY, f"nothing was asked for {idle:g} s")

    def over(self) -> None:
        line = self.line
        access.info("id=%s key=%s WS /gpt-socket/%s %d %.1fs turns=%d in=%d out=%d", self._trace.id, self.owner or "-",
                    self._wish.personality[:100], line.close_code, time.monotonic() - self._opened, self._turns,
                    line.received, line.sent)

    @property
    def line(self) -> Line:
        assert self._line is not None, "a conversation begins with its line"
        return self._line

    # ------------------------------------------------------------ a turn's thread

    def _answer_all(self) -> None:
        with self._app.app_context():
            g.trace = self._trace
            while (text := self._next()) is not None:
                try:
                    self._take(text)
                except ClientGone:
                    log.debug("id=%s the client of a websocket has gone", self._trace.id)

    def _next(self) -> str | None:
        with self._lock:
            if self._waiting and self.line.open:
                return self._waiting.popleft()
            self._answering = False
        self._room.sockets.wake()       # it may have waited for this to close the line
        return None

    def _take(self, text: str) -> None:
        """One frame: a key, or a prompt, or both."""
        try:
            asked = self._parsed(text)
            key = self._key(asked.key)
            persona = self._room.parts.personas.get(self._wish.personality, key.id)
        except (Unauthorized, Forbidden, NotFound, BadRequest) as error:
            if self._secret is None or not isinstance(error, BadRequest):
                self.line.end(NO_KEY if isinstance(error, Unauthorized) else POLICY, error.message)
                return
            return self._tell(error)
        except Exception as error:
            self.line.end(POLICY, as_error(error).message)
            return None
        if asked.prompt or asked.key is None:
            self._turn(key, persona, asked)
        return None

    def _parsed(self, text: str) -> frames.Asked:
        if self._secret is None and (key := frames.key_of(text)) is not None:
            return frames.Asked("", key)
        return frames.parse(text)

    def _key(self, given: str | None) -> Key:
        """Whose turn it is, as things are now. Raises `Unauthorized`, `Forbidden`, `TooManyRequests`."""
        parts, secret = self._room.parts, self._secret or given
        if self._secret and given is not None:
            raise BadRequest("the key is known already: leave |KEY| out", code="bad_frame")
        if secret is None:
            raise Unauthorized("the first frame must be the key: |KEY|<key>|/KEY|")
        key = gate.identify(parts.keys, parts.admissions, secret, None, self._address)
        gate.check_scope(key, "answer")
        if self._secret is None:
            self._room.sockets.claim(self, key.id)
            self.known(key, secret)
            self._trace.key = key.id
        return key

    def _turn(self, key: Key, persona: Persona, asked: frames.Asked) -> None:
        try:
            self._answer(key, persona, asked)
        except ClientGone:
            raise
        except Exception as error:
            self._tell(as_error(error))

    def _tell(self, error: ParleyError) -> None:
        self.line.say(f"Error: {error.message}")
        self._end()

    def _end(self) -> None:
        self.line.say(f"<END {self._session}>" if self._wish.tell_session and self._session else END)

    def _answer(self, key: Key, persona: Persona, asked: frames.Asked) -> None:
        """Nothing is fetched or asked before the key's limits let it."""
        self._room.drain.refuse_new()
        if asked.session is not None:
            self._session = parse_id(asked.session)
        with self._room.parts.admissions.admit(key, place=True) as ticket, self._room.drain.work():
            ask = self._asked_of(key, persona, asked)
            with self._events(ticket, ask) as events:
                self._pass_on(events, ask.messages)
        self._turns += 1
        self._end()

    def _asked_of(self, key: Key, persona: Persona, asked: frames.Asked) -> Ask:
        question, given = self._given(key, persona, asked)
        search = True if asked.rag is not None else False if given else None
        return Ask(owner=key.id, prompt=asked.prompt, messages=persona.asked(question, given),
                   session_id=self._session, earlier=() if self._session else tuple(self._earlier),
                   allowed_profiles=key.profiles, weight=key.weight, request_id=self._trace.id, spent=Spent(),
                   **sources.grounded(self._room, persona, key.id, (), search, asked.rag or ()),
                   **persona.fields(self._room.settings.models_dir))

    def _given(self, key: Key, persona: Persona, asked: frames.Asked) -> tuple[str, Given | None]:
        """The question, and what it is to be answered from: what the frame gives, else what it names."""
        if not asked.prompt:
            raise BadRequest("Question not provided in the frame", code="missing_field")
        if asked.context is None and asked.content is None:
            with taken(self._room.places):
                return sources.of_question(self._room, persona, asked.prompt, key.id, self._status)
        self._status(READING)
        text = "\n\n".join(text.strip() for text in (asked.context, asked.content) if text)
        return asked.prompt, Given.content(text) if asked.content is None else Given.of_text(text)

    @contextmanager
    def _events(self, ticket: Ticket, ask: Ask) -> Iterator[Iterator[Event]]:
        """The answer's events, counted and charged as those of a request are."""
        room = self._room
        with taken(room.places), closing(measured(room.parts.chat.answer(ask), ticket, ask.spent)) as events:
            yield events

    def _pass_on(self, events: Iterator[Event], messages: tuple[Message, ...]) -> None:
        position = 0
        for event in events:
            if isinstance(event, Final):
                self._keep(Interaction(messages, event.message))
                return
            self.line.check()
            self._room.drain.check_running()
            if isinstance(event, Delta):
                self._piece(event.text)
            elif isinstance(event, Step):
                self._status(f"{event.status}\n")
            elif isinstance(event, Waiting) and event.position != position:
                position = event.position
                self._status(f"(Currently helping other users: you are number {position} in the queue, for about "
                             f"{event.eta_seconds:.0f} s.)\n")

    def _piece(self, text: str) -> None:
        """A piece of the answer; what a client would take for its end goes in two frames."""
        if text.startswith(FORGED):
            self.line.say(text[:1])
            text = text[1:]
        self.line.say(text)

    def _status(self, text: str) -> None:
        if self._wish.status:
            self.line.say(text)

    def _keep(self, interaction: Interaction) -> None:
        """For the next turn of a conversation without a session, as much as a prompt may have."""
        if self._session is not None:
            return
        self._earlier = [*self._earlier, interaction][-MOST_KEPT:]
        while len(self._earlier) > 1 and \
                sum(one.size for one in self._earlier) > self._room.settings.max_prompt_bytes:
            del self._earlier[0]
