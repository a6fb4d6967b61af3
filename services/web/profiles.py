"""`/models/profiles`: the profiles of config.json, seen whole and changed; `/models/try`: one that is not saved yet.

A key that is restricted to profiles changes those alone. It may try any: it could as well give one of its own the same
fields and ask that.
"""

from __future__ import annotations

import logging
from typing import Any

from flask import Response, g, request
from pydantic import ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue

from services.chat import profile_edits
from services.chat.asking import check_allowed
from services.chat.events import Ask
from services.chat.profile import Profile
from services.chat.profile_edits import Stored
from services.errors import ParleyError, PreconditionFailed
from services.store.config import shown
from services.web import replies
from services.web.answer import payloads
from services.web.answering import Answering
from services.web.bodies import MAX_TOKENS, Body
from services.web.frame import empty, json_response
from services.web.routes import Endpoint, Route, op

log = logging.getLogger("parley.web")


class ProfileBody(Body):
    """A profile's fields, as in config.json. What wrong ones are told is what is told of a wrong file."""

    model_config = ConfigDict(extra="allow")

    @property
    def fields(self) -> dict[str, Any]:
        return self.model_extra or {}

    @classmethod
    def __get_pydantic_json_schema__(cls, _: Any, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(Profile.__pydantic_core_schema__)


class TryBody(Body):
    """A question to a profile that is not saved."""

    profile: ProfileBody
    prompt: str = Field(pattern=r"\S", description="the question; not blank")
    max_tokens: int | None = Field(None, ge=1, le=MAX_TOKENS, description="default: the profile's")
    stream: bool | None = Field(None, description="answer as text/event-stream")


class ProfileList(Endpoint):
    @op("The profiles that the key may change, and what may stand in one", scope="admin", reply=replies.ProfileList)
    def get(self) -> Response:
        profiles = self.parts.profiles
        config, own = profiles.current(), shown(profiles.path)
        return json_response({
            "profiles": {name: config.sources.get(name, own) for name in config.profiles if g.key.may_use(name)},
            "selected": config.selected, "defaults": profiles.defaults,
            "fields": Profile.model_json_schema()["properties"]})


class OneProfile(Endpoint):
    @op("A profile as its file has it, prompt texts included, and what it comes to", scope="admin",
        reply=replies.StoredProfile, tagged=True, errors=(409,))
    def get(self, name: str) -> Response:
        check_allowed(g.key.profiles, name, "name")
        return _told(profile_edits.stored(self.parts.profiles, name))

    @op("Make a profile, or put another one in its place: all of its fields. Requests from then on have it",
        scope="admin", body=ProfileBody, reply=replies.StoredProfile, tagged=True, errors=(409, 412, 422, 507))
    def put(self, name: str, body: ProfileBody) -> Response:
        check_allowed(g.key.profiles, name, "name")
        before = self.parts.profiles.current().profiles.get(name)
        now, is_new = profile_edits.put(self.parts.profiles, name, body.fields, self.room.settings.models_dir,
                                        _check_conditions)
        let_go(self, before)
        return _told(now, 201 if is_new else 200)

    @op("Strike a profile out", scope="admin", status=204, tagged=True, errors=(409, 412, 507))
    def delete(self, name: str) -> Response:
        check_allowed(g.key.profiles, name, "name")
        before = self.parts.profiles.current().profiles.get(name)
        profile_edits.delete(self.parts.profiles, name, _check_conditions)
        let_go(self, before)
        return empty()


class TryProfile(Answering):
    @op("Answer with a profile that is not saved; its runner is loaded beside the others", scope="admin", body=TryBody,
        reply=replies.Answer, stream=replies.AnswerEvent, errors=(404, 409, 422, 504, 507), retryable=True, answer=True)
    def post(self, body: TryBody) -> Response:
        trial = profile_edits.checked(self.parts.profiles, body.profile.fields, self.room.settings.models_dir,
                                      prefix="profile.")
        ask = Ask(owner=g.key.id, prompt=body.prompt, trial=trial, max_tokens=body.max_tokens,
                  stream=bool(body.stream), weight=g.key.weight, request_id=g.trace.id)
        return self.respond(lambda _: [ask], payloads, bool(body.stream))


def let_go(endpoint: Endpoint, before: Profile | None) -> None:
    """What a profile as it was kept loaded, stays for those that are left: nobody else would ever say so."""
    profiles = endpoint.parts.profiles
    if before is None or not before.keep_loaded:
        return
    keep = profiles.current().keep(before.overridden(keep_loaded=False))
    try:
        endpoint.parts.engine.keep(profiles.spec(before, endpoint.room.settings.models_dir), keep)
    except ParleyError as error:        # the change itself is done
        log.warning("%s may stay loaded: %s", before.model, error.message)


def _check_conditions(tag: str | None) -> None:
    """Holds the state that there is to the request's If-Match and If-None-Match (RFC 9110, section 13)."""
    if "If-Match" in request.headers and (tag is None or not request.if_match.contains(tag)):
        raise PreconditionFailed("the profile was changed meanwhile, or deleted: get it again, and change what it is "
                                 "now", code="changed_meanwhile")
    if tag is not None and request.if_none_match.contains_weak(tag):
        raise PreconditionFailed("there is a profile of this name already: take another name", code="profile_exists",
                                 param="name")


def _told(one: Stored, status: int = 200) -> Response:
    response = json_response({
        "name": one.name, "profile": one.fields, "effective": one.profile.model_dump(),
        "warnings": one.profile.warnings, "selected": one.selected, "source": one.source, "editable": one.editable,
        "etag": f'"{one.tag}"'}, status)
    response.set_etag(one.tag)
    return response


ROUTES = (
    Route("/models/profiles", ProfileList, "models"),
    Route("/models/profiles/<path:name>", OneProfile, "models"),
    Route("/models/try", TryProfile, "models"),
)
