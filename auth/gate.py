"""The one gate of the server: who comes in, and where to. What nobody opened stays closed.

For each request: who is it (401), may this key do this (403), does it keep its limits (429). A path that does not exist
needs a key like any other, so nobody learns which paths there are. Errors are raised as ParleyErrors, for the
application's error handler to tell.
"""

from __future__ import annotations

from dataclasses import dataclass

from flask import Flask, Response, g, request

from auth import bypass, credentials
from auth.keys import SCOPES, Key, Keys
from auth.limits import Admissions, Ticket
from services.errors import Forbidden, Unauthorized

ANY_KEY = "any key"
PUBLIC = "public"
NO_KEY = "no_key"
INSIDE = "parley.key"       # in the environ of a request of the server's own: whose it is. No client can set it


@dataclass(frozen=True)
class _Rule:
    scope: str
    answer: bool
    retryable: bool
    late: bool


class Gate:
    """Stands before every request of `app`. Sets `flask.g.key` and `flask.g.ticket`, None on a public route."""

    def __init__(self, app: Flask, keys: Keys, admissions: Admissions) -> None:
        self._app = app
        self._keys = keys
        self._admissions = admissions
        self._rules: dict[tuple[str, str], _Rule] = {}
        app.before_request(self._enter)
        app.after_request(self._leave)
        app.teardown_request(self._end)

    def allow(self, endpoint: str, method: str, scope: str, *, answer: bool = False, retryable: bool = False,
              late: bool = False) -> None:
        """Opens `method` of `endpoint` to keys with `scope`: one of SCOPES, ANY_KEY, or PUBLIC for everybody.

        HEAD follows GET. `answer` marks requests that count as answers in parallel; a `retryable` one that comes with
        an Idempotency-Key does not: the route counts the answer itself, which retries share. To a `late` one
        a websocket's handshake comes in without a key too, and without `flask.g.key`: browsers can set no header there,
        so the route asks for the key itself (`identify`) before it does anything.
        """
        assert scope in (*SCOPES, ANY_KEY, PUBLIC), f"no scope: {scope}"
        assert method in ("GET", "POST", "PUT", "PATCH", "DELETE"), f"not a method to open by itself: {method}"
        assert (endpoint, method) not in self._rules, f"{method} {endpoint} is open already"
        self._rules[endpoint, method] = _Rule(scope, answer, retryable, late)

    def closed(self) -> list[tuple[str, str]]:
        """(path rule, method) of all routes that nobody opened: for the test that there is none by mistake."""
        return [(rule.rule, method) for rule in self._app.url_map.iter_rules()
                for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
                if (rule.endpoint, method) not in self._rules]

    def identify(self) -> Key:
        """The key of the current request. Raises as `identify` does, and BadRequest for one in the address.

        With BYPASS_AUTHORIZATION a request without any key has that of `Keys.local_secret`, where `bypass` lets it.
        """
        credentials.refuse_in_query(request.query_string)
        environ = request.environ
        if INSIDE in environ:
            own: Key = environ[INSIDE]
            return own
        try:
            return identify(self._keys, self._admissions, environ.get("HTTP_AUTHORIZATION"),
                            environ.get("HTTP_X_API_KEY"), environ.get("REMOTE_ADDR") or "local")
        except Unauthorized as error:
            if error.code != NO_KEY or self._keys.local_secret is None:
                raise
        bypass.check(environ, NO_KEY)
        return identify(self._keys, self._admissions, self._keys.local_secret, None, "local")

    # ------------------------------------------------------------ Flask's hooks

    def _enter(self) -> None:
        g.key = g.ticket = None
        rule = self._rule()
        if rule is not None and rule.scope == PUBLIC:
            return
        try:
            g.key = key = self.identify()
        except Unauthorized as error:
            if error.code == NO_KEY and rule is not None and rule.late and _is_handshake():
                return
            raise
        known = request.routing_exception is None       # else Flask answers 404, 405 or a redirect after us
        if known and request.method != "OPTIONS":
            _check_open(key, rule)
        shared = rule is not None and rule.retryable and "Idempotency-Key" in request.headers
        g.ticket = self._admissions.admit(key, cost=0 if INSIDE in request.environ else 1,
                                          place=known and rule is not None and rule.answer and not shared)

    def _rule(self) -> _Rule | None:
        method = "GET" if request.method == "HEAD" else request.method
        return self._rules.get((request.endpoint or "", method))

    def _leave(self, response: Response) -> Response:
        if response.status_code == 401:
            response.headers["WWW-Authenticate"] = "Bearer"
        ticket: Ticket | None = g.get("ticket")
        if ticket is not None:
            response.headers.update(ticket.headers)
            if response.is_streamed:
                g.ticket_is_responses = True        # which closes it when the stream ends, whoever ends it
                response.call_on_close(ticket.close)
        return response

    def _end(self, _error: BaseException | None) -> None:
        ticket: Ticket | None = g.get("ticket")
        if ticket is not None and not g.get("ticket_is_responses"):
            ticket.close()


def identify(keys: Keys, admissions: Admissions, authorization: str | None, x_api_key: str | None,
             address: str) -> Key:
    """The key that the two headers carry. Unauthorized (`no_key` when there is none), TooManyRequests for many wrong
    ones from one address, or Unavailable when a token cannot be verified now."""
    try:
        secret = credentials.credential(authorization, x_api_key)
        if secret is None:
            raise Unauthorized("Unauthorized", code=NO_KEY, hint=credentials.HOW)
        key = keys.authenticate(secret)
        if key is None:
            raise Unauthorized("Unauthorized", hint=credentials.UNKNOWN)
    except Unauthorized as error:
        if error.code != NO_KEY:        # a request without any key guesses nothing
            admissions.admit_source(address)
        raise
    return key


def _is_handshake() -> bool:
    return request.headers.get("Upgrade", "").strip().lower() == "websocket"


def check_scope(key: Key, scope: str) -> None:
    """Forbidden unless `key` has `scope`."""
    if scope not in key.scopes:
        raise Forbidden(f"this key lacks the scope {scope!r} that this needs; the master key can make one that has it",
                        code="missing_scope", scope=scope)


def _check_open(key: Key, rule: _Rule | None) -> None:
    if rule is None:
        raise Forbidden("this route is not open to any key", code="route_closed")
    if rule.scope != ANY_KEY:
        check_scope(key, rule.scope)
