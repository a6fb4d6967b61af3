"""The recogniser: it says what llama.cpp says, and from everywhere it knows a shortest way to the end."""

import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.runner.complying import Complying, candidates_of
from services.runner.gbnf import Call, Chars, Either, Grammar, Literal, Repeat, chars, either, maybe, others, row
from services.runner.grammar import grammar_of
from services.runner.llama import lib
from services.runner.model import Model
from services.runner.pushdown import MOST_DEPTH, MOST_KEPT, Machine, _encoded
from tests.services.runner.schemas import GOOD, RANDOM
from tests.services.runner.walk import walks
from tests.services.runner.writing import WILD
from tests.tiny_gguf import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(str(write_tiny(tmp_path_factory.mktemp("models") / "t.gguf")), n_ctx=64, n_slots=1, n_threads=1)
    yield model
    model.close()


def check(schema: dict[str, Any], seed: int, steps: int = 150) -> None:
    validator = jsonschema.Draft202012Validator(schema)
    for text in walks(Machine(grammar_of(schema)), seed, steps):
        errors = list(validator.iter_errors(json.loads(text.decode())))
        assert not errors, (text, errors)


@pytest.mark.parametrize("schema", GOOD, ids=lambda schema: json.dumps(schema)[:60])
def test_from_everywhere_the_shortest_end_complies(schema: dict[str, Any]) -> None:
    for seed in range(5):
        check(schema, seed)


@settings(deadline=None, max_examples=60)
@given(schema=RANDOM, seed=st.integers(0, 999))
def test_from_everywhere_in_any_schema(schema: dict[str, Any], seed: int) -> None:
    check(schema, seed, 80)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=RANDOM, seed=st.integers(0, 999))
def test_llama_cpp_says_the_same(model: Model, schema: dict[str, Any], seed: int) -> None:
    """Of each token, at each place of a random value. llama.cpp lets through broken UTF-8 and control tokens too."""
    grammar = grammar_of(schema)
    sampler, machine = Complying(model, WILD, [1], grammar, 10_000), Machine(grammar)
    pieces = [model.piece(token) for token in range(model.n_vocab)]
    chance, state = np.random.default_rng(seed), machine.start
    every = np.arange(model.n_vocab)
    for _ in range(40):
        theirs = np.isfinite(sampler._complying(candidates_of(np.zeros(model.n_vocab), every))["logit"])
        ours = np.array([bool(piece) and machine.after(state, piece) is not None for piece in pieces])
        ends = np.array([model.is_end(token) for token in range(model.n_vocab)])
        plain = np.array([piece.isascii() and b"\0" not in piece and piece != b"" for piece in pieces])
        assert not (ours & ~theirs).any(), "what llama.cpp does not let through would end the process"
        assert (ours == theirs)[plain].all() and (theirs[ends] == state.whole).all()
        if not ours.any():
            break
        token = int(chance.choice(np.flatnonzero(ours)))
        lib.llama_sampler_accept(sampler._rules, token)
        state = machine.after(state, pieces[token])
        assert state
    sampler.close()


@given(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF))
def test_utf_8_of_a_range_is_exact(one: int, other: int) -> None:
    expression = chars((min(one, other), max(one, other)))
    rows = [spans for low, high in expression.ranges for spans in _encoded(low, high)]
    for code in (one, other, one + 1, other - 1, 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000, 0xD7FF, 0xE000):
        if not 0 <= code <= 0x10FFFF or 0xD800 <= code <= 0xDFFF:
            continue
        data = chr(code).encode()
        found = [spans for spans in rows if len(spans) == len(data)
                 and all(low <= byte <= high for byte, (low, high) in zip(data, spans, strict=True))]
        assert len(found) == any(low <= code <= high for low, high in expression.ranges)
    assert others(others(expression)) == expression


def test_broken_utf_8_is_refused() -> None:
    machine = Machine(grammar_of({"type": "string"}))
    for data in (b"\x80", b"\xc0\x80", b"\xc3\"", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\0",
                 b"\n"):
        assert machine.after(machine.start, b'"' + data) is None
    for text in ("é", "€", "\U0010ffff", "\ud7ff", "\\u00e9", "\\\\"):
        assert machine.after(machine.start, f'"{text}"'.encode())
    half = machine.after(machine.start, b'"\xf0\x9d')
    assert half and json.loads(b'"\xf0\x9d' + machine.closing(half)) == "\U0001d000"


def test_values_do_not_nest_without_end() -> None:
    machine, depth = Machine(grammar_of({})), 0
    state = machine.start
    while (following := machine.after(state, b"[")) is not None:
        state, depth = following, depth + 1
    assert 100 < depth <= MOST_DEPTH + 1 and json.loads(b"[" * depth + machine.closing(state)) is not None


def test_what_is_kept_is_bounded() -> None:
    machine = Machine(grammar_of({"type": "array", "items": {"type": "string", "maxLength": 500}}))
    state = machine.start
    for text in ('["', *(f"{n:05}" * 90 + '","' for n in range(40))):
        following = machine.after(state, text.encode())
        assert following
        state = following
        assert len(machine._moves) <= MOST_KEPT + 1 >= len(machine._states)
    assert machine.closing(state) == b'"]'


def test_a_rule_that_calls_itself_is_followed() -> None:
    nested = either(row("(", Call(0), ")"), "x")
    machine = Machine(Grammar((nested, row(Call(0), Repeat(Literal(","), 0, None), maybe("!"))), 1))
    state = machine.after(machine.start, b"(((")
    assert state and machine.closing(state) == b"x)))"
    whole = machine.after(state, b"x)))")
    assert whole and whole.whole and machine.closing(whole) == b"" and whole.ways
    final = machine.after(whole, b",,!")
    assert final and final.whole and not final.ways


def test_what_must_come_next_is_known() -> None:
    machine = Machine(grammar_of({"properties": {"first": {"type": "integer"}, "second": {"enum": ["yes"]}},
                                  "required": ["first", "second"]}))
    assert machine.certain(machine.start, 0, 99) == b'{"first": '
    state = machine.after(machine.start, b'{ "first":12,')
    assert state
    assert machine.certain(state, ord(","), 99) == b' "second": "yes"}'
    assert machine.certain(state, ord(","), 4) == b' "se'
    free = Machine(Grammar((Either((Chars(((65, 66),)), Literal("Z"))),), 0))
    assert free.certain(free.start, 0, 9) == b""


def test_what_is_certain_ends_before_too_many_kinds_of_values() -> None:
    machine = Machine(grammar_of({"anyOf": [{"type": "string", "pattern": f"^x(a{n}|b{n}|c{n}|d{n}|e{n})z$"}
                                            for n in range(128)]}))
    assert machine.certain(machine.start, 0, 99) == b'"' and machine.after(machine.start, b'"x') is None
