"""What a model writes, read as it comes: the same however it is cut."""

import json
import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chat import tools
from services.chat.events import Called, Delta, Reasoned
from services.chat.messages import Call
from services.chat.speech import Reader, Said
from services.chat.thinking import TAGS, Thinks
from services.chat.tools import Form

FORMS = [form for form in vars(tools).values() if isinstance(form, Form)]
FORMS_BY_NAME = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
THINKS = [None, *(Thinks(*tags, opened) for tags in TAGS for opened in (False, True))]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8), max_leaves=6,
    extend=lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3))
ARGUMENTS = st.dictionaries(st.text(max_size=6) | st.sampled_from(['"', "}", "</tool_call>", "\\"]), VALUES, max_size=3)
CALLS = st.lists(st.tuples(st.sampled_from(["get_weather", "a", "x-1"]), ARGUMENTS), max_size=3)
WORDS = st.text(alphabet='ab <{["}|\n', max_size=12)


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[start:end] for start, end in pairwise(ends)]


def read(pieces: list[str], form: Form | None = None, thinks: Thinks | None = None) -> tuple[Reader, list[Said]]:
    reader = Reader(form, thinks)
    said = [event for piece in pieces for event in reader.feed(piece)]
    return reader, said + reader.finish()


def joined(said: list[Said]) -> tuple[str, str, dict[int, tuple[str, str]]]:
    """Content, reasoning and calls, as a client puts them together."""
    calls: dict[int, tuple[str, str]] = {}
    for event in said:
        if isinstance(event, Called):
            assert bool(event.id) == (event.index not in calls) == bool(event.name)
            name, arguments = calls.get(event.index, (event.name, ""))
            calls[event.index] = name, arguments + event.arguments
    return ("".join(event.text for event in said if isinstance(event, Delta)),
            "".join(event.text for event in said if isinstance(event, Reasoned)), calls)


@FORMS_BY_NAME
@settings(max_examples=30, deadline=None)
@given(made=CALLS, words=st.sampled_from(["", "Let me see.\n\n", "  one { two\n"]), thought=WORDS,
       thinks=st.sampled_from(THINKS), places=st.lists(st.integers(0, 999), max_size=12))
def test_what_is_written_is_read(form: Form, made: list[tuple[str, dict]], words: str, thought: str,
                                 thinks: Thinks | None, places: list[int]) -> None:
    made, words = (made[:1], "") if form.leads else (made, words)
    calls = tuple(Call("", name, json.dumps(arguments)) for name, arguments in made)
    lead = "" if thinks is None else ("" if thinks.open else thinks.begin) + thought + thinks.end + "\n\n"
    text = lead + words + form.write(calls)
    reader, said = read(cut(text, places), form, thinks)
    content, reasoning, told = joined(said)
    assert content == reader.content == words.strip()
    assert reasoning == reader.reasoning == (thought.strip() if thinks else "")
    assert [told[i] for i in range(len(calls))] == [(call.name, call.arguments) for call in calls]
    assert [(call.name, call.arguments) for call in reader.calls] == list(told.values())
    assert [call.id for call in reader.calls] == [event.id for event in said if isinstance(event, Called) and event.id]
    assert all(re.fullmatch("call_[0-9A-Za-z]{24}", call.id) for call in reader.calls)


@FORMS_BY_NAME
@settings(max_examples=30, deadline=None)
@given(parts=st.lists(WORDS | st.integers(0, 40), max_size=8), thinks=st.sampled_from(THINKS),
       places=st.lists(st.integers(0, 999), max_size=12))
