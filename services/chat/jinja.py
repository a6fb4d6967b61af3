"""A model file's own chat template (Jinja), rendered as transformers and llama.cpp do, without trusting it (row T4).

The template comes from a file that somebody downloaded. It runs in `services.chat.sandbox` within the bounds of
`services.chat.bounds`, also while it is compiled. What a client sends reaches a template as plain JSON values, copies
of the caller's, and as nothing else.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, TypeVar

import jinja2

from services.chat import bounds
from services.chat.sandbox import Refused, Sandbox
from services.errors import BadRequest, Unprocessable

_T = TypeVar("_T")
MAX_SOURCE = 64 * 1024          # characters of a template; the longest known have 20,000
EFFORT = 8 * 1024               # of them, or eight times as many that it is given, for one budget of steps and time
MAX_DEPTH = 100                 # of lists and objects in each other
SPARE_CHARS = 1 << 20           # that a template may write, beside eight times what it was given


class Broken(Unprocessable):
    """The template does not run through: with these messages, or at all."""

    code = "bad_template"


class Raised(Broken):
    """The template itself refused the messages, with `raise_exception`."""


def _bounded(work: Callable[[], _T], chars: int, effort: int, given: dict[int, int] | None = None) -> _T:
    """What `work` returns, done in bounds; whatever goes wrong in it leaves as `Unprocessable` with the reason."""
    try:
        return bounds.run(work, chars, effort, given)
    except Refused as error:
        raise Raised(f"the model's chat template refuses this conversation: {str(error)[:200]}") from None
    except bounds.Stop as error:
        raise bad_template(str(error)) from None
    except (RecursionError, MemoryError):
        raise bad_template("is nested too deeply") from None
    except Exception as error:
        raise Broken(_unusable(f"{type(error).__name__}: {str(error)[:200]}")) from None


def bad_template(reason: str) -> Unprocessable:
    return Unprocessable(_unusable(reason), code="bad_template")


def _unusable(reason: str) -> str:
    return (f"the model's chat template cannot be used: {reason}; give the profile a text template "
            "(chat_format \"template\")")


@lru_cache(maxsize=16)
def _compiled(source: str) -> jinja2.Template:
    if len(source) > MAX_SOURCE:
        raise bad_template(f"has {len(source)} characters; at most {MAX_SOURCE} are accepted")
    return _bounded(lambda: Sandbox().from_string(source), SPARE_CHARS, 1 + len(source) // EFFORT)


def render(source: str, messages: Sequence[dict[str, Any]], *, bos: str = "", eos: str = "",
           tools: Sequence[dict[str, Any]] | None = None, thinking: bool | None = None,
           date: datetime.datetime | None = None, add_generation_prompt: bool = True, **variables: Any) -> str:
    """The prompt of `messages`, with the answer's start unless `add_generation_prompt` is off.

    `messages` and `tools` have OpenAI's shapes, as `services.chat.caps.adapt` leaves them. A template sees
    `enable_thinking` when `thinking` is given, the time `date` (default: now) as llama.cpp shows it (`strftime_now`,
    `date_string`, `datetime`), and further `variables` such as `reasoning_effort` or `documents`.
    Raises `Unprocessable` (`bad_template`): `Raised` when the template itself refuses the messages, `Broken` when it
    breaks on them.
    """
    compiled = _compiled(source)
    time = date or datetime.datetime.now()
    given: dict[str, Any] = {"messages": messages, "add_generation_prompt": add_generation_prompt,
                             "date_string": time.strftime("%d %b %Y"), "datetime": time.strftime("%b %d %Y"),
                             **variables}
    if tools:
        given["tools"] = tools
    if thinking is not None:
        given["enable_thinking"] = thinking
    given = _plain(given)
    sizes: dict[int, int] = {}
    chars = bounds.sizes(given, sizes)
    names = {**given, "bos_token": bos, "eos_token": eos, "strftime_now": lambda form: time.strftime(str(form)[:100])}
    text = _bounded(lambda: compiled.render(names), SPARE_CHARS + 8 * chars, 1 + chars // (8 * EFFORT), sizes)
    unanswered = add_generation_prompt and "'<|tool_call>call:'" in source and text.endswith("<turn|>\n")
    return text + "<|turn>model\n" if unanswered else text     # what Gemma 4's template forgets, as llama.cpp has it


def _plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """A copy of a JSON value, so that no template can change the caller's. Raises `BadRequest` for a deep one."""
    if not depth:
        raise BadRequest(f"a message or a tool is nested deeper than {MAX_DEPTH} levels", code="too_deep")
    if isinstance(value, dict):
        return {name: _plain(item, depth - 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    assert value is None or isinstance(value, str | int | float), type(value)
    return value
