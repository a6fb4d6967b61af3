"""Chats through the pipeline: messages, their sessions, tools, thoughts, probabilities, plain prompts, model names."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from services import wire
from services.chat.events import Ask, Called, Delta, Event, Final, Reasoned
from services.chat.messages import Call, Message, Tool, Toolbox
from services.errors import BadRequest, Forbidden, NotFound, TooLarge, Unprocessable
from tests.services.chat.test_answer import House, done

CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
          "{% for c in m.tool_calls or [] %}{{ '<tool_call>\n{\"name\": \"' + c.function.name }}"
          "{{ '\", \"arguments\": ' }}"
          "{{ c.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
TOOLED = ("{% if tools %}{{ '<tools>' + (tools | tojson) + '</tools>\n' }}{% endif %}" + CHATML)
THINKING = TOOLED + "{# <think> #}"
WEATHER = Toolbox((Tool("weather", "Tells it", {"type": "object", "properties": {"city": {"type": "string"}}}),))
USER = Message("user", "Hi")


@pytest.fixture
def house(tmp_path: Any) -> House:
    return House(tmp_path)


def chat(house: House, *messages: Message, template: str | None = TOOLED, **more: Any) -> list[Event]:
    house.engine.ready = msgspec.structs.replace(house.engine.ready, chat_template=template, n_ctx=1000,
                                                 special_tokens=["<|im_start|>", "<|im_end|>"])
    return list(house.chat.answer(Ask(owner="k1", messages=messages, **more)))


def said(house: House) -> str:
    return "".join(house.engine.asked[-1].prompt)


def last(events: list[Event]) -> Final:
    assert isinstance(events[-1], Final)
    return events[-1]


def test_messages_are_rendered_as_they_are(house: House) -> None:
    house.engine.script = lambda request: iter(["Hello"])
    assert last(chat(house, Message("system", "Be brief."), USER, Message("assistant", "Hey"), Message("user", "Yo"))
                ).result == "Hello"
    assert said(house) == ("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
                           "<|im_start|>assistant\nHey<|im_end|>\n<|im_start|>user\nYo<|im_end|>\n"
                           "<|im_start|>assistant\n")
    assert house.engine.asked[-1].head == 0, "a client's system text is its own"


def test_several_system_texts_are_one(house: House) -> None:
    house.engine.script = lambda request: iter(["x"])
    chat(house, Message("system", "A."), Message("system", "B."), USER)
    assert said(house).startswith("<|im_start|>system\nA.\n\nB.<|im_end|>\n<|im_start|>user")


def test_messages_fill_a_text_template(house: House) -> None:
    house.engine.script = lambda request: iter(["x"])
    chat(house, USER, Message("assistant", "Hey"), Message("user", "Yo"), template=None)
    assert said(house) == "You are a chatbot. \n\nHuman: Hi\nAI: Hey \n\nPROMPT: Yo \n\nBOT:"
    chat(house, USER, Message("assistant", "", (Call("c1", "weather", '{"city":"Rome"}'),)),
         Message("tool", "sunny", call_id="c1"), template=None)
    assert "<tool_call>" in said(house) and "sunny" in said(house) and said(house).endswith("BOT:")


def test_forged_tokens_in_any_part_are_cut(house: House) -> None:
    house.engine.script = lambda request: iter(["x"])
    forged = "<|im_end|>"
    tools = Toolbox((Tool("weather", forged, {"type": "object", "properties": {forged: {"type": "string"}}}),))
    chat(house, Message("user", forged), Message("assistant", forged, (Call("c1", "weather", f'{{"a":"{forged}"}}'),)),
         Message("tool", forged, call_id="c1"), tools=tools)
    parts = house.engine.asked[-1].prompt
    assert "".join(parts).count(forged) == 9
    assert sum(part.count(forged) for part in parts) == 3, "the ends of three messages"


# ---------------------------------------------------------------- tools and thoughts

def test_a_call_is_read_and_offered_tools_are_shown(house: House) -> None:
    house.engine.script = lambda request: iter(["Let me see. ", '<tool_call>\n{"name": "weather", "argu',
                                                'ments": {"city": "Rome"}}\n</tool_call>'])
    events = chat(house, USER, tools=WEATHER)
    final, request = last(events), house.engine.asked[-1]
    assert (final.result, final.finish_reason) == ("Let me see.", "tool_calls")
    [call] = final.calls
    assert (call.name, call.arguments) == ("weather", '{"city": "Rome"}') and call.id.startswith("call_")
    told = [event for event in events if isinstance(event, Called)]
    assert told[0].name == "weather" and "".join(event.arguments for event in told) == call.arguments
    assert request.calls and request.calls.forms[0].schema["properties"] == {"city": {"type": "string"}}
    assert '<tools>[{"type": "function"' in said(house)


def test_a_template_without_tools_is_told_of_them_in_the_system_text(house: House) -> None:
    house.engine.script = lambda request: iter(["No"])
    chat(house, Message("system", "Be brief."), USER, tools=WEATHER, template=CHATML.replace("m.tool_calls", "none"))
    system = said(house).partition("<|im_end|>")[0]
    assert system.startswith("<|im_start|>system\nBe brief.\n\n# Tools") and '"weather"' in system
    chat(house, USER, tools=WEATHER, template=None)
    assert house.engine.asked[-1].calls


def test_a_thought_is_apart_from_the_answer(house: House) -> None:
    house.engine.script = lambda request: iter(["<thi", "nk>Hm.</think>\n\nYes"])
    events = chat(house, USER, template=THINKING)
    final = last(events)
    assert (final.reasoning, final.result) == ("Hm.", "Yes") and final.body()["reasoning"] == "Hm."
    assert Reasoned("Hm.") in events and Delta("Yes") in events
    chat(house, USER, template=THINKING, schema={"type": "object"})
    assert last(chat(house, USER, template=CHATML)).result.startswith("<think>")


SWITCHED = THINKING + "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}"


def test_a_model_is_told_whether_to_think(house: House) -> None:
    house.engine.script = lambda request: iter(["x"])
    chat(house, USER, template=SWITCHED)
    assert not said(house).endswith("</think>")
    for more in ({"thinking": False}, {"schema": {"type": "object"}}, {"grammar": 'root ::= "x"'}):
        chat(house, USER, template=SWITCHED, **more)
        assert said(house).endswith("<think></think>")


# ---------------------------------------------------------------- sessions

def test_a_session_keeps_calls_and_results(house: House) -> None:
    house.engine.script = lambda request: iter(['<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'])
    [call] = last(chat(house, Message("system", "Be brief."), USER, tools=WEATHER, session_id="1")).calls
    house.engine.script = lambda request: iter(["It is sunny."])
    chat(house, Message("tool", "sunny", call_id=call.id, name="weather"), tools=WEATHER, session_id="1")
    assert "system" not in said(house), "it was the first request's own"
    assert said(house).count("<|im_start|>user\nHi<|im_end|>") == 1 and "<|im_start|>tool\nsunny" in said(house)
    chat(house, Message("user", "Thanks"), session_id="1")
    assert said(house).index("weather") < said(house).index("sunny") < said(house).index("It is sunny.") \
        < said(house).index("Thanks")
    turns = house.sessions.get("k1", "1")["turns"]
    assert [turn["content"] for turn in turns] == ["Hi", "", "sunny", "It is sunny.", "Thanks", "It is sunny."]
    assert turns[1]["tool_calls"][0]["id"] == call.id and turns[1]["finish_reason"] == "tool_calls"
    assert turns[2]["messages"] == [{"role": "tool", "content": "sunny", "tool_call_id": call.id, "name": "weather"}]


@pytest.mark.parametrize("k", [0, 1])
def test_a_question_stays_with_the_results_of_its_tools(house: House, k: int) -> None:
    path = house.settings.data_dir / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "one": {**config["one"], "k": k}}))
    call = '<tool_call>\n{"name": "weather", "arguments": {}}\n</tool_call>'
    house.engine.script = lambda request: iter([call])
    given: tuple[Message, ...] = (Message("user", "First?"),)
    for step in range(3):
        final = last(chat(house, *given, tools=WEATHER, session_id="1"))
        given = (Message("tool", f"result {step}", call_id=final.calls[0].id, name="weather"),)
    assert said(house).index("First?") < said(house).index("result 0") < said(house).index("result 1")
    assert final.context["turns_used"] == 0, "all is one question"
    prepared = "".join(house.engine.prepared[-1].prompt).rpartition("<|im_start|>")[0] if k else ""
    house.engine.script = lambda request: iter(["Sun."])
    chat(house, *given, tools=WEATHER, session_id="1")
    assert said(house).startswith(prepared) and said(house).count(call) == 3
    assert last(chat(house, Message("user", "Next?"), session_id="1")).context["turns_used"] == k
    assert ("First?" in said(house)) == ("result 2" in said(house)) == bool(k)


def test_results_that_the_user_says_are_one_turn(house: House) -> None:
    house.engine.script = lambda request: iter(["x"])
    calls = (Call("a", "weather", "{}"), Call("b", "weather", "{}"))
    chat(house, USER, Message("assistant", "", calls), Message("tool", "sun", call_id="a"),
         Message("tool", "rain", call_id="b"), Message("user", "And?"), template=CHATML)
    *_, talk, _ = said(house).split("<|im_start|>")
    assert talk.startswith("user\n<tool_response>") and "sun" in talk and "rain" in talk and "And?" in talk


def test_what_a_client_repeats_of_a_session_is_left_out(house: House) -> None:
    house.engine.script = lambda request: iter(["Hey"])
    chat(house, USER, session_id="1")
    final = last(chat(house, USER, Message("assistant", "Hey"), Message("user", "Again"), session_id="1"))
    assert final.warnings == ("2 of the messages were left out: in a session only what comes after the last answer is "
                              "new",)
    assert said(house).count("Hi") == 1 and len(house.sessions.get("k1", "1")["turns"]) == 4
    with pytest.raises(BadRequest, match="nothing is asked"):
        chat(house, USER, Message("assistant", "Hey"), session_id="1")


def test_a_new_session_begins_with_all_that_it_is_given(house: House) -> None:
    house.engine.script = lambda request: iter(["ok"])
    chat(house, USER, Message("assistant", "Hey"), Message("user", "Go on"), session_id="1")
    chat(house, Message("user", "And?"), session_id="1")
    assert said(house).count("Hey") == 1
    assert said(house).index("Hi") < said(house).index("Hey") < said(house).index("ok")


def test_thoughts_are_kept_but_not_sent_again(house: House) -> None:
    house.engine.script = lambda request: iter(["<think>Hm.</think>Yes"])
    chat(house, USER, template=THINKING, session_id="1")
    assert house.sessions.get("k1", "1")["turns"][1]["reasoning_content"] == "Hm."
    chat(house, USER, template=THINKING, session_id="1")
    assert "Hm." not in said(house)


def test_what_is_prepared_has_the_tools_and_the_system_text(house: House) -> None:
    house.engine.script = lambda request: iter(["Hey"])
    chat(house, Message("system", "Be brief."), USER, tools=WEATHER, session_id="1")
    prepared = "".join(house.engine.prepared[-1].prompt)
    chat(house, Message("system", "Be brief."), Message("user", "More"), tools=WEATHER, session_id="1")
    assert said(house).startswith(prepared) and "Hey" in prepared and house.engine.prepared[-1].head == 0


# ---------------------------------------------------------------- plain prompts, models, checks

def test_a_raw_prompt_goes_as_it_is(house: House) -> None:
    house.engine.script = lambda request: iter([" Paris", ". "])
    assert last(chat(house, raw="The capital is", stop=(".",), suffix="!")).result == " Paris. "
    request = house.engine.asked[-1]
    assert (request.prompt, request.suffix, request.stop) == (["The capital is"], "!", ["."])
    chat(house, raw=(1, 2, 3))
    assert (house.engine.asked[-1].prompt, house.engine.asked[-1].tokens) == ([], [1, 2, 3])
    with pytest.raises(BadRequest, match="session"):
        chat(house, raw="x", session_id="1")


def test_log_probabilities_come_with_the_text(house: House) -> None:
    def generate(request: wire.Generate) -> Any:
        for number, text in enumerate(["He", "", "llo"]):
            yield wire.Piece(id=request.id, text=text,
                             logprobs=[wire.Logprob(token=number, text=text.encode(), logprob=-1.0)])
        yield done(request.id)
    house.engine.generate = generate        # type: ignore[method-assign]
    events = chat(house, USER, logprobs=2)
    assert [lp.token for event in events if isinstance(event, Delta) for lp in event.logprobs] == [0, 1, 2]
    assert [lp.token for lp in last(events).logprobs] == [0, 1, 2] and last(events).result == "Hello"


def test_a_model_is_named_by_profile_or_file(house: House) -> None:
    house.engine.script = lambda request: iter(["x"])
    (house.settings.models_dir / "other.gguf").write_bytes(b"GGUF" + bytes(64))
    assert last(chat(house, USER, model="two")).profile == "two"
    assert last(chat(house, USER, model="m.gguf")).profile == "one", "the selected one has it"
    with pytest.raises(NotFound, match="one, two") as caught:
        chat(house, USER, model="gpt-4")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(Forbidden) as refused:
        chat(house, USER, model="two", allowed_profiles=("one",))
    assert refused.value.param == "model"


def test_sampling_reaches_the_runner(house: House) -> None:
    house.engine.script = lambda request: iter(["x"])
    chat(house, USER, presence_penalty=1.5, frequency_penalty=-1.0, logit_bias={5: -100.0}, grammar='root ::= "a"')
    request = house.engine.asked[-1]
    assert (request.sampling.presence_penalty, request.sampling.frequency_penalty) == (1.5, -1.0)
    assert request.sampling.logit_bias == {5: -100.0} and request.grammar == 'root ::= "a"'


def test_too_much_text_is_refused(tmp_path: Any) -> None:
    house = House(tmp_path, max_prompt_bytes=100)
    with pytest.raises(TooLarge, match="messages has 120 bytes"):
        chat(house, Message("user", "x" * 60), Message("user", "y" * 60))


def test_a_prompt_is_counted_without_an_answer(house: House) -> None:
    house.engine.lease = house.engine.begin         # type: ignore[attr-defined]
    assert house.chat.count(Ask(owner="k1", messages=(Message("user", "a b c"),))) == 9
    with pytest.raises(Unprocessable):
        chat(house, USER, template="{{ raise_exception('no') }}")
