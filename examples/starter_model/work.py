"""Small pieces of work: sums, repeating, counting, fields as JSON."""

from __future__ import annotations

import json
import random

from words import article, city, made_up, one_of, person, phrases, prose, word, words


def sum_of(rng: random.Random) -> tuple[str, str]:
    """A small sum, seldom a difference or a product, and the answer."""
    a, b = rng.randint(0, 20), rng.randint(0, 20)
    pick = rng.random()
    if pick < 0.8:
        return added(rng, a, b)
    if pick < 0.92:
        a, b = max(a, b), min(a, b)
        ask, answer = rng.choice(phrases("minus")), f"{a} - {b} = {a - b}."
    else:
        a, b = a % 11, b % 11
        ask, answer = rng.choice(phrases("times")), f"{a} x {b} = {a * b}."
    return ask.format(a=a, b=b), answer


def added(rng: random.Random, a: int, b: int) -> tuple[str, str]:
    """The question for a + b, seldom in words, and the answer."""
    ask, numbers = rng.choice(phrases("plus")), words("numbers")
    if rng.random() < 0.08 and "+" not in ask:
        return ask.format(a=numbers[a], b=numbers[b]), f"{a} + {b} = {a + b}."
    return ask.format(a=a, b=b), f"{a} + {b} = {a + b}."


def repeat(rng: random.Random) -> tuple[str, str]:
    """Something to say again, and the same."""
    pick = rng.random()
    if pick < 0.15:
        text = rng.choice(prose())
    elif pick < 0.25:
        text = str(rng.randint(0, 10 ** rng.randint(1, 9)))
    else:
        makers = (word, word, made_up, person, city, lambda r: str(r.randint(0, 999)))
        text = " ".join(rng.choice(makers)(rng) for _ in range(rng.choice((1, 1, 2, 3, 3, 4, 5, 6, 8))))
        text += rng.choice(("", "", "", ".", "!", "?"))
    quote = rng.choice(('"{}"', "'{}'")) if rng.random() < 0.15 and not text.endswith((".", "!", "?")) else "{}"
    return rng.choice(phrases("repeat")).format(t=quote.format(text)), text


def count(rng: random.Random) -> tuple[str, str]:
    """A stretch of numbers to count through."""
    first, last, how = 1, rng.randint(2, 20), "count to"
    if rng.random() < 0.35:
        first, last = sorted(rng.sample(range(21), 2))
        how = "count from"
    steps = list(range(first, last + 1))
    if rng.random() < 0.12:
        first, last, how = last, first, "count down"
        steps.reverse()
    name = words("numbers").__getitem__ if rng.random() < 0.12 else str
    return rng.choice(phrases(how)).format(a=name(first), b=name(last)), ", ".join(map(str, steps)) + "."


def as_json(rng: random.Random) -> tuple[str, str]:
    """Fields to take out of a sentence, and the JSON object; a field that is not there is null."""
    made = {
        "name": person(rng),
        "city": city(rng),
        "age": rng.randint(3, 99),
        "job": one_of(rng, "jobs", 0.2),
        "colour": one_of(rng, "colours"),
    }
    keys = list(dict.fromkeys(["name", *rng.sample(["city", "city", "age", "job", "colour"], rng.randint(1, 3))]))
    told = [key for key in keys[1:] if rng.random() > 0.08]
    listing = f"{', '.join(keys[:-1])} and {keys[-1]}"
    answer = {key: made[key] if key == "name" or key in told else None for key in keys}
    ask = rng.choice(phrases("ask json")).replace("{k}", listing).replace("{t}", described(rng, made, told))
    return ask, json.dumps(answer, ensure_ascii=False)


def described(rng: random.Random, made: dict[str, str | int], told: list[str]) -> str:
    """The name and the told fields of a person, as a list, one sentence or several."""
    name = made["name"]
    parts = {
        "city": f"lives in {made['city']}",
        "age": f"is {made['age']} years old",
        "job": f"works as {article(str(made['job']))}",
        "colour": f"likes {made['colour']}",
    }
    style = rng.randrange(5)
    if style == 0:
        return ", ".join(f"{key}: {made[key]}" for key in ["name", *told])
    if style == 1:
        return f"{name} {' and '.join(parts[key] for key in told)}." if told else f"{name}."
    if style == 2:
        mine = {
            "city": f"I live in {made['city']}",
            "age": f"I am {made['age']}",
            "job": f"I am {article(str(made['job']))}",
        }
        mine["colour"] = f"my favourite colour is {made['colour']}"
        return f"{', '.join([f'My name is {name}', *(mine[key] for key in told)])}."
    if style == 3 and told:
        rest = [parts[key] for key in told[1:]] or [rng.choice(phrases("beside"))]
        return f"{name}, who {parts[told[0]]}, {' and '.join(rest)}."
    return " ".join([f"My name is {name}.", *(f"{name} {parts[key]}." for key in told)])
