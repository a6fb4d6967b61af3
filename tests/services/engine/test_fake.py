"""The fake runner's script: what it makes of prompts, and that it holds itself to the wire's rules."""

from __future__ import annotations

import math
import subprocess
from typing import Any

import msgspec
import pytest

from services import wire
from services.engine.fake_script import Script, last_said
from services.engine.fake_words import Words, pieces
from services.errors import BadRequest
from tests.services.engine.house import FAKE, SOON, House, generate, whole


@pytest.mark.parametrize("prompt", [
    "My dog barks.",
    "Human: Hi\nAI: Hello.\nHuman: My dog barks.\nAI:",
    "You are kind.\n\nHuman: Hi\nAI: Hello\n\nPROMPT: My dog barks.\nBOT:",
    "### Instruction: My dog barks.\n### Response:",
    "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nMy dog barks.<|im_end|>\n<|im_start|>assistant\n",
    "<s>[INST] My dog barks. [/INST]"])
def test_the_last_thing_said_is_found_in_many_templates(prompt: str):
    assert last_said(prompt) == "My dog barks."


def test_names_are_remembered_from_the_prompt_alone():
    history = "Human: My name is Ann.\nAI: You said: My name is Ann.\nHuman: My name is Zor-lan\nAI: ok\n"
    assert Script.read(history + "Human: What is my name?\nAI:").answer == "Your name is Zor-lan."
    assert Script.read("Human: what's my name\nAI:").answer == "You have not told me your name."


def test_directives():
    script = Script.read("Human: hi\nAI: !die 9\nHuman: please !echo Good day! !sleep 0.5\n"
                         "!wait 2 !die SIGKILL 3 !hang\nAI:")
    assert (script.answer, script.sleep, script.wait) == ("Good day!", 0.5, 2.0)
    assert script.faults == [(3, "die", "SIGKILL"), (0, "hang", "")]
    assert Script.read("!bytes e28aa5 20f09f9880").answer == "⊥ 😀"
    assert Script.read("!tokens 3").answer == "w1 w2 w3"
    assert Script.read("Hello! How are you?!").answer == "You said: Hello! How are you?!"


def test_a_directive_it_does_not_understand_is_an_error():
    with pytest.raises(BadRequest, match="!tokens many"):
        Script.read("!tokens many")


def test_pieces_keep_every_blank_and_obey_stop_and_length():
    text = " one  two\n\nthree "
    assert pieces(text, [], 9) == ([" one", "  two", "\n\nthree", " "], "stop", "")
    assert pieces(text, ["\n", "xyz", ""], 9) == ([" one", "  two"], "stop", "\n")
    assert pieces(text, [], 2) == ([" one", "  two"], "length", "")
    assert pieces("", [], 2) == ([], "stop", "")


def test_max_tokens_and_stop_over_the_wire(house: House):
    with house.engine.lease(house.spec()) as lease:
        done = list(lease.generate(generate("!tokens 9", max_tokens=2)))[-1]
        assert isinstance(done, wire.Done) and (done.finish_reason, done.completion_tokens) == ("length", 2)
        assert whole(lease, "!tokens 9", stop=[" w3"]) == "w1 w2"
        assert whole(lease, "!bytes 5ac3bc726963680a20e4bda0e5a5bd") == "Zürich\n 你好"
        with pytest.raises(BadRequest):
            list(lease.generate(generate("!fail invalid_request")))


def test_texts_and_their_words(house: House):
    with house.engine.lease(house.spec()) as lease:
        told = lease.tokenize(" one  two one\n")
        assert told.pieces == [b" one", b"  two", b" one\n"] and len(set(told.tokens)) == 3
        assert lease.tokenize(" one  two one\n") == told == lease.detokenize(told.tokens)
        assert lease.detokenize([72, 105, told.tokens[0]]).text == "Hi one"
        with pytest.raises(BadRequest, match="tokens has 70000"):
            lease.detokenize([70000])
        told = lease.tokenize("User: my words")
        assert whole(lease, "", prompt=[], tokens=told.tokens) == "You said: my words"
        with pytest.raises(BadRequest) as refused:
            list(lease.generate(generate("", prompt=[], tokens=[-1])))
        assert refused.value.param == "prompt"


def test_probabilities_are_well_formed_and_the_prompts_come_first(house: House):
    with house.engine.lease(house.spec()) as lease:
        first, *said = [event for event in lease.generate(generate("!echo a b", logprobs=3, echo=True))
                        if isinstance(event, wire.Piece)]
    assert (first.text, first.tokens) == ("", 0)
    assert [told.text for told in first.logprobs] == [b"Human:", b" !echo", b" a", b" b", b"\nAI:"]
    assert (first.logprobs[0].logprob, first.logprobs[0].top) == (0.0, [])
    assert [piece.text for piece in said] == ["a", " b"]
    for told in [*first.logprobs[1:], *(told for piece in said for told in piece.logprobs)]:
        assert (told.token, told.text, told.logprob) == told.top[0] and len(told.top) == 3
        assert sum(math.exp(logprob) for _, _, logprob in told.top) < 1
        assert [logprob for *_, logprob in told.top] == sorted((logprob for *_, logprob in told.top), reverse=True)
    assert Words().likely("x", 0).top == []


def test_what_is_between(house: House):
    with house.engine.lease(house.spec()) as lease:
        assert lease.ready.infill
        assert whole(lease, "", prompt=["def f():\na"], suffix="\n  b") == "between a and "
        assert whole(lease, "", prompt=["one\ntwo"], suffix="three\nfour") == "between two and three"


def test_tools_are_called_in_the_requests_form():
    forms = [wire.CallForm(name=name, begin=f"<{name}>", schema={}, end=f"</{name}>") for name in ("add", "see")]
    calls = wire.Calls(forms=forms, trigger="[<", opening="[", between=", ", closing="]")

    def written(prompt: str, **more: Any) -> str:
        return Script.read(prompt, request=generate("", calls=msgspec.structs.replace(calls, **more))).answer

    assert written('!call see {"a": 1}') == '[<see>{"a": 1}</see>]'
    assert written('!echo Well. !call see !call add {"x": "y!"}') == 'Well.[<see>{}</see>, <add>{"x": "y!"}</add>]'
    assert written("no call") == "You said: no call"
    assert written("no call", required=True) == "[<add>{}</add>]"
    with pytest.raises(BadRequest, match="!call hear; the request has add, see"):
        written("!call hear")
    with pytest.raises(BadRequest, match="the request has none"):
        Script.read("!call see")


def test_it_waits_its_turn(house: House):
    spec = house.spec(parallel=1)
    with house.engine.lease(spec) as one, house.engine.lease(spec) as two:
        first = one.generate(generate("!tokens 3 !sleep 0.2"))
        next(first)
        done = list(two.generate(generate("second")))[-1]
        assert isinstance(done, wire.Done) and done.queue_ms > 0
        assert list(first)


def test_it_ends_with_its_standard_input(house: House):
    process = subprocess.Popen(FAKE, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    spec = house.spec(script="!hang")
    assert process.stdin and process.stdout
    process.stdin.write(msgspec.json.encode({"address": str(house.folder / "s"), "authkey": "00", "spec": spec,
                                             "limits": {"max_queue": 1}}) + b"\n")
    process.stdin.close()
    assert process.wait(SOON) == 0
    process.stdout.close()


def test_it_takes_nothing_but_what_runners_take(house: House):
    with house.engine.lease(house.spec()) as lease, wire.connect(lease._at.address, lease._at.authkey) as channel:
        answer = channel.ask(wire.Status())
        assert isinstance(answer, wire.Failed) and "Status" in answer.message
