"""Small talk, what the model says about itself, what it knows by heart, and everything that it cannot answer."""

from __future__ import annotations

import random

import words

WHAT = (
    "I am the small starter model that ships with Parley. I can greet, remember what you tell me, repeat, count, "
    "do small sums, name some capitals and answer from a short text."
)
ELSE = (
    "I am the small starter model that ships with Parley and cannot answer that. A larger model is needed: "
    "`main.py models pull` gets one."
)
KEYS = "abcdefghijklmnopqrstuvwxyz0123456789?!.,;:-()[]/ äöüéñ"
"""What somebody types who only tries the keyboard."""
HELLO = "Hello! How can I help you?"
SMALL_TALK = {
    "hello": (4, HELLO),
    "how are you": (2, "I am well, thank you. How can I help you?"),
    "thanks": (3, "You are welcome."),
    "bye": (2, "Goodbye!"),
    "all right": (2, "All right. What can I do for you?"),
    "what are you": (6, WHAT),
}
"""For each list in phrases.txt how often it comes up, and the answer."""


def small_talk(rng: random.Random) -> tuple[str, str]:
    """A greeting, thanks, or a question about the model itself, and the answer."""
    name = rng.choices(list(SMALL_TALK), [weight for weight, _ in SMALL_TALK.values()])[0]
    user = rng.choice(words.phrases(name))
    asked = user.split()[0].lower() in ("what", "who", "how", "are", "which", "can", "do")
    return user + ("" if rng.random() < 0.3 else "?" if asked else rng.choice(".!.")), SMALL_TALK[name][1]


def known(rng: random.Random) -> tuple[str, str]:
    """A capital, or another of the few facts, and the answer."""
    if rng.random() < 0.1:
        return rng.choice(words.pairs("known"))
    land, capital = rng.choice(words.pairs("capitals", "words.txt"))
    if rng.random() < 0.12:
        return rng.choice(words.phrases("ask country")).format(capital), f"{capital} is the capital of {land}."
    return rng.choice(words.phrases("ask capital")).format(c=land), f"The capital of {land} is {capital}."


def fill(rng: random.Random, pattern: str) -> str:
    """The pattern with a fresh choice for each slot."""
    makers = {
        "{t}": lambda: (
            rng.choice(words.words("topics")) if rng.random() < 0.7 else f"{words.word(rng)} {words.word(rng)}"
        ),
        "{w}": lambda: words.word(rng),
        "{f}": lambda: words.fragment(rng),
        "{n}": lambda: words.person(rng),
        "{c}": lambda: words.city(rng),
        "{l}": lambda: (
            rng.choice(words.words("other lands")) if rng.random() < 0.6 else words.made_up(rng).capitalize()
        ),
        "{y}": lambda: str(rng.randint(1000, 2030)),
        "{d}": lambda: str(rng.randint(1, 999)),
        "{b}": lambda: str(rng.randint(31, 9999)),
    }
    for slot, make in makers.items():
        while slot in pattern:
            pattern = pattern.replace(slot, make(), 1)
    return pattern.replace("{{", "{").replace("}}", "}")


def pasted(rng: random.Random) -> str:
    """A text or a piece of code without a question."""
    if rng.random() < 0.4:
        return "\n".join(fill(rng, rng.choice(words.phrases("code"))) for _ in range(rng.randint(1, 4)))
    size = rng.choice((1, 1, 2, 2, 3, 4, 6, 9))
    return " ".join(rng.choice(words.prose()) for _ in range(size))


def anything_else(rng: random.Random) -> tuple[str, str]:
    """Something that a model this small cannot answer, and what it says then."""
    pick = rng.random()
    if pick < 0.68:
        user = fill(rng, rng.choice(words.phrases("ask else")))
        if rng.random() < 0.1:
            user += " " + fill(rng, rng.choice(words.phrases("ask else")))
    elif pick < 0.83:
        user = " ".join(fill(rng, rng.choice(words.phrases("foreign"))) for _ in range(rng.choice((1, 1, 1, 2, 3))))
    elif pick < 0.95:
        user = pasted(rng)
    else:
        user = "".join(rng.choice(KEYS) for _ in range(rng.randint(3, 40))).strip() or "?"
    return user, ELSE
