"""What an answer is made from (`Ask`) and consists of (`Waiting`, `Step`, `Reasoned`, `Delta`, `Called`, `Beat`,
`Final`), in every family of routes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from services.chat.messages import Call, Interaction, Message, Toolbox
from services.chat.profile import Profile
from services.chat.sessions import TurnRecord, shown_id
from services.knowledge.choose import Step
from services.knowledge.references import MOST_CITED, with_use
from services.wire import Done, Logprob


@dataclass
class Spent:
    """What is known of an answer's tokens when it is cut: at least so many were used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    profile: str = ""           # "" until it is known
    shares_prompt: bool = False     # with another answer of its request, which the prompt is charged to
    search_prompt_tokens: int = 0       # of what the model was asked about where to look, and what to take
    search_completion_tokens: int = 0


@dataclass(frozen=True)
class Search:
    """The model decides whether to look something up, and where."""

    places: tuple[str, ...] = ()        # their names or domains; none: wherever the key may look
    judge: Ask | None = None            # how it is asked that; None: the profile that answers


@dataclass(frozen=True)
class Ask:
    """One question. None means "as the profile says", of `session_id` that nothing is kept."""

    owner: str                                      # key id
    prompt: str = ""                                # the question; beside `messages` what stands for them in a session
    messages: tuple[Message, ...] = ()              # in a session: only what is new; else an answer at the end goes on
    earlier: tuple[Interaction, ...] = ()           # what was said before, where no session keeps it
    system: str | None = None                       # the server's own, for all who ask alike: in the profile's place
    raw: str | tuple[int, ...] | None = None        # a prompt as it is, text or tokens: no template, no session
    suffix: str | None = None                       # of a `raw` prompt: what follows the completion
    session_id: str | None = None                   # as `sessions.parse_id` gives it
    profile: str | None = None                      # None: the selected one
    trial: Profile | None = None                    # in its place: one that is not saved, nor anybody else's
    model: str | None = None                        # in its place: a profile's name, or a file of MODELS_DIR
    allowed_profiles: tuple[str, ...] | None = None     # of the key; None: all
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None      # token -> added to its logit
    max_tokens: int | None = None
    n_ctx: int | None = None                        # this and the next two: another runner than the profile's
    n_threads: int | None = None
    n_gpu_layers: int | None = None
    stop: tuple[str, ...] | None = None             # instead of the profile's; those the template implies stay
    seed: int | None = None
    schema: dict[str, Any] | None = None
    grammar: str | None = None                      # GBNF
    tools: Toolbox | None = None
    thinking: bool = True                           # whether a model that can shall think before it answers
    knowledge: tuple[str, ...] = ()                 # knowledge bases to answer from
    passages: int = MOST_CITED                      # of them that go along at most
    search: Search | None = None                    # then those only where the model decides so
    logprobs: int | None = None                     # with each token's log probability those of so many others
    echo: bool = False                              # with `logprobs`: those of a `raw` prompt's tokens too
    stream: bool = True                             # False: only the whole answer is wanted
    weight: float = 1.0                             # the owner's share of the runner beside others
    batch: bool = False                             # nobody waits for it: served after everything interactive
    request_id: str | None = None
    idempotency: str | None = None                  # digest of the Idempotency-Key: what a retry is known by
    about: dict[str, Any] | None = None             # kept with the question: what a family of routes knows it by
    follows: int | None = None                      # number of the turn that its session must end with
    spent: Spent = field(default_factory=Spent, compare=False)      # filled in while it is answered


