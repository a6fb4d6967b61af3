"""A request from the wire → a `Sequence` that the loop can run, or the error that says why not."""

from __future__ import annotations

from services.errors import BadRequest, ContextOverflow, NoInfill
from services.runner.calling import Calling
from services.runner.complying import Complying
from services.runner.gbnf_reader import grammar_from
from services.runner.grammar import grammar_of
from services.runner.heads import head_tokens, settled
from services.runner.likely import MOST, Likely
from services.runner.model import Model
from services.runner.sampler import Chain
from services.runner.sequence import BATCH, INTERACTIVE, PREPARE, Sampler, Sequence, Silent
from services.runner.text import Text
from services.runner.tool import shown_tokens, texts_of
from services.runner.vocabulary import check_tokens
from services.wire import Count, Counted, Generate, Prepare

BYTES_PER_TOKEN = 32        # a prompt with more bytes than this for each token of the context is not even tokenised


def prepare(model: Model, message: Generate) -> Sequence:
    """Tokenise and check. The completion may be as long as the context leaves room for."""
    prompt = _prompt(model, message)
    if not prompt:
        raise BadRequest("the prompt is empty, and this model has no token to begin a text with", param="prompt")
    if len(prompt) >= model.n_ctx:
        raise _overflow(model, len(prompt))
    if message.max_tokens < 1:
        raise BadRequest(f"max_tokens is {message.max_tokens}; it must be at least 1", param="max_tokens")
    room = min(message.max_tokens, model.n_ctx - len(prompt))
    shown = shown_tokens(model, [*message.shown, *(texts_of(message.calls) if message.calls else ())])
    text = Text(message.stop)
    likely = _likely(message)
    sampler: Sampler
    if message.schema is not None or message.grammar:       # no stop string cuts a value
        grammar = grammar_from(message.grammar) if message.schema is None else grammar_of(message.schema)
        sampler, text = Complying(model, message.sampling, prompt, grammar, room), Text()
    elif message.calls:
        sampler = Calling(model, message.sampling, prompt, message.calls, room, text, shown)
    else:
        sampler = Chain(model, message.sampling, prompt)
    return Sequence(id=message.id, owner=message.owner, prompt=prompt, sampler=sampler, text=text, shown=shown,
                    max_tokens=room, session=message.session,
                    head=head_tokens(model.tokenize, message.prompt, message.head, prompt),
                    likely=likely, weight=message.weight, rank=BATCH if message.batch else INTERACTIVE)


def _prompt(model: Model, message: Generate) -> list[int]:
    """The prompt's tokens: as given, of its text, or of the text around a gap, in which nothing is a special token."""
    if message.tokens:
        check_tokens(message.tokens, model.n_vocab, "prompt")
        return message.tokens
    if message.suffix is None:
        return _tokens(model, message.prompt)
    if not model.infill:
        raise NoInfill(f"{model.name} was not trained to fill the gap before a suffix: use a model whose file names "
                       "the tokens for that (fim_pre, fim_suf, fim_mid), as those for code mostly do, or leave suffix "
                       "out", param="suffix")
    prefix = "".join(message.prompt)
    _refuse_long(model, len(prefix) + len(message.suffix))
    return model.around_gap(prefix, message.suffix)


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
    _refuse_long(model, sum(map(len, segments)))
    return model.tokenize(segments)


def _refuse_long(model: Model, size: int) -> None:
    if size > model.n_ctx * BYTES_PER_TOKEN:
        raise _overflow(model, size // BYTES_PER_TOKEN, "at least ")


def _overflow(model: Model, tokens: int, about: str = "") -> ContextOverflow:
    return ContextOverflow(f"the prompt has {about}{tokens} tokens; the context holds {model.n_ctx}, and the answer "
                           "needs at least one of them: shorten the prompt", param="prompt", prompt_tokens=tokens,
                           limit=model.n_ctx - 1, n_ctx=model.n_ctx)
