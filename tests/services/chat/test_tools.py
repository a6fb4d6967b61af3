"""The forms of calls: each is found by its template, says what the runner holds a model to, and reads what it wrote."""

import json
from pathlib import Path

import pytest

from services.chat import tools
from services.chat.messages import Call, Message, Tool, Toolbox
from services.chat.speech import Reader
from services.chat.thinking import Thinks, thinking_of
from services.chat.tools import Form, form_of
from services.wire import Calls

TEMPLATES = Path(__file__).parent / "templates"
WEATHER = Tool("get_weather", "The weather now", {"type": "object", "required": ["city"],
                                                  "properties": {"city": {"type": "string"}}})
NOW = Tool("now")
FORMS = [form for form in vars(tools).values() if isinstance(form, Form)]
FORMS_BY_NAME = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
KNOWN = {"Apriel-1.6-15b-Thinker-fixed": "apriel", "Bielik-11B-v3.0-Instruct": "hermes", "Cohere2MoE": "command-r7b",
         "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "command-r7b", "MiMo-VL": "hermes", "Reka-Edge": "hermes",
         "Mistral-Small-3.2-24B-Instruct-2506": "mistral", "NVIDIA-Nemotron-Nano-v2": "nemotron",
         "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes", "Qwen-QwQ-32B": "hermes",
         "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes", "Qwen-Qwen2.5-7B-Instruct": "hermes",
         "Qwen-Qwen3-0.6B": "hermes", "ibm-granite-granite-3.3-2B-Instruct": "granite",
         "ibm-granite-granite-4.0": "hermes", "ibm-granite-granite-4.1": "hermes", "llama-cpp-deepseek-r1": "deepseek",
         "meetkai-functionary-medium-v3.1": "functionary", "meta-llama-Llama-3.1-8B-Instruct": "llama",
         "meta-llama-Llama-3.2-3B-Instruct": "llama", "meta-llama-Llama-3.3-70B-Instruct": "llama",
         "mistralai-Ministral-3-14B-Reasoning-2512": "mistral", "unsloth-Apriel-1.5": "apriel",
         "mistralai-Mistral-Nemo-Instruct-2407": "mistral-nemo", "unsloth-mistral-Devstral-Small-2507": "mistral"}


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.jinja")), ids=lambda path: path.stem)
def test_each_template_has_its_form(path: Path) -> None:
    """Those of XML, of channels, or without tools have the generic one."""
    form = form_of(path.read_text())
    assert form.name == KNOWN.get(path.stem, "generic") and form.native == (form.name != "generic")


def test_templates_that_the_corpus_lacks() -> None:
    phi = "{% for tool in tools %}{{ tool }}{% endfor %}: <|tool_call|>{\"name\": \"foo\"}<|/tool_call|>"
    v31 = "{% if tools %}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{% endif %}"
    assert form_of(phi).name == "phi-4-mini" and form_of(v31).name == "deepseek-v3.1"
    assert form_of(None) is form_of("") is form_of("{{ messages }} my tools <tool_call>") is tools.GENERIC


@pytest.mark.parametrize("text", ["{{" * 32_000, "{{ tools }}" + "[TOOL_CALLS]" * 100_000], ids=["tags", "marks"])
def test_no_template_takes_long(text: str) -> None:
    """The looks at these would take minutes."""
    assert form_of(text) is tools.GENERIC


@FORMS_BY_NAME
def test_what_it_writes_it_reads(form: Form) -> None:
    calls = (Call("", "get_weather", '{"city": "Par\\"}is"}'), Call("", "now", "{}"))[:1 if form.leads else 2]
    reader = Reader(form)
    reader.feed(form.write(calls))
    reader.finish()
    assert [(call.name, call.arguments) for call in reader.calls] == [(call.name, call.arguments) for call in calls]
    assert not reader.content


