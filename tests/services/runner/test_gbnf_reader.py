"""GBNF is read as llama.cpp reads it; what no text can be held to, or not in reasonable time, is refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.errors import BadGrammar
from services.runner.complying import PATIENCE, Complying, candidates_of
from services.runner.gbnf import Grammar
from services.runner.gbnf_reader import MOST_BYTES, MOST_RULES, grammar_from
from services.runner.llama import last_error, lib
from services.runner.model import Model
from services.runner.pushdown import FEW_STEPS, Machine
from services.wire import Sampling
from tests.services.runner.walk import walks
from tests.services.runner.writing import write
from tests.tiny_gguf import write_tiny

# From llama.cpp's grammars folder (MIT), as they are there.
JSON = r'''root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: by convention, applied in this grammar after literal chars when allowed
ws ::= | " " | "\n" [ \t]{0,20}
'''
ARITHMETIC = r'''root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
'''
CHESS = r'''# Specifies chess moves as a list in algebraic notation, using PGN conventions

# Force first move to "1. ", then any 1-2 digit number after, relying on model to follow the pattern
root    ::= "1. " move " " move "\n" ([1-9] [0-9]? ". " move " " move "\n")+
move    ::= (pawn | nonpawn | castle) [+#]?

# piece type, optional file/rank, optional capture, dest file & rank
nonpawn ::= [NBKQR] [a-h]? [1-8]? "x"? [a-h] [1-8]

# optional file & capture, dest file & rank, optional promotion
pawn    ::= ([a-h] "x")? [a-h] [1-8] ("=" [NBKQR])?

castle  ::= "O-O" "-O"?
'''
LIST = r'''root ::= item+

# Excludes various line break characters
item ::= "- " [^\r\n\x0b\x0c\x85\u2028\u2029]+ "\n"
'''
JAPANESE = r'''# A probably incorrect grammar for Japanese
root        ::= jp-char+ ([ \t\n] jp-char+)*
jp-char     ::= hiragana | katakana | punctuation | cjk
hiragana    ::= [ぁ-ゟ]
katakana    ::= [ァ-ヿ]
punctuation ::= [、-〾]
cjk         ::= [一-鿿]
'''
ODD = r'''root::=a|b c
c ::= ("x"{2}|[\]\[\\-]{1,} . {0,2})?"é\u00e9\U0001F600" # a | b
a ::= [^a-c] [-a] [a-] "\t\r\n\"\\"
b ::=
'''
GOOD = {"json": JSON, "arithmetic": ARITHMETIC, "chess": CHESS, "list": LIST, "japanese": JAPANESE, "odd": ODD,
        "empty": "root ::=", "one": 'root ::= "x"'}
BAD = {
    "nothing": ("", "no rule named root"),
    "no root": ('start ::= "x"', "no rule named root"),
    "undefined": ("root ::= other", "rule 'other', which it does not define"),
    "twice": ('root ::= "x"\nroot ::= "y"', "defines the rule 'root' twice"),
    "no rule": ('"x"', "where a rule should begin"),
    "half a rule": ('root ::= "x" )', r"'\)' where a rule should begin.*line 1"),
    "open group": ('root ::= ("x"', "not closed"),
    "open text": ('a ::= "x"\nroot ::= "x', r"cannot be read from '\"x' on \(near line 2"),
    "open set": ("root ::= [a-z", "cannot be read"),
    "an escape": (r'root ::= "\q"', "cannot be read"),
    "a range": ("root ::= [z-a]", "range that is none"),
    "a comment": ("root ::= other " + "#" * 5000, "rule 'other', which it does not define"),
    "repeats on repeats": ('root ::= "x"' + "{2}" * 20_000, "more than 8 ways at once"),
    "an empty set": ("root ::= []", "without a character"),
    "all but all": (r"root ::= [^\x01-\U0010FFFF]", "without a character"),
    "nul": (r'root ::= "\x00"', "no character"),
    "half a pair": (r'root ::= "\uD800"', "no character"),
    "beyond": (r'root ::= "\U00110000"', "no character"),
    "a repeat of nothing": ("root ::= * ", "where a rule should begin"),
    "backwards": ('root ::= "x"{3,2}', "allows nothing"),
    "a token": ("root ::= <[1000]>", "cannot be read"),
    "itself": ("root ::= root", "rule root begins with itself"),
    "left recursion": ('root ::= root "x" | "y"', "rule root begins with itself"),
    "left recursion by others": ('root ::= a\na ::= b? a "x" | "y"\nb ::= "z"', "rule a begins with itself"),
    "endless nothing": ('root ::= ("x"?)*', "repeats without end what may be empty"),
    "endless nothing by name": ('root ::= ws+\nws ::= " "*', "repeats without end"),
    "no end": ('root ::= "x" root', "allows no value that ends"),
    "repeats": ("root ::= ([a]{0,99999}){0,99999}", "more than 512 times"),
    "repeats of repeats": ('root ::= (("x"?){0,512}){0,512}', "kinds of values at once"),
    "repeats by rules": ("root ::= a{512}\n" + "\n".join(f"{a} ::= {b}{{512}}" for a, b in
                                                          zip("abcdef", "bcdefg", strict=True)) + '\ng ::= "x"',
                         "at least .* bytes"),
    "many rules": ("\n".join(f'r{n}::="x"' for n in range(3000)), f"more than {MOST_RULES} rules"),
    "deep": ("root ::= " + "(" * 10_000, "groups inside one another"),
    "large": ("root ::= " + '"x" ' * MOST_BYTES, "larger than"),
    "too large": ("root ::= " + " | ".join(f"[a-z]{{{n}}}" for n in range(200, 400)), "too large"),
    "ambiguous": ('root ::= ' + '[a-z]* ' * 400, "too ambiguous"),
    "wide": ("root ::= " + " | ".join(f'"{n}"' for n in range(1000)), "kinds of values at once")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(str(write_tiny(tmp_path_factory.mktemp("models") / "t.gguf")), n_ctx=256, n_slots=1, n_threads=1)
    yield model
    model.close()


def complying(model: Model, text: str, budget: int = 200, seed: int = 1) -> Complying:
    return Complying(model, Sampling(temperature=3, top_k=0, top_p=1, seed=seed), [1], grammar_from(text), budget)


@pytest.mark.parametrize("name", GOOD)
def test_our_reading_is_llama_cpps_own(model: Model, name: str) -> None:
    """Of the text as it is given: after each token of random values, both let the same ones follow."""
    text = GOOD[name]
    rules = lib.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
    assert rules, last_error()
    lib.llama_sampler_free(rules)
    grammar = grammar_from(text)
    pieces = [model.piece(token) for token in range(model.n_vocab)]
    plain = np.array([piece.isascii() and b"\0" not in piece and piece != b"" for piece in pieces])
    for seed in range(4):
        _compare(model, text, grammar, pieces, plain, seed)


def _compare(model: Model, text: str, grammar: Grammar, pieces: list[bytes], plain: np.ndarray, seed: int) -> None:
    sampler, machine = complying(model, text), Machine(grammar)
    sampler._rules = lib.llama_sampler_init_grammar(model.vocab, text.encode(), b"root")
    chance, state = np.random.default_rng(seed), machine.start
    for _ in range(60):
        every = candidates_of(np.zeros(model.n_vocab), np.arange(model.n_vocab))
        theirs = np.isfinite(sampler._complying(every)["logit"])
        ours = np.array([bool(piece) and machine.after(state, piece) is not None for piece in pieces])
        assert (ours == theirs)[plain].all()
        if not ours.any():
            break
        token = int(chance.choice(np.flatnonzero(ours)))
        lib.llama_sampler_accept(sampler._rules, token)
        state = machine.after(state, pieces[token])     # type: ignore[assignment]
    sampler.close()


@pytest.mark.parametrize("name", GOOD)
def test_from_everywhere_a_value_ends_and_is_read_again(name: str) -> None:
    machine = Machine(grammar_from(GOOD[name]))
    again = Machine(grammar_from(grammar_from(GOOD[name]).text))
    for seed in range(3):
        for text in walks(machine, seed, 60):
            state = again.after(again.start, text)
            assert state and state.whole


@pytest.mark.parametrize("budget", [20, 21, 30, 60])
def test_a_model_writes_what_the_grammar_says_within_its_budget(model: Model, budget: int) -> None:
    prompt, machine = model.tokenize(["hello"]), Machine(grammar_from(CHESS))
    text, end = write(model, complying(model, CHESS, budget, budget), prompt, budget)
    state = machine.after(machine.start, text.encode())
    assert state and state.whole and end.completion_tokens <= budget and end.finish_reason == "stop"


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_held_to_is_refused(model: Model, name: str) -> None:
    text, words = BAD[name]
    with pytest.raises(BadGrammar, match=words) as refused:
        complying(model, text)
    assert (refused.value.code, refused.value.param) == ("bad_grammar", "grammar")


PARTS = st.recursive(
    st.sampled_from(['"a"', '"ab"', "[a-c]", "[^a]", ".", "root", "x", '""', "( )"]),
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(" ".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: "(" + " | ".join(parts) + ")"),
        st.tuples(inner, st.sampled_from("*+?")).map(lambda two: f"({two[0]}){two[1]}"),
        inner.map("({}){{2}}".format), inner.map("({}){{0,3}}".format), inner.map("({}){{1,}}".format)),
    max_leaves=8)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(root=PARTS, other=PARTS)
def test_whatever_is_not_refused_is_complied_with(model: Model, root: str, other: str) -> None:
    text = f"root ::= {root}\nx ::= {other}"
    try:
        sampler = complying(model, text, 64)
    except BadGrammar:
        return
    said, end = write(model, sampler, model.tokenize(["hello"]), 64)
    machine = Machine(grammar_from(text))
    state = machine.after(machine.start, said.encode())
    assert (state and state.whole) or end.closed, "the way to its end may be one that is not gone into"


CHINESE = " | ".join(f'"{chr(0x4e00 + n)}"' for n in range(400))
AMBIGUOUS = {"any of many": f"root ::= ({CHINESE})+", "lengths": "root ::= [a-z]{1,100} [a-z]{1,100} .*",
             "kinds": "root ::= a\na ::= . a b | . b a | .\nb ::= . b a | . a b | .",
             "rows": "root ::= (" + " | ".join(f"[a-z]{{{n}}}" for n in range(1, 60)) + ")+",
             "chain": "\n".join(["root ::= r0+", "r40 ::= .", "r41 ::= .",
                                 *(f"r{n} ::= r{n + 1} r{n + 2}?" for n in range(40))])}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_many_open_ways_take_no_more_than_patience(model: Model, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's reader takes up to minutes for a token of these."""
    sampler, prompt, took = complying(model, AMBIGUOUS[name], 40), model.tokenize(["hello"]), []
    sample = sampler.sample

    def counted(row: int) -> int:
        before = sampler._value.steps
        token = sample(row)
        took.append(sampler._value.steps - before)
        return token

    monkeypatch.setattr(sampler, "sample", counted)
    said, end = write(model, sampler, prompt, 40)
    machine = Machine(grammar_from(AMBIGUOUS[name]))
    state = machine.after(machine.start, said.encode())
    assert ((state and state.whole) or end.closed) and max(took) <= 2 * PATIENCE + 64 * FEW_STEPS


@given(st.one_of(st.text(max_size=60), st.text('ro:=t "[]()|*{1,}\\x', max_size=60).map("root ::= {}".format)))
@settings(max_examples=300)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        Machine(grammar_from(text))
    except BadGrammar as refused:
        assert refused.param == "grammar" and len(refused.message) < 400
