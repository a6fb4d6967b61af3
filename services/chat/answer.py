"""The one pipeline: an `Ask` to the events of its answer. Every family of routes that generates text enters here.

    profile → the session's turn → what it is answered from → a runner → window and prompt → question durable → text,
    thoughts, calls of tools → answer durable → the next prompt's beginning prepared → Final

A question is stored before the model is asked and an answer before `Final` is said; the session and the runner are
let go before `Final`, so a client's next question never waits for its own last one. What breaks off (the client left,
the runner died, time is up) keeps the part that was written, marked as interrupted. JSON answers are the fold of the
same events.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import msgspec

from services import kv_names
from services.chat import asking, forms, prompt, speech, window
from services.chat.events import Ask, Beat, Called, Delta, Event, Final, Reasoned, Waiting
from services.chat.grounding import Grounding
from services.chat.messages import Interaction, Message
from services.chat.profiles import Profile, Profiles
from services.chat.prompt import Asked
from services.chat.sessions import Sessions, Turn, TurnRecord, interaction
from services.chat.thinking import thinking_of
from services.engine.client import Engine, Lease
from services.errors import DeadlineExceeded, Gone, ParleyError, RunnerCrashed, SessionBusy
from services.knowledge.references import Reference, fitted
from services.settings import Settings
from services.store.base import busy
from services.store.kv_files import forget_files
from services.wire import Done, Generate, Logprob, Piece, Prepare, Queued, Ready, RunnerSpec

__all__ = ["Ask", "Beat", "Chat", "Delta", "Event", "Final"]
log = logging.getLogger("parley.chat")
BEAT = 1.0      # seconds between two signs of life


class Chat:
    """What answering needs, shared by all requests."""

    def __init__(self, settings: Settings, profiles: Profiles, sessions: Sessions, engine: Engine,
                 grounding: Grounding) -> None:
        self.settings = settings
        self.profiles = profiles
        self.sessions = sessions
        self.engine = engine
        self.grounding = grounding
        forms.warm()

    def answer(self, ask: Ask) -> Generator[Event, None, None]:
        """The events of an answer, at last one `Final`. Errors are `ParleyError`s; closing it cancels."""
        return _Answer(self, ask).events()

    def count(self, ask: Ask, beat: Callable[[], None] = lambda: None) -> int:
        """Tokens of the prompt that `ask` would be answered with, without a session's earlier turns. `beat` is called
        about every second and may raise to give up."""
        asking.check(ask, self.settings)
        asked = asking.asked(ask)
        _, profile = asking.profile_of(ask, self.profiles)
        spec = self.profiles.spec(profile, self.settings.models_dir)
        with self.engine.lease(spec, keep=self.profiles.current().keep(profile), beat=beat) as lease:
            return lease.count([prompt.build(profile, lease.ready, [], asked)])[0]

    def keep_question(self, ask: Ask) -> None:
        """Stores what is asked in a session before it is answered: `answer` takes it up by its `idempotency`. Waits for
        the session's turn. Raises what can be told of `ask` without a runner."""
        assert ask.session_id is not None and ask.idempotency is not None, "else nobody finds it again"
        for _ in _Answer(self, ask).question():
            pass

    def forget(self, owner: str, session: str) -> None:
        """A session is gone, or goes on from elsewhere: nothing computed of it stays. What goes wrong is logged."""
        folder = self.settings.data_dir / "kv"
        for step in (partial(self.engine.forget, owner, session), partial(forget_files, folder, owner, session)):
            try:
                step()
            except ParleyError as error:
                log.warning("what was computed of session %s of %s may be kept: %s", session, owner, error.message)


