"""A request from the wire → a `Sequence` that the loop can run, or the error that says why not."""

from __future__ import annotations

from services.errors import BadRequest, ContextOverflow
from services.runner.calling import Calling, shown_tokens, texts_of
from services.runner.complying import Complying
from services.runner.grammar import grammar_of
from services.runner.heads import head_tokens, settled
from services.runner.likely import MOST, Likely
from services.runner.model import Model
from services.runner.sampler import Chain
from services.runner.sequence import BATCH, INTERACTIVE, PREPARE, Sampler, Sequence, Silent
from services.runner.text import Text
from services.wire import Count, Counted, Generate, Prepare

BYTES_PER_TOKEN = 32        # a prompt with more bytes than this for each token of the context is not even tokenised


def prepare(model: Model, message: Generate) -> Sequence:
    """Tokenise and check. The completion may be as long as the context leaves room for."""
    prompt = _tokens(model, message.prompt)
    if not prompt:
        raise BadRequest("the prompt is empty, and this model has no token to begin a text with", param="prompt")
    if len(prompt) >= model.n_ctx:
        raise _overflow(model, len(prompt))
    if message.max_tokens < 1:
        raise BadRequest(f"max_tokens is {message.max_tokens}; it must be at least 1", param="max_tokens")
    room = min(message.max_tokens, model.n_ctx - len(prompt))
    shown = shown_tokens(model, [*message.shown, *(texts_of(message.calls) if message.calls else ())])
    text = Text(message.stop)
    sampler: Sampler
    if message.schema is not None:      # no stop string cuts a value
        sampler, text = Complying(model, message.sampling, prompt, grammar_of(message.schema), room), Text()
    elif message.calls:
        sampler = Calling(model, message.sampling, prompt, message.calls, room, text, shown)
    else:
        sampler = Chain(model, message.sampling, prompt)
    return Sequence(id=message.id, owner=message.owner, prompt=prompt, sampler=sampler, text=text, shown=shown,
                    max_tokens=room, session=message.session,
                    head=head_tokens(model.tokenize, message.prompt, message.head, prompt),
                    likely=_likely(message), weight=message.weight, rank=BATCH if message.batch else INTERACTIVE)


def _likely(message: Generate) -> Likely | None:
    if message.logprobs is not None and not 0 <= message.logprobs <= MOST:
        raise BadRequest(f"logprobs is {message.logprobs}; it must be from 0 to {MOST}", param="logprobs")
    return None if message.logprobs is None else Likely(message.logprobs, message.echo)


def ahead(model: Model, message: Prepare) -> Sequence | None:
    """What is to be computed before it is asked for; None when it is nothing, or more than the context holds."""
    if not message.prompt or sum(map(len, message.prompt)) > model.n_ctx * BYTES_PER_TOKEN:
        return None
    prompt = model.tokenize(message.prompt) if model.rewindable else settled(model.tokenize, message.prompt)
    if not 0 < len(prompt) < model.n_ctx:
        return None
    return Sequence(id="", owner=message.owner, prompt=prompt, sampler=Silent(), text=Text(), max_tokens=0,
                    session=message.session, head=head_tokens(model.tokenize, message.prompt, message.head, prompt),
                    rank=PREPARE)


def count(model: Model, message: Count) -> Counted:
    return Counted(tokens=[len(_tokens(model, prompt)) for prompt in message.prompts])


def _tokens(model: Model, segments: list[str]) -> list[int]:
    size = sum(len(segment) for segment in segments)
    if size > model.n_ctx * BYTES_PER_TOKEN:
        raise _overflow(model, size // BYTES_PER_TOKEN, "at least ")
    return model.tokenize(segments)


def _overflow(model: Model, tokens: int, about: str = "") -> ContextOverflow:
    return ContextOverflow(f"the prompt has {about}{tokens} tokens; the context holds {model.n_ctx}, and the answer "
                           "needs at least one of them: shorten the prompt", param="prompt", prompt_tokens=tokens,
                           limit=model.n_ctx - 1, n_ctx=model.n_ctx)
