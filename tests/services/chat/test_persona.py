"""One personality: its fields, whom it asks, how a question is put."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from pydantic import ValidationError

from services.chat.persona import Given, Persona, told_time
from services.errors import NotFound

NOW = datetime(2026, 11, 21, 16, 35, tzinfo=timezone.utc)


@pytest.fixture
def models(tmp_path):
    for name in ("big.Q4_K_M.gguf", "small.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    return tmp_path


def test_time_is_told_as_csps_llm_does():
    assert told_time(NOW) == "Today's date is Saturday, November 21, 2026. The current time is 04:35 PM UTC."
    early = NOW.astimezone(timezone(timedelta(hours=-5), "EST")) - timedelta(hours=4)
    assert told_time(early) == "Today's date is Saturday, November 21, 2026. The current time is 07:35 AM EST."


def test_question_brings_the_time_and_the_system_text_does_not():
    persona = Persona(imperative="Be brief.")
    (message,) = persona.asked("Why?", now=NOW)
    assert (message.role, message.content) == ("user", f"{told_time(NOW)}\n\nWhy?")
    assert persona.system == "Be brief."


def test_question_without_a_clock_is_as_it_was_asked():
    assert Persona(clock=False).asked("Why?")[0].content == "Why?"


@pytest.mark.parametrize(("given", "text"), [
    (Given.content("a b"), "Consider the following content:\na b\nGiven the preceding content, why?"),
    (Given.of_text("a b"), "Consider the following text:\na b\nGiven the preceding text, why?")])
def test_what_is_given_stands_before_the_question(given, text):
    assert Persona(clock=False).asked("why?", given)[0].content == text


def test_source_is_told_with_the_imperative():
    assert Persona(imperative="Be brief.").with_source("The facts.").system == \
        "Be brief.\n\nConsider the following content:\nThe facts."
    assert Persona().with_source("The facts.").system == "Consider the following content:\nThe facts."
    assert Persona().system is None


@pytest.mark.parametrize(("fields", "model", "profile"), [
    ({}, None, None), ({"profile": "one"}, None, "one"), ({"model": "small.gguf"}, "small.gguf", None),
    ({"local_file": "../models/small.gguf"}, "small.gguf", None), ({"hf_filename": "*Q4_K_M.gguf"}, "big.Q4_K_M.gguf",
                                                                   None),
    ({"hf_filename": "*Q4_K_M.gguf", "profile": "one"}, None, "one")])
def test_whom_it_asks(models, fields, model, profile):
    asked = Persona(**fields).fields(models)
    assert (asked["model"], asked["profile"]) == (model, profile)


def test_runner_of_its_own():
    asked = Persona(context_window="4096", gpu_layers=-1, cpu_threads="2").fields(None)
    assert (asked["n_ctx"], asked["n_gpu_layers"], asked["n_threads"]) == (4096, -1, 2)


def test_model_that_is_not_there_is_told_with_how_to_get_it(models):
    persona = Persona(hf_repo="someone/big-GGUF", hf_filename="*Q8_0.gguf")
    with pytest.raises(NotFound, match=r'pull someone/big-GGUF "\*Q8_0.gguf".*there are: big.Q4_K_M.gguf'):
        persona.fields(models)


def test_description_has_what_csps_llm_shows_and_no_texts():
    described = Persona(imperative="secret", intro_dialogue="hi", keys=["1"], voice="x", hf_repo="a/b", profile="one",
                        cpu_threads=2, flash_attention="true").described()
    assert described == {"description": None, "rag_length": 4096, "rag_helper": None, "agent_rag_source": None,
                         "local_file": None, "hf_repo": "a/b", "hf_filename": None, "context_window": None,
                         "voice": "x", "voice_param": None, "profile": "one"}


@pytest.mark.parametrize("fields", [{"imperative": 1}, {"context_window": "many"}, {"rag_length": 0}, {"clock": "no"},
                                    {"intro": "x"}])
def test_wrong_fields_are_refused(fields):
    with pytest.raises(ValidationError):
        Persona(**fields)
