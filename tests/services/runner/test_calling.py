"""A model with tools: whatever its weights, its seed and its budget, what it calls parses and complies."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.chat import tools
from services.chat.messages import Tool, Toolbox
from services.chat.speech import Reader
from services.chat.thinking import Thinks
from services.chat.tools import Form
from services.errors import BadRequest, BadSchema
from services.runner.batch import Chunk
from services.runner.calling import MOST_TOOLS, Calling
from services.runner.intake import prepare
from services.runner.model import Model
from services.runner.sequence import SamplingFailed
from services.wire import CallForm, Calls, Done, Generate, Sampling
from tests.services.runner.schemas import RANDOM
from tests.services.runner.writing import WILD
from tests.tiny_gguf import write_tiny

ROOT = Path(__file__).resolve().parents[3]
SPECIAL = ["[TOOL_CALLS]", "[ARGS]", "<|tool_call|>", "<|START_ACTION|>", "<|END_ACTION|>", "<｜tool▁calls▁begin｜>",
           "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "[THINK]",
           "[/THINK]"]
FORMS = [form for form in vars(tools).values() if isinstance(form, Form) and form.native]
FORMS_BY_NAME = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
WEATHER = Tool("get_weather", "", {"type": "object", "required": ["city"], "properties": {
    "city": {"type": "string"}, "days": {"type": "integer"}}})
TIME = Tool("get_time", "", {"type": "object", "properties": {"zone": {"enum": ["UTC", "Europe/Paris"]}}})
NOW = Tool("now")
TOOLS = (WEATHER, TIME, NOW)
COLD = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(str(write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf", control=SPECIAL)), n_ctx=512,
                  n_slots=1, n_threads=1)
    yield model
    model.close()


@pytest.fixture(scope="module")
def starter() -> Iterator[Model]:
    model = Model(str(ROOT / "models" / "starter.gguf"), n_ctx=512, n_slots=1, n_threads=1)
    yield model
    model.close()


def chained(path: Path, successors: dict[str, str]) -> Model:
    """A model whose text after each token is known."""
    return Model(str(write_tiny(path / "chain.gguf", successors=successors, control=SPECIAL)), n_ctx=512, n_slots=1,
                 n_threads=1)


def answer(model: Model, calls: Calls | None, budget: int = 200, sampling: Sampling = WILD, prompt: str = "hello",
           **more: Any) -> tuple[str, Done]:
    """The whole completion, and how it ended. What the sampler is sure of comes true."""
    sequence = prepare(model, Generate(id="", owner="o", prompt=[prompt], max_tokens=budget, sampling=sampling,
                                       calls=calls, **more))
    sequence.slot = 0
    model.cut(0, 0)
    text, reason, sure = "", None, list[int]()
    try:
        while reason is None:
            count = sequence.pending
            row = model.decode([Chunk(sequence, count)])[0]
            sequence.past += count
            if isinstance(sequence.sampler, Calling) and not sure:
                sure = list(sequence.sampler.forced)
            token = sequence.sampler.sample(row)
            assert not sure or token == sure.pop(0)
            piece, reason = sequence.accept(token, model.piece(token), model.is_end(token), 0.0)
            text += piece
    finally:
        sequence.sampler.close()
    return text, sequence.done(reason, 0.0)


def drafted(model: Model, calls: Calls, budget: int, sampling: Sampling) -> tuple[str, int]:
    """What `answer` gives, with the sampler's drafts checked in the batch; and how many of them were right."""
    sequence = prepare(model, Generate(id="", owner="o", prompt=["hello"], max_tokens=budget, sampling=sampling,
                                       calls=calls))
    sequence.slot = 0
    model.cut(0, 0)
    text, reason, right = "", None, 0
    while reason is None:
        draft = sequence.sampler.draft(min(4, sequence.room - 1)) if sequence.completion and sequence.room > 1 else []
        count = sequence.pending
        row = model.decode([Chunk(sequence, count, draft)])[0]
        sequence.past += count
        for index, guess in enumerate([*draft, -1]):
            token = sequence.sampler.sample(row + index)
            piece, reason = sequence.accept(token, model.piece(token), model.is_end(token), 0.0)
            text += piece
            if token != guess or reason:
                break
            right += 1
            sequence.past += 1
        model.cut(0, sequence.past)
    sequence.sampler.close()
    return text, right


