"""What one request asks for: checked, with the profile as it wants it, and as the message that a runner is sent."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from typing import Any

import msgspec

from services.chat.events import Ask
from services.chat.messages import Message
from services.chat.profiles import Profile, Profiles
from services.chat.prompt import Asked
from services.errors import BadRequest, Forbidden, TooLarge
from services.settings import Settings
from services.wire import Generate

OVERRIDES = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty",
             "max_tokens", "seed", "n_ctx", "n_threads", "n_gpu_layers")
TRIAL = "(trial)"       # what every profile that is only tried is called, in answers and figures


def check(ask: Ask, settings: Settings) -> None:
    """Raises `BadRequest` for a question that is none, `TooLarge` for more text than is taken."""
    param = "prompt"
    if ask.raw is not None:
        size = _size(ask.raw) if isinstance(ask.raw, str) else len(ask.raw)
        assert not ask.knowledge and ask.search is None, "there is no question to look for"
        if ask.session_id is not None:
            raise BadRequest("a prompt without turns cannot be part of a session: leave the session out", param=param)
    elif ask.messages:
        param, size = "messages", sum(message.size for message in ask.messages)
    else:
        if not ask.prompt.strip():
            raise BadRequest("Question not provided in the request", code="missing_field", param=param)
        size = _size(ask.prompt)
    if size > settings.max_prompt_bytes:
        raise TooLarge(f"{param} has {size} bytes; at most {settings.max_prompt_bytes} are accepted (MAX_PROMPT_BYTES)",
                       code="prompt_too_large", param=param)


def _size(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        raise BadRequest("prompt holds half of a surrogate pair, which is no character", code="bad_unicode",
                         param="prompt") from None


def asked(ask: Ask, follows: bool = False) -> Asked:
    """The new messages and the tools. Where they follow what a session holds, what a client repeats of it, up to the
    last answer, is left out; a system text counts all the same. Without a session an answer at the end is gone on
    with."""
    messages = ask.messages or (Message("user", ask.prompt),)
    if ask.system is not None:
        messages = (Message("system", ask.system), *messages)
    led = _one_system(messages)
    system, said = led[:bool(led) and led[0].role == "system"], led[bool(led) and led[0].role == "system":]
    if follows:
        last = max((index for index, message in enumerate(said) if message.role == "assistant"), default=-1)
        said = said[last + 1:]
    start = _start(ask, said)
    said = said[:-1] if start is not None else said
    if not said:
        raise BadRequest("nothing is asked: the last message should be a user's or a tool's", param="messages")
    held = ask.schema is not None or ask.grammar is not None        # then there is no room for thoughts
    own = bool(ask.system) and led[0] == messages[0]
    return Asked((*system, *said), ask.tools, ask.thinking and not held and not start, own, start or "")


def _start(ask: Ask, said: tuple[Message, ...]) -> str | None:
    """The answer that is begun already; None: there is none. `BadRequest` where its form is asked for, too."""
    if ask.session_id is not None or not said or said[-1].role != "assistant" or said[-1].calls:
        return None
    if ask.tools or ask.schema is not None or ask.grammar is not None:
        raise BadRequest("the last message is the assistant's, so that it is gone on with, and this excludes tools and "
                         "a schema or grammar of the answer: leave them out, or end with a message of the user",
                         code="conflicting_parameters", param="messages")
    return said[-1].content


def _one_system(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The system texts at the beginning as one message."""
    count = next((index for index, message in enumerate(messages) if message.role != "system"), len(messages))
    if count < 2:
        return messages
    return (Message("system", "\n\n".join(message.content for message in messages[:count])), *messages[count:])


def profile_of(ask: Ask, profiles: Profiles) -> tuple[str, Profile]:
    """The profile's name, and the profile as this request wants it. Raises `NotFound`, `Forbidden`, `Unprocessable`,
    `BadRequest`."""
    if ask.trial is not None:
        name, profile = profiles.current().writing(TRIAL, ask.trial.overridden(keep_loaded=False))
    elif ask.model is not None:
        name, profile = profiles.named(ask.model, ask.allowed_profiles)
    else:
        name = ask.profile or profiles.current().selected
        check_allowed(ask.allowed_profiles, name, "profile")
        name, profile = profiles.current().for_text(name)
    ask.spent.profile = name
    check_allowed(ask.allowed_profiles, name, "model")
    changes: dict[str, Any] = {field: getattr(ask, field) for field in OVERRIDES}
    stop = None if ask.stop is None else list(ask.stop)
    return name, profile.overridden(**changes, stop=stop)


def check_allowed(allowed: Collection[str] | None, name: str, param: str) -> None:
    """`Forbidden` for a profile that is none of those `allowed` to a key; None: all are. `param`: what named it."""
    if allowed is not None and name not in allowed:
        raise Forbidden(f"this key may not use the profile {name[:80]!r}; it may use: {', '.join(allowed)}",
                        code="profile_forbidden", param=param)


def request(ask: Ask, profile: Profile, max_tokens: int, prompt: list[str]) -> Generate:
    """What a runner is asked, with all that does not depend on the model."""
    sampling = profile.sampling
    if ask.logit_bias:
        sampling = msgspec.structs.replace(sampling, logit_bias=ask.logit_bias)
    return Generate(id=str(uuid.uuid4()), owner=ask.owner, prompt=prompt, max_tokens=max_tokens, sampling=sampling,
                    stop=profile.stop, schema=ask.schema, grammar=ask.grammar or "", session=ask.session_id or "",
                    tokens=[] if ask.raw is None or isinstance(ask.raw, str) else list(ask.raw), suffix=ask.suffix,
                    logprobs=ask.logprobs, echo=ask.echo, weight=ask.weight, batch=ask.batch, stream=ask.stream)
