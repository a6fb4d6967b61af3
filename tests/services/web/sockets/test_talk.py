"""A conversation without a connection: what its line is told, and when."""

from __future__ import annotations

import threading
import time

import pytest

from services.chat.events import Delta, Search, Waiting
from services.errors import TooManyRequests
from services.knowledge.choose import Step
from services.knowledge.documents import Document
from services.web.frame import Trace
from services.web.sockets.line import NO_KEY, POLICY
from services.web.sockets.talk import KEY_SECONDS, MOST_WAITING, Talk, Wish
from services.web.watch import ClientGone
from tests.services.web.conftest import MASTER, final, make_world, wait_until


class FakeLine:
    """A client that hears everything."""

    def __init__(self):
        self.said, self.ended, self.received, self.sent, self.close_code = [], [], 0, 0, 1000

    @property
    def open(self):
        return not self.ended

    def say(self, text):
        self.check()
        self.said.append(text)

    def check(self):
        if self.ended:
            raise ClientGone

    def end(self, code, reason=""):
        self.ended.append((code, reason))


@pytest.fixture
def talk(scripted):
    return begun(scripted)


def begun(world, known=True, **wish):
    talk = Talk(world.app, world.app.extensions["parley"], Wish("assistant", **wish), Trace("t"), "local")
    if known:
        talk.known(world.parts.keys.get("0"), MASTER)
    talk._room.sockets.reserve(talk, talk.owner)
    talk.begin(FakeLine())
    return talk


def settled(talk):
    wait_until(lambda: not talk.busy)
    return talk.line.said


def test_what_was_said_goes_along_with_the_next_question(talk, scripted):
    for text in ("one", "two"):
        talk.heard(text)
        settled(talk)
    first, second = scripted.parts.chat.asked
    assert first.earlier == () and [message.content for message in second.earlier[0].messages][1] == "yes"
    assert second.earlier[0].asked == first.messages and second.system and not second.session_id
    assert talk.line.said == ["yes", "<END>"] * 2


@pytest.mark.parametrize("said", ["<END>", "<END 0123>", "<END", "<END> and more"])
def test_no_model_ends_its_answer_by_a_word(talk, scripted, said):
    """Row N8, in frames: all that it says comes, and none of its frames is an end."""
    scripted.parts.chat.events = [Delta("a"), Delta(said), Delta("<"), final(f"a{said}<")]
    talk.heard("one")
    frames = settled(talk)
    assert frames[-1] == "<END>" and "".join(frames[:-1]) == f"a{said}<"
    assert not any(frame.startswith("<END") for frame in frames[:-1])


def test_session_has_what_was_said(scripted):
    talk = begun(scripted, session="s1", tell_session=True)
    for text in ("one", "two"):
        talk.heard(text)
        settled(talk)
    assert all(ask.session_id == "s1" and not ask.earlier for ask in scripted.parts.chat.asked)
    assert talk.line.said[-1] == "<END s1>"


def test_kept_turns_are_bounded_by_size(tmp_path):
    world = make_world(tmp_path, max_prompt_bytes=1000)
    talk = begun(world)
    for _ in range(5):
        talk.heard("x" * 400)
        settled(talk)
    assert len(talk._earlier) < 3


def test_place_in_the_queue_is_told_when_it_changes(talk, scripted):
    scripted.parts.chat.events = [Waiting(2, 9.6), Waiting(2, 9), Waiting(1, 4), Delta("x"), final("x")]
    talk.heard("hi")
    told = settled(talk)
    assert [text[-42:] for text in told[:2]] == ["are number 2 in the queue, for about 10 s.)\n"[-42:],
                                                 "are number 1 in the queue, for about 4 s.)\n"[-42:]]
    assert told[2:] == ["x", "<END>"]


def test_nothing_but_answers_for_who_wants_that(scripted):
    scripted.parts.chat.events = [Waiting(2, 9), Delta("x"), final("x")]
    talk = begun(scripted, status=False)
    talk.heard("|CONTEXT|a|/CONTEXT|b")
    assert settled(talk) == ["x", "<END>"]


