"""Input items: what they say to the model, how they are told again, and what is wrong with them."""

from __future__ import annotations

import pytest
from openai.types.responses import ResponseItemList

from services.chat.messages import Call, Message
from services.errors import BadRequest
from services.web.responses import items

CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OTHER = {**CALL, "call_id": "d", "name": "g"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "5"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]}
ONE, TWO = Call("c", "f", "{}"), Call("d", "g", "{}")


@pytest.mark.parametrize(("given", "expected"), [
    ([{"role": "user", "content": "a"}], [Message("user", "a")]),
    ([{"role": "developer", "content": "a"}, {"role": "system", "content": "b"}],
     [Message("system", "a"), Message("system", "b")]),
    ([{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "text", "text": "b"}]}],
     [Message("user", "ab")]),
    ([{"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]}], [Message("assistant", "no")]),
    ([CALL, OTHER, OUTPUT], [Message("assistant", calls=(ONE, TWO)), Message("tool", "5", call_id="c", name="f")]),
    ([SAID, CALL], [Message("assistant", "a", (ONE,))]),
    ([THOUGHT, SAID, CALL], [Message("assistant", "a", (ONE,), reasoning="hm")]),
    ([THOUGHT, CALL], [Message("assistant", calls=(ONE,), reasoning="hm")]),
    ([SAID, SAID], [Message("assistant", "a"), Message("assistant", "a")]),
    ([CALL, SAID], [Message("assistant", calls=(ONE,)), Message("assistant", "a")]),
    ([CALL, THOUGHT, CALL], [Message("assistant", calls=(ONE,)), Message("assistant", calls=(ONE,), reasoning="hm")]),
    ([{"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "s"}], "encrypted_content": "x"},
      SAID], [Message("assistant", "a", reasoning="s")]),
    ([{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}], []),
    ([{**OUTPUT, "output": [{"type": "input_text", "text": "5"}]}], [Message("tool", "5", call_id="c")])])
def test_what_is_said(given, expected):
    assert items.messages(given) == expected


@pytest.mark.parametrize(("item", "param"), [
    ("x", "input.0"), ({}, "input.0.type"), ({"type": []}, "input.0.type"),
    ({"type": "item_reference", "id": "x"}, "input.0.type"),
    ({"role": "user"}, "input.0.content"), ({"role": "user", "content": {}}, "input.0.content"),
    ({"role": "user", "content": ["x"]}, "input.0.content.0.type"), ({"role": [], "content": "x"}, "input.0.role"),
    ({"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}, "input.0.content.0.type"),
    ({"role": "user", "content": "x", "id": 5}, "input.0.id"), ({**THOUGHT, "id": "x" * 201}, "input.0.id"),
    ({**CALL, "call_id": ""}, "input.0.call_id"), ({**CALL, "name": None}, "input.0.name"),
    ({**OUTPUT, "output": 5}, "input.0.output"), ({**THOUGHT, "content": "hm"}, "input.0.content"),
    ({**THOUGHT, "content": [{"type": "reasoning_text"}]}, "input.0.content")])
def test_what_is_wrong(item, param):
    with pytest.raises(BadRequest) as caught:
        items.messages([item])
    assert caught.value.param == param and len(caught.value.message) < 300


def test_told_again():
    given = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, CALL, OUTPUT, THOUGHT]
    told = items.told(given, "t")
    assert [item["id"] for item in told] == ["msg_t00", "msg_t01", "fc_t02", "fco_t03", "rs_1"]
    assert told[0]["content"] == [{"type": "input_text", "text": "a"}]
    assert told[1]["content"] == [{"type": "output_text", "text": "b", "annotations": []}]
    assert items.told("a", "t") == told[:1]
    ResponseItemList.model_validate({"object": "list", "data": told, "first_id": "a", "last_id": "b",
                                     "has_more": False})
    assert given[0] == {"role": "user", "content": "a"}


def test_outputs_have_calls():
    assert items.messages([OUTPUT], {"c": "f"}) == [Message("tool", "5", call_id="c", name="f")]
    for before in ([OTHER, OUTPUT], [OUTPUT, CALL]):
        with pytest.raises(BadRequest, match=r"No tool call found for function call output with call_id c\."):
            items.messages(before, {})
