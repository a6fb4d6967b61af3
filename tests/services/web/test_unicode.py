"""Rows U2 and U3 through a started server with a real runner: characters that come in parts, and texts of any kind."""

from __future__ import annotations

import json

import msgspec
import pytest

from tests.conftest import make_home, serving
from tests.services.web.conftest import FakeLease
from tests.tiny_gguf import byte_letters, write_tiny

pytestmark = pytest.mark.model
SAID = "😀é\n".encode()          # what the model says again and again, a token for each byte
MARKS = "e" + "\u0301" * 500_000        # a million bytes, of one letter


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    config = {"SelectedModel": "smiles", "smiles": {"model": "smiles.gguf", "n_ctx": 512, "chat_format": "model"}}
    home = make_home(tmp_path_factory.mktemp("unicode") / "home", config)
    letters = [byte_letters()[byte] for byte in SAID]
    write_tiny(home / "models" / "smiles.gguf", successors=dict(zip(letters, [*letters[1:], letters[0]], strict=True)))
    with serving(home, "llama") as server:
        yield server.ready()


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 8, 11, 12, 13])
def test_a_character_in_parts_is_said_whole_and_never_dropped(server, tokens):
    """Row U3: where max_tokens cuts one, what there is of it is one replacement character."""
    whole = (SAID * 2)[:tokens].decode("utf-8", "replace")
    name = f"s{tokens}"
    *deltas, last = server.stream("x", name, max_tokens=tokens, temperature=0)
    assert "".join(event["delta"] for event in deltas) == last["result"] == whole
    assert not any("\ufffd" in event["delta"] for event in deltas[:-1]) and "\ufffd" not in whole[:-1]
    turns = server.call("GET", f"/answer/{name}").json()["turns"]
    assert turns[-1]["content"] == whole
    assert server.answer("x", max_tokens=tokens, temperature=0).json()["result"] == whole


def test_a_stop_is_found_in_characters_that_come_in_parts(server):
    last = server.answer("x", max_tokens=40, temperature=0, stop="é\n😀").json()
    assert (last["result"], last["finish_reason"]) == ("😀", "stop")


def test_other_streams_say_whole_characters_too(server):
    response = server.call("POST", "/v1/chat/completions", stream=True, json={
        "messages": [{"role": "user", "content": "x"}], "max_tokens": 8, "temperature": 0, "stream": True})
    raw = b"".join(response.iter_content()).decode("utf-8")
    chunks = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    said = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert said == "😀é\n\ufffd"


TWINS = ["é", "e\u0301", "\u202e\u2066\0\x85\x9b👩\u200d💻", MARKS]


def test_names_come_back_byte_equal_and_none_becomes_another(server):
    """Row U2."""
    for number, text in enumerate(TWINS):
        server.answer("hello", f"u{number}", max_tokens=1)
        changed = server.call("PATCH", f"/answer/u{number}", json={"name": text[:80]})
        assert changed.status_code == 200, changed.text
    for number, text in enumerate(TWINS):
        assert server.call("GET", f"/answer/u{number}").json()["name"] == text[:80]
    for twin in TWINS[:2]:
        refused = server.answer("hello", twin, max_tokens=1)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "session_id")


def test_a_million_marks_on_a_letter_are_kept_or_refused(server, world, monkeypatch):
    """Row U2: too long for this model, and no trouble for it; byte-equal where there is room."""
    response = server.answer(MARKS, "marks", max_tokens=1)
    assert response.status_code == 400 and "context" in response.json()["error"]["code"]
    assert server.answer("hello", max_tokens=1).status_code == 200
    monkeypatch.setattr(FakeLease, "ready", msgspec.structs.replace(FakeLease.ready, n_ctx=1 << 20))
    assert world.call("POST", "/answer", json={"prompt": MARKS, "session_id": 1}).status_code == 200
    assert world.call("GET", "/answer/1").json["turns"][0]["content"] == MARKS
