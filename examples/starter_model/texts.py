"""Work on a given text: questions about it, and the action items and the summary of a meeting."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import words
from words import one_of, pairs, person, phrases, prose, word

NOT_THERE = "The text does not say."
NO_ACTIONS = "No action items"


SLOTS: dict[str, Callable[[random.Random], str | int]] = {
    "n": person,
    "c": words.city,
    "j": lambda rng: words.article(one_of(rng, "jobs", 0.2)),
    "j2": lambda rng: one_of(rng, "jobs", 0.2),
    "f": lambda rng: one_of(rng, "foods"),
    "d": lambda rng: rng.randint(2, 99),
    "p": lambda rng: words.article(rng.choice(words.words("animals"))),
    "m": lambda rng: words.made_up(rng).capitalize(),
    "o": lambda rng: one_of(rng, "objects"),
    "k": lambda rng: one_of(rng, "colours", 0.1),
    "r": lambda rng: one_of(rng, "rooms", 0.1),
    "e": lambda rng: one_of(rng, "events", 0.1),
    "y": lambda rng: rng.choice(words.words("days")),
    "h": words.clock,
    "x": lambda rng: words.made_up(rng).capitalize(),
    "z": lambda rng: rng.randint(1700, 2026),
    "a": word,
    "b": word,
    "s": lambda rng: rng.choice(words.words("past")),
    "v": lambda rng: value(rng),
}
"""What stands for each slot of the relations in phrases.txt."""


def value(rng: random.Random) -> str | int:
    """A word, a number, a name or two words."""
    pick = rng.randrange(4)
    if pick == 0:
        return rng.randint(1, 10 ** rng.randint(2, 5))
    return word(rng) if pick == 1 else words.made_up(rng).capitalize() if pick == 2 else f"{word(rng)} {word(rng)}"


class Slots(dict):
    """A fresh choice for each slot at its first use."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng

    def __missing__(self, slot: str) -> str | int:
        self[slot] = SLOTS[slot](self.rng)
        return self[slot]


def relation(rng: random.Random, pattern: tuple[str, str]) -> tuple[str, str]:
    """A sentence and a question that it answers, of that pattern, about fresh things."""
    made = Slots(rng)
    return pattern[0].format_map(made), rng.choice(pattern[1].split(" ; ")).format_map(made)


def from_text(rng: random.Random, unknown: bool | None = None) -> tuple[str, str]:
    """A text with a question, and the sentence that answers it, or that the text does not say (one in six)."""
    unknown = rng.random() < 0.17 if unknown is None else unknown
    size = rng.choice((1, 2, 2, 3, 3, 4, 4, 5, 6, 8))
    from_prose = rng.random() < 0.06
    lines, question = (about_prose if from_prose else about_things)(rng, size, unknown)
    answer = lines.pop() if unknown else lines[-1]
    rng.shuffle(lines)
    if not from_prose and rng.random() < 0.08:
        lines.insert(0, rng.choice(prose()))
    pattern = rng.choice(phrases("ask text"))
    if "receding" in pattern:
        question = question[0].lower() + question[1:]
    return pattern.replace("{t}", joined(rng, lines)).replace("{q}", question), NOT_THERE if unknown else answer


def joined(rng: random.Random, lines: list[str]) -> str:
    """The sentences as one text, as lines, or as a list with dashes or numbers."""
    pick = rng.random()
    if pick < 0.12:
        return "\n".join(f"[{number}] {line}" if pick < 0.06 else f"- {line}" for number, line in enumerate(lines, 1))
    return (" " if pick < 0.78 else "\n").join(lines)


def about_things(rng: random.Random, size: int, unknown: bool) -> tuple[list[str], str]:
    """That many sentences, and a question about the last; with unknown one more, which is to be taken away."""
    kinds = pairs("relations")
    made = [relation(rng, rng.choice(kinds)) for _ in range(size + unknown)]
    if unknown and rng.random() < 0.2:
        kind = rng.choice(kinds)
        made[0], made[-1] = relation(rng, kind), relation(rng, kind)
    return [line for line, _ in made], made[-1][1]


