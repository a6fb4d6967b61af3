"""Text templates of profiles, as the seed's: a system text with `{chat_history}` and `{input}`, and here `{system}`.

Checked once, when a profile is read. Only plain fields are let through: a format specification can allocate
gigabytes (`{input:>300000000}`) and an attribute can reach into objects (row T1). What fills a field is never itself
formatted. `langchain_core` is imported when the first prompt is made: it costs 0.2 s and 20 MB, which the supervisor,
who reads profiles too, has no need of.
"""

from __future__ import annotations

import re
from functools import lru_cache
from string import Formatter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from langchain_core.prompts import PromptTemplate

FIELDS = ("chat_history", "input", "system")
SEED_TEMPLATE = "You are a chatbot. \n\n{chat_history} \n\nPROMPT: {input} \n\nBOT:"
SYSTEM_TEMPLATE = SEED_TEMPLATE.replace("You are a chatbot.", "{system}")
MAX_CHARS = 64 * 1024
MAX_LABEL = 60      # characters of a line that may become a stop string


@lru_cache(maxsize=64)
def compiled(template: str) -> PromptTemplate:
    """`template`, checked, as what makes prompts. Raises ValueError with what is wrong with it."""
    from langchain_core.prompts import PromptTemplate

    check(template)
    return PromptTemplate.from_template(template, template_format="f-string")


def fields(template: str) -> list[str]:
    """The fields that `template` has."""
    return [field for _, field, _, _ in _parse(template) if field is not None]


def check(template: str) -> None:
    """Raises ValueError with what is wrong with `template`."""
    if len(template) > MAX_CHARS:
        raise ValueError(f"has {len(template)} characters; at most {MAX_CHARS} are accepted")
    if re.search("[\ud800-\udfff]", template):
        raise ValueError("holds half of a surrogate pair, which is no character")
    for _, field, spec, conversion in _parse(template):
        if field is None:
            continue
        if field not in FIELDS or spec or conversion:
            written = field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")
            raise ValueError(f"{{{written[:60]}}} is not known; use {{chat_history}}, {{input}} and {{system}} "
                             "as they are, and write a brace of the text twice")
    if "input" not in fields(template):
        raise ValueError("must hold {input}, where the new text goes")


def _parse(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"has a brace that is no field ({error}); write a brace of the text twice") from None


def stop_strings(template: str) -> list[str]:
    r"""Where an answer in this template ends because the model goes on by itself with another turn.

    The label before `{input}` and the one that asks for the answer, at the start of a line (`\nPROMPT:`, `\nBOT:`), and
    with a `{chat_history}` the labels of its lines (`\nHuman:`, `\nAI:`). A label is a short line ending in a colon.
    """
    parts = _parse(template)
    at = next(index for index, part in enumerate(parts) if part[1] == "input")
    tail = parts[at + 1][0] if at + 1 < len(parts) else ""
    labels = [_label(parts[at][0]), _label(tail)]
    if any(part[1] == "chat_history" for part in parts):
        labels += ["Human:", "AI:"]
    return list(dict.fromkeys("\n" + label for label in labels if label))


def _label(literal: str) -> str:
    lines = [line.strip() for line in literal.splitlines() if line.strip()]
    return lines[-1] if lines and lines[-1].endswith(":") and 1 < len(lines[-1]) <= MAX_LABEL else ""
