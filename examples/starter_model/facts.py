"""Facts that a user tells about themselves, the questions that ask for them back, and what the answers are."""

from __future__ import annotations

import random
from dataclasses import dataclass

from words import article, made_up, one_of, person, phrases, word, words
from words import city as any_city


@dataclass(frozen=True)
class Fact:
    """One fact: what the user says, the assistant's acknowledgement, and the sentence that gives it back."""

    kind: str
    tells: tuple[str, ...]
    recall: str

    @property
    def noted(self) -> str:
        """The answer when it is told."""
        if self.kind == "name":
            return f"Nice to meet you, {self.recall.removeprefix('Your name is ')}"
        return f"I will remember that {self.recall[0].lower()}{self.recall[1:]}"


def told(kind: str, value: str, recall: str, **slots: str) -> Fact:
    """A fact of that kind, told in one of the ways that phrases.txt has for the kind's first word."""
    group = {"the": "code", "my": "own"}.get(kind.split()[0], kind.split()[0])
    return Fact(kind, tuple(tell.format(v=value, **slots) for tell in phrases(f"tell {group}")), recall)


def own_value(rng: random.Random, key: str) -> str:
    """A value that suits "my <key> is …"."""
    if "colo" in key:
        return one_of(rng, "colours")
    if key in words("people keys"):
        return person(rng)
    if "number" in key or key in ("pin", "locker"):
        return str(rng.randint(1, 10 ** rng.randint(1, 5)))
    if key == "birthday":
        return f"{rng.randint(1, 28)} " + rng.choice(words("months"))
    pick = rng.random()
    if pick < 0.3:
        return rng.choice(words(rng.choice(("foods", "animals", "colours", "days"))))
    return word(rng) if pick < 0.6 else made_up(rng).capitalize()


def random_key(rng: random.Random) -> str:
    """What "my …" may be about: often a favourite, now and then something nobody could foresee."""
    pick = rng.random()
    if pick < 0.45:
        thing = rng.choice(words("favourites")[: 2 if pick < 0.2 else None])
        return f"{rng.choice(('favourite', 'favourite', 'favorite', 'favorite', 'fav'))} {thing}"
    return rng.choice(words("owns")) if pick < 0.85 else f"{rng.choice(('favourite ', '', ''))}{word(rng)}"


def new_fact(rng: random.Random, lower: bool) -> Fact:
    """Any fact; with lower, all of it in lower case, as hurried people type."""

    def say(value: str) -> str:
        return value.lower() if lower else value

    pick = rng.random()
    if pick < 0.3:
        value = say(person(rng))
        return told("name", value, f"Your name is {value}.")
    if pick < 0.44:
        value = say(any_city(rng))
        return told("city", value, f"You live in {value}.")
    if pick < 0.58:
        return about_life(rng, pick)
    if pick < 0.68:
        pet, value = rng.choice(words("animals")), say(person(rng).split()[0])
        return told(f"pet {pet}", value, f"Your {pet} is called {value}.", p=pet, a=article(pet))
    if pick < 0.78:
        key = rng.choice(words("codes")) if rng.random() < 0.8 else word(rng)
        key = key if rng.random() < 0.8 else f"{word(rng)} {key}"
        value = made_up(rng) if rng.random() < 0.4 else str(rng.randint(10, 99999))
        return told(f"the {key}", value, f"The {key} is {value}.", p=key)
    key = random_key(rng)
    value = say(own_value(rng, key))
    return told(f"my {key}", value, f"Your {key} is {value}.", p=key)


def about_life(rng: random.Random, pick: float) -> Fact:
    """A job (pick below 0.5), an age (below 0.54) or something liked."""
    if pick < 0.5:
        value = article(one_of(rng, "jobs", 0.2))
        return told("job", value, f"You work as {value}.")
    if pick < 0.54:
        value = str(rng.randint(5, 99))
        return told("age", value, f"You are {value} years old.")
    value = one_of(rng, "foods")
    return told("like", value, f"You like {value}.")


UNTOLD = {
    "name": "your name",
    "city": "where you live",
    "job": "what you do",
    "age": "your age",
    "like": "what you like",
}


def questions(kind: str) -> list[str]:
    """The ways to ask for a fact of that kind."""
    if kind in UNTOLD:
        return phrases(f"ask {kind}")
    group, key = kind.split(" ", 1)
    return [ask.format(p=key) for ask in phrases({"pet": "ask pet", "the": "ask code", "my": "ask own"}[group])]


def not_told(kind: str) -> str:
    """The answer when a fact of that kind was not told."""
    if kind in UNTOLD:
        return f"You have not told me {UNTOLD[kind]}."
    group, key = kind.split(" ", 1)
    return "You have not told me " + {"pet": "your {}'s name.", "the": "the {}.", "my": "your {}."}[group].format(key)
