"""The fake runner's script: what it makes of prompts, and that it holds itself to the wire's rules."""

from __future__ import annotations

import subprocess

import msgspec
import pytest

from services import wire
from services.engine.fake import Script, last_said, pieces
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