def about_prose(rng: random.Random, size: int, unknown: bool) -> tuple[list[str], str]:
    """Sentences of prose, the last one's being asked for by a word that only it has."""
    while True:
        lines = rng.sample(prose(), min(size, 4) + unknown)
        mine = {w.strip(".,;:()'\"") for w in lines[-1].split() if len(w) > 4}
        others = " ".join(lines[:-1])
        rare = sorted(w for w in mine if w.isalpha() and w not in others)
        if rare:
            return lines, rng.choice(phrases("ask prose")).format(rng.choice(rare))


@dataclass(frozen=True)
class Meeting:
    """A meeting's text, its action items (one a line), and its summary."""

    text: str
    actions: str
    summary: str


def todo(rng: random.Random) -> str:
    """What somebody has to do, with or without a day."""
    task = rng.choice(words.words("tasks"))
    if rng.random() > 0.6:
        task = f"{task.split()[0]} the {word(rng)}"
    day = rng.choice(words.words("days"))
    return task + rng.choice(("", f" by {day}", f" by {day}", f" on {day}"))


def meeting(rng: random.Random) -> Meeting:
    """A meeting of one to four people, each with a task; one in ten leads to nothing."""
    names = words.people(rng, rng.choice((1, 2, 2, 3, 3, 4)))
    subject = rng.choice(words.words("subjects")) if rng.random() < 0.6 else f"the {word(rng)} {word(rng)}"
    tasks = [] if rng.random() < 0.1 else [(name, todo(rng)) for name in names]
    pattern = rng.choice(("- {}: {}", "{} will {}.", "{}: I will {}."))
    lines = [pattern.format(*task) for task in tasks]
    for _ in range(rng.choice((0, 0, 1, 1, 2)) + (not tasks)):
        said = rng.choice(phrases("chatter")).replace("{p}", rng.choice(prose()))
        line = f"Note: {said}" if pattern[0] == "-" else f"{rng.choice(names)}: {said}"
        lines.insert(rng.randint(0, len(lines)), line)
    told = [f"{name} will {task}" for name, task in tasks]
    listing = (
        f"{' and '.join([', '.join(told[:-1]), told[-1]] if told[:-1] else told)}."
        if told
        else "Nothing was left to do."
    )
    summary = f"The meeting was about {subject}. {listing}"
    if told and rng.random() < 0.15:
        summary = listing
    else:
        lines.insert(0, rng.choice(phrases("opening")).format(s=subject))
    return Meeting("\n".join(lines), "\n".join(f"- {name}: {task}" for name, task in tasks) or NO_ACTIONS, summary)


def page(rng: random.Random) -> Meeting:
    """A text that is no meeting: nothing to do, and its first sentence for a summary."""
    lines = [rng.choice(prose()) for _ in range(rng.randint(2, 4))]
    return Meeting(" ".join(lines), NO_ACTIONS, lines[0])


def about_meeting(rng: random.Random, actions: bool | None = None, alone: bool = False) -> tuple[str, str]:
    """A meeting (seldom another text) with the wish for its action items or its summary, and that.

    With alone the wish comes apart from the text, before a zero byte: it is for the system text.
    """
    about = page(rng) if rng.random() < 0.1 else meeting(rng)
    actions = rng.random() < 0.5 if actions is None else actions
    ask = rng.choice(phrases("ask actions" if actions else "ask summary"))
    pattern = "{q}\0{t}" if alone else rng.choice(phrases("ask meeting"))
    if pattern.startswith("{q}") and rng.random() < 0.4:
        ask = ask.rstrip(".?") + ":"
    filled = pattern.replace("{q}", ask).replace("{l}", ask[0].lower() + ask[1:]).replace("{t}", about.text)
    return filled, about.actions if actions else about.summary
