"""What a chat template can show is found by rendering it, and messages are put into the shapes that it takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.chat import jinja
from services.chat.caps import Caps, adapt, caps
from services.errors import BadRequest, Unprocessable

CORPUS = Path(__file__).parent / "templates"
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
PARTS = "{% for m in messages %}{{ m.role }}:{% for p in m.content %}{{ p.text }};{% endfor %}{% endfor %}"
CALL: dict[str, Any] = {"id": "call00001", "type": "function",
                        "function": {"name": "f", "arguments": '{"a":1}'}}
EVERYTHING = Caps(tools=True, tool_calls=True, parallel_tool_calls=True, tool_responses=True, object_arguments=True)

THINKING = replace(EVERYTHING, thinking=True, reasoning="reasoning_content")


def of(name: str) -> Caps:
    return caps((CORPUS / f"{name}.jinja").read_text(), "<s>", "</s>")


def said(*messages: dict[str, Any], **able: Any) -> list[dict[str, Any]]:
    return adapt(messages, None, Caps(**able))[0]


@pytest.mark.parametrize(("name", "able"), [
    ("meta-llama-Llama-3.1-8B-Instruct", replace(EVERYTHING, parallel_tool_calls=False)),
    ("mistralai-Mistral-Nemo-Instruct-2407", replace(EVERYTHING, tool_call_id=True)),
    ("google-gemma-2-2b-it", Caps(system_role=False)),
    ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", replace(EVERYTHING, tools=False, thinking=True)),
    ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", EVERYTHING),
    ("CohereForAI-c4ai-command-r7b-12-2024-tool_use", THINKING),
    ("Qwen-Qwen3-0.6B", THINKING),
    ("meetkai-functionary-medium-v3.2", replace(EVERYTHING, object_arguments=False)),
    ("openai-gpt-oss-120b", replace(EVERYTHING, parallel_tool_calls=False, reasoning="thinking", reasoning_alone=True)),
    ("mistralai-Ministral-3-14B-Reasoning-2512", replace(EVERYTHING, reasoning="part")),
    ("google-gemma-4-31B-it-interleaved", replace(THINKING, embedded_responses=True)),
    ("StepFun3.5-Flash", replace(THINKING, thinking=False, trimmed=True)),
])
def test_well_known_templates(name: str, able: Caps) -> None:
    assert of(name) == able


def test_plain_templates() -> None:
    assert caps(CHATML) == Caps(tool_responses=True)
    assert caps(PARTS) == Caps(typed_content=True, tool_responses=True)
    assert caps("{{ messages[-1].content }}") == Caps(system_role=False, tool_responses=True)


def test_a_template_out_of_bounds_is_not_asked_again() -> None:
    with pytest.raises(Unprocessable, match="takes too long"):
        caps("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}")


def test_a_system_text_opens_the_next_turn_of_the_user() -> None:
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    answer = {"role": "assistant", "content": "Ho"}
    assert said(system, user) == [system, user]
    assert said(system, user, answer, system_role=False) == [{"role": "user", "content": "Be brief.\nHi"}, answer]
    assert said(user, answer, system, system_role=False)[2:] == [{"role": "user", "content": "Be brief."}]


def test_arguments_are_as_the_template_wants_them() -> None:
    message = {"role": "assistant", "content": "", "tool_calls": [CALL]}

    def arguments(given: Any, **able: Any) -> Any:
        call = {**CALL, "function": {"name": "f", "arguments": given}}
        shape, = said({**message, "tool_calls": [call]}, tool_calls=True, **able)
        return shape["tool_calls"][0]["function"]["arguments"]

    assert arguments('{"a":1}', object_arguments=True) == arguments({"a": 1}, object_arguments=True) == {"a": 1}
    assert arguments('{"a":1}') == '{"a":1}' and arguments({"a": "ü"}) == '{"a": "ü"}'
    for wrong in ("{", "[1]", "", "[" * 100_000):
        assert arguments(wrong) == wrong
        with pytest.raises(BadRequest, match="the call of 'f' must be a JSON object"):
            arguments(wrong, object_arguments=True)
    assert message["tool_calls"] == [CALL] and CALL["function"]["arguments"] == '{"a":1}'


def test_thoughts_are_where_the_template_looks_for_them() -> None:
    message = {"role": "assistant", "content": "b", "reasoning_content": "t", "tool_calls": [CALL]}
    assert said(message, reasoning="reasoning_content") == [message]
    assert said(message, reasoning="thinking") == [{**message, "thinking": "t"}]
    assert said(message, reasoning="part")[0]["content"] == [
        {"type": "thinking", "thinking": "t"}, {"type": "text", "text": "b"}]
    assert "content" not in said(message, tool_calls=True, reasoning="thinking", reasoning_alone=True)[0]


def test_contents_are_as_the_template_wants_them() -> None:
    message = {"role": "user", "content": " a\n"}
    assert said(message, typed_content=True) == [{"role": "user", "content": [{"type": "text", "text": " a\n"}]}]
    assert said(message, trimmed=True) == [{"role": "user", "content": "a"}]
    assert jinja.render(PARTS, said(message, typed_content=True)) == "user: a\n;"


def test_results_stand_with_their_calls() -> None:
    calls = [CALL, {**CALL, "id": "call00002", "function": {"name": "g", "arguments": "{}"}}]
    results = [{"role": "tool", "tool_call_id": "call00001", "content": '{"x": 1}'},
               {"role": "tool", "tool_call_id": "call00002", "content": "none"}]
    user, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    caller = {"role": "assistant", "content": "", "tool_calls": calls}
    assert said(user, caller, *results, answer, user, embedded_responses=True) == [
        user, {"role": "assistant", "tool_calls": calls, "content": "b", "tool_responses": [
            {"name": "f", "response": {"x": 1}}, {"name": "g", "response": "none"}]}, user]
    assert said(caller, caller, embedded_responses=True)[0]["tool_responses"] == []
