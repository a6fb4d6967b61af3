"""`POST /bindings/slack/<name>`: Slack's Events API and slash commands.

Slack wants its answer within 3 s, so it gets an empty one at once; what the personality says is posted afterwards, by
chat.postMessage into the thread, or for a command to the response_url that came with it.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import json
import re
from typing import Any, Literal

from flask import Response, request

from auth.gate import PUBLIC
from services.errors import BadRequest, Unavailable
from services.web.bindings.bot import BUSY, Bot, check_fresh, check_same, given, unix_time
from services.web.bindings.config import Address, Binding, Secret
from services.web.bindings.desk import Question
from services.web.bindings.post import Undelivered
from services.web.bindings.texts import pieces
from services.web.frame import json_response
from services.web.json_body import parse
from services.web.query import FORM, parse_form
from services.web.replies import Document
from services.web.routes import op

API = "https://slack.com/api"
HOOKS = "https://hooks.slack.com"       # where commands are answered
LONGEST = 3500                          # of a message, before escaping: Slack splits those of over 4000
_REFERENCE = re.compile(r"<([^<>|]*)(?:\|([^<>]*))?>")


class SlackBinding(Binding):
    kind: Literal["slack"]
    signing_secret: Secret
    bot_token: Secret
    api: Address = API
    hooks: Address = HOOKS


class SlackBot(Bot[SlackBinding]):
    model = SlackBinding

    @op("What Slack sends to a bound personality; signed by Slack", scope=PUBLIC, reply=Document, plain=True,
        errors=(507,))
    def post(self, name: str) -> Response:
        return self.receive(name)

    def signature(self, binding: SlackBinding, raw: bytes) -> str:
        signature, at = given(binding, "X-Slack-Signature"), given(binding, "X-Slack-Request-Timestamp")
        check_same(binding, signature, signed(binding.signing_secret.get_secret_value(), at, raw))
        check_fresh(binding, unix_time(at))
        return signature

    def handle(self, binding: SlackBinding, raw: bytes, signature: str) -> Response:
        if request.mimetype == FORM:
            return self._command(binding, parse_form(raw), signature)
        payload = parse(raw)
        if payload.get("type") == "url_verification":
            return json_response({"challenge": _text(payload, "challenge")})
        if payload.get("type") == "event_callback":
            self._event(binding, payload, signature)
        return Response(mimetype="text/plain")

    def _event(self, binding: SlackBinding, payload: dict[str, Any], signature: str) -> None:
        """`Unavailable` while there is no place, which has Slack send it again a minute later."""
        event = payload.get("event")
        if not isinstance(event, dict) or not _is_for_us(event, payload):
            return
        channel, at = _text(event, "channel"), _text(event, "ts")
        thread = event.get("thread_ts") if isinstance(event.get("thread_ts"), str) else None
        if event["type"] == "app_mention":
            thread = thread or at
        question = Question(binding, question_of(_text(event, "text", "")), known_by=_text(payload, "event_id"),
                            where=(_text(payload, "team_id", ""), channel, thread or ""))
        self.take(signature, question, lambda text: self._post(binding, channel, thread, text))

    def _post(self, binding: SlackBinding, channel: str, thread: str | None, text: str) -> None:
        for piece in pieces(text, LONGEST):
            body = {"channel": channel, "text": escaped(piece), "mrkdwn": False, "parse": "none", "link_names": False,
                    "unfurl_links": False, "unfurl_media": False, **({"thread_ts": thread} if thread else {})}
            reply = self.desk.post.send("POST", f"{binding.api}/chat.postMessage", body,
                                        token=binding.bot_token.get_secret_value())
            _check(reply)

    def _command(self, binding: SlackBinding, form: dict[str, str], signature: str) -> Response:
        if form.get("ssl_check"):
            return Response(mimetype="text/plain")
        address = _text(form, "response_url")
        if not address.startswith(f"{binding.hooks}/"):
            raise BadRequest(f"response_url is not at {binding.hooks}", param="response_url")
        where = tuple(_text(form, name, "") for name in ("team_id", "channel_id", "user_id"))
        question = Question(binding, question_of(form.get("text", "")), where, known_by=signature)
        try:
            self.take(signature, question, lambda text: self._respond(address, text))
        except Unavailable:
            return json_response({"response_type": "ephemeral", "text": BUSY})
        return Response(mimetype="text/plain")

    def _respond(self, address: str, text: str) -> None:
        for piece in pieces(text, LONGEST):
            self.desk.post.send("POST", address, {"response_type": "ephemeral", "text": escaped(piece)})


def signed(secret: str, at: str, raw: bytes) -> str:
    """Slack's signature, version 0, of a body that it sends at the time `at`."""
    base = b"v0:" + at.encode("utf-8", "surrogateescape") + b":" + raw
    return "v0=" + hmac.new(secret.encode(), base, hashlib.sha256).hexdigest()


def question_of(text: str) -> str:
    """What somebody wrote, without the mention of the bot at its begin and without Slack's notation."""
    text = re.sub(r"^\s*<@[^<>]*>[\s,:]*", "", text)
    return html.unescape(_REFERENCE.sub(_readable, text)).strip()


def escaped(text: str) -> str:
    """`text` such that Slack shows it as it is: it mentions nobody and links to nothing under another name."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _readable(found: re.Match[str]) -> str:
    """`<@U1|ada>`, `<#C1|general>`, `<!here>` and `<https://…|label>` as people write them."""
    target, label = found[1], found[2]
    if target[:1] in ("@", "!"):
        return "@" + (label or target[1:]).lstrip("@")
    return "#" + (label or target[1:]) if target[:1] == "#" else target


def _is_for_us(event: dict[str, Any], payload: dict[str, Any]) -> bool:
    """A person's mention of the bot, or message to it; never what a bot said, this one above all."""
    if event.get("bot_id") or event.get("subtype") or not event.get("user"):
        return False
    installed = payload.get("authorizations")
    for one in installed if isinstance(installed, list) else []:
        if isinstance(one, dict) and one.get("is_bot") and one.get("user_id") == event["user"]:
            return False
    return event.get("type") == "app_mention" or (event.get("type"), event.get("channel_type")) == ("message", "im")


def _text(values: dict[str, Any], name: str, default: str | None = None) -> str:
    value = values.get(name, default)
    if not isinstance(value, str):
        raise BadRequest(f"{name} is no text", param=name)
    return value


def _check(reply: bytes) -> None:
    """Slack says "no" with HTTP 200 too."""
    try:
        said = json.loads(reply)
        wrong = None if said["ok"] is True else str(said.get("error"))[:100]
    except (ValueError, KeyError, TypeError, AttributeError):
        wrong = "a reply that is not Slack's"
    if wrong is not None:
        raise Undelivered(f"Slack took no message: {wrong}")
