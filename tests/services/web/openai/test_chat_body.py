"""Every field of `POST /v1/chat/completions`: what it asks for, and how a wrong one is refused."""

from __future__ import annotations

import pytest

from services.chat.messages import Call, Message, Tool, Toolbox

USER = [{"role": "user", "content": "hi"}]
WEATHER = {"type": "function", "function": {"name": "weather", "description": "tells it", "strict": True,
                                            "parameters": {"type": "object", "properties": {"at": {"type": "string"}}}}}
TOOL = Tool("weather", "tells it", WEATHER["function"]["parameters"], strict=True)
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"at": "here"}'}}
CALLED = {"role": "assistant", "content": None, "tool_calls": [CALL]}


@pytest.fixture
def ask(scripted):
    """The `Ask`s that a body becomes."""
    def send(**body):
        headers = body.pop("headers", {})
        response = scripted.call("POST", "/v1/chat/completions", json={"messages": USER, **body}, headers=headers)
        assert response.status_code == 200, response.text
        asked, scripted.parts.chat.asked = scripted.parts.chat.asked, []
        return asked
    return send


@pytest.fixture
def refused(scripted):
    """The error that a body gets; its message names `param`."""
    def send(**body):
        headers = body.pop("headers", {})
        response = scripted.call("POST", "/v1/chat/completions", json={"messages": USER, **body}, headers=headers)
        assert response.status_code == 400, response.text
        assert scripted.parts.chat.asked == []
        return response.json["error"]
    return send


@pytest.mark.parametrize("given, asked", [
    ({"temperature": 0.5}, {"temperature": 0.5}), ({"temperature": 1}, {"temperature": 1}),
    ({"top_p": 0.5}, {"top_p": 0.5}), ({"top_p": 0}, {"top_p": 1e-6}), ({"top_k": 7}, {"top_k": 7}),
    ({"top_k": -1}, {"top_k": 0}), ({"min_p": 0.1}, {"min_p": 0.1}), ({"repeat_penalty": 1.1}, {"repeat_penalty": 1.1}),
    ({"repetition_penalty": 1.2}, {"repeat_penalty": 1.2}), ({"presence_penalty": -2}, {"presence_penalty": -2}),
    ({"frequency_penalty": 1.5}, {"frequency_penalty": 1.5}), ({"logit_bias": {"5": -100}}, {"logit_bias": {5: -100}}),
    ({"seed": 7}, {"seed": 7}), ({"seed": -1}, {"seed": 2**32 - 1}), ({"stop": "."}, {"stop": (".",)}),
    ({"stop": ["a", "b"]}, {"stop": ("a", "b")}), ({"stop": []}, {"stop": ()}), ({"max_tokens": 9}, {"max_tokens": 9}),
    ({"max_completion_tokens": 9}, {"max_tokens": 9}), ({"max_token": 9, "max_tokens": 9}, {"max_tokens": 9}),
    ({"logprobs": True}, {"logprobs": 0}), ({"logprobs": True, "top_logprobs": 20}, {"logprobs": 20}),
    ({"logprobs": False}, {"logprobs": None}), ({"model": "two"}, {"model": "two"}), ({"model": None}, {"model": None}),
    ({"stream": True}, {"stream": True}), ({"grammar": "root ::= [a-z]"}, {"grammar": "root ::= [a-z]"}),
    ({"response_format": {"type": "text"}}, {"schema": None}),
    ({"response_format": {"type": "json_object"}}, {"schema": {"type": "object"}}),
    ({"response_format": {"type": "json_object", "schema": {"type": "array"}}}, {"schema": {"type": "array"}}),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": {"const": 1}}}},
     {"schema": {"const": 1}}),
    ({"tools": [WEATHER]}, {"tools": Toolbox((TOOL,))}), ({"tools": []}, {"tools": None}),
    ({"tools": [WEATHER], "tool_choice": "none"}, {"tools": None}),
    ({"tools": [WEATHER], "tool_choice": "auto"}, {"tools": Toolbox((TOOL,))}),
    ({"tools": [WEATHER], "tool_choice": "required"}, {"tools": Toolbox((TOOL,), "required")}),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
     {"tools": Toolbox((TOOL,), "required", "weather")}),
    ({"tools": [{**WEATHER, "function": {"name": "now", "strict": False, "parameters": {"type": "object"}}}]},
     {"tools": Toolbox((Tool("now", "", {"type": "object"}),))}),
    ({"tools": [WEATHER], "parallel_tool_calls": False}, {"tools": Toolbox((TOOL,), parallel=False)}),
    ({"tools": [{"type": "function", "function": {"name": "now"}}]}, {"tools": Toolbox((Tool("now"),))}),
    ({"tools": [WEATHER], "tool_choice": "none", "response_format": {"type": "json_object"}},
     {"tools": None, "schema": {"type": "object"}}),
    ({"metadata": {"session_id": "talk"}}, {"session_id": "talk"}), ({"metadata": {"a": "x"}}, {"session_id": None}),
    ({"headers": {"X-Session-Id": "7"}}, {"session_id": "7"}),
    ({"headers": {"X-Session-Id": "7"}, "metadata": {"session_id": 7}}, {"session_id": "7"}),
    ({}, {"thinking": True}), ({"reasoning_effort": "none"}, {"thinking": False}),
    ({"chat_template_kwargs": {"enable_thinking": False}}, {"thinking": False}),
    ({"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "high"}, {"thinking": True}),
    ({"user": "u", "store": True, "service_tier": "auto", "safety_identifier": "s", "prompt_cache_key": "k",
      "prompt_cache_retention": "24h", "reasoning_effort": "low", "verbosity": "low", "modalities": ["text"],
      "prediction": {"type": "content", "content": "x"}, "audio": None, "functions": None}, {"prompt": ""}),
])
def test_a_field_asks_for_what_it_means(ask, given, asked):
    found, = ask(**given)
    assert {name: getattr(found, name) for name in asked} == asked
    assert found.messages == (Message("user", "hi"),)