def test_any_text_reads_alike_however_it_is_cut(form: Form, parts: list[str | int], thinks: Thinks | None,
                                                places: list[int]) -> None:
    """Also what is no call, or half of one."""
    whole = form.write((Call("", "a", '{"b": [1, "}"]}'), Call("", "c", "{}")))
    shards = [whole[:len(whole) * part // 20] if isinstance(part, int) and part < 21
              else whole[len(whole) * (part - 20) // 20:] if isinstance(part, int) else part for part in parts]
    text = "".join(shards)
    one, at_once = read([text], form, thinks)
    other, split = read(cut(text, places), form, thinks)
    assert joined(at_once) == joined(split) == joined(read(list(text), form, thinks)[1])
    assert [(call.name, call.arguments) for call in one.calls] == [(call.name, call.arguments) for call in other.calls]


@given(text=st.text(max_size=40), places=st.lists(st.integers(0, 99), max_size=5))
def test_a_plain_answer_is_what_it_is(text: str, places: list[int]) -> None:
    reader, said = read(cut(text, places))
    assert joined(said) == (text.strip(), "", {}) and not reader.calls and reader.content == text.strip()


def test_nothing_but_tags_is_held_back() -> None:
    reader = Reader(tools.HERMES, Thinks("<think>", "</think>"))
    told = [reader.feed(piece) for piece in ("\n<th", "ink>\nI", " see <", "i>", " </thin", "k>", "\n", "So <", "b>x",
                                             " <tool_", 'call>\n{"name": "f', '", "arguments": {', '"a"', ":1}", "}")]
    said = [[(type(event).__name__, getattr(event, "text", None) or event.name or event.arguments) for event in events]
            for events in told]
    assert said == [[], [("Reasoned", "I")], [("Reasoned", " see")], [("Reasoned", " <i>")], [], [], [],
                    [("Delta", "So")], [("Delta", " <b>x")], [], [], [("Called", "f"), ("Called", "{")],
                    [("Called", '"a"')], [("Called", ":1}")], []]


@pytest.mark.parametrize(("thinks", "text", "reasoning", "content"), [
    (Thinks("<think>", "</think>"), "<think>never closed <b", "never closed <b", ""),
    (Thinks("<think>", "</think>"), "<think>never closed </thi", "never closed </thi", ""),
    (Thinks("<think>", "</think>", True), "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),
    (Thinks("<think>", "</think>", True), "<think>\nagain\n</think>\nYes.", "again", "Yes."),
    (Thinks("<think>", "</think>", True), "<th", "<th", ""),
    (Thinks("<think>", "</think>"), "<think>\n\n</think>\n\nYes.", "", "Yes."),
    (Thinks("<think>", "</think>"), "<think>a</think><think>b</think>c", "ab", "c"),
    (Thinks("<think>", "</think>"), "The tag <think> begins a thought.", "", "The tag <think> begins a thought."),
    (Thinks("<think>", "</think>"), "<thi", "", "<thi"),
    (None, "<think>x</think>y", "", "<think>x</think>y"),
])
def test_thoughts(thinks: Thinks | None, text: str, reasoning: str, content: str) -> None:
    reader, _ = read(list(text), None, thinks)
    assert (reader.reasoning, reader.content) == (reasoning, content)


def test_a_call_in_a_thought_is_none() -> None:
    text = '<think>maybe <tool_call>\n{"name": "f", "arguments": {}}\n</tool_call></think>No.'
    reader, _ = read([text], tools.HERMES, Thinks("<think>", "</think>"))
    assert not reader.calls and "<tool_call>" in reader.reasoning and reader.content == "No."


@pytest.mark.parametrize(("form", "text"), [
    (tools.HERMES, 'Use <tool_call> for that'), (tools.HERMES, '<tool_call>\n{"name": "f", "argu'),
    (tools.HERMES, '<tool_call>\n{"name": "", "arguments": {}}'), (tools.HERMES, '<tool_call>'),
    (tools.HERMES, '<tool_call>{"name": "f", "arguments": {"a": [1'), (tools.LLAMA, '{"name": 7}'),
    (tools.LLAMA, 'Like {"name": "f", "parameters": {}}'), (tools.NEMO, '[TOOL_CALLS] none'),
])
def test_what_is_no_call_is_content(form: Form, text: str) -> None:
    reader, said = read(list(text), form)
    assert not reader.calls and reader.content == text == joined(said)[0]


def test_white_space_in_a_call_is_taken_as_it_comes() -> None:
    reader, _ = read(['<tool_call>{ "name":"f","arguments" : {"a": 1} } </tool_call> and <tool_call>\n\n{"name": "g", '
                      '"arguments": {}}</tool_call>'], tools.HERMES)
    assert [(call.name, call.arguments) for call in reader.calls] == [("f", '{"a": 1}'), ("g", "{}")]
    assert reader.content == "and"
