"""`/v1/responses`: OpenAI's Responses API. A stored response is a turn of a session, so it outlives a restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from flask import Response, g, request

from auth.limits import Ticket
from services.chat import responses
from services.chat.background import Background
from services.chat.events import Ask
from services.chat.idempotency import BEAT, digest_of
from services.chat.responses import Kept
from services.errors import BadRequest, NotFound, Unavailable
from services.web import sse, watch
from services.web.answering import Answering, request_digest
from services.web.drain import Drain
from services.web.frame import json_response
from services.web.openai.shaping import shaped_as
from services.web.responses import query, replies, stored
from services.web.responses.asking import Asking
from services.web.responses.bodies import ResponsesBody
from services.web.responses.events import Shaper
from services.web.routes import Endpoint, op, taken
from services.web.sse import Payload
from services.web.watch import Watch

_CHANGES = (409, 410, 507)
PATIENCE = 10.0             # seconds that a cancel waits for the answer to have ended
POLL = 0.05


class _Stored(Endpoint):
    """Base of the resources that tell of stored responses."""

    @property
    def background(self) -> Background:
        return Background(self.room.settings.data_dir / "background")

    def found(self, response_id: str) -> tuple[Kept, str]:
        """As `stored.look`."""
        return stored.look(self.parts.sessions, self.background, g.key.id, response_id)

    def follow(self, kept: Kept, status: str, after: int = -1) -> Generator[Payload, None, None]:
        """The events of a response with numbers above `after`, those to come too where it runs in the background."""
        if kept.about["shape"]["background"]:
            events = self._told(kept)
        elif status:
            raise BadRequest("stream: this response is being answered, and not in the background, so only the request "
                             "that made it is told its events", param="stream")
        else:
            events = stored.payloads(kept, "")
        return (payload for payload in events if payload.get("sequence_number", after + 1) > after)

    def _told(self, kept: Kept) -> Iterator[Payload]:
        """The events of one in the background, to a client that is still there."""
        mine = watch.of_request(self.room.drain)
        with taken(self.room.places):
            for payload in self._left(kept):
                if not payload.get("done"):
                    mine.check()
                yield payload

    def _left(self, kept: Kept) -> Iterator[Payload]:
        """What the process that answers tells, or left behind; the kept answer's events where nothing is left."""
        idempotency, background, sessions = self.parts.idempotency, self.background, self.parts.sessions
        owner, name = kept.owner, kept.id
        if (running := idempotency.follow(owner, name)) is not None:
            yield from running
            return
        while background.runs(owner, name):
            yield BEAT
            time.sleep(1)
        yield from idempotency.run(owner, name, name,
                                   lambda: stored.payloads(responses.find(sessions, owner, name), ""))

    def stop(self, kept: Kept) -> None:
        """Cancels a response that runs in the background, and waits for its end."""
        background, until = self.background, time.monotonic() + PATIENCE
        background.cancel(kept.owner, kept.id)
        while background.runs(kept.owner, kept.id) and time.monotonic() < until:
            time.sleep(POLL)


