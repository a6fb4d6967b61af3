"""One declaration per operation: `@op(...)` says who may call it, what goes in and what comes out.

The same declaration feeds the gate (scope), the validation (body) and `/openapi.json` (all of it), so none of them
can differ from what is served. A route whose method has no `@op` does not start.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from flask import Response, g, request
from flask_restful import Api, Resource
from pydantic import BaseModel

from services.errors import ParleyError, Unavailable
from services.web.bodies import Body, validate
from services.web.json_body import read_object
from services.web.query import FORM, read_form, read_query

if TYPE_CHECKING:
    from services.web.app import Room

METHODS = ("get", "post", "put", "patch", "delete")
Handler = TypeVar("Handler", bound=Callable[..., Response])


@dataclass(frozen=True)
class Op:
    """What an operation is, for the gate, the validation and the documentation. `scope` is one of the gate's."""

    summary: str
    scope: str
    body: type[Body] | None = None
    body_optional: bool = False
    form: bool = False                      # the body may be application/x-www-form-urlencoded too
    files: dict[str, Any] | None = None     # the requestBody of /openapi.json, where the method reads it by itself
    query: type[Body] | None = None         # of the address; all fields are texts
    reply: type[BaseModel] | None = None
    status: int = 200
    tagged: bool = False                    # has an ETag; changes take If-Match, a PUT If-None-Match, and it makes: 201
    accepted: type[BaseModel] | None = None     # of a 202, where the answer may come later
    media: str = "application/json"         # of a reply that is no `reply` model
    plain: bool = False                     # text/plain, unless a client that accepts it gets the `reply`
    errors: tuple[int, ...] = ()            # beside those that every operation can give
    stream: type[BaseModel] | None = None   # one event, where the reply may be text/event-stream
    retryable: bool = False                 # takes Idempotency-Key
    answer: bool = False                    # counts as one of the key's answers in parallel
    late: bool = False                      # the key may come later, and the route sees to it


class Endpoint(Resource):
    """Base of all resources: no automatic OPTIONS, and the room at hand."""

    provide_automatic_options = False

    def __init__(self, room: Room) -> None:
        self.room = room
        self.parts = room.parts

    @property
    def whose(self) -> str | None:
        """The owner whose jobs and files the key may see; None: everybody's, for the master."""
        return None if g.key.is_master else g.key.id

    @staticmethod
    def envelope(error: ParleyError) -> dict[str, Any]:
        """How errors are told here."""
        return error.envelope()


@contextmanager
def taken(places: threading.Semaphore) -> Iterator[None]:
    """Holds one of `places`, `Unavailable` when there is none: what may wait for long never takes all threads."""
    if not places.acquire(blocking=False):
        raise Unavailable("the server has as many requests in hand as it can at once; try again shortly", code="busy",
                          retry_after=2)
    try:
        yield
    finally:
        places.release()


def op(summary: str, *, scope: str, **more: Any) -> Callable[[Handler], Handler]:
    """Declare a resource's method; see `Op`. With `body`, the method gets the validated body, or None, as `body`; with
    `query` what the address brings, as `query`."""
    declared = Op(summary, scope, **more)

    def declare(method: Handler) -> Handler:
        @functools.wraps(method)
        def handle(self: Endpoint, **path: Any) -> Response:
            g.raw_body = b""
            if declared.query is not None:
                path["query"] = validate(declared.query, read_query(request))
            if declared.body is not None:
                path["body"] = _body_of(self, declared)
            if declared.query is not None:
                g.raw_body = request.query_string + b"\n" + g.raw_body     # what a retry is known by
            return method(self, **path)
        handle.op = declared        # type: ignore[attr-defined]
        return handle               # type: ignore[return-value]
    return declare


def _body_of(endpoint: Endpoint, declared: Op) -> Body | None:
    assert declared.body is not None
    read = read_form if declared.form and request.mimetype == FORM else read_object
    g.raw_body, value = read(request, endpoint.room.settings.max_body_bytes, optional=declared.body_optional)
    return None if value is None else validate(declared.body, value)


@dataclass(frozen=True)
class Route:
    """A path and the resource that answers there."""

    path: str                   # in Werkzeug's notation: /answer/<string:session_id>
    resource: type[Endpoint]
    tag: str
    alias: str = ""             # another path to the same, for clients that leave the version out
    websocket: bool = False     # its GET opens a websocket

    @property
    def endpoint(self) -> str:
        return self.resource.__name__.lower()

    def ops(self) -> dict[str, Op]:
        """method in lower case -> its declaration."""
        served = {name: getattr(self.resource, name) for name in METHODS if hasattr(self.resource, name)}
        for name, method in served.items():
            assert hasattr(method, "op"), f"{self.resource.__name__}.{name} has no @op"
        return {name: method.op for name, method in served.items()}


class PlainApi(Api):
    """Flask-RESTful without its own error pages: Flask's handlers make every error the one envelope."""

    def error_router(self, original_handler: Callable[[Exception], Any], e: Exception) -> Any:
        return original_handler(e)

    def unauthorized(self, response: Response) -> Response:
        return response


def register(api: Api, gate: Any, room: Room, routes: tuple[Route, ...]) -> None:
    """Serve `routes`, and tell the gate who may call what."""
    for route in routes:
        paths = filter(None, (route.path, route.alias))
        api.add_resource(route.resource, *paths, endpoint=route.endpoint, resource_class_args=(room,))
        if route.websocket:         # Werkzeug keeps handshakes from all other routes
            api.app.add_url_rule(route.path, endpoint=route.endpoint, methods=["GET"], websocket=True)
        for method, declared in route.ops().items():
            gate.allow(route.endpoint, method.upper(), declared.scope, answer=declared.answer,
                       retryable=declared.retryable, late=declared.late)