@dataclass(frozen=True)
class Delta:
    """Next text of the answer. With log probabilities of tokens, if they were asked for; the text may be empty then."""

    text: str
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class Reasoned:
    """Next text of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class Called:
    """Next part of a call of a tool: first its `id` and `name`, then pieces of `arguments`, JSON text."""

    index: int                  # of the call in the answer, from 0
    arguments: str = ""
    id: str = ""
    name: str = ""


@dataclass(frozen=True)
class Beat:
    """About a second has passed without news: a chance to see whether the client is still there."""


@dataclass(frozen=True)
class Waiting:
    """All places of the model are taken: the request is the `position`th to get one, in about `eta_seconds`."""

    position: int
    eta_seconds: float


@dataclass(frozen=True)
class Final:
    """The answer is complete and, in a session, durable. `result` is all deltas, joined."""

    result: str
    session_id: str | None
    profile: str
    model: str
    done: Done
    context: dict[str, int]             # window, k, turns_used, turns_dropped
    warnings: tuple[str, ...] = ()
    reasoning: str = ""                 # all `Reasoned`, joined
    calls: tuple[Call, ...] = ()
    logprobs: tuple[Logprob, ...] = ()  # of all tokens, if they were asked for
    citations: tuple[dict[str, Any], ...] | None = None     # what it was answered from, where that was asked for
    search_tokens: int = 0              # that it took to find those

    @classmethod
    def replayed(cls, answer: TurnRecord, session_id: str, profile: str, model: str) -> Final:
        """What was said when `answer` was stored, as `kept` describes it."""
        extra = answer.extra
        usage = extra.get("usage", {})
        details = usage.get("prompt_tokens_details", {})
        done = Done(id="", finish_reason=answer.finish_reason or "stop", prompt_tokens=usage.get("prompt_tokens", 0),
                    completion_tokens=usage.get("completion_tokens", 0), cached_tokens=details.get("cached_tokens", 0),
                    processed_tokens=details.get("processed_tokens", 0))
        message, citations = answer.message, extra.get("citations")
        return cls(answer.content, session_id, extra.get("profile", profile), extra.get("model", model), done,
                   extra.get("context", {}), reasoning=message.reasoning, calls=message.calls,
                   citations=None if citations is None else tuple(citations),
                   search_tokens=usage.get("search_tokens", 0))

    @property
    def message(self) -> Message:
        """The answer as a message of the conversation."""
        return Message("assistant", self.result, self.calls, reasoning=self.reasoning)

    @property
    def finish_reason(self) -> str:
        """"stop", "length", "tool_calls" or "cancelled"."""
        return "tool_calls" if self.calls and self.done.finish_reason == "stop" else self.done.finish_reason

    @property
    def kept(self) -> dict[str, Any]:
        """What is stored beside the answer's text and finish_reason."""
        more: dict[str, Any] = {} if self.result or self.calls else {"empty": True}
        shape = self.message.shape()
        more |= {name: shape[name] for name in ("tool_calls", "reasoning_content") if name in shape}
        more |= self.cited
        return {"profile": self.profile, "model": self.model, "usage": self.usage, "context": self.context, **more}

    @property
    def cited(self) -> dict[str, Any]:
        """`citations` as clients get them; nothing where none were asked for."""
        return {} if self.citations is None else {"citations": with_use(self.citations, self.result)}

    @property
    def usage(self) -> dict[str, Any]:
        """`search_tokens`, where the model was asked about where to look, are not among the others."""
        details = {"cached_tokens": self.done.cached_tokens, "processed_tokens": self.done.processed_tokens}
        return {"prompt_tokens": self.done.prompt_tokens, "completion_tokens": self.done.completion_tokens,
                "total_tokens": self.done.prompt_tokens + self.done.completion_tokens,
                "prompt_tokens_details": details,
                **({"search_tokens": self.search_tokens} if self.search_tokens else {})}

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds."""
        return {name: round(getattr(self.done, name), 3) for name in ("queue_ms", "prefill_ms", "decode_ms")}

    def body(self) -> dict[str, Any]:
        """The answer of `POST /answer` (spec/api.md). Times in milliseconds."""
        more: dict[str, Any] = {"warnings": list(self.warnings)} if self.warnings else {}
        if not self.result:
            more["empty"] = True
        if self.reasoning:
            more["reasoning"] = self.reasoning
        more |= self.cited
        session = None if self.session_id is None else shown_id(self.session_id)
        return {"result": self.result, "session_id": session, "profile": self.profile, "model": self.model,
                "finish_reason": self.done.finish_reason, "usage": self.usage,
                "context": self.context, **more, "timings": self.timings}


Event = Step | Delta | Reasoned | Called | Beat | Waiting | Final


class Trimmed:
    """A text without the white space around it, as it comes: what may turn out to be its end is held back."""

    def __init__(self) -> None:
        self.text = ""          # all that was given out
        self._held = ""

    def feed(self, piece: str) -> str:
        """What may be given out now that `piece` has come."""
        waiting = self._held + piece
        if not self.text:
            waiting = waiting.lstrip()
        ready = waiting.rstrip()
        self._held = waiting[len(ready):]
        self.text += ready
        return ready
