"""From a request to the Responses API to an `Ask`, and to the response as it is before anything is answered."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import g

from services.chat import responses
from services.chat.background import Background
from services.chat.events import Ask
from services.chat.messages import Message
from services.chat.responses import Kept
from services.chat.sessions import Sessions, shown_id
from services.chat.several import Indexed
from services.errors import BadRequest, Conflict, NotFound
from services.web.openai import common
from services.web.responses import items, stored
from services.web.responses.bodies import ResponsesBody
from services.web.responses.events import Shaper
from services.web.sse import Payload

# What a request says is told again under the same name; None is what OpenAI says for what was left out.
_ECHOED = ("instructions", "previous_response_id", "max_output_tokens", "max_tool_calls", "temperature", "top_p",
           "user", "safety_identifier", "prompt_cache_key")


@dataclass
class Asking:
    """One request. `make` fills in what depends on its id."""

    body: ResponsesBody
    sessions: Sessions
    background: Background
    model: str                          # the profile's name
    digits: str = ""
    response: Payload = field(default_factory=dict)

    @property
    def store(self) -> bool:
        return self.body.store is not False

    def make(self, digest: str | None) -> Sequence[Ask]:
        """As `Answering.respond` wants it: the same for the same `digest`, however often."""
        body = self.body
        self.digits = uuid.uuid4().hex if digest is None else digest[:32]
        named, before = common.session_id(body.metadata), self._previous()
        said = _question(body.input, named, before)
        schema, tools = body.form(), body.offered()
        common.only_one_form(**{"text.format": schema, "tools": tools})
        session, follows, earlier = self._place(digest, named, before)
        self.response = self._shape(responses.new_id(self.digits, session if self.store else None), session)
        about = {"response": self.response["id"], "shape": self.response,
                 "input": items.told(body.input, f"{self.digits}i")}
        system = [Message("system", body.instructions)] if body.instructions else []
        if body.background:     # the question is stored before it is answered, and known by this
            digest = digest or self.digits
        return [common.make_ask(digest, messages=(*system, *earlier, *said), session_id=session, follows=follows,
                                about=about if self.store else None, model=body.model, tools=tools,
                                schema=schema, max_tokens=body.max_output_tokens, logprobs=body.likely(),
                                stream=bool(body.stream), thinking=body.thinking, **body.sampling())]

    def render(self, events: Iterator[Indexed]) -> Iterator[Payload]:
        """As `Answering.respond` wants it."""
        return Shaper(self.response, self.digits).payloads(events, bool(self.body.stream))

    def _place(self, digest: str | None, session: str | None, before: Kept | None
               ) -> tuple[str | None, int | None, Sequence[Message]]:
        """The session (None: nothing is kept), the number of the turn that it must end with, and, where there is no
        session, the messages before. `session`: that the request names; `before`: what it goes on from."""
        if before is None:
            return (responses.session_for(self.digits) if self.store and session is None else session), None, ()
        if session not in (None, before.session):
            raise BadRequest(f"previous_response_id is of the session {shown_id(before.session)}, and X-Session-Id or "
                             f"metadata.session_id names {shown_id(session)}: give one of them",
                             param="previous_response_id")
        if not self.store and session is None:
            return None, None, responses.messages(before)
        return *responses.go_on(self.sessions, before, self.digits, digest), ()

    def _previous(self) -> Kept | None:
        """What `previous_response_id` names: of the same key, answered, and still part of its conversation."""
        wanted = self.body.previous_response_id
        if wanted is None:
            return None
        try:
            kept, status = stored.look(self.sessions, self.background, g.key.id, wanted)
        except NotFound:
            kept, status = None, ""
        if kept is None or not kept.end:
            raise BadRequest(f"Previous response with id '{wanted}' not found.", code="previous_response_not_found",
                             param="previous_response_id")
        if status:
            raise Conflict(f"the previous response {wanted} is still {status}: go on from it when it is complete",
                           code="response_in_progress", param="previous_response_id", retry_after=1)
        return kept

    def _shape(self, id: str, session: str | None) -> Payload:
        body = self.body
        form = body.text.format if body.text else None
        effort = body.reasoning.model_dump() if body.reasoning else {"effort": None, "summary": None}
        more: dict[str, Any] = {} if session is None else {"session_id": shown_id(session)}
        return {
            "id": id, "object": "response", "created_at": int(time.time()), "completed_at": None, "status": "queued",
            "background": bool(body.background), "error": None, "incomplete_details": None,
            "model": self.model, "output": [], "usage": None, "store": self.store,
            **{name: getattr(body, name) for name in _ECHOED}, "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False, "reasoning": effort,
            "service_tier": "default", "tool_choice": body.tool_choice or "auto",
            "tools": [tool.model_dump(exclude_unset=True) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0, "truncation": body.truncation or "disabled",
            "text": {"format": form.model_dump(by_alias=True, exclude_unset=True) if form else {"type": "text"},
                     "verbosity": (body.text and body.text.verbosity) or "medium"}, **more}


def _question(given: str | Sequence[items.Item], session: str | None, before: Kept | None) -> list[Message]:
    """What is said. BadRequest unless it is a question, in a `session` or after the response `before`."""
    if isinstance(given, str):
        said = [Message("user", given)]
    else:
        said = items.messages(given, responses.calls(before) if before else {} if session is None else None)
    if not any(message.role != "system" for message in said):
        raise BadRequest("input: expected a message of the user, or the output of a function call", param="input",
                         code="missing_required_parameter")
    return said
