"""Messages: the arguments of calls as values, and how much they are."""

from __future__ import annotations

import pytest

from services.chat.messages import MAX_DEPTH, Call, Message
from services.errors import BadRequest


def test_arguments_are_a_value() -> None:
    deep = '{"a":' * (MAX_DEPTH - 1) + "{}" + "}" * (MAX_DEPTH - 1)
    assert Call("", "f", '{"a": [1, "\\u00e9"]}').parsed() == {"a": [1, "é"]} and Call("", "f", deep).parsed()


@pytest.mark.parametrize("text", ["", "[1]", '"x"', "{", '{"a": "\\ud800"}', '{"\\udc00": 1}', "[" * 100_000,
                                  '{"a":' * 65 + "1" + "}" * 65, '{"a":' + "[" * 900 + "]" * 900 + "}"],
                         ids=lambda text: text[:12])
def test_arguments_that_are_no_object_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="the arguments of the call of 'f'") as refused:
        Call("", "f", text).parsed()
    assert refused.value.code == "bad_arguments"


def test_all_that_a_prompt_may_show_counts() -> None:
    assert Message("assistant", "é", (Call("id", "name", "{}"),), reasoning="abc").size == 2 + 8 + 3
    assert Message("tool", "x", call_id="id", name="name").size == 7
