"""Regular expressions become grammars of what they match, or less; each supported format's values are valid."""

import json
import re
from datetime import date, datetime
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import BadSchema
from services.runner.gbnf import Grammar
from services.runner.pattern import FORMATS, Pattern
from services.runner.pushdown import Machine
from tests.services.runner.walk import walks


def written(pattern: str, seed: int, steps: int = 12) -> str:
    """A text that the pattern's grammar lets through."""
    machine = Machine(Grammar((Pattern(pattern, "here").expression(),), 0))
    *_, text = walks(machine, seed, steps)
    return str(json.loads(b'"' + text + b'"'))


PATTERNS = ["^$", "^a$", "^a|b|$", "^(ab|a)*c$", "^a{2}b{1,}c{0,2}d{0}$", "^[a-c\\d_-]+$", "^[^a-z]{3}$", "^.{1,4}$",
            "^\\W\\D\\s$", '^"\\\\\\/\\t[\\n"x]$', "^(?:x|(y|z)){2,3}$", "^[-a]$", "^[a\\]]$", "^é+[α-ω€𝄞]$",
            "^(a+)+b$", "^\\$\\^[.^$]$", "^[^\\w]$"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_is_written_matches(pattern: str) -> None:
    for seed in range(30):
        text = written(pattern, seed)
        assert re.search(pattern, text), text


LETTERS = st.sampled_from(["a", "b", "0", "[ab]", "[^a]", ".", "\\d", "\\W", "é", "\\.", '"', "\\\\"])
ANY = st.recursive(LETTERS, lambda inner: st.one_of(
    st.lists(inner, min_size=1, max_size=3).map("".join),
    st.lists(inner, min_size=2, max_size=3).map("|".join).map("({})".format),
    inner.map("(?:{})?".format), inner.map("({})+".format), inner.map("({}){{1,3}}".format)), max_leaves=6)


@settings(deadline=None, max_examples=80)
@given(pattern=ANY, seed=st.integers(0, 99))
def test_what_any_pattern_writes_matches(pattern: str, seed: int) -> None:
    try:
        text = written(f"^(?:{pattern})$", seed)
    except BadSchema as error:
        assert "empty" in str(error) or "grow" in str(error)
    else:
        assert re.search(f"^(?:{pattern})$", text), text


@pytest.mark.parametrize(("pattern", "words"), [
    ("a", "form"), ("^a", "form"), ("^a\\$", "ends too soon"), ("^(?!a)$", "supported"), ("^\\ba$", "\\\\b"),
    ("^\\1$", "\\\\1"),
    ("^a$b$", "supported"), ("^[a$", "ends too soon"), ("^[b-a]$", "range"), ("^[\\d-z]$", None),
    ("^[a-\\d]$", "range"),
    ("^a{x}$", "number"), ("^a{3,1}$", "allows nothing"), ("^a{1$", "number"), ("^a??$", "repeat of a repeat"),
    ("^" + "(" * 30 + ")" * 30 + "$", "inside one another"), ("^" + "a" * 300 + "$", "longer"),
    ("^[^\\u0000]$", "\\\\u"),
    ("^[\\n]$", "without a character"), ("^[]$", "without a character|ends too soon"), ("^a)$", "parenth"),
    ("^²{²}$", "number")])
def test_what_is_not_taken_is_named(pattern: str, words: str | None) -> None:
    if words is None:
        Pattern(pattern, "here").expression()
        return
    with pytest.raises(BadSchema, match=words):
        Pattern(pattern, "here").expression()


VALID = {"date": date.fromisoformat, "uuid": UUID,
         "ipv4": lambda text: [int(part) < 256 or 1 / 0 for part in text.split(".")],
         "time": lambda text: datetime.fromisoformat(f"2024-01-01T{text}".replace("Z", "+00:00")),
         "date-time": lambda text: datetime.fromisoformat(text.replace("Z", "+00:00"))}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_write_valid_values(name: str) -> None:
    for seed in range(60):
        text = written(FORMATS[name], seed, steps=60)
        if name in VALID:
            text = re.sub(r"\.\d+", lambda found: found[0].ljust(7, "0"), text) if "time" in name else text
            VALID[name](text)
        assert re.search(FORMATS[name], text)