def said(form: Form, text: str, thinks: Thinks | None = None) -> Reader:
    reader = Reader(form, thinks)
    reader.feed(text)
    reader.finish()
    return reader


def check(reader: Reader, offered: tuple[Tool, ...]) -> None:
    """All calls are of offered tools, and their arguments comply."""
    schemas = {tool.name: tool.parameters for tool in offered}
    for call in reader.calls:
        jsonschema.Draft202012Validator(schemas[call.name]).validate(json.loads(call.arguments))


def least(model: Model, calls: Calls) -> int:
    """The smallest budget that is not refused."""
    with pytest.raises(BadSchema, match="raise max_tokens") as refused:
        answer(model, calls, 1)
    assert refused.value.param == "tools"
    return int(str(refused.value).partition(" has ")[2].split()[0])


@FORMS_BY_NAME
@pytest.mark.parametrize("toolbox", [
    Toolbox(TOOLS, "required"), Toolbox(TOOLS, "required", "get_weather"), Toolbox(TOOLS, "required", parallel=False)],
    ids=["parallel", "named", "single"])
def test_a_required_call_comes_from_the_least_budget_on(model: Model, form: Form, toolbox: Toolbox) -> None:
    check_required(model, form, toolbox)


@pytest.mark.model
@pytest.mark.parametrize("form", [tools.HERMES, tools.LLAMA, tools.NEMO], ids=lambda form: form.name)
def test_the_starter_calls_when_it_must(starter: Model, form: Form) -> None:
    check_required(starter, form, Toolbox(TOOLS, "required"))


def check_required(model: Model, form: Form, toolbox: Toolbox) -> None:
    calls = form.calls(toolbox)
    smallest = least(model, calls)
    for budget in (smallest, smallest + 1, smallest + 7, 3 * smallest):
        for sampling in (COLD, Sampling(temperature=3, top_k=0, top_p=1, seed=budget),
                         Sampling(temperature=1, repeat_penalty=1.3, presence_penalty=1, seed=budget)):
            text, done = answer(model, calls, budget, sampling)
            reader = said(form, text)
            assert reader.calls and not reader.content and done.finish_reason == "stop", text
            assert 0 < done.completion_tokens <= budget
            assert len(reader.calls) == 1 or calls.many
            check(reader, toolbox.offered)
    with pytest.raises(BadSchema, match=rf"has {smallest} tokens, and the answer may have {smallest - 1}"):
        answer(model, calls, smallest - 1)


@FORMS_BY_NAME
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=RANDOM, seed=st.integers(0, 999), budget=st.integers(1, 120), temperature=st.sampled_from([0, 1, 3]),
       parallel=st.booleans())
def test_a_call_that_is_begun_is_finished(model: Model, form: Form, schema: dict[str, Any], seed: int, budget: int,
                                          temperature: float, parallel: bool) -> None:
    """The model is made to want calls: the trigger's first token is likelier than any other."""
    given = {"type": "object", "required": ["x"], "properties": {"x": schema}, "$defs": schema["$defs"]}
    offered = (Tool("f", "", given),
               Tool("g", "", {"type": "object", "properties": {"y": {"type": "string"}}}), NOW)
    trigger = model.tokens(form.trigger)[0]
    sampling = Sampling(temperature=temperature, top_k=0, top_p=1, seed=seed, logit_bias={trigger: 9.0})
    text, done = answer(model, form.calls(Toolbox(offered, parallel=parallel)), budget, sampling)
    reader = said(form, text)
    check(reader, offered)
    assert form.trigger not in reader.content and done.completion_tokens <= budget
    assert len(reader.calls) < 2 or (parallel and form.several)
    assert done.finish_reason == "stop" or not reader.calls


