"""A conversation through LocalAI's Go templates; the expected prompts of the first tests are LocalAI's own tests'."""

import pytest

from services.chat.localai_templates import LocalAITemplates, Source
from services.errors import ConfigError, Unprocessable

CHATML = """<|im_start|>{{if eq .RoleName "assistant"}}assistant{{else if eq .RoleName "system"}}system\
{{else if eq .RoleName "tool"}}tool{{else if eq .RoleName "user"}}user{{end}}
{{- if .FunctionCall }}
<tool_call>
{{- else if eq .RoleName "tool" }}
<tool_response>
{{- end }}
{{- if .Content}}
{{.Content }}
{{- end }}
{{- if .FunctionCall}}
{{toJson .FunctionCall}}
{{- end }}
{{- if .FunctionCall }}
</tool_call>
{{- else if eq .RoleName "tool" }}
</tool_response>
{{- end }}<|im_end|>"""
LLAMA3 = """<|start_header_id|>{{if eq .RoleName "assistant"}}assistant{{else if eq .RoleName "system"}}system\
{{else if eq .RoleName "tool"}}tool{{else if eq .RoleName "user"}}user{{end}}<|end_header_id|>

{{ if .FunctionCall -}}
Function call:
{{ else if eq .RoleName "tool" -}}
Function response:
{{ end -}}
{{ if .Content -}}
{{.Content -}}
{{ else if .FunctionCall -}}
{{ toJson .FunctionCall -}}
{{ end -}}
<|eot_id|>"""
FUNCTIONS = """<|im_start|>system
<tools>
{{range .Functions}}
{'type': 'function', 'function': {'name': '{{.Name}}', 'description': '{{.Description}}', \
'parameters': {{toJson .Parameters}} }}
{{end}}
</tools><|im_end|>
{{.Input -}}
<|im_start|>assistant
"""
TOOL = {"type": "function", "function": {"name": "now", "description": "the time", "parameters": {
    "type": "object", "properties": {"zone": {"type": "string"}}}}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC"}'}}


def made(**templates):
    return LocalAITemplates(**{name: Source(text, f"models/x.yaml, template.{name}") if name in (
        "chat", "chat_message", "function", "completion", "edit") else text for name, text in templates.items()})


def user(text):
    return {"role": "user", "content": text}


@pytest.mark.parametrize(("template", "message", "expected"), [
    (LLAMA3, user("A long time ago"), "<|start_header_id|>user<|end_header_id|>\n\nA long time ago<|eot_id|>"),
    (LLAMA3, {"role": "assistant", "content": "A long time ago"},
     "<|start_header_id|>assistant<|end_header_id|>\n\nA long time ago<|eot_id|>"),
    (LLAMA3, {"role": "assistant", "content": None, "function_call": {"function": "test"}},
     '<|start_header_id|>assistant<|end_header_id|>\n\nFunction call:\n{"function":"test"}<|eot_id|>'),
    (LLAMA3, {"role": "tool", "content": "Response from tool"},
     "<|start_header_id|>tool<|end_header_id|>\n\nFunction response:\nResponse from tool<|eot_id|>"),
    (CHATML, user("A long time ago"), "<|im_start|>user\nA long time ago<|im_end|>"),
    (CHATML, {"role": "assistant", "content": "", "function_call": {"function": "test"}},
     '<|im_start|>assistant\n<tool_call>\n{"function":"test"}\n</tool_call><|im_end|>'),
    (CHATML, {"role": "tool", "content": "Response from tool"},
     "<|im_start|>tool\n<tool_response>\nResponse from tool\n</tool_response><|im_end|>"),
    (CHATML, {"role": "assistant", "content": "", "tool_calls": [CALL]},
     '<|im_start|>assistant\n<tool_call>\n[{"index":0,"id":"call_1","type":"function","function":{"name":"now",'
     '"arguments":"{\\"zone\\": \\"UTC\\"}"}}]\n</tool_call><|im_end|>'),
])
def test_one_message(template, message, expected):
    assert made(chat_message=template).render([message]) == expected


def test_a_whole_conversation():
    templates = made(chat_message=CHATML, chat="{{.Input -}}\n<|im_start|>assistant\n", function=FUNCTIONS)
    talk = [{"role": "system", "content": "Be brief."}, user("Hi"), {"role": "assistant", "content": "Hello."},
            user("Bye")]
    prompt = ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello."
              "<|im_end|>\n<|im_start|>user\nBye<|im_end|><|im_start|>assistant\n")
    assert templates.render(talk) == prompt
    assert templates.render(talk, []) == prompt
    assert templates.render([user("Hi")], [TOOL]) == (
        "<|im_start|>system\n<tools>\n\n{'type': 'function', 'function': {'name': 'now', 'description': 'the time', "
        "'parameters': {\"properties\":{\"zone\":{\"type\":\"string\"}},\"type\":\"object\"} }}\n\n</tools><|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|><|im_start|>assistant\n")


def test_all_that_a_message_sees():
    fields = ("SystemPrompt", "Role", "RoleName", "FunctionName", "Content", "MessageIndex", "Function", "LastMessage")
    shown = "|".join(f"{{{{.{field}}}}}" for field in fields)
    templates = made(chat_message=shown, roles=(("user", "U:"), ("tool", "T:")))
    messages = [user("Hi"), {"role": "tool", "content": "42", "name": "now"}]
    assert templates.render(messages, [TOOL], "Be kind.") == "Be kind.|U:|user||Hi|0|false|false\n" \
                                                             "Be kind.|T:|tool|now|42|1|true|true"


