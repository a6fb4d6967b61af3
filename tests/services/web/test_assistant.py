"""`/assistant/v1` on a started server: what a key gives it to know, and what it answers from that."""

from __future__ import annotations

import pytest

from services.web import assistant
from services.web.assistant import ONLY, SYSTEM, AssistReply, RagConfig
from tests.conftest import Server
from tests.services.web.conftest import wait_until
from tests.services.web.test_knowledge import furnished, site  # noqa: F401
from tests.services.web.test_personas import asked


@pytest.fixture(scope="module")
def server(tmp_path_factory, site):     # noqa: F811
    port = site.rpartition(":")[2].strip("/")
    server = Server(furnished(tmp_path_factory.mktemp("assistant")), FETCH_ALLOW="127.0.0.1", FETCH_PORTS=port).start()
    yield server
    server.end()


@pytest.fixture
def own(server):
    return server.make_key()


def config(server, own):
    response = server.call("GET", "/assistant/v1/rag", own)
    assert response.status_code == 200, response.text
    return RagConfig.model_validate(response.json())


def settled(server, own):
    wait_until(lambda: config(server, own).status != "running", 60)
    return config(server, own)


def assist(server, own, **body):
    response = server.call("POST", "/assistant/v1/assist", own, json=body)
    assert response.status_code == 200, response.text
    return AssistReply.model_validate(response.json()).text


def test_addresses_and_files_are_known_until_they_are_forgotten(server, own, site):     # noqa: F811
    none = server.call("GET", "/assistant/v1/rag", own)
    assert none.status_code == 404 and none.json()["detail"] == "RAG database not found"
    form = {"urls": site, "max_depth": "0", "system_message": "You are a clerk."}
    made = server.call("POST", "/assistant/v1/rag", own, data=form, files=[
        ("files", ("a.txt", b"Ferries go at noon.")), ("files", ("b.md", b"# Bread"))])
    assert made.status_code == 200 and RagConfig.model_validate(made.json()).refresh_interval == 30
    known = settled(server, own)
    assert (known.status, known.urls, known.files, known.max_depth, known.system_message) == (
        "success", [site], ["a.txt", "b.md"], 0, "You are a clerk.")
    texts = server.call("GET", "/knowledge/assistant/documents", own).json()["documents"]
    assert [one["name"] for one in texts if one["name"].startswith("http")] == [site]
    again = server.call("POST", "/assistant/v1/rag", own, json={"urls": [site], "max_depth": 0}).json()
    assert again["status"] == "success" and again["files"] == [] and again["system_message"] is None
    assert server.call("DELETE", "/assistant/v1/rag", own).status_code == 204
    assert server.call("DELETE", "/assistant/v1/rag", own).status_code == 404


def test_a_retry_gets_the_first_ones_answer(server):
    one = server.make_key(max_parallel=1)
    for _ in range(2):
        response = server.call("POST", "/assistant/v1/assist", one, json={"prompt": "When? !echo At noon."},
                               headers={"Idempotency-Key": "k"})
        assert (response.status_code, response.text) == (200, '{"text":"At noon."}')


def test_two_files_of_one_name_go_together(server, own):
    two = [("files", ("a.txt", b"Ferries go at noon.")), ("files", ("a.txt", b"Ferries go at one."))]
    assert server.call("POST", "/assistant/v1/rag", own, files=two).json()["files"] == ["a.txt"] * 2
    assert server.call("POST", "/assistant/v1/rag", own, json={"system_message": "x"}).json()["files"] == []


def test_its_own_system_text_is_not_shared_with_other_keys(world, monkeypatch):
    def head():
        assert world.call("POST", "/assistant/v1/assist", json={"prompt": "When?"}).status_code == 200
        return "".join(world.parts.engine.requests[-1].prompt)[:world.parts.engine.requests[-1].head]
    assert SYSTEM in head()
    monkeypatch.setattr(assistant, "_there", lambda endpoint: {"system": "The code is 4711."})
    monkeypatch.setattr(world.parts.grounding, "found", lambda *_: [])
    assert head() == "" and "The code is 4711." in "".join(world.parts.engine.requests[-1].prompt)


def test_what_cannot_be_read_is_told(server, own, site):        # noqa: F811
    server.call("POST", "/assistant/v1/rag", own, json={"urls": [f"{site}nowhere"]})
    known = settled(server, own)
    assert known.status == "error" and "404" in known.error


def test_an_answer_comes_from_what_it_knows_and_what_it_is_given(server, own):
    assert assist(server, own, prompt="When? !echo At noon.") == "At noon."
    assert assist(server, own, text="Ferries go at noon.", prompt="When?") == "You said: When?"
    server.call("POST", "/assistant/v1/rag", own, files=[("files[]", ("a.txt", b"Ferries go at noon."))])
    settled(server, own)
    assert assist(server, own, prompt="When do ferries go? !echo At noon.", assistant_type="statistics",
                  use_only_rag_data=True, max_completion_tokens=20) == "At noon."
    assert server.call("GET", "/assistant/v1/rag", server.make_key()).status_code == 404


@pytest.mark.parametrize(("body", "param"), [
    ({}, "prompt"), ({"text": " ", "prompt": ""}, "prompt"), ({"prompt": "x", "assistant_type": "poet"},
                                                              "assistant_type"), ({"prompt": "x", "k": 1}, "k")])
def test_what_is_no_question_is_refused(server, own, body, param):
    response = server.call("POST", "/assistant/v1/assist", own, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param) and response.json()["detail"]


@pytest.mark.parametrize("form", [{"max_depth": "x"}, {"max_depth": ["1", "2"]}, {"urls": "gopher://x"},
                                  {"other": "1"}])
def test_a_form_that_is_wrong_makes_nothing(server, own, form):
    response = server.call("POST", "/assistant/v1/rag", own, data=form, files=[("files", ("a.txt", b"x"))])
    assert response.status_code == 400 and response.json()["detail"]
    assert server.call("GET", "/assistant/v1/rag", own).status_code == 404


def test_the_prompt_has_its_system_text(world):
    world.call("POST", "/assistant/v1/assist", json={"text": "Noon.", "prompt": "When?", "use_only_rag_data": True})
    text = asked(world)
    assert SYSTEM in text and ONLY not in text and text.index("Noon.\n\nWhen?") > text.index(SYSTEM)