def test_surprise_is_told_by_its_id_alone(talk, scripted):
    scripted.parts.chat.events = [ValueError("secret")]
    talk.heard("hi")
    assert settled(talk) == ["Error: internal error; the server's log says more under request id t", "<END>"]


def test_client_that_is_gone_cancels_its_answer(talk, scripted):
    scripted.parts.chat.events = [Delta("x"), lambda: talk.line.end(1000), Delta("y"), final("xy")]
    talk.heard("hi")
    assert settled(talk) == ["x"] and scripted.parts.chat.closed_early == 1


def test_prompts_that_wait_are_bounded(talk, scripted):
    going_on = threading.Event()
    scripted.parts.chat.events = [lambda: going_on.wait(20), Delta("x"), final("x")]
    talk.heard("first")
    wait_until(lambda: scripted.parts.chat.asked)
    for number in range(MOST_WAITING + 1):
        assert talk.line.open
        talk.heard(str(number))
    assert talk.line.ended[0][0] == POLICY
    going_on.set()
    settled(talk)


def test_time_runs_out_for_who_brings_no_key_or_asks_nothing(scripted):
    now, idle = time.monotonic(), scripted.settings.socket_idle
    keyless, quiet = begun(scripted, known=False), begun(scripted)
    for talk in (keyless, quiet):
        talk.tick(now + KEY_SECONDS - 1)
        assert talk.line.open
    keyless.tick(now + KEY_SECONDS + 1)
    quiet.tick(now + idle + 1)
    assert keyless.line.ended[0][0] == NO_KEY and quiet.line.ended[0][0] == POLICY


def test_stopping_server_takes_no_more_questions(talk, scripted):
    talk._room.drain.begin(10)
    talk.heard("hi")
    text, end = settled(talk)
    assert text.startswith("Error: the server is stopping") and end == "<END>" and not scripted.parts.chat.asked


def test_what_is_fetched_is_told_before_the_answer(talk, scripted):
    class FakeFetcher:
        def read(self, url, *, owner):
            return Document("A title", f"text of {url}", url, "text/html")

    scripted.parts.grounding.fetcher = FakeFetcher()
    for text in ("https://a.example/ what is it?", "what is in the news?"):
        talk.heard(text)
        settled(talk)
    assert talk.line.said == ["Fetching the page at https://a.example/", "yes", "<END>",
                              "Checking the news...\n", "yes", "<END>"]
    first, second = (ask.messages[-1].content for ask in scripted.parts.chat.asked)
    assert "> text of https://a.example/" in first and first.endswith("Given the preceding content, what is it?")
    assert "> text of https://" in second


def test_nothing_is_fetched_for_who_is_over_a_limit(talk, scripted):
    scripted.parts.admissions.refuse = TooManyRequests("slowly")
    talk.heard("https://a.example/ what is it?")
    assert settled(talk) == ["Error: slowly", "<END>"]


def test_a_surprise_before_the_answer_ends_the_line_alone(talk, scripted, monkeypatch):
    monkeypatch.setattr(scripted.parts.keys, "authenticate", lambda secret: 1 / 0)
    talk.heard("hi")
    settled(talk)
    assert talk.line.ended == [(POLICY, "internal error; the server's log says more under request id t")]


def test_where_to_look_is_asked_of_the_model_and_every_step_is_told(talk, scripted):
    scripted.parts.chat.events = [Step('Searching wiki for "tides" ...'), Delta("x"), final("x")]
    talk.heard("|RAG|wikipedia.org|canada.ca|/RAG|why tides?")
    settled(talk)
    assert talk.line.said[:2] == ['Searching wiki for "tides" ...\n', "x"]
    assert scripted.parts.chat.asked[-1].search == Search(("wikipedia.org", "canada.ca"))
