"""Word lists and phrases from the two text files, and words and names made of random syllables."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

PLAIN = "bcdfghjklmnprstvwz"
PAIRS = (
    *("br", "ch", "cl", "cr", "dr", "fl", "fr", "gl", "gr", "kl", "kr", "pl", "pr"),
    *("qu", "sh", "sk", "sl", "sm", "sn", "sp", "st", "th", "tr"),
)
ONSETS = (*"bcdfghjklmnprstvwyz", *PAIRS)
VOWELS = (*"aeiouaeiou", "ai", "ea", "ee", "ia", "io", "oa", "oo", "ou")
CODAS = ("", "", "", "", *"bdfgklmnprstvxz", "ck", "ld", "nd", "ng", "nt", "rk", "rn", "sh", "st", "th")
LONGEST = 12
"""Letters of a made-up word at most."""


@cache
def sections(file: str) -> dict[str, str]:
    """The parts of a text file beside this one: each begins with its name in square brackets on a line."""
    text = (Path(__file__).parent / file).read_text(encoding="utf-8")
    return dict(re.findall(r"^\[([a-z ]+)\]\n(.*?)\n*(?=^\[[a-z ]+\]\n|\Z)", text, re.MULTILINE | re.DOTALL))


@cache
def words(name: str) -> list[str]:
    """A list of words."""
    return [entry.replace("\n", " ") for entry in re.split(r",\s+", sections("words.txt")[name])]


@cache
def phrases(name: str) -> list[str]:
    """A list of phrases, one a line; those that stand there twice are twice as likely."""
    return [line.replace("\\n", "\n") for line in sections("phrases.txt")[name].splitlines()]


@cache
def pairs(name: str, file: str = "phrases.txt") -> list[tuple[str, str]]:
    """A list of pairs, written "one = other"."""
    entries = words(name) if file == "words.txt" else phrases(name)
    return [(one, other) for one, other in (entry.split(" = ") for entry in entries)]


@cache
def rude() -> re.Pattern[str]:
    """What no made-up word may hold."""
    return re.compile("|".join(words("rude")))


def made_up(rng: random.Random, least: int = 2, most: int = 3) -> str:
    """A lower-case word of least to most random syllables, half of them plain ones as in "zorlan"."""
    while True:
        plain = rng.random() < 0.5
        onsets, vowels = (PLAIN, "aeiou") if plain else (ONSETS, VOWELS)
        codas = ("", "", "n", "r", "l", "s", "m") if plain else CODAS
        count = rng.randint(least, most) + (plain and least == 1)
        made = "".join(rng.choice(onsets) + rng.choice(vowels) + rng.choice(codas) for _ in range(count))[:LONGEST]
        if not rude().search(made):
            return made


def person(rng: random.Random) -> str:
    """A first name: half of them made up, a few accented, a few with a surname."""
    kind = rng.random()
    if kind < 0.03:
        return rng.choice(words("accented"))
    if kind < 0.09:
        return f"{rng.choice(words('names'))} {made_up(rng).capitalize()}"
    return made_up(rng, 1).capitalize() if kind < 0.6 else rng.choice(words("names"))


def people(rng: random.Random, count: int) -> list[str]:
    """That many different names."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[person(rng)] = None
    return list(found)


def city(rng: random.Random) -> str:
    """A city: half of them made up, a few of two words."""
    kind = rng.random()
    if kind < 0.07:
        return f"{rng.choice(('New', 'Port', 'San', 'North', 'Saint', 'Los'))} {made_up(rng).capitalize()}"
    return made_up(rng).capitalize() if kind < 0.55 else rng.choice(words("cities"))


def one_of(rng: random.Random, name: str, strange: float = 0.35) -> str:
    """A word of that list, or a made-up one in that share of the cases."""
    return made_up(rng) if rng.random() < strange else rng.choice(words(name))


def clock(rng: random.Random) -> str:
    """A time of day."""
    return rng.choice((f"{rng.randint(1, 23)}:{rng.randint(0, 11) * 5:02}", f"{rng.randint(1, 12)} o'clock"))


def article(word: str) -> str:
    """The word behind "a" or "an"."""
    return f"{'an' if word[0] in 'aeiouAEIOU' else 'a'} {word}"


@cache
def prose() -> list[str]:
    """Real English sentences, of 20 to 150 characters, from the texts that come with Python's help()."""
    text = re.sub(r"[*`_|\\]+", "", " ".join(topics[key] for key in sorted(topics)))
    found = map(str.strip, re.split(r"(?<=[a-z]\.)\s+(?=[A-Z])", re.sub(r"\s+", " ", text)))
    return [s for s in found if 20 <= len(s) <= 150 and s.isascii() and not re.search(r"==|--|~~|\+-", s)]


@cache
def vocabulary() -> list[str]:
    """Lower-case English words of 3 to 12 letters, from the same texts and from the lists."""
    found = set(re.findall(r"\b[a-z]{3,12}\b", " ".join(prose())))
    lists = ("foods", "jobs", "animals", "objects", "rooms", "events", "colours")
    return sorted(found.union(*map(words, lists))) + 2 * words("common")


def word(rng: random.Random) -> str:
    """Any word: an English one or a made-up one."""
    return rng.choice(vocabulary()) if rng.random() < 0.55 else made_up(rng, 1)


def fragment(rng: random.Random) -> str:
    """Two to nine words of real English that follow one another."""
    found = rng.choice(prose()).rstrip(".").split()
    start = rng.randrange(max(len(found) - 2, 1))
    text = " ".join(found[start : start + rng.randint(2, 9)])
    return text[0].lower() + text[1:]