def test_a_special_token_begins_a_call_and_is_sent(model: Model, tmp_path: Path) -> None:
    chain = chained(tmp_path, {"a": "b", "b": "[TOOL_CALLS]", "[TOOL_CALLS]": "g", "g": "e"})
    try:
        calls = tools.MISTRAL.calls(Toolbox(TOOLS, parallel=False))
        text, done = answer(chain, calls, 100, COLD, prompt="a")
        assert text.startswith("b[TOOL_CALLS]get_") and "[ARGS]{" in text and done.finish_reason == "stop"
        reader = said(tools.MISTRAL, text)
        assert reader.content == "b" and len(reader.calls) == 1
        assert "[TOOL_CALLS]" not in answer(chain, None, 20, COLD, prompt="a")[0]
        assert "[TOOL_CALLS]" in answer(chain, None, 20, COLD, prompt="a", shown=["[TOOL_CALLS]"])[0]
    finally:
        chain.close()


def form_of_hello(begin: str = '<hello "f": ') -> Calls:
    return Calls(forms=[CallForm(name="f", begin=begin, schema=TIME.parameters, end=">")], trigger="<he", many=False)


def test_a_token_that_runs_over_the_trigger(tmp_path: Path) -> None:
    chain = chained(tmp_path, {"a": "<", "<": "hello", "hello": "a"})
    try:
        assert answer(chain, form_of_hello(), 100, COLD, prompt="a")[0].startswith('<hello "f":')
        text, done = answer(chain, form_of_hello('<help "f": '), 60, COLD, prompt="a")
        assert "<he" not in text and done.finish_reason == "length"     # what runs over it otherwise is not written
    finally:
        chain.close()


def test_a_call_without_room_is_not_begun(tmp_path: Path) -> None:
    chain = chained(tmp_path, {"a": "<", "<": "hello", "hello": "a"})
    try:
        cost = least(chain, Calls(forms=form_of_hello().forms, trigger="<he", required=True, many=False))
        for budget in range(1, cost + 3):
            text, done = answer(chain, form_of_hello(), budget, COLD, prompt="a")
            assert done.finish_reason == ("stop" if budget >= cost else "length") and done.completion_tokens <= budget
            assert text.endswith(">") == ("<he" in text) == (budget >= cost)
    finally:
        chain.close()


def test_stop_strings_end_text_and_cut_no_call(tmp_path: Path) -> None:
    chain = chained(tmp_path, {"a": "b", "b": "<", "<": "hello", "hello": "a"})
    try:
        assert answer(chain, form_of_hello(), 100, COLD, prompt="a", stop=["b"])[0] == ""
        text, done = answer(chain, form_of_hello(), 100, COLD, prompt="a", stop=['"f"', ">", "{"])
        assert text.startswith('b<hello "f":') and text.endswith(">") and not done.stopped_by
    finally:
        chain.close()


@pytest.mark.parametrize("form", [tools.HERMES, tools.NEMO, tools.DEEPSEEK], ids=lambda form: form.name)
def test_drafts_change_nothing_and_are_mostly_right(model: Model, form: Form) -> None:
    calls = form.calls(Toolbox(TOOLS, "required"))
    for sampling in (COLD, Sampling(temperature=0, repeat_penalty=1.3), Sampling(temperature=0, presence_penalty=2)):
        text, right = drafted(model, calls, 120, sampling)
        assert text == answer(model, calls, 120, sampling)[0] and right > 10


