"""The one pipeline: an `Ask` to the events of its answer. Every family of routes that generates text enters here.

    profile → the session's turn → a runner → window and prompt → question durable → text → answer durable
    → the next prompt's beginning prepared → Final

A question is stored before the model is asked and an answer before `Final` is said; the session and the runner are
let go before `Final`, so a client's next question never waits for its own last one. What breaks off (the client left,
the runner died, time is up) keeps the part that was written, marked as interrupted. JSON answers are the fold of the
same events.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from services import kv_names
from services.chat import prompt, window
from services.chat.events import Ask, Beat, Delta, Event, Final, Trimmed, Waiting
from services.chat.profiles import Profile, Profiles
from services.chat.sessions import Sessions, Turn, TurnRecord
from services.engine.client import Engine, Lease
from services.errors import (
    BadRequest,
    DeadlineExceeded,
    Forbidden,
    Gone,
    ParleyError,
    RunnerCrashed,
    SessionBusy,
    TooLarge,
)
from services.settings import Settings
from services.store.base import busy
from services.store.kv_files import forget_files
from services.wire import Done, Generate, Prepare, Queued, Ready, RunnerSpec

__all__ = ["Ask", "Beat", "Chat", "Delta", "Event", "Final"]
log = logging.getLogger("parley.chat")
BEAT = 1.0      # seconds between two signs of life
OVERRIDES = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "max_tokens", "seed")


class Chat:
    """What answering needs, shared by all requests."""

    def __init__(self, settings: Settings, profiles: Profiles, sessions: Sessions, engine: Engine) -> None:
        self.settings = settings
        self.profiles = profiles
        self.sessions = sessions
        self.engine = engine
        prompt.warm()

    def answer(self, ask: Ask) -> Iterator[Event]:
        """`Delta`s, `Beat`s and `Waiting`s, at last one `Final`. Errors are `ParleyError`s; closing it cancels."""
        return _Answer(self, ask).events()

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
        self.text = Trimmed()
        self.warnings: list[str] = []
        self.selected = False               # whether the profile is the one that config.json selects
        self.keep = 0.0                     # seconds that its runner stays loaded without use
        self.deadline = time.monotonic() + chat.settings.request_timeout

    def events(self) -> Iterator[Event]:
        self._check_prompt()
        name, profile = self._profile()
        with ExitStack() as held:
            history = yield from self._lock_session(held)
            if (known := self._answered()) is not None:
                yield from self._replay(Final.replayed(known, self.ask.session_id or "", name, profile.model))
                return
            spec = self.chat.profiles.spec(profile, self.chat.settings.models_dir)
            lease = yield from self._lease(held, spec)
            chosen = self._window(profile, lease, history)
            self._store_question()
            done = yield from self._generate(lease, self._request(profile, lease, chosen))
            self._tell_what_was_cut(done, profile, lease)
            final = Final(result=self.text.text, session_id=self.ask.session_id, profile=name, model=lease.ready.model,
                          done=done, warnings=tuple(self.warnings),
                          context={"window": lease.ready.n_ctx, "k": profile.k, "turns_used": chosen.used,
                                   "turns_dropped": chosen.dropped})
            self._store_answer(final)
            self._prepare(lease, profile, chosen.prompt, history, final)
        yield final

    # ------------------------------------------------------------ what is asked, of whom

    def _check_prompt(self) -> None:
        text = self.ask.prompt
        if not text.strip():
            raise BadRequest("Question not provided in the request", code="missing_field", param="prompt")
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise BadRequest("prompt holds half of a surrogate pair, which is no character", code="bad_unicode",
                             param="prompt") from None
        most = self.chat.settings.max_prompt_bytes
        if size > most:
            raise TooLarge(f"prompt has {size} bytes; at most {most} are accepted (MAX_PROMPT_BYTES)",
                           code="prompt_too_large", param="prompt")

    def _profile(self) -> tuple[str, Profile]:
        """The profile's name, and the profile as this request wants it."""
        config = self.chat.profiles.current()
        wanted = self.ask.profile or config.selected
        allowed = self.ask.allowed_profiles
        if allowed is not None and wanted not in allowed:
            raise Forbidden(f"this key may not use the profile {wanted[:80]!r}; it may use: {', '.join(allowed)}",
                            code="profile_forbidden", param="profile")
        name, profile = config.for_text(wanted)
        self.selected, self.keep = name == config.selected, config.keep(profile)
        changes: dict[str, Any] = {field: getattr(self.ask, field) for field in OVERRIDES}
        stop = None if self.ask.stop is None else list(self.ask.stop)
        return name, profile.overridden(**changes, stop=stop)

    # ------------------------------------------------------------ what is waited for

    def _lock_session(self, held: ExitStack) -> Generator[Event, None, list[prompt.Interaction]]:
        """Waits for the session's turn, at most `session_wait` seconds; its complete interactions."""
        if self.ask.session_id is None:
            return []
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
        return [prompt.Interaction(asked.content, answer.content)
                for asked, answer in self.turn.before(self.ask.idempotency)]

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

    # ------------------------------------------------------------ what is sent to the runner

    def _window(self, profile: Profile, lease: Lease, history: list[prompt.Interaction]) -> window.Window:
        earlier = history[-profile.k:] if profile.k else []
        build = partial(prompt.build, profile, lease.ready, text=self.ask.prompt)
        return window.fit(lambda turns: build(earlier=turns), earlier, lease.ready.n_ctx, profile.max_tokens,
                          lease.count)

    def _request(self, profile: Profile, lease: Lease, chosen: window.Window) -> Generate:
        most = lease.ready.n_ctx
        if profile.max_tokens > most:
            self.warnings.append(f"max_tokens {profile.max_tokens} is more than the context of {most} tokens: "
                                 f"{most} is used")
        return Generate(id=str(uuid.uuid4()), owner=self.ask.owner, prompt=chosen.prompt,
                        max_tokens=min(profile.max_tokens, most), sampling=profile.sampling,
                        stop=prompt.stops(profile, lease.ready), schema=self.ask.schema,
                        head=prompt.head(profile, lease.ready, chosen.prompt, chosen.used),
                        session=self.ask.session_id or "", weight=self.ask.weight, stream=self.ask.stream)

    def _generate(self, lease: Lease, request: Generate) -> Generator[Event, None, Done]:
        """Passes the text on as it comes. Whatever ends it early cancels it in the runner and keeps the part."""
        messages, spent = lease.generate(request), self.ask.spent
        try:
            for message in messages:
                if isinstance(message, Done):
                    spent.prompt_tokens, spent.completion_tokens = message.prompt_tokens, message.completion_tokens
                    return message
                self._check_time()
                if message is None:
                    yield Beat()
                elif isinstance(message, Queued):
                    yield Waiting(message.position, message.eta_seconds)
                else:
                    spent.completion_tokens += message.tokens
                    if delta := self.text.feed(message.text):
                        yield Delta(delta)
            raise AssertionError("a runner's answer ended without its Done")
        except BaseException as error:
            _close(messages)
            self._store_part(error)
            if spent.completion_tokens and not isinstance(error, RunnerCrashed):
                spent.prompt_tokens = lease.count_at_once(request.prompt) or 0
            raise

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

    # ------------------------------------------------------------ what is kept

    def _answered(self) -> TurnRecord | None:
        """The answer that this very request has got before, when its first try was cut after it was stored."""
        if self.turn is None or self.ask.idempotency is None:
            return None
        return self.turn.answered(self.ask.idempotency)

    def _replay(self, final: Final) -> Iterator[Event]:
        if final.result:
            yield Delta(final.result)
        yield final

    def _store_question(self) -> None:
        if self.turn is not None:
            meta = {"request_id": self.ask.request_id} if self.ask.request_id else {}
            self.turn.prompt(self.ask.prompt, self.ask.idempotency, self.ask.about, **meta)

    def _store_answer(self, final: Final) -> None:
        reason = final.done.finish_reason
        self._keep(final.result, finish_reason=reason, interrupted=reason == "cancelled", **final.kept)

    def _keep(self, text: str, **meta: Any) -> None:
        if self.turn is None:
            return
        try:
            self.turn.answer(text, **meta)
        except Gone:        # deleted meanwhile: what the runner has computed since goes as well
            self.chat.forget(self.ask.owner, self.ask.session_id or "")
            raise

    def _prepare(self, lease: Lease, profile: Profile, asked: list[str], history: list[prompt.Interaction],
                 final: Final) -> None:
        """Has the runner compute, while nobody waits, what the session's next prompt begins with.

        The next question is taken to be as long as this one, and tokens for as long as they were in the prompt `asked`
        and its answer: nobody is asked to count, so the end of this answer is not delayed.
        """
        wanted = self.turn is not None and profile.k and self.chat.settings.prepare
        if not wanted or final.done.finish_reason == "cancelled":
            return
        ready, done = lease.ready, final.done
        earlier = [*history, prompt.Interaction(self.ask.prompt, final.result)][-profile.k:]
        count = window.by_size([*asked, final.result], done.prompt_tokens + done.completion_tokens)
        try:
            fitted = window.fit(partial(self._likely, profile, ready), earlier, ready.n_ctx, profile.max_tokens, count)
        except ParleyError as error:
            log.debug("nothing is prepared: %s", error.message)
            return
        except Exception:               # a template that fails on what nobody has asked yet: this answer stands
            log.exception("nothing is prepared")
            return
        opening = fitted.prompt[:-1]
        head = prompt.head(profile, ready, opening, fitted.used)
        if fitted.used and head < sum(map(len, opening)):
            lease.prepare(Prepare(owner=self.ask.owner, session=self.ask.session_id or "", prompt=opening, head=head))
            if self.turn and self.turn.gone():       # the runner may have been told to forget it before
                self.chat.forget(self.ask.owner, self.ask.session_id or "")

    def _likely(self, profile: Profile, ready: Ready, earlier: Sequence[prompt.Interaction]) -> list[str]:
        """The prompt for one more question like this one; its last segment is what is not known yet."""
        opening, after = prompt.opening(profile, ready, earlier)
        return [*opening, self.ask.prompt + after]

    def _store_part(self, error: BaseException) -> None:
        """Keeps what the client has seen so far. When that fails too the first error is the one to tell."""
        if self.turn is None or not self.text.text:
            return      # a question without an answer is shown as interrupted anyway
        reason = "cancelled" if isinstance(error, GeneratorExit) else getattr(error, "code", "error")
        try:
            self._keep(self.text.text, finish_reason=reason, interrupted=True)
        except ParleyError as second:
            log.error("an interrupted answer could not be kept: %s", second.message)


def _close(messages: object) -> None:
    close = getattr(messages, "close", None)
    if close is not None:
        close()
