"""`POST /bindings/discord/<name>`: Discord's interactions, which is what slash commands are.

Discord wants its answer within 3 s, so it gets the promise of one; what the personality says replaces that afterwards.
The token for this comes with each interaction and is good for 15 minutes.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from flask import Response
from pydantic import Field

from auth.gate import PUBLIC
from services.errors import BadRequest, Unavailable
from services.web.bindings.bot import BUSY, Bot, check_fresh, given, unix_time
from services.web.bindings.config import Address, Binding
from services.web.bindings.desk import Question, refused
from services.web.bindings.texts import pieces
from services.web.frame import json_response
from services.web.json_body import parse
from services.web.replies import Document
from services.web.routes import op

API = "https://discord.com/api/v10"
LONGEST = 2000                              # of a message
PING, COMMAND = 1, 2                        # types of interactions
PONG, MESSAGE, DEFERRED = 1, 4, 5           # types of what they are answered with
TEXT_OPTION = 3
EPHEMERAL = 1 << 6                          # seen by who asked only
NOBODY: dict[str, Any] = {"parse": []}      # whom a message may call


class DiscordBinding(Binding):
    kind: Literal["discord"]
    public_key: str = Field(pattern=r"^[0-9A-Fa-f]{64}$")
    api: Address = API


class DiscordBot(Bot[DiscordBinding]):
    model = DiscordBinding

    @op("What Discord sends to a bound personality; signed by Discord", scope=PUBLIC, reply=Document, errors=(507,))
    def post(self, name: str) -> Response:
        return self.receive(name)

    def signature(self, binding: DiscordBinding, raw: bytes) -> str:
        signature, at = given(binding, "X-Signature-Ed25519"), given(binding, "X-Signature-Timestamp")
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(binding.public_key))
        try:
            plain = bytes.fromhex(signature)
            key.verify(plain, at.encode("utf-8", "surrogateescape") + raw)
        except (InvalidSignature, ValueError):
            raise refused(binding, "its signature is another one") from None
        check_fresh(binding, unix_time(at))
        return plain.hex()

    def handle(self, binding: DiscordBinding, raw: bytes, signature: str) -> Response:
        payload = parse(raw)
        if payload.get("type") == PING:
            return json_response({"type": PONG})
        if payload.get("type") != COMMAND:
            raise BadRequest("type: expected 1 (PING) or 2 (APPLICATION_COMMAND); this bot offers nothing else",
                             param="type")
        application, token = _id(payload, "application_id"), _token(payload)
        question = Question(binding, question_of(payload), known_by=_id(payload, "id"), where=(_where(payload),))
        base = f"{binding.api}/webhooks/{application}/{token}"
        try:
            self.take(signature, question, lambda text: self._deliver(base, text))
        except Unavailable:
            return json_response({"type": MESSAGE, "data": {"content": BUSY, "flags": EPHEMERAL}})
        return json_response({"type": DEFERRED})

    def _deliver(self, base: str, text: str) -> None:
        """404 is what a fast answer gets while Discord has not read yet that there will be one."""
        first, *more = pieces(text, LONGEST)
        self.desk.post.send("PATCH", f"{base}/messages/@original", {"content": first, "allowed_mentions": NOBODY},
                            again=(404,))
        for piece in more:
            self.desk.post.send("POST", base, {"content": piece, "allowed_mentions": NOBODY})


def question_of(payload: dict[str, Any]) -> str:
    """The first text that was given to the command, wherever it stands: `/ask question: …`, `/bot ask question: …`."""
    data = payload.get("data")
    waiting = [data] if isinstance(data, dict) else []
    while waiting:
        one = waiting.pop(0)
        if one.get("type") == TEXT_OPTION and isinstance(one.get("value"), str):
            return str(one["value"]).strip()
        options = one.get("options")
        waiting += [option for option in options if isinstance(option, dict)] if isinstance(options, list) else []
    return ""


def _where(payload: dict[str, Any]) -> str:
    """The channel, of which a thread is one; who asked where there is none."""
    if "channel_id" in payload:
        return _id(payload, "channel_id")
    user = payload.get("user")
    return _id(user, "id") if isinstance(user, dict) else ""


def _id(values: dict[str, Any], name: str) -> str:
    value = values.get(name)
    if not isinstance(value, str) or not re.fullmatch("[0-9]{1,20}", value):
        raise BadRequest(f"{name} is no id of Discord's: digits in a text", param=name)
    return value


def _token(payload: dict[str, Any]) -> str:
    value = payload.get("token")
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._~=+-]{1,1000}", value):
        raise BadRequest("token is no token of an interaction", param="token")
    return value