class _Answer:
    """Everything about one request."""

    def __init__(self, chat: Chat, ask: Ask) -> None:
        self.chat = chat
        self.ask = ask
        self.turn: Turn | None = None       # the session's, locked; None without a session
        self.reader: speech.Reader | speech.Verbatim = speech.Verbatim()
        self.logprobs: list[Logprob] = []
        self.warnings: list[str] = []
        self.citations: tuple[dict[str, Any], ...] | None = None
        self.stored = False                 # whether the question is
        self.selected = False               # whether the profile is the one that config.json selects
        self.keep = 0.0                     # seconds that its runner stays loaded without use
        self.deadline = time.monotonic() + chat.settings.request_timeout

    def events(self) -> Generator[Event, None, None]:
        asking.check(self.ask, self.chat.settings)
        name, profile = self._profile()
        with ExitStack() as held:
            history = yield from self._lock_session(held)
            if (known := self._answered()) is not None:
                yield from replayed(Final.replayed(known, self.ask.session_id or "", name, profile.model))
                return
            asked = asking.asked(self.ask, follows=bool(history))
            self._tell_what_is_left_out(history, asked)
            references = yield from self._references(asked)
            lease = yield from self._lease(held, self.chat.profiles.spec(profile, self.chat.settings.models_dir))
            told = self._grounded(profile, lease, asked, references)
            chosen = self._window(profile, lease, history, told)
            self._store_question(asked)
            done = yield from self._generate(lease, self._request(profile, lease, chosen, told))
            self._tell_what_was_cut(done, profile, lease)
            final = self._final(name, profile, lease, done, chosen)
            self._store_answer(final)
            self._prepare(lease, profile, chosen.prompt, history, asked, final)
        yield final

    def question(self) -> Generator[Event, None, None]:
        """Only stores what is asked."""
        asking.check(self.ask, self.chat.settings)
        self._profile()
        with ExitStack() as held:
            history = yield from self._lock_session(held)
            self._store_question(asking.asked(self.ask, follows=bool(history)))

    def _profile(self) -> tuple[str, Profile]:
        """The profile's name, and the profile as this request wants it."""
        name, profile = asking.profile_of(self.ask, self.chat.profiles)
        config = self.chat.profiles.current()
        self.selected = name == config.selected and profile.needs == config.profiles[name].needs
        self.keep = config.keep(profile)
        return name, profile

    def _tell_what_is_left_out(self, history: list[Interaction], asked: Asked) -> None:
        sent = sum(message.role != "system" for message in self.ask.messages)
        if history and sent > len(asked.new):
            self.warnings.append(f"{sent - len(asked.new)} of the messages were left out: in a session only what comes "
                                 "after the last answer is new")

    # ------------------------------------------------------------ what is waited for

    def _lock_session(self, held: ExitStack) -> Generator[Event, None, list[Interaction]]:
        """Waits for the session's turn, at most `session_wait` seconds; its complete interactions."""
        if self.ask.session_id is None:
            return [*self.ask.earlier]
        started = time.monotonic()
        until = min(started + self.chat.settings.session_wait, self.deadline)
        while self.turn is None:
            left = max(0.0, until - time.monotonic())
            try:
                self.turn = held.enter_context(
                    self.chat.sessions.turn(self.ask.owner, self.ask.session_id, min(BEAT, left)))
            except SessionBusy:
                if left <= BEAT:
                    raise busy(self.ask.session_id, round(time.monotonic() - started, 1)) from None
                yield Beat()
        if self.ask.follows is not None:
            self.turn.check_follows(self.ask.follows, self.ask.idempotency)
        return [interaction(*pair) for pair in self.turn.before(self.ask.idempotency)]

    def _lease(self, held: ExitStack, spec: RunnerSpec) -> Generator[Event, None, Lease]:
        """A ready runner; it may have to be loaded first."""
        affinity = kv_names.stem(self.ask.owner, self.ask.session_id) if self.ask.session_id else ""
        lease = held.enter_context(self.chat.engine.begin(spec, select=self.selected, keep=self.keep,
                                                          beat=self._check_time, affinity=affinity))
        while not lease.arrived(BEAT):
            self._check_time()
            yield Beat()
        return lease

    def _check_time(self) -> None:
        if time.monotonic() >= self.deadline:
            raise DeadlineExceeded(f"the answer took more than {self.chat.settings.request_timeout:g} seconds "
                                   "(REQUEST_TIMEOUT)")

    # ------------------------------------------------------------ what it is answered from

    def _references(self, asked: Asked) -> Generator[Event, None, Sequence[Reference]]:
        """What is found before the runner is asked for: the models that search and judge need their own."""
        if not self.ask.knowledge and self.ask.search is None:
            return ()
        self.citations = ()
        if not asked.asks:      # results of tools: what asked for them had its references
            return ()
        grounding, question = self.chat.grounding, self.ask.prompt or asked.text
        if self.ask.search is None:
            return grounding.found(self.ask, question, self._check_time)
        places = grounding.places(self.ask)
        self._store_question(asked)     # the model is asked from here on
        return (yield from grounding.chosen(self.ask, question, places, self.chat.answer, self._check_time))

    def _grounded(self, profile: Profile, lease: Lease, asked: Asked, references: Sequence[Reference]) -> Asked:
        """`asked` with as many references as have room: at most half of what a prompt may have."""
        if not references:
            return asked
        most = window.limit(lease.ready.n_ctx, profile.max_tokens)
        without = lease.count([prompt.build(profile, lease.ready, [], asked.grounded(""))])[0]
        found = fitted(references, min(most // 2, most - without), lambda text: lease.count([[text]])[0])
        self.citations = found.citations
        if not found.citations:
            self.warnings.append(f"what was found is left out: beside the prompt it has no room in the context of "
                                 f"{lease.ready.n_ctx} tokens")
            return asked
        return asked.grounded(found.text)

    # ------------------------------------------------------------ what is sent to the runner

    def _window(self, profile: Profile, lease: Lease, history: list[Interaction], asked: Asked) -> window.Window:
        if self.ask.raw is not None:        # the runner says whether it fits
            return window.Window(self._raw(profile), 0, 0)
        earlier = window.exchanges(history)
        if earlier and not asked.asks:      # the calls that these are results of, and what was asked, are not dropped
            asked = asked.going_on(earlier.pop())
        earlier = earlier[-profile.k:] if profile.k else []
        build = partial(prompt.build, profile, lease.ready, asked=asked)
        return window.fit(lambda turns: build(earlier=turns), earlier, lease.ready.n_ctx, profile.max_tokens,
                          lease.count)

    def _raw(self, profile: Profile) -> list[str]:
        """A plain prompt; in the template for completions, where a model file of LocalAI's has one."""
        text = self.ask.raw
        if not isinstance(text, str):
            return []
        if profile.go and self.ask.suffix is None and not self.ask.echo:
            text = profile.go.completion_prompt(text, profile.system or "")
        return [text]

    def _request(self, profile: Profile, lease: Lease, chosen: window.Window, asked: Asked) -> Generate:
        most = lease.ready.n_ctx
        if profile.max_tokens > most:
            self.warnings.append(f"max_tokens {profile.max_tokens} is more than the context of {most} tokens: "
                                 f"{most} is used")
        request = asking.request(self.ask, profile, min(profile.max_tokens, most), chosen.prompt)
        if self.ask.raw is not None:
            return request
        form, tools = forms.form_of(profile, lease.ready, asked.thinks), asked.tools
        held = self.ask.schema is not None or self.ask.grammar is not None      # then it has no room to think
        thinks = None if held or asked.start else thinking_of(form.chat, "".join(chosen.prompt[-1:]))
        if not asked.start:     # what goes on from one is all text, as it is
            self.reader = speech.Reader(form.tools if tools else None, thinks)
        return msgspec.structs.replace(
            request, stop=prompt.stops(profile, lease.ready), calls=form.tools.calls(tools, thinks) if tools else None,
            shown=list(thinks[:2]) if thinks else [],
            head=prompt.head(profile, lease.ready, chosen.prompt, chosen.used, asked))

    # ------------------------------------------------------------ what it answers

    def _generate(self, lease: Lease, request: Generate) -> Generator[Event, None, Done]:
        """Passes the answer on as it comes. Whatever ends it early cancels it in the runner and keeps the part."""
        messages, spent = lease.generate(request), self.ask.spent
        try:
            for message in messages:
                if isinstance(message, Done):
                    spent.prompt_tokens, spent.completion_tokens = message.prompt_tokens, message.completion_tokens
                    yield from self._told(self.reader.finish())
                    return message
                self._check_time()
                if message is None:
                    yield Beat()
                elif isinstance(message, Queued):
                    yield Waiting(message.position, message.eta_seconds)
                else:
                    spent.completion_tokens += message.tokens
                    yield from self._told(self.reader.feed(message.text), message)
            raise AssertionError("a runner's answer ended without its Done")
        except BaseException as error:
            _close(messages)
            self._store_part(error)
            if spent.completion_tokens and not isinstance(error, RunnerCrashed):
                told = [*request.prompt, request.suffix or ""]
                spent.prompt_tokens = len(request.tokens) or lease.count_at_once(told) or 0
            raise

    def _told(self, events: Sequence[Event], piece: Piece | None = None) -> Iterator[Event]:
        """What was read, with the log probabilities of its tokens at the first text."""
        logprobs = tuple(piece.logprobs) if piece else ()
        self.logprobs += logprobs
        for event in events:
            if isinstance(event, Delta) and logprobs:
                event, logprobs = Delta(event.text, logprobs), ()
            yield event
        if logprobs:
            yield Delta("", logprobs)

    def _tell_what_was_cut(self, done: Done, profile: Profile, lease: Lease) -> None:
        most, n_ctx = profile.max_tokens, lease.ready.n_ctx
        full = n_ctx - done.prompt_tokens < min(most, n_ctx)
        if done.closed:
            self.warnings.append(f"the value was closed early, after {done.completion_tokens} tokens"
                                 + ("" if full else f" of max_tokens {most}: raise max_tokens for a longer one"))
        if full and (done.closed or done.finish_reason == "length"):
            self.warnings.append(f"the context of {n_ctx} tokens was full after {done.completion_tokens} of max_tokens "
                                 f"{most}: the prompt takes {done.prompt_tokens}")
        if self.ask.schema is not None and self.ask.stop:
            self.warnings.append("stop is not looked at beside a schema: the answer ends where its value is complete")

    def _final(self, name: str, profile: Profile, lease: Lease, done: Done, chosen: window.Window) -> Final:
        return Final(result=self.reader.content, session_id=self.ask.session_id, profile=name, model=lease.ready.model,
                     done=done, warnings=tuple(self.warnings), reasoning=self.reader.reasoning,
                     calls=tuple(self.reader.calls), logprobs=tuple(self.logprobs), citations=self.citations,
                     search_tokens=self.ask.spent.search_prompt_tokens + self.ask.spent.search_completion_tokens,
                     context={"window": lease.ready.n_ctx, "k": profile.k, "turns_used": chosen.used,
                              "turns_dropped": chosen.dropped})

    # ------------------------------------------------------------ what is kept

    def _answered(self) -> TurnRecord | None:
        """The answer that this very request has got before, when its first try was cut after it was stored."""
        if self.turn is None or self.ask.idempotency is None:
            return None
        return self.turn.answered(self.ask.idempotency)

    def _store_question(self, asked: Asked) -> None:
        if self.turn is not None and not self.stored:
            self.stored = True
            meta: dict[str, Any] = {"request_id": self.ask.request_id} if self.ask.request_id else {}
            text = self.ask.prompt or asked.text
            if asked.new != (Message("user", text),):
                meta["messages"] = [message.shape() for message in asked.new]
            self.turn.prompt(text, self.ask.idempotency, self.ask.about, **meta)

    def _store_answer(self, final: Final) -> None:
        reason = final.done.finish_reason
        self._keep(final.result, finish_reason=final.finish_reason, interrupted=reason == "cancelled", **final.kept)

    def _keep(self, text: str, **meta: Any) -> None:
        if self.turn is None:
            return
        try:
            self.turn.answer(text, **meta)
        except Gone:        # deleted meanwhile: what the runner has computed since goes as well
            self.chat.forget(self.ask.owner, self.ask.session_id or "")
            raise

    def _prepare(self, lease: Lease, profile: Profile, sent: list[str], history: list[Interaction], asked: Asked,
                 final: Final) -> None:
        """Has the runner compute, while nobody waits, what the session's next prompt begins with.

        The next question is taken to be as long as this one, and tokens for as long as they were in the prompt `sent`
        and its answer: nobody is asked to count, so the end of this answer is not delayed.
        """
        wanted = self.turn is not None and profile.k and self.chat.settings.prepare
        if not wanted or final.done.finish_reason == "cancelled":
            return
        ready, done = lease.ready, final.done
        earlier = window.exchanges([*history, Interaction(asked.new, final.message)])
        earlier = earlier[-profile.k - bool(final.calls):]      # what has called a tool is still being asked
        count = window.by_size([*sent, final.result], done.prompt_tokens + done.completion_tokens)
        try:
            fitted = window.fit(partial(self._likely, profile, ready, asked), earlier, ready.n_ctx, profile.max_tokens,
                                count)
        except ParleyError as error:
            log.debug("nothing is prepared: %s", error.message)
            return
        except Exception:               # a template that fails on what nobody has asked yet: this answer stands
            log.exception("nothing is prepared")
            return
        opening = fitted.prompt[:-1]
        head = prompt.head(profile, ready, opening, fitted.used, asked)
        if fitted.used and head < sum(map(len, opening)):
            lease.prepare(Prepare(owner=self.ask.owner, session=self.ask.session_id or "", prompt=opening, head=head))
            if self.turn and self.turn.gone():       # the runner may have been told to forget it before
                self.chat.forget(self.ask.owner, self.ask.session_id or "")

    def _likely(self, profile: Profile, ready: Ready, asked: Asked, earlier: Sequence[Interaction]) -> list[str]:
        """The prompt for one more question like this one; its last segment is what is not known yet."""
        opening, after = prompt.opening(profile, ready, earlier, asked)
        return [*opening, asked.text + after]

    def _store_part(self, error: BaseException) -> None:
        """Keeps what the client has seen so far. When that fails too the first error is the one to tell."""
        if self.turn is None or not self.reader.content:
            return      # a question without an answer is shown as interrupted anyway
        reason = "cancelled" if isinstance(error, GeneratorExit) else getattr(error, "code", "error")
        try:
            self._keep(self.reader.content, finish_reason=reason, interrupted=True)
        except ParleyError as second:
            log.error("an interrupted answer could not be kept: %s", second.message)


def replayed(final: Final) -> Iterator[Event]:
    """An answer that was stored before, told again."""
    if final.reasoning:
        yield Reasoned(final.reasoning)
    if final.result:
        yield Delta(final.result)
    for index, call in enumerate(final.calls):
        yield Called(index, call.arguments, call.id, call.name)
    yield final


def _close(messages: object) -> None:
    close = getattr(messages, "close", None)
    if close is not None:
        close()