def test_messages_of_all_roles(ask):
    found, = ask(messages=[
        {"role": "developer", "content": "short"}, {"role": "system", "content": [{"type": "text", "text": "kind"}]},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "ann"},
        {**CALLED, "refusal": None, "annotations": [], "audio": None, "function_call": None, "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}, {"role": "assistant", "content": "Sunny."}])
    assert found.messages == (
        Message("system", "short"), Message("system", "kind"), Message("user", "a\nb"),
        Message("assistant", "", (Call("call_1", "weather", '{"at": "here"}'),), reasoning="hm"),
        Message("tool", "sunny", call_id="call_1", name="weather"), Message("assistant", "Sunny."))


def test_in_a_session_a_result_answers_a_call_that_was_stored(ask):
    result = {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    found, = ask(messages=[result], headers={"X-Session-Id": "7"})
    assert found.messages == (Message("tool", "sunny", call_id="call_1"),)


def test_several_answers_differ_in_their_seeds(ask):
    assert [one.seed for one in ask(n=3, seed=2**32 - 2)] == [2**32 - 2, 2**32 - 1, 0]
    first, second = ask(n=2)
    assert first.seed is second.seed is None and first.spent is not second.spent


def part(kind, **more):
    return [{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": kind, **more}]}]


@pytest.mark.parametrize("given, param, told", [
    ({"messages": None}, "messages", "list"), ({"messages": []}, "messages", "at least 1"),
    ({"messages": "hi"}, "messages", "list"), ({"messages": ["hi"]}, "messages.0", "object"),
    ({"messages": [{"content": "hi"}]}, "messages.0.role", "required"),
    ({"messages": [{"role": "bot", "content": "hi"}]}, "messages.0.role", "'assistant' or 'tool'"),
    ({"messages": [{"role": "user", "content": None}]}, "messages.0.content", "text"),
    ({"messages": [{"role": "user", "content": 3}]}, "messages.0.content", "list"),
    ({"messages": [{"role": "assistant"}]}, "messages.0.content", "no tool_calls"),
    ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages.0.content.0.type", "required"),
    ({"messages": part("text")}, "messages.1.content.0.text", "required"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages.0.tool_calls", "assistant"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "needs the id"),
    ({"messages": [CALLED, {"role": "tool", "content": "x", "tool_call_id": "no"}]}, "messages.1.tool_call_id", "'no'"),
    ({"temperature": 2.1}, "temperature", "2"), ({"temperature": "1"}, "temperature", "number"),
    ({"top_p": -0.1}, "top_p", "0"), ({"n": 0}, "n", "1"), ({"n": 17}, "n", "16"), ({"n": 1.5}, "n", "integer"),
    ({"n": 2, "headers": {"X-Session-Id": "7"}}, "n", "session"),
    ({"metadata": {"session_id": "a b"}}, "session_id", "no session id"),
    ({"headers": {"X-Session-Id": "7"}, "metadata": {"session_id": 8}}, "metadata.session_id", "X-Session-Id names"),
    ({"stop": ["a"] * 17}, "stop", "16"), ({"stop": ["a", ""]}, "stop.1", "at least 1"), ({"seed": 2**63}, "seed", ""),
    ({"presence_penalty": 3}, "presence_penalty", "2"), ({"logit_bias": {"a": 1}}, "logit_bias", "no token"),
    ({"logit_bias": {"5": 101}}, "logit_bias.5", "100"), ({"logit_bias": {"5": "x"}}, "logit_bias.5", "number"),
    ({"logprobs": 3}, "logprobs", "boolean"), ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"), ({"max_tokens": 0}, "max_tokens", "1"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differ"),
    ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, "repetition_penalty", "differ"),
    ({"stream": "yes"}, "stream", "boolean"), ({"stream_options": {}}, "stream_options", "only for streams"),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "Unrecognized"),
    ({"response_format": {"type": "yaml"}}, "response_format.type", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema",
     "required"),
    ({"tools": [{"name": "a", "parameters": {}}]}, "tools.0", '{"type": "function", "function": {"name": ...'),
    ({"tools": [{"type": "function", "name": "a"}]}, "tools.0", '{"type": "function", "function": {"name": ...'),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type", "function"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name", "letters"),
    ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "null"}}}]}, "tools.0", "object"),
    ({"tools": [WEATHER, WEATHER]}, "tools.1.function.name", "two tools"), ({"tool_choice": "any"}, "tool_choice", ""),
    ({"tool_choice": "required"}, "tool_choice", "no tools"), ({"tool_choice": 3}, "tool_choice", "'required'"),
    ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice", "'x'"),
    ({"modalities": ["text", "audio"]}, "modalities.1", "'text'"), ({"model": 3}, "model", "string"),
    ({"grammar": ""}, "grammar", "at least 1"),
    ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs.x", "Unrecognized"),
])
def test_what_is_wrong_is_refused_by_name(refused, given, param, told):
    error = refused(**given)
    assert error["param"] == param and error["code"] in ("invalid_request", "unknown_parameter", "bad_session_id")
    assert error["type"] == "invalid_request_error"
    assert told in error["message"] and "()" not in error["message"], error["message"]


