"""`/auth`: who am I, and the keys. Secrets leave the server once, in the answer that made them."""

from __future__ import annotations

from typing import Any

from flask import Response, g

from auth.gate import ANY_KEY
from auth.records import budget_shape
from services.errors import Unavailable
from services.web import replies
from services.web.bodies import KeyBody, KeyEdit, RotateBody
from services.web.frame import json_response
from services.web.routes import Endpoint, op
from services.wire import Usage


class Whoami(Endpoint):
    @op("The key that is asking: its rights, limits and use", scope=ANY_KEY, reply=replies.Whoami)
    def get(self) -> Response:
        key = g.key
        return json_response({
            "auth": True, **key.public(),
            "limits": {"requests_per_minute": key.requests_per_minute, "max_parallel": key.max_parallel,
                       "tokens_per_minute": key.tokens_per_minute, "token_budget": budget_shape(key.token_budget)},
            "usage": _shape(self.parts.admissions.usage(key.id))})


def _shape(usage: Usage) -> dict[str, int]:
    return {"requests": usage.requests, "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens}


class NewKey(Endpoint):
    @op("Make a key; without a body one that may answer, list and switch models", scope="keys", body=KeyBody,
        body_optional=True, reply=replies.NewKey, status=201, errors=(409, 507))
    def post(self, body: KeyBody | None) -> Response:
        wish = {} if body is None else body.model_dump(exclude_none=True)
        secret, key = self.parts.keys.create(by=g.key, **wish)
        return json_response({"key": secret, **key.public()}, 201)


class KeyList(Endpoint):
    @op("All keys, without their secrets, and what each has used", scope="keys", reply=replies.KeyList)
    def get(self) -> Response:
        keys = self.parts.keys.list()
        try:
            used = self.parts.admissions.usages(key.id for key in keys)
        except Unavailable:
            used = {}                   # the keys are told all the same
        return json_response({"keys": [{**key.public(), "usage": used.get(key.id) and _shape(used[key.id])}
                                       for key in keys]})


class OneKey(Endpoint):
    @op("One key, without its secret", scope="keys", reply=replies.KeyRecord)
    def get(self, key_id: str) -> Response:
        return json_response(self.parts.keys.get(key_id).public())

    @op("Edit a key, at once; what is left out stays, and null takes a limit away", scope="keys", body=KeyEdit,
        reply=replies.KeyRecord, errors=(409, 507))
    def patch(self, key_id: str, body: KeyEdit) -> Response:
        changes = body.model_dump(exclude_unset=True)
        return json_response(self.parts.keys.edit(key_id, by=g.key, **changes).public())

    @op("Revoke a key, at once and for good", scope="keys", reply=replies.KeyRecord, errors=(409, 507))
    def delete(self, key_id: str) -> Response:
        return json_response(self.parts.keys.revoke(key_id, by=g.key).public())


class Rotate(Endpoint):
    @op("Give a key a new secret", scope="keys", body=RotateBody, body_optional=True, reply=replies.NewKey,
        errors=(409, 507))
    def post(self, key_id: str, body: RotateBody | None) -> Response:
        grace = body.grace_seconds if body and body.grace_seconds else 0
        secret, key = self.parts.keys.rotate(key_id, grace, by=g.key)
        answer: dict[str, Any] = {"key": secret, **key.public()}
        return json_response(answer)