@FORMS_BY_NAME
def test_what_the_runner_is_told(form: Form) -> None:
    calls = form.calls(Toolbox((WEATHER, NOW)))
    assert [spec.name for spec in calls.forms] == ["get_weather", "now"] and not calls.required
    assert calls.many == form.several
    assert calls.forms[0].schema == WEATHER.parameters
    assert calls.forms[1].schema == {"type": "object", "additionalProperties": False}
    for spec in calls.forms:
        assert (calls.opening + spec.begin).startswith(calls.trigger)
        assert form.write((Call("", spec.name, "{}"),)) == calls.opening + spec.begin + "{}" + spec.end + calls.closing


def test_the_choice_of_tools() -> None:
    named = tools.HERMES.calls(Toolbox((WEATHER, NOW), "required", "now"))
    assert [spec.name for spec in named.forms] == ["now"] and named.required and not named.many
    one_at_a_time = Toolbox((WEATHER, NOW), "required", parallel=False)
    single = tools.HERMES.calls(one_at_a_time, Thinks("<think>", "</think>", True))
    assert len(single.forms) == 2 and single.required and not single.many
    assert (single.think, single.thought, single.thinking) == ("<think>", "</think>", True)


@pytest.mark.parametrize(("parameters", "schema"), [
    ({}, {"type": "object", "additionalProperties": False}),
    ({"type": "object", "properties": {}}, {"type": "object", "additionalProperties": False}),
    ({"properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}}),
    ({"type": "object", "additionalProperties": True}, {"type": "object", "additionalProperties": True}),
    ({"$ref": "#/$defs/a", "$defs": {"a": {}}}, {"$ref": "#/$defs/a", "$defs": {"a": {}}}),
])
def test_arguments_are_an_object(parameters: dict, schema: dict) -> None:
    calls: Calls = tools.HERMES.calls(Toolbox((Tool("f", "", parameters),)))
    assert calls.forms[0].schema == schema


@FORMS_BY_NAME
def test_instructions_hold_the_tools_and_an_example(form: Form) -> None:
    text = form.instructions(Toolbox((WEATHER, NOW)))
    lines = text.splitlines()
    shown = lines[lines.index("<tools>") + 1:lines.index("</tools>")]
    assert [json.loads(line)["name"] for line in shown] == ["get_weather", "now"]
    assert form.write((Call("", "get_weather", '{"city": "Paris"}'),)) in text
    assert ("one tool at a time" in text) != form.several
    forced = form.instructions(Toolbox((WEATHER, NOW), "required", "now", parallel=False))
    assert "must be a call" in forced and "one tool at a time" in forced and '"get_weather"' not in forced.split(
        "</tools>")[0]


def test_calls_and_results_as_plain_texts() -> None:
    said = Message("assistant", "Let me see.", (Call("c1", "now", "{}"),))
    assert tools.GENERIC.said(said) == 'Let me see.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    assert tools.GENERIC.said(Message("assistant", "Hi.")) == "Hi."
    result = Message("tool", "12:30", call_id="c1", name="now")
    assert tools.GENERIC.said(result) == "<tool_response>\nResult of now: 12:30\n</tool_response>"
    assert tools.GENERIC.said(Message("tool", "12:30")) == "<tool_response>\nResult: 12:30\n</tool_response>"


def test_ids_are_as_long_as_a_template_takes_them() -> None:
    long = "call_0123456789abcdefghijklmn"
    short = tools.NEMO.id_for(long)
    assert len(short) == 9 and short.isalnum() and short == tools.NEMO.id_for(long) != tools.NEMO.id_for(long + "x")
    assert tools.NEMO.id_for("abc123DEF") == "abc123DEF" and tools.HERMES.id_for(long) == long


def test_thinking_is_known_by_the_template() -> None:
    assert thinking_of(None) is None and thinking_of("{{ messages }}", "<think>\n") is None
    assert thinking_of("x <think> y", "<|im_start|>assistant\n") == Thinks("<think>", "</think>", False)
    assert thinking_of("x </think> y", "<|im_start|>assistant\n<think>\n") == Thinks("<think>", "</think>", True)
    assert thinking_of("x <think> y", "<think>\n\n</think>\n\n") == Thinks("<think>", "</think>", False)
    assert thinking_of("[THINK]") == Thinks("[THINK]", "[/THINK]")
