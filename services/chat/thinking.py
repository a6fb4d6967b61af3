"""Models that think before they answer: between which tags, and whether a prompt has opened them already."""

from __future__ import annotations

from typing import NamedTuple

TAGS = (("<|START_THINKING|>", "<|END_THINKING|>"), ("[THINK]", "[/THINK]"), ("<seed:think>", "</seed:think>"),
        ("<think>", "</think>"))


class Thinks(NamedTuple):
    """What stands around a thought at the start of an answer. `open`: the prompt ends with `begin`."""

    begin: str
    end: str
    open: bool = False


def thinking_of(chat_template: str | None, prompt_end: str = "") -> Thinks | None:
    """How a model with this chat template thinks, when it goes on from `prompt_end`, the rendered prompt's last
    characters; None where the template knows of no thinking."""
    for begin, end in TAGS:
        if chat_template and (begin in chat_template or end in chat_template):
            return Thinks(begin, end, prompt_end.rstrip().endswith(begin))
    return None
