"""Conversations: the first token by turn of a sliding window, many of them behind one head, and after a restart."""

from __future__ import annotations

from statistics import median

from tests.bench.rows import Row
from tests.bench.shapes import words
from tests.bench.speed import Options
from tests.bench.target import Ask, Reply, Target, at_once, pair

TURNS, SHOWN = 12, (1, 4, 7, 10, 12)
K, TEXT, ANSWER = 5, 80, 48             # interactions sent along; tokens
HEAD, BEHIND = 1000, 16                 # tokens that a profile begins with, conversations behind it
FIRST, LAST = 24, 8                     # tokens of a short text, of a short answer
LONG = 300                              # tokens of each text that makes a long conversation


class Talk:
    """A conversation with one target. Ours keeps it; to the peer the window is sent along, as its clients do."""

    def __init__(self, target: Target, name: str, k: int) -> None:
        self.target, self.name, self.k = target, name, k
        self.turns: list[tuple[str, str]] = []

    def say(self, text: str, tokens: int) -> Reply:
        reply = self.target.ask(Ask(text, tokens, stream=True, session=self.name, window=self.turns[-self.k:]))
        self.turns.append((text, reply.text))
        return reply


def session(options: Options) -> list[Row]:
    """First token by turn of a conversation of which the last 5 interactions are sent along, and what it cost."""
    found: dict[tuple[str, int], list[Reply]] = {}
    with pair(options.setup("135m", 4, 2048, template=None, k=K), options.peer) as targets:
        for number in range(min(options.rounds, 2)):
            talks = [Talk(target, f"talk-{number}", K) for target in targets]
            for turn in range(1, TURNS + 1):
                for talk in talks if turn % 2 else talks[::-1]:
                    for target in targets:
                        target.settle()
                    reply = talk.say(words(TEXT, number * 100 + turn).strip(), ANSWER)
                    found.setdefault((talk.target.name, turn), []).append(reply)
    times = [_row(found, turn, "first token", "ms") for turn in range(1, TURNS + 1)]
    return times + [_row(found, turn, "computed", "tokens") for turn in range(1, TURNS + 1)]


def _row(found: dict[tuple[str, int], list[Reply]], turn: int, what: str, unit: str) -> Row:
    ours, peer = (median(reply.first * 1000 if unit == "ms" else reply.processed for reply in found[name, turn])
                  for name in ("ours", "llama.cpp"))
    return Row("session", f"turn {turn}, {what}", unit, ours, peer, less=True, at=turn, shown=turn in SHOWN)


def heads(options: Options) -> list[Row]:
    """16 conversations of 16 keys begin at once behind a profile's head of 1,000 tokens that nobody had used yet."""
    head = words(HEAD, 4242)
    setup = options.setup("135m", BEHIND, 1536, template=head + "{chat_history}{input}")
    found = {}
    with pair(setup, options.peer) as targets:
        for target in targets:
            for other in targets:
                other.settle()
            asks = [Ask(words(FIRST, 7000 + n), LAST, stream=True, session="s", key=target.make_key(), head=head)
                    for n in range(BEHIND)]
            found[target.name] = at_once(target, asks)[0]

    def row(what: str, unit: str, figures: list[float]) -> Row:
        return Row("heads", what, unit, *figures, less=True)

    both = [found["ours"], found["llama.cpp"]]
    return [row("tokens computed", "tokens", [sum(reply.processed for reply in replies) for replies in both]),
            row("first token, median", "ms", [median(reply.first * 1000 for reply in replies) for replies in both]),
            row("first token, last one", "ms", [max(reply.first * 1000 for reply in replies) for replies in both])]


def resume(options: Options) -> list[Row]:
    """The next turn of a conversation of 1,300 tokens after both servers were stopped and started."""
    first: dict[str, list[Reply]] = {}
    with pair(options.setup("135m", 4, 2048, template=None, k=20), options.peer) as targets:
        for number in range(min(options.rounds, 2)):
            for target in targets:
                talk = Talk(target, f"talk-{number}", 20)
                for turn in range(4):
                    talk.say(words(LONG, number * 100 + turn + 50).strip(), FIRST)
                    target.settle()
                target.stop()
                target.start()
                target.settle()
                first.setdefault(target.name, []).append(talk.say(words(TEXT, number + 900).strip(), LAST))
    ours, peer = first["ours"], first["llama.cpp"]
    return [Row("resume", "first token", "ms", median(reply.first * 1000 for reply in ours),
                median(reply.first * 1000 for reply in peer), less=True),
            Row("resume", "computed", "tokens", median(reply.processed for reply in ours),
                median(reply.processed for reply in peer), less=True)]
