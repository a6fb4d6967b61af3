"""Where calls begin: seen alike however the text is cut, and where the chat side sees it too."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.chat import tools
from services.chat.messages import Tool, Toolbox
from services.chat.speech import WHITE, Reader
from services.chat.thinking import Thinks
from services.chat.tools import Form
from services.runner.watch import PLAIN, Watch

FORMS = [tools.HERMES, tools.NEMO, tools.LLAMA, tools.DEEPSEEK]
THINKS = [None, Thinks("<think>", "</think>"), Thinks("<think>", "</think>", True)]
SHARDS = st.lists(st.sampled_from(["<think>", "</think>", "<thi", " ", "\n", "é", "a", "<", '{"', '"name"', "name",
                                   *(form.trigger for form in FORMS), "<tool_", "call>", "\u3000", "\xa0",
                                   "\x1c"]), max_size=8)


def begins(watch: Watch, data: bytes, size: int) -> int | None:
    """How many bytes of `data`, fed by so many, end with the trigger."""
    for at in range(0, len(data), size):
        watch, over = watch.after(data[at:at + size])
        if over is not None:
            return min(at + size, len(data)) - len(over)
    return None


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
@settings(max_examples=150, deadline=None)
@given(shards=SHARDS, thinks=st.sampled_from(THINKS), size=st.integers(1, 9))
def test_the_runner_sees_what_the_chat_sees(form: Form, shards: list[str], thinks: Thinks | None, size: int) -> None:
    text = "".join(shards)
    calls = form.calls(Toolbox((Tool("f"),)), thinks)
    found = begins(Watch.over(calls), text.encode(), size)
    assert found == begins(Watch.over(calls), text.encode(), 10**6)
    seen, reader = None, Reader(form, thinks)
    first = reader._first

    def noted() -> bool:
        nonlocal seen
        seen = len(text.encode()) - len(reader._text.lstrip(WHITE).encode()) + len(form.trigger.encode()) \
            if seen is None else seen
        return first()

    reader._first = noted       # type: ignore[method-assign]
    reader.feed(text)
    assert found == seen


def test_where_the_answer_must_begin_with_a_call() -> None:
    calls = tools.LLAMA.calls(Toolbox((Tool("f"),)))
    watch, over = Watch.over(calls).after(b' \n{"na')
    assert over is None and watch.tail == b'{"na'
    assert watch.after(b'me": "f')[1] == b': "f'
    watch, over = watch.after(b"va")
    assert over is None and watch.phase == PLAIN and watch.after(b'{"name"')[1] is None