@pytest.mark.parametrize("form", [tools.HERMES, tools.MISTRAL], ids=lambda form: form.name)
@pytest.mark.parametrize("tags", [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
def test_a_thought_comes_before_a_required_call(model: Model, form: Form, tags: tuple[str, str]) -> None:
    thinks = Thinks(*tags, True)
    calls = form.calls(Toolbox(TOOLS, "required", parallel=False), thinks)
    smallest = least(model, calls)
    for budget in (smallest, smallest + 1, smallest + 9, 3 * smallest):
        for seed in range(3):
            text, done = answer(model, calls, budget, Sampling(temperature=1, seed=seed))
            reader = said(form, text, thinks)
            assert len(reader.calls) == 1 and not reader.content and done.finish_reason == "stop"
            check(reader, TOOLS)


def test_in_a_thought_nothing_is_a_call(tmp_path: Path) -> None:
    chain = chained(tmp_path, {"a": "<", "<": "hello", "hello": "a"})
    thinking = Calls(forms=form_of_hello().forms, trigger="<he", many=False, think="[THINK]", thought="[/THINK]",
                     thinking=True)
    try:
        assert answer(chain, thinking, 20, COLD, prompt="a")[0].startswith("<helloa<helloa")
    finally:
        chain.close()


@pytest.mark.parametrize(("successors", "prompt", "several"), [
    ({"a": "<", "<": "hello"}, "a", False), ({">": "<", "<": "hello"}, ">", True)])
def test_what_is_no_call_behind_a_call_ends_the_answer(tmp_path: Path, successors: dict[str, str], prompt: str,
                                                       several: bool) -> None:
    chain = chained(tmp_path, successors)
    try:
        text, done = answer(chain, Calls(forms=form_of_hello().forms, trigger="<he"), 60, COLD, prompt=prompt)
        assert done.finish_reason == "stop" and text.endswith(">") and (text.count("<hello") > 1) == several
    finally:
        chain.close()


def test_what_cannot_be_kept_to_is_refused(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = Tool("set_volume", "", {"type": "object", "properties": {"level": {"type": "integer", "multipleOf": 5}}},
               strict=True)
    with pytest.raises(BadSchema, match=r"the tool 'set_volume': parameters\.level has 'multipleOf'") as refused:
        answer(model, tools.HERMES.calls(Toolbox((NOW, bad))))
    assert refused.value.param == "tools"
    for count in (0, MOST_TOOLS + 1):
        with pytest.raises(BadRequest, match=f"has {count} entries"):
            answer(model, tools.HERMES.calls(Toolbox((NOW,) * count)))
    long = {"type": "array", "items": {"const": "x" * 40}, "minItems": 512}
    endless = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 1}}}
    for schema, message in ((long, "too long"), (endless, "allows no value that ends")):
        with pytest.raises(BadSchema, match=f"the tool 'f': .*{message}"):
            answer(model, Calls(forms=[CallForm(name="f", begin="<", schema=schema)], trigger="<"))
    monkeypatch.setattr("services.runner.complying.Spelling.tokens", lambda self, data: None)
    with pytest.raises(BadSchema, match="cannot spell"):
        answer(model, tools.HERMES.calls(Toolbox((NOW,))))


def test_two_tools_of_one_name_are_one(model: Model) -> None:
    text, _ = answer(model, tools.HERMES.calls(Toolbox((NOW, NOW), "required", parallel=False)))
    assert [call.name for call in said(tools.HERMES, text).calls] == ["now"]


def test_tools_are_not_too_large_together(model: Model) -> None:
    """A runner hears nobody while it gets ready for them."""
    fields = {f"field_{place}": {"enum": [f"{place}{letter}" * 10 for letter in "abcd"]} for place in range(60)}
    calls = tools.HERMES.calls(Toolbox(tuple(Tool(f"t{n}", "", {"properties": fields}) for n in range(40))))
    answer(model, msgspec.structs.replace(calls, forms=calls.forms[:4]))
    with pytest.raises(BadSchema, match="the parameters of all 40 tools are too large together, at 't") as refused:
        answer(model, calls)
    assert refused.value.param == "tools"


def test_a_model_without_an_end_says_so(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = prepare(model, Generate(id="", owner="o", prompt=["a"], max_tokens=50,
                                       calls=tools.HERMES.calls(Toolbox((NOW,)))))
    assert isinstance(sequence.sampler, Calling)
    monkeypatch.setattr("services.runner.complying.lib.llama_vocab_eos", lambda vocab: -1)
    assert sequence.sampler._stop() in model.ends
    monkeypatch.setattr(model, "ends", frozenset())
    with pytest.raises(SamplingFailed, match="no token to end"):
        sequence.sampler._stop()
    sequence.sampler.close()
