"""What all routes that answer have in common: an answer's events become payloads, for JSON or for a stream.

A request watches its client: one that leaves cancels its answer. With an `Idempotency-Key` the answer belongs to the
key instead: it runs to its end, and whoever sends the same request again follows it. The last payload of a family has
`done`: it is the whole answer where no stream was asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace

from flask import Response, g, request

from auth.gate import INSIDE
from auth.limits import Ticket
from services.chat.events import Ask, Final
from services.chat.idempotency import digest_of
from services.chat.several import Indexed, merged
from services.web import sse, watch
from services.web.frame import json_response
from services.web.measure import measured
from services.web.routes import Endpoint, taken
from services.web.sse import Payload
from services.web.watch import Watch

SESSION_HEADER = "X-Session-Id"
Make = Callable[[str | None], Sequence[Ask]]                # from the digest of the Idempotency-Key, if there is one
Render = Callable[[Iterator[Indexed]], Iterator[Payload]]    # events, each with the index of its answer


class Answering(Endpoint):
    """Base of the resources that answer."""

    def respond(self, make: Make, render: Render, stream: bool, style: sse.Style = sse.PLAIN) -> Response:
        """The answer to what `make` asks, as a stream in `style`, or as the JSON that its last payload is."""
        payloads = self.payloads(make, render)
        return sse.response(payloads, style) if stream else json_response(folded(payloads))

    def payloads(self, make: Make, render: Render) -> Generator[Payload, None, None]:
        """What the answers to what `make` asks consist of, the first one's with the same Idempotency-Key if any."""
        make = _behind(make) if INSIDE in request.environ else make
        key = request.headers.get("Idempotency-Key")
        if key is not None:
            return self._shared(make, render, key)
        return self._run(make(None), render, g.ticket, watch.of_request(self.room.drain), self.room.places)

    def _shared(self, make: Make, render: Render, key: str) -> Generator[Payload, None, None]:
        """The events of the first request with this key. They come from a thread of their own, without a client to
        watch, and count as one answer in parallel; each request that follows them takes a place."""
        digest = request_digest()
        asks = make(digest_of(g.key.id, key, digest))
        counted = replace(g.key, requests_per_minute=None)      # as a request the gate has counted it already
        unwatched, mine = Watch(None, self.room.drain), watch.of_request(self.room.drain)

        def produce() -> Iterator[Payload]:
            with self.parts.admissions.admit(counted, cost=0, place=True) as ticket:
                yield from self._run(asks, render, ticket, unwatched, self.room.runs)
        with taken(self.room.places):
            for payload in self.parts.idempotency.run(g.key.id, key, digest, produce):
                if not payload.get("done"):
                    mine.check()
                yield payload

    def _run(self, asks: Sequence[Ask], render: Render, ticket: Ticket, over: Watch,
             places: threading.Semaphore) -> Generator[Payload, None, None]:
        """Takes a place first; closing this cancels the answers."""
        answers = [measured(self.parts.chat.answer(ask), ticket, ask.spent) for ask in asks]
        with taken(places), closing(merged(answers)) as events:
            yield from render(_watched(events, over))


def _behind(make: Make) -> Make:
    """What nobody waits for gives way to what somebody does."""
    return lambda digest: [replace(ask, batch=True) for ask in make(digest)]


def request_digest() -> str:
    """What binds an Idempotency-Key to the request in hand."""
    session = [request.headers[SESSION_HEADER]] if SESSION_HEADER in request.headers else []
    return digest_of(request.method, request.path.rstrip("/"), g.raw_body, *session)


def _watched(events: Iterator[Indexed], over: Watch) -> Iterator[Indexed]:
    for index, event in events:
        if not isinstance(event, Final):
            over.check()
        yield index, event


def folded(payloads: Generator[Payload, None, None]) -> Payload:
    """The last event is the whole answer."""
    last: Payload = {}
    with closing(payloads):
        for payload in payloads:
            last = payload
    assert last.get("done"), "an answer has an end"
    return {name: value for name, value in last.items() if name != "done"}