class Responses(_Stored, Answering):
    @op("Answer, and keep the response", scope="answer", body=ResponsesBody, reply=replies.ResponseObject,
        stream=replies.ResponseEvent, errors=(404, 409, 410, 422, 504, 507), retryable=True, answer=True)
    def post(self, body: ResponsesBody) -> Response:
        asking = Asking(body, self.parts.sessions, self.background, shaped_as(self.parts.profiles, body.model)[0])
        if body.background:
            return self._begin(asking)
        return self.respond(asking.make, asking.render, bool(body.stream), sse.NAMED)

    def _begin(self, asking: Asking) -> Response:
        """When this returns the question is durable and its answer runs."""
        if not asking.store:
            raise BadRequest("background: a response that runs in the background is asked for by its id, so it is "
                             "stored: leave store out, or set it to true", param="background")
        ask, = asking.make(self._digest())
        name = asking.response["id"]
        if not self._begun(name):
            self._start(ask, asking)
        kept, status = self.found(name)
        if asking.body.stream:
            return sse.response(self.follow(kept, status), sse.NAMED)
        return json_response(stored.fold(kept, status))

    def _digest(self) -> str | None:
        """What a request with an Idempotency-Key is known by when it is sent again. Conflict where the key came with
        another one."""
        key = request.headers.get("Idempotency-Key")
        if key is None:
            return None
        digest, mine = request_digest(), watch.of_request(self.room.drain)
        with taken(self.room.places):
            for _ in self.parts.idempotency.run(g.key.id, key, digest, lambda: [{"done": True}]):
                mine.check()
        return digest_of(g.key.id, key, digest)

    def _begun(self, name: str) -> bool:
        """Whether the same request has begun the response before."""
        try:
            self.found(name)
        except NotFound:
            return False
        return True

    def _start(self, ask: Ask, asking: Asking) -> None:
        """What a request holds goes over to the thread that answers it."""
        name, key = asking.response["id"], replace(g.key, requests_per_minute=None)    # it is counted already
        with ExitStack() as held:
            held.enter_context(self.room.drain.work())
            held.enter_context(taken(self.room.runs))
            if not self._claimed(held, ask.owner, name):
                return
            g.ticket.close()
            ticket = held.enter_context(self.parts.admissions.admit(key, cost=0, place=True))
            self.parts.chat.keep_question(ask)
            rest = held.pop_all()
        self.parts.idempotency.run(ask.owner, name, name, partial(self._answer, rest, ask, asking, ticket))

    def _claimed(self, held: ExitStack, owner: str, name: str) -> bool:
        """Whether this request is to answer; False: the same one, sent at the same time, has begun it."""
        try:
            held.enter_context(self.background.running(owner, name))
        except TimeoutError:
            if not self._begun(name):
                raise Unavailable("the first request with this Idempotency-Key has not begun its response yet",
                                  code="idempotency_busy", retry_after=1) from None
        return not self._begun(name)

    def _answer(self, held: ExitStack, ask: Ask, asking: Asking, ticket: Ticket) -> Iterator[Payload]:
        """Runs in a thread of its own, to the answer's end."""
        name, shaper = asking.response["id"], Shaper(asking.response, asking.digits)
        over = _Until(self.room.drain, partial(self.background.check, ask.owner, name))
        with held:
            yield from self._run([ask], partial(shaper.payloads, stream=True, queued=True), ticket, over,
                                 threading.Semaphore(1))
            if shaper.error is not None:
                responses.end_with(self.parts.sessions, ask.owner, name, shaper.response["status"], shaper.error)


class OneResponse(_Stored):
    @op("A stored response, or its events", scope="answer", reply=replies.ResponseObject,
        stream=replies.ResponseEvent, errors=(410,))
    def get(self, response_id: str) -> Response:
        kept, status = self.found(response_id)
        if not query.flag("stream"):
            return json_response(stored.fold(kept, status))
        events = self.follow(kept, status, query.number("starting_after", -1, 0, 1 << 53))
        return sse.response(events, sse.NAMED)

    @op("Delete a stored response", scope="answer", reply=replies.DeletedResponse, errors=_CHANGES)
    def delete(self, response_id: str) -> Response:
        kept, _ = self.found(response_id)
        with taken(self.room.places):
            self.stop(kept)
            if responses.delete(self.parts.sessions, kept):
                self.parts.chat.forget(kept.owner, kept.session)
            self.parts.idempotency.forget(kept.owner, kept.id)
        return json_response({"id": kept.id, "object": "response", "deleted": True})


class CancelResponse(_Stored):
    @op("Stop a response that runs in the background", scope="answer", reply=replies.ResponseObject, errors=_CHANGES)
    def post(self, response_id: str) -> Response:
        kept, _ = self.found(response_id)
        if not kept.about["shape"]["background"]:
            raise BadRequest("Cannot cancel a synchronous response: only one that was begun with background true runs "
                             "without its request", param="response_id")
        with taken(self.room.places):
            self.stop(kept)
            return json_response(stored.fold(*self.found(response_id)))


class ResponseInput(_Stored):
    @op("The input items of a stored response", scope="answer", reply=replies.ItemList, errors=(410,))
    def get(self, response_id: str) -> Response:
        items = self.found(response_id)[0].about["input"]
        order = query.choice("order", ("desc", "asc"))
        return json_response(stored.page(items, order, request.args.get("after"), query.number("limit", 20, 1, 100)))


class _Until(Watch):
    """Over an answer without a client: until the server stops, or `check` raises."""

    def __init__(self, drain: Drain, check: Callable[[], None]) -> None:
        super().__init__(None, drain)
        self._check = check

    def check(self) -> None:
        super().check()
        self._check()
