"""The training text: dialogues of one to six turns in two formats, and fresh cases to try a model with.

python dialogues.py --seed 7 --count 3      prints three dialogues as the model reads them
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import chat
import facts
import texts
import words
import work

END = "<|im_end|>"
START = "<|im_start|>"
SEED_SYSTEM = "You are a chatbot."
WINDOW = 5
Turn = tuple[str, str]
Piece = tuple[str, bool]
"""Text, and whether the model said it; START and END stand alone."""


@dataclass
class Talk:
    """What was told so far: facts by their kind, in the order of the telling."""

    rng: random.Random
    lower: bool = False
    told: dict[str, facts.Fact] = field(default_factory=dict)

    def tell(self) -> Turn:
        """The user tells a fact, seldom two at once, or one that takes the place of an older one."""
        fact = facts.new_fact(self.rng, self.lower)
        first = self.note(fact)
        if self.rng.random() < 0.03:
            return f"{first[0]} {self.rng.choice(facts.questions(fact.kind))}", fact.recall
        if self.rng.random() > 0.07:
            return first
        second = self.note(facts.new_fact(self.rng, self.lower))
        return (
            f"{first[0].rstrip('.')} and {second[0][0].lower() if second[0][:2] != 'I ' else 'I'}{second[0][1:]}",
            f"{first[1]} {second[1]}",
        )

    def note(self, fact: facts.Fact) -> Turn:
        """The turn in which this fact is told."""
        known = self.told.pop(fact.kind, None)
        self.told[fact.kind] = fact
        tell = self.rng.choice(fact.tells)
        return (self.rng.choice(("Actually, ", "No, ", "Sorry, ", "")) if known else "") + tell, fact.noted

    def ask(self) -> Turn:
        """The user asks for a fact that was told, or (one in four, and when there is none) for one that was not."""
        if self.rng.random() < 0.04:
            about = " ".join(fact.recall for fact in self.told.values())
            ask = self.rng.choice(
                ("What do you know about me?", "What have I told you?", "Tell me what you know about me.")
            )
            return ask, about or "You have not told me anything yet."
        if self.told and self.rng.random() > 0.25:
            fact = self.rng.choice(list(self.told.values()))
            return self.rng.choice(facts.questions(fact.kind)), fact.recall
        return self.ask_untold()

    def ask_untold(self) -> Turn:
        """The user asks for a fact that was not told."""
        while True:
            kind = facts.new_fact(self.rng, self.lower).kind
            if kind not in self.told and not (kind.startswith("the ") and kind[4:] not in words.words("codes")):
                return self.rng.choice(facts.questions(kind)), facts.not_told(kind)


def typed(rng: random.Random, text: str, lower: bool) -> str:
    """A short text as people type it: without its mark at the end, in lower case, with a word too many."""
    if rng.random() < 0.25:
        text = text.rstrip(".?!")
    if rng.random() < 0.05:
        text += rng.choice(("!", "!!", "?", "??", "...", " .", " ?", " :)", " please", ", please"))
    if rng.random() < 0.05:
        text = text.replace("'", "")
    if rng.random() < 0.06:
        text = rng.choice(("please ", "Please, ", "So, ", "Ok, ", "And ", "Hey, ", "Well, ", "Hi, ", "Now, ")) + text
    return text.lower() if lower else text


MAKERS: dict[str, tuple[float, Callable[[random.Random], Turn], bool]] = {
    "small talk": (16, chat.small_talk, True),
    "known": (8, chat.known, True),
    "sums": (16, work.sum_of, True),
    "repeat": (12, work.repeat, False),
    "count": (4, work.count, True),
    "from text": (90, texts.from_text, False),
    "meeting": (12, texts.about_meeting, False),
    "json": (6, work.as_json, False),
    "else": (14, chat.anything_else, False),
}


def turn(talk: Talk) -> Turn:
    """Any turn that suits the talk so far."""
    pick = talk.rng.random()
    if pick < 0.4:
        user, answer = talk.tell() if pick < 0.18 else talk.ask()
        return typed(talk.rng, user, talk.lower), answer
    return other_turn(talk)


def other_turn(talk: Talk) -> Turn:
    """A turn that neither tells nor asks a fact."""
    _, maker, loose = talk.rng.choices(list(MAKERS.values()), [w for w, _, _ in MAKERS.values()])[0]
    user, answer = maker(talk.rng)
    return (typed(talk.rng, user, talk.lower) if loose else user), answer


def dialogue(rng: random.Random) -> list[Turn]:
    """One to six turns; the longer ones are more likely to hold facts told and asked."""
    talk = Talk(rng, rng.random() < 0.15)
    size = rng.choices(range(1, 7), (34, 16, 14, 12, 12, 12))[0]
    turns = [turn(talk) for _ in range(size)]
    if size > 2 and rng.random() < 0.5:
        turns = [talk_turn for talk_turn in turns if len(talk_turn[0]) < 200] or turns
    return turns


def as_text(turns: list[Turn], system: str = SEED_SYSTEM) -> list[Piece]:
    """The dialogue in the seed's text template; every turn but the last is history."""
    *history, (prompt, answer) = turns[-WINDOW - 1 :]
    pieces: list[Piece] = [(f"{system} \n\n" if system else "", False)]
    for i, (user, reply) in enumerate(history):
        pieces += [(f"{chr(10) if i else ''}Human: {user}\nAI:", False), (f" {reply}", True)]
    return [*pieces, (f" \n\nPROMPT: {prompt} \n\nBOT:", False), (f" {answer}", True), (END, True)]


