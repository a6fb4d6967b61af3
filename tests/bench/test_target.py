"""What is asked of both and read of their answers, without a server."""

from pathlib import Path

import pytest

from tests.bench import peer, speed
from tests.bench.target import Ask, Ours, Peer, Reply, Setup, Target

SETUP = Setup(Path("model.gguf"), 2, 256, 1)


def test_ours_and_the_peer_are_asked_the_same(tmp_path):
    ours, other = Ours(SETUP, tmp_path), Peer(SETUP, None)
    text = Ask(" badego", 8, head="head")
    assert ours.request(text)[1]["prompt"] == " badego"             # our template holds the head
    path, body = other.request(text)
    assert (path, body["prompt"], body["n_predict"], body["ignore_eos"]) == ("/completion", "head badego", 8, True)
    talk = Ask("two", 8, session="s", window=[("one", "answer")])
    assert ours.request(talk)[1]["session_id"] == "s"
    path, body = other.request(talk)
    assert path == "/v1/chat/completions" and [m["content"] for m in body["messages"]] == ["one", "answer", "two"]


def test_counts_are_read_of_both(tmp_path):
    replies = [Reply(), Reply(), Reply()]
    usage = {"prompt_tokens": 9, "completion_tokens": 3, "prompt_tokens_details": {"processed_tokens": 4}}
    Ours(SETUP, tmp_path).fill(replies[0], {"result": "x", "usage": usage})
    timings = {"prompt_n": 4, "cache_n": 5, "predicted_n": 3}
    Peer(SETUP, None).fill(replies[1], {"content": "x", "timings": timings})
    Peer(SETUP, None).fill(replies[2], {"choices": [{"message": {"content": "x"}}], "timings": timings})
    for reply in replies:
        assert (reply.text, reply.prompt, reply.processed, reply.completion) == ("x", 9, 4, 3)


def test_turns_alternate():
    class Named(Target):
        def __init__(self, name):
            self.name = name

        def settle(self):
            pass

    order = []
    found = speed.in_turns([Named("a"), Named("b")], 3, lambda target, number: order.append(target.name) or number)
    assert order == ["a", "b", "b", "a", "a", "b"] and found == {"a": [0, 1, 2], "b": [0, 1, 2]}


def test_a_peer_that_is_no_program_is_named(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="no program"):
        peer.find(str(tmp_path / "llama-server"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(peer, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"requirements\.txt"):
        peer.find(None)