@pytest.mark.parametrize("given, param, code", [
    ({"messages": part("image_url", image_url={"url": "data:"})}, "messages.1.content.0", "unsupported_content"),
    ({"messages": part("input_audio", input_audio={})}, "messages.1.content.0", "unsupported_content"),
    ({"messages": part("file", file={"file_id": "f"})}, "messages.1.content.0", "unsupported_content"),
    ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
    ({"functions": []}, "functions", "unsupported_parameter"), ({"thinking": 1}, "thinking", "unknown_parameter"),
    ({"tools": [{**WEATHER, "x": 1}]}, "tools.0.x", "unknown_parameter"),
    ({"grammar": "root ::= x", "response_format": {"type": "json_object"}}, "grammar", "conflicting_parameters"),
    ({"grammar": "root ::= x", "tools": [WEATHER]}, "tools", "conflicting_parameters"),
    ({"response_format": {"type": "json_object"}, "tools": [WEATHER]}, "tools", "conflicting_parameters"),
])
def test_what_cannot_be_done_has_a_code_of_its_own(refused, given, param, code):
    error = refused(**given)
    assert (error["param"], error["code"]) == (param, code)
    assert param.split(".")[0] in error["message"]


@pytest.mark.parametrize("field, instead", [("functions", "use tools"), ("function_call", "use tool_choice")])
def test_what_is_refused_is_not_among_what_is_known(refused, field, instead):
    assert refused(**{field: []})["message"] == f"{field} is not supported by this server: {instead}"
    known = refused(function_calls=[])["message"].partition("known are: ")[2].split(", ")
    assert {"tools", "tool_choice", "messages"} < set(known) and field not in known and "audio" not in known