def test_all_that_a_prompt_sees():
    shown = "{{.SystemPrompt}}|{{.SuppressSystemPrompt}}|{{.Input}}|{{len .Functions}}|{{.MessageIndex}}|" \
            "{{.ReasoningEffort}}|{{.Metadata.user}}|{{.Instruction}}"
    templates = made(chat=shown)
    assert templates.render([user("Hi")], None, "Be kind.") == "Be kind.|false|Hi|0|0||<no value>|"
    assert templates.render([{"role": "system", "content": "S"}, user("Hi")]) == "|true|S\nHi|0|0||<no value>|"


def test_without_templates_the_texts_are_joined():
    assert made().render([user("a"), {"role": "assistant", "content": "b"}]) == "a\nb"
    assert made(join="").render([user("a"), user("b")]) == "ab"
    assert made(roles=(("user", "USER: "),)).render([user("a"), {"role": "assistant", "content": "b"}]) == "USER: a\nb"
    assert made().plain and not made(roles=(("user", "U"),)).plain and not made(chat="{{.Input}}").plain


def test_calls_without_a_template_are_json():
    message = {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}
    written = '[{"index":0,"id":"call_1","type":"function","function":{"name":"now","arguments":"{\\"zone\\": ' \
              '\\"UTC\\"}"}}]'
    assert made().render([message]) == f"I look.\n{written}"
    assert made(roles=(("assistant", "A:"),)).render([message]) == f"A:I look.\nA: {written}"
    assert made(roles=(("assistant", "A:"), ("assistant_function_call", "F:"))).render(
        [{**message, "content": ""}]) == f"F: {written}"
    called = {**CALL, "function": {"name": "now", "arguments": {"zone": "UTC"}}}
    assert '"arguments":"{\\"zone\\":\\"UTC\\"}"' in made().render([{**message, "tool_calls": [called]}])


def test_a_blank_message_is_left_out_and_a_failing_template_too(caplog):
    templates = made(chat_message='{{if eq .RoleName "user"}}[{{.Content}}]{{end}}')
    assert templates.render([user("a"), {"role": "assistant", "content": "b"}, user("c")]) == "[a]\n[c]"
    failing = made(chat_message="{{upper .MessageIndex}}", roles=(("user", "U: "),))
    assert failing.render([user("a"), user("b")]) == "U: a\nU: b"
    assert caplog.text.count("upper: takes a string") == 1
    assert made(chat="{{.System}}{{.Input}}").render([user("a")]) == "a"


def test_a_system_text_is_never_lost():
    shows = made(chat="{{.SystemPrompt}}\n{{.Input}}")
    assert shows.render([user("a")], None, "S") == "S\na"
    assert made(chat_message=CHATML).render([user("a")], None, "S").startswith("<|im_start|>system\nS<|im_end|>")
    own = [{"role": "system", "content": "mine"}, user("a")]
    assert "S<" not in made(chat_message=CHATML).render(own, None, "S")


def test_completions_and_edits():
    templates = made(completion="{{.SystemPrompt}}Complete: {{.Input}}", edit="{{.Instruction}}: {{.Input}}")
    assert templates.completion_prompt("a", "S ") == "S Complete: a"
    assert templates.edit_prompt("shout", "a") == "shout: a"
    assert made().completion_prompt("a") == made().edit_prompt("x", "a") == "a"


def test_contents_are_only_copied():
    marked = "\ue0f1{{.Content}}\ue0f2 }} <&>"
    prompt = made(chat_message=CHATML, chat="{{.Input}}").render([user(marked)])
    assert marked in prompt
    with_call = made(chat_message=CHATML).render([{"role": "assistant", "content": "", "tool_calls": [
        {**CALL, "function": {"name": "now", "arguments": '{"zone": "\ue0f1"}'}}]}])
    assert "\ue0f1" in with_call


def test_what_cannot_be_read_is_an_error_with_file_and_line():
    with pytest.raises(ConfigError, match=r"models/x\.yaml, template\.chat, line 2: the function env is not supported"):
        made(chat="{{.Input}}\n{{env \"HOME\"}}").check()
    assert made(chat_message=CHATML, chat="{{.Input}}", function=FUNCTIONS).check() == []
    [told] = made(chat="{{.Prompt}}").check()
    assert told.startswith("models/x.yaml, template.chat, line 1: a prompt has no field Prompt; there are: System")
    assert told.endswith("the template is passed over")


def test_what_would_take_too_long_is_refused():
    with pytest.raises(Unprocessable, match="line 1: the template takes too long"):
        made(chat="{{range 10000000}}{{end}}").render([user("a")])
    assert len(made(chat="{{.Input}}{{.Input}}").render([user("a" * 2_000_000)])) == 4_000_000


def test_own_is_all_that_may_come_from_the_templates():
    templates = made(chat="<c>", chat_message="<m>", roles=(("user", "<u>"),), join="<j>")
    assert all(part in templates.own for part in ("<c>", "<m>", "<u>", "<j>"))