def as_chat(turns: list[Turn], system: str = "") -> list[Piece]:
    """The dialogue in the chat template, with or without a system text."""
    pieces: list[Piece] = [(START, False), (f"system\n{system}", False), (END, False), ("\n", False)] if system else []
    for user, answer in turns:
        pieces += [(START, False), (f"user\n{user}", False), (END, False), ("\n", False), (START, False)]
        pieces += [("assistant\n", False), (answer, True), (END, True), ("\n", False)]
    return pieces


def rendered(rng: random.Random) -> list[Piece]:
    """A dialogue in either format; one in thirty is a text whose system text says what to do with it."""
    turns, system = dialogue(rng), SEED_SYSTEM if rng.random() < 0.7 else rng.choice((*words.phrases("systems"), ""))
    in_chat = rng.random() < 0.5
    if in_chat:
        system = rng.choice((*words.phrases("systems"), SEED_SYSTEM)) if rng.random() < 0.4 else ""
    if system and rng.random() < 0.12:
        system = " ".join([*rng.sample((SEED_SYSTEM, ""), 1), *rng.sample(words.prose(), rng.randint(1, 3))]).strip()
    if rng.random() < 0.033:
        user, answer = texts.about_meeting(rng, alone=True)
        system, text = user.split("\0")
        turns = [(text, answer)]
    return (as_chat if in_chat else as_text)(turns, system)


@dataclass(frozen=True)
class Case:
    """One test: what the user says, turn after turn, and what the last answer must be."""

    prompts: list[str]
    wanted: str


def recall_case(rng: random.Random, told: bool) -> Case:
    """A fact told, up to four other turns, and the question; or the question about something else than was told."""
    talk = Talk(rng)
    first = talk.tell()
    others = [other_turn(talk) for _ in range(rng.randint(0, 4))]
    others = [other for other in others if len(other[0]) < 200]
    fact = rng.choice(list(talk.told.values()))
    last = (rng.choice(facts.questions(fact.kind)), fact.recall) if told else talk.ask_untold()
    turns = [first, *others, last] if told or rng.random() < 0.5 else [*others, (last[0], last[1])]
    return Case([user for user, _ in turns], last[1])


def single(maker: Callable[[random.Random], Turn]) -> Callable[[random.Random], Case]:
    """A maker of one-turn cases."""

    def make(rng: random.Random) -> Case:
        user, answer = maker(rng)
        return Case([user], answer)

    return make


def repeat_or_count(rng: random.Random) -> Turn:
    """Three times in four something to repeat, else something to count."""
    return work.repeat(rng) if rng.random() < 0.75 else work.count(rng)


TASKS: dict[str, tuple[int, Callable[[random.Random], Case]]] = {
    "greet": (99, single(chat.small_talk)),
    "recall": (97, lambda rng: recall_case(rng, True)),
    "not told": (97, lambda rng: recall_case(rng, False)),
    "capitals": (99, single(chat.known)),
    "repeat": (97, single(repeat_or_count)),
    "sums": (90, single(lambda rng: work.added(rng, rng.randint(0, 20), rng.randint(0, 20)))),
    "from text": (95, single(texts.from_text)),
    "actions": (85, single(lambda rng: texts.about_meeting(rng, True))),
    "summary": (85, single(lambda rng: texts.about_meeting(rng, False))),
    "json": (90, single(work.as_json)),
    "anything else": (95, single(chat.anything_else)),
}
"""The tasks: the wanted share of right answers in percent, and the maker of a case."""


def cases(task: str, count: int, seed: int) -> list[Case]:
    """Fresh cases of a task; a seed given as text never meets a training seed, which is a number."""
    rng = random.Random(f"{task} {seed}")
    return [TASKS[task][1](rng) for _ in range(count)]


def main() -> None:
    """Print some dialogues."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=5)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    for _ in range(options.count):
        print("".join(text for text, _ in rendered(rng)), end="\n\n======\n")


if __name__ == "__main__":
    main()
