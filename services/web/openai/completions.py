"""`POST /v1/completions`: prompts as they are, without turns, to what follows them, in OpenAI's older shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Annotated

import msgspec
from flask import Response, g, request
from pydantic import Field, Tag

from services.chat.events import Ask, Beat, Delta, Event, Final
from services.chat.several import Indexed
from services.chat.tokens import Tokenizer
from services.errors import BadRequest
from services.web import sse, watch
from services.web.answering import SESSION_HEADER, Answering
from services.web.bodies import MAX_TOKENS
from services.web.openai import common, shapes
from services.web.openai.chat_body import Streaming, several
from services.web.openai.shaping import Shaper, shaped_as
from services.web.openai.tokens import TEXT_OR_TOKENS, TokenList, each
from services.web.routes import op, taken
from services.web.sse import Payload
from services.wire import Logprob

MAX_ANSWERS = 64            # of one request, prompts times n
DEFAULT_TOKENS = 16


Prompt = Annotated[Annotated[str, Tag("str")]
                   | Annotated[list[str], Field(min_length=1, max_length=MAX_ANSWERS), Tag("list[str]")]
                   | Annotated[TokenList, Tag("list[token]")]
                   | Annotated[list[TokenList], Field(min_length=1, max_length=MAX_ANSWERS), Tag("list[list[]]")],
                   TEXT_OR_TOKENS]


class CompletionBody(Streaming):
    """Text to go on with, as it is: no chat template, no session."""

    prompt: Prompt = Field(description="one or several, each as text or as its tokens")
    max_tokens: int | None = Field(None, ge=0, le=MAX_TOKENS, description=f"default: {DEFAULT_TOKENS}; 0: with echo, "
                                                                          "the prompt alone")
    max_token: int | None = Field(None, ge=0, le=MAX_TOKENS, description="another name of max_tokens")
    best_of: int | None = Field(None, ge=1, le=16, description="only as many as n")
    logprobs: int | None = Field(None, ge=0, le=5, description="tell each token's log probability, and those of so "
                                                               "many likeliest")
    echo: bool | None = Field(None, description="the answer begins with the prompt")
    suffix: str | None = Field(None, description="what follows the answer, for models with infill")

    @property
    def prompts(self) -> list[str | tuple[int, ...]]:
        return [prompt if isinstance(prompt, str) else tuple(prompt) for prompt in each(self.prompt)]

    @property
    def most(self) -> int:
        """Tokens of an answer. Raises `BadRequest` when two names for it differ."""
        most = common.one_of(max_tokens=self.max_tokens, max_token=self.max_token)
        return DEFAULT_TOKENS if most is None else int(most)


class Completions(Answering):
    @op("Go on with a text", scope="answer", body=CompletionBody, reply=shapes.Completion,
        stream=shapes.CompletionChunk, errors=(404, 409, 410, 422, 504, 507), retryable=True, answer=True)
    def post(self, body: CompletionBody) -> Response:
        stream, (model, fingerprint) = bool(body.stream), shaped_as(self.parts.profiles, body.model)
        check(body)
        shaper = TextShaper(common.new_id("cmpl-"), model, fingerprint, stream, body.with_usage,
                            body.logprobs is not None, body.n or 1, self._echoed(body) if body.echo else (),
                            alone=body.most == 0)
        return self.respond(partial(asks, body), shaper.payloads, stream, sse.OPENAI)

    def _echoed(self, body: CompletionBody) -> list[str]:
        """The texts of the prompts. Takes a place: the model may have to be loaded for it."""
        def text(prompt: str | tuple[int, ...]) -> str:
            if isinstance(prompt, str):
                return prompt
            over = watch.of_request(self.room.drain)
            return Tokenizer(self.room.settings, self.parts.profiles, self.parts.engine, body.model, g.key.profiles,
                             over.check).detokenize(prompt).text
        with taken(self.room.places):
            return [text(prompt) for prompt in body.prompts]


def check(body: CompletionBody) -> None:
    """Raises `BadRequest` for what cannot be had together."""
    n = body.n or 1
    if body.best_of not in (None, n):
        raise BadRequest(f"best_of can only be as many as n ({n}): all answers are given back", param="best_of")
    if n * len(body.prompts) > MAX_ANSWERS:
        raise BadRequest(f"{len(body.prompts)} prompts with {n} answers each are more than {MAX_ANSWERS} answers: send "
                         "them in several requests", param="prompt")
    if body.most == 0 and not body.echo:
        raise BadRequest("max_tokens: should be greater than or equal to 1, or echo true, for an answer that is "
                         "the prompt alone", param="max_tokens")
    if body.suffix is not None and body.echo:
        raise BadRequest("echo and suffix cannot be combined", param="echo")
    if SESSION_HEADER in request.headers or "session_id" in (body.metadata or {}):
        raise BadRequest("a prompt without turns cannot be part of a session: leave the session out, or use "
                         "/v1/chat/completions", param="session_id")


def asks(body: CompletionBody, digest: str | None) -> list[Ask]:
    """What `body` asks for: the answers to the first prompt, then those to the next."""
    echo = bool(body.echo) and body.logprobs is not None
    return [ask for prompt in body.prompts for ask in several(
        common.make_ask(digest, raw=prompt, suffix=body.suffix, model=body.model, stream=bool(body.stream),
                        max_tokens=max(body.most, 1), grammar=body.grammar, logprobs=body.logprobs, echo=echo,
                        **body.sampling()), body.n or 1)]


@dataclass(frozen=True)
class TextShaper(Shaper):
    CHUNK, WHOLE = "text_completion", "text_completion"

    echoed: Sequence[str] = ()                                      # prompts that answers begin with
    told: dict[int, int] = field(default_factory=dict)              # answer -> characters of the tokens so far
    alone: bool = False             # answers are the prompts, and the token that a runner writes at least is left out

    def payloads(self, events: Iterator[Indexed]) -> Iterator[Payload]:
        return super().payloads(map(_without_answer, events) if self.alone else events)

    def _prompt(self, index: int) -> str:
        return self.echoed[index // self.n] if self.echoed else ""

    def chunks(self, index: int, event: Event, first: bool) -> Iterator[Payload]:
        if first and self.echoed and not isinstance(event, Delta):
            yield self._piece(index, self._prompt(index), event.logprobs if isinstance(event, Final) else ())
        if isinstance(event, Delta):
            text = (self._prompt(index) if first else "") + event.text
            if text or event.logprobs:
                yield self._piece(index, text, event.logprobs)
        elif isinstance(event, Final):
            yield self._piece(index, "", reason=event.finish_reason)

    def choice(self, index: int, final: Final) -> Payload:
        return self._piece(index, self._prompt(index) + final.result, final.logprobs, final.finish_reason)

    def _piece(self, index: int, text: str, logprobs: Sequence[Logprob] = (), reason: str | None = None) -> Payload:
        shown = self._logprobs(index, logprobs) if logprobs or (self.logprobs and not self.stream) else None
        return {"text": text, "index": index, "logprobs": shown, "finish_reason": reason}

    def _logprobs(self, index: int, logprobs: Sequence[Logprob]) -> Payload:
        """`text_offset` counts the characters of the tokens before, from the answer's beginning. What an echo begins
        with follows nothing: null; the model's own mark of a beginning is left out."""
        tokens = [one.text.decode(errors="replace") for one in logprobs]
        likely: list[float | None] = [_logprob(one) for one in logprobs]
        top: list[dict[str, float] | None] = [_likeliest(one) for one in logprobs]
        if tokens and self.echoed and index not in self.told:
            if self._prompt(index).startswith(tokens[0]):
                likely[0] = top[0] = None
            else:
                tokens, likely, top = tokens[1:], likely[1:], top[1:]
        offsets = list(accumulate(map(len, tokens), initial=self.told.get(index, 0)))
        self.told[index] = offsets.pop()
        return {"tokens": tokens, "text_offset": offsets, "token_logprobs": likely, "top_logprobs": top}


def _without_answer(told: Indexed) -> Indexed:
    """What an answer of no tokens is told by: its end, with the log probabilities of the prompt."""
    index, event = told
    if not isinstance(event, Final):
        return index, Beat()
    done = msgspec.structs.replace(event.done, completion_tokens=0, finish_reason="length")
    return index, replace(event, result="", done=done, logprobs=event.logprobs[:done.prompt_tokens])


def _logprob(one: Logprob) -> float:
    return max(one.logprob, common.LEAST_LOGPROB)


def _likeliest(one: Logprob) -> dict[str, float]:
    """The likeliest tokens, and the one that it was."""
    return {text.decode(errors="replace"): max(logprob, common.LEAST_LOGPROB)
            for text, logprob in [(text, logprob) for _, text, logprob in one.top] + [(one.text, one.logprob)]}
