"""A tool that may be called: the tokens of a call's frame, and the grammar of its arguments."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from services.errors import BadSchema
from services.runner.closing import Value
from services.runner.complying import Spelling, rules_of
from services.runner.gbnf import Call, Grammar, Literal, Repeat, Row, size
from services.runner.grammar import grammar_of
from services.runner.llama import lib
from services.runner.loose import arguments
from services.runner.model import Model
from services.wire import CallForm, Calls

MOST_KEPT = 4096        # characters of a schema whose grammar is kept for the next request


class Tool:
    """The grammar is of the arguments and of what is plain text behind them; the `tail` begins with a special token.

    `spell` gives a text's tokens, special ones among them. `BadSchema` names the tool and says why it cannot be called.
    """

    def __init__(self, model: Model, form: CallForm, spelling: Spelling, spell: Callable[[str], list[int]]) -> None:
        self.begins = form.begin.rstrip(" ")        # a blank is often one token with the bracket behind it
        behind = _plain(model, form.end)
        self.tail = spell(form.end[len(behind):])
        try:
            text = json.dumps(form.schema)
            make = _kept if len(text) <= MOST_KEPT else _grammar
            grammar = make(text, form.loose, len(form.begin) - len(self.begins), behind)
            self.size = sum(map(size, grammar.rules))
            self._value = Value(grammar, spelling.tokens, 0, len(model.byte_tokens) == 256)
            self._rules, self._used = rules_of(model, grammar), False
        except BadSchema as error:
            raise _bad_tool(form.name, str(error)) from None
        ending = self._value.ending(self._value.state)
        if ending is None:
            self.close()
            raise _bad_tool(form.name, "the shortest arguments are too long, or the model's vocabulary cannot spell "
                            "them")
        self.least = len(ending) + len(self.tail)

    def begin(self, budget: int) -> tuple[Value, Any]:
        """What holds a call's arguments, of which nothing is written. `budget`: the tokens for them and the tail."""
        if self._used:
            lib.llama_sampler_reset(self._rules)
        self._used = True
        self._value.begin(budget - len(self.tail))
        return self._value, self._rules

    def close(self) -> None:
        lib.llama_sampler_free(self._rules)


def _grammar(schema: str, loose: bool, blanks: int, behind: str) -> Grammar:
    """Of a call's arguments, with up to so many blanks before them and a text behind."""
    inner = grammar_of(arguments(json.loads(schema)) if loose else json.loads(schema))
    root = Row((Repeat(Literal(" "), 0, blanks), Call(inner.root), Literal(behind)))
    return Grammar((*inner.rules, root), len(inner.rules))


_kept = lru_cache(maxsize=256)(_grammar)        # clients send the same tools with each question


def _bad_tool(name: str, what: str) -> BadSchema:
    where, path, why = what.partition("schema")
    return BadSchema(f"the tool {name!r}: " + (f"parameters{why}" if path and not where else what), param="tools")


def texts_of(calls: Calls) -> list[str]:
    """All texts that are written around the arguments of calls, and around thoughts."""
    return [calls.opening, calls.between, calls.closing, calls.think, calls.thought,
            *(form.begin + form.end for form in calls.forms)]


def shown_tokens(model: Model, texts: Iterable[str]) -> dict[int, bytes]:
    """The special tokens in `texts` that are otherwise no text, and how they are spelled."""
    tokens = {token for text in texts if text for token in model.tokens(text)}
    return {token: model.spelled(token) for token in tokens if not (model.piece(token) or model.is_end(token))}


def spelled(model: Model, spelling: Spelling, data: bytes) -> list[int] | None:
    """The tokens of a text that may hold special ones; None when the vocabulary cannot spell it."""
    tokens: list[int] = []
    for token in model.tokens(data.decode("utf-8", "ignore")):
        if not model.piece(token):
            plain, _, data = data.partition(model.spelled(token))
            if (before := spelling.tokens(plain)) is None:
                return None
            tokens += [*before, token]
    rest = spelling.tokens(data)
    return None if rest is None else tokens + rest


def _plain(model: Model, text: str) -> str:
    """What `text` begins with, before a special token."""
    specials = [model.spelled(token).decode() for token in model.tokens(text) if not model.piece(token)]
    return text.partition(specials[0])[0] if specials else text
