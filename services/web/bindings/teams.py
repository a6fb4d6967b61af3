"""`POST /bindings/teams/<name>`: an outgoing webhook of Microsoft Teams.

Teams waits 5 s for the answer and offers no way to answer later. What takes longer is announced, and told when somebody
writes to the bot in the same thread again, or posted to the channel where the binding has a `later_url`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import html
import logging
import re
import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any, Literal

from flask import Response, g
from pydantic import AfterValidator, Field, SecretStr

from auth.gate import PUBLIC
from services.errors import BadRequest, Unavailable
from services.web.bindings.bot import BUSY, Bot, check_fresh, check_same, given
from services.web.bindings.config import Binding, Secret, SecretAddress
from services.web.bindings.desk import Question
from services.web.bindings.late import Late
from services.web.bindings.post import Undelivered
from services.web.bindings.texts import pieces
from services.web.frame import json_response
from services.web.json_body import parse
from services.web.replies import Document
from services.web.routes import op

if TYPE_CHECKING:
    from services.web.app import Room

LONGEST = 10_000            # of a message: Teams takes about 28 KB
LATER = "I am still thinking about it. Write to me here again in a moment, and I tell you."
POSTED_LATER = "I am still thinking about it. The answer comes in this channel."
_MOMENT = re.compile(r"([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]{1,9})?(?:Z|\+00:00)")
_BREAK = re.compile(r"<br\s*/?>|</(?:p|div|li|h[1-6])>", re.IGNORECASE)
_TAG = re.compile(r"</?[a-z][^<>]*>", re.IGNORECASE)
log = logging.getLogger("parley.bindings")


def _base64(secret: SecretStr) -> SecretStr:
    try:
        base64.b64decode(secret.get_secret_value(), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("expected the security token that Teams shows, which is base64") from None
    return secret


class TeamsBinding(Binding):
    kind: Literal["teams"]
    security_token: Annotated[Secret, AfterValidator(_base64)]
    later_url: SecretAddress | None = None          # of a workflow that posts to the channel
    wait_seconds: float = Field(4.0, ge=0, le=10)   # of the 5 that Teams waits


class TeamsBot(Bot[TeamsBinding]):
    model = TeamsBinding

    def __init__(self, room: Room) -> None:
        super().__init__(room)
        self._late = Late(self.desk.folder / "late", self.parts.sessions)

    @op("What Teams sends to a bound personality; signed by Teams", scope=PUBLIC, reply=Document, errors=(507,))
    def post(self, name: str) -> Response:
        return self.receive(name)

    def signature(self, binding: TeamsBinding, raw: bytes) -> str:
        signature = given(binding, "Authorization")
        check_same(binding, signature, "HMAC " + signed(binding.security_token.get_secret_value(), raw))
        return signature

    def handle(self, binding: TeamsBinding, raw: bytes, signature: str) -> Response:
        activity = parse(raw)
        check_fresh(binding, _unix_time(activity.get("timestamp")))
        conversation = activity.get("conversation")
        where = conversation.get("id") if isinstance(conversation, dict) else None
        if activity.get("type") != "message" or not isinstance(activity.get("text"), str) \
                or not isinstance(where, str):
            raise BadRequest("expected an activity of the type message with text and conversation.id")
        question = Question(binding, question_of(activity["text"]), where=(where,), known_by=signature)
        text = "\n\n".join(self._said(binding, question, signature))
        return json_response({"type": "message", "textFormat": "plain", "text": pieces(text, LONGEST, 1)[0]})

    def _said(self, binding: TeamsBinding, question: Question, signature: str) -> list[str]:
        """What was not told yet, and the answer, if it comes in time."""
        reader = _Reader()
        try:
            self.take(signature, question, lambda text: self._deliver(binding, question, reader, text))
        except Unavailable:
            return [BUSY]
        earlier = self._late.take(binding.key, question.session)
        answer = reader.wait(binding.wait_seconds) or (POSTED_LATER if binding.later_url else LATER)
        return earlier if earlier and not question.text else [*earlier, answer]

    def _deliver(self, binding: TeamsBinding, question: Question, reader: _Reader, text: str) -> None:
        if reader.give(text):
            return
        if binding.later_url is not None:
            try:
                for piece in pieces(text, LONGEST):
                    self.desk.post.send("POST", binding.later_url.get_secret_value(), card(question.text, piece))
                return
            except Undelivered as error:
                log.warning("id=%s binding=%s later_url: %s; the answer is told at the next message", g.trace.id,
                            binding.name, error.message)
        self._late.put(binding.key, question.session, question.digest, text)


class _Reader:
    """Who waits for an answer, for a while."""

    def __init__(self) -> None:
        self._news = threading.Condition()          # guards what follows
        self._text: str | None = None
        self._gone = False

    def give(self, text: str) -> bool:
        """Whether it still waits, and has it now."""
        with self._news:
            self._text = text
            self._news.notify()
            return not self._gone

    def wait(self, seconds: float) -> str | None:
        with self._news:
            self._news.wait_for(lambda: self._text is not None, seconds)
            self._gone = self._text is None
            return self._text


def signed(token: str, raw: bytes) -> str:
    """Teams' signature of a body, whose key is the security token."""
    return base64.b64encode(hmac.new(base64.b64decode(token), raw, hashlib.sha256).digest()).decode()


def question_of(text: str) -> str:
    """What somebody wrote, without the mention of the bot at its begin and without tags."""
    text = re.sub(r"^\s*(?:<p>\s*)?<at>[^<>]*</at>", "", text, flags=re.IGNORECASE)
    text = _TAG.sub("", _BREAK.sub("\n", text))
    return html.unescape(text).replace("\xa0", " ").strip()


def card(question: str, text: str) -> dict[str, Any]:
    """The message of a workflow "when a Teams webhook request is received": an Adaptive Card."""
    blocks = [{"type": "TextBlock", "text": question[:200], "isSubtle": True, "wrap": True},
              {"type": "TextBlock", "text": text, "wrap": True}]
    content = {"$schema": "http://adaptivecards.io/schemas/adaptive-card.json", "type": "AdaptiveCard",
               "version": "1.4", "body": blocks}
    return {"type": "message", "attachments": [{"contentType": "application/vnd.microsoft.card.adaptive",
                                                "contentUrl": None, "content": content}]}


def _unix_time(moment: object) -> float | None:
    found = _MOMENT.fullmatch(moment) if isinstance(moment, str) else None
    if found is None:
        return None
    try:
        return datetime.strptime(found[1], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    except ValueError:
        return None
