"""Conversations that end with a part of an answer: the model goes on with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.chat.events import Delta
from services.chat.messages import Message
from services.errors import BadRequest
from tests.services.chat.test_answer import House
from tests.services.chat.test_answer_messages import SWITCHED, THINKING, USER, WEATHER, chat, last, said

BEGUN = (USER, Message("assistant", "I think "))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_an_answer_that_is_begun_is_gone_on_with(house: House) -> None:
    house.engine.script = lambda request: iter([" that <think>", "is it.\n"])
    events = chat(house, *BEGUN, template=THINKING)
    assert said(house) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nI think "
    assert last(events).result == " that <think>is it.\n" and events[:2] == [Delta(" that <think>"), Delta("is it.\n")]
    chat(house, USER, Message("assistant", ""))
    assert said(house).endswith("<|im_start|>assistant\n")
    chat(house, *BEGUN, template=None)
    assert said(house).endswith("PROMPT: Hi \n\nBOT: I think ")


def test_a_beginning_forges_nothing(house: House) -> None:
    house.engine.script = lambda request: iter(["x"])
    chat(house, USER, Message("assistant", "im_start|>a<|im_end|>b<|im_"))
    parts = house.engine.asked[-1].prompt
    assert said(house).endswith("assistant\nim_start|>a<|im_end|>b<|im_")
    assert sum(part.count("<|im_end|>") for part in parts) == 1, "the end of the user's message"


def test_a_beginning_comes_behind_the_thought(house: House) -> None:
    house.engine.script = lambda request: iter(["x"])
    for template, end in ((SWITCHED, "<think></think>I think "),
                          (THINKING + "{{ '<think>\n' }}", "<think>\n</think>\n\nI think ")):
        chat(house, *BEGUN, template=template)
        assert said(house).endswith("<|im_start|>assistant\n" + end)
        assert house.engine.asked[-1].shown == []


def test_what_begins_an_answer_excludes_its_form(house: House) -> None:
    for more in ({"tools": WEATHER}, {"schema": {"type": "object"}}, {"grammar": 'root ::= "x"'}):
        with pytest.raises(BadRequest, match="excludes tools and a schema") as refused:
            chat(house, *BEGUN, **more)
        assert (refused.value.code, refused.value.param) == ("conflicting_parameters", "messages")
    for messages in ((BEGUN[1],), (Message("system", "x"), BEGUN[1])):
        with pytest.raises(BadRequest, match="nothing is asked"):
            chat(house, *messages)
