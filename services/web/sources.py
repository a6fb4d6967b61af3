"""What a question is answered from: the page that it begins with, or the feed that its words ask for (S4.5, S4.14)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from services.chat.events import Ask, Search
from services.chat.persona import Given, Persona
from services.errors import FetchFailed, ParleyError
from services.knowledge.documents import quoted

if TYPE_CHECKING:
    from services.web.app import Room

NO_WORDS = "say in a few sentences what it is about."      # the question, where there is nothing but an address
log = logging.getLogger("parley.web")
_ADDRESS = re.compile(r"\s*(https?://\S+)(?:\s+|$)", re.IGNORECASE)


def of_question(room: Room, persona: Persona, prompt: str, owner: str,
                tell: Callable[[str], None] = lambda _text: None) -> tuple[str, Given | None]:
    """(the question itself, what is given with it). `tell` hears what is being done, in csps-llm's words (S4.13).

    A page that was named and cannot be had is an error, as `Fetcher.get` raises it; without a feed that nobody named
    the question is asked all the same. An address within a prompt is never fetched.
    """
    if found := _ADDRESS.match(prompt):
        tell(f"Fetching the page at {found[1]}")
        return prompt[found.end():].strip() or NO_WORDS, Given.content(page(room, persona, found[1], owner))
    feed = next(iter(room.parts.grounding.feeds.match(prompt)), None) if persona.feeds and room.settings.fetch else None
    if feed is None:
        return prompt, None
    if feed.status:
        tell(f"{feed.status}\n")
    try:
        text = page(room, persona, feed.url, owner)
    except ParleyError as error:
        log.info("the feed %s is left out: %s", feed.name, error.message)
        return prompt, None
    return prompt, Given.content("\n".join(filter(None, (feed.introduction, text))))


def of_text(room: Room, persona: Persona, text: str, owner: str) -> Given:
    """A text as it is, or what is at the address that it is."""
    found = _ADDRESS.fullmatch(text)
    return Given.of_text(page(room, persona, found[1], owner) if found else text)


def grounded(room: Room, persona: Persona, owner: str, knowledge: Sequence[str] = (), search: bool | None = None,
             places: Sequence[str] = ()) -> dict[str, Any]:
    """What a question is answered from beside that, as fields of an `Ask`: as it asks, else as the personality does.
    `places`: where is looked, if the model decides so."""
    bases = tuple(knowledge or persona.knowledge)
    if not (persona.search if search is None else search):
        return {"knowledge": bases}
    helper = room.parts.personas.helper(persona)
    judge = Ask(owner, **helper.fields(room.settings.models_dir)) if helper else None
    return {"knowledge": bases, "search": Search(tuple(places), judge)}


def page(room: Room, persona: Persona, url: str, owner: str) -> str:
    """What is at `url`, as much as the personality takes, quoted: it can neither end its quotation nor give orders.
    `FetchFailed` where that is nothing."""
    text = quoted([room.parts.grounding.fetcher.read(url, owner=owner)], persona.rag_length)
    if not text:
        raise FetchFailed(f"{url[:200]} has no text to answer from, or none within the {persona.rag_length} characters "
                          "that this personality takes (rag_length)", param="url")
    return text
