"""What the platforms' files share: claims, calls with further tries, long texts."""

from __future__ import annotations

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.errors import ParleyError
from services.web.bindings import claims, post, texts
from services.web.bindings.claims import Claims
from services.web.bindings.post import PAUSES, Post, Undelivered

# ---------------------------------------------------------------- claims

def test_one_of_many_has_a_claim(tmp_path):
    several = [Claims(tmp_path / "data" / "claims") for _ in range(4)]
    with ThreadPoolExecutor(16) as pool:
        had = list(pool.map(lambda n: several[n % 4].first(f"{n // 16:064x}"), range(64)))
    assert sum(had) == 4
    assert not Claims(tmp_path / "data" / "claims").first("0" * 64), "after a restart too"


def test_old_claims_go(tmp_path, monkeypatch):
    mine = Claims(tmp_path)
    assert mine.first("a") and mine.first("b")
    os.utime(tmp_path / "a", (time.time() - claims.KEPT - 1,) * 2)
    assert not mine.first("a"), "looked through now and then only"
    monkeypatch.setattr(claims, "PRUNE_SECONDS", 0.0)
    assert mine.first("a") and not mine.first("b")


def test_a_link_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "claims").symlink_to(tmp_path)
    with pytest.raises(ParleyError):
        Claims(tmp_path / "claims").first("a")


# ---------------------------------------------------------------- calls

@pytest.fixture
def sender():
    slept = []
    found = Post(lambda: False, slept.append)
    found.slept = slept
    return found


def test_what_fails_for_a_moment_is_sent_again(sender, platform):
    platform.script.extend([(500, {}, ""), (503, {}, ""), (429, {"Retry-After": "1.5"}, "")])
    assert sender.send("POST", f"{platform.url}/x", {"text": "é"}, token="t") == b'{"ok": true}'
    assert [call.body for call in platform.calls] == [{"text": "é"}] * 4
    assert sum(sender.slept) == PAUSES[0] + PAUSES[1] + 1.5
    assert {call.headers["Authorization"] for call in platform.calls} == {"Bearer t"}


@pytest.mark.parametrize("script, tries", [
    ([(503, {}, "")] * 9, 4), ([(400, {}, "")], 1), ([(404, {}, "")], 1), ([(429, {"Retry-After": "61"}, "")], 1),
    ([(302, {"Location": "/y"}, "")], 1), ([(429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, "")] * 9, 4)])
def test_what_does_not_pass_is_given_up(sender, platform, script, tries):
    platform.script.extend(script)
    with pytest.raises(Undelivered, match=f"127.0.0.1 answers with HTTP {script[0][0]}: given up"):
        sender.send("POST", f"{platform.url}/x?secret", {})
    assert len(platform.calls) == tries and {call.path for call in platform.calls} == {"/x?secret"}


def test_a_platform_that_is_down_is_tried_again_and_given_up(sender):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(Undelivered, match="cannot be reached"):
        sender.send("POST", f"http://127.0.0.1:{port}/secret", {})
    assert sum(sender.slept) == sum(PAUSES)


def test_what_may_have_arrived_is_not_sent_again(sender):
    with socket.create_server(("127.0.0.1", 0)) as rude, ThreadPoolExecutor(1) as pool:
        def hang_up():
            connection = rude.accept()[0]
            connection.recv(65536)
            connection.close()
        heard = pool.submit(hang_up)
        with pytest.raises(Undelivered, match="not known"):
            sender.send("POST", f"http://127.0.0.1:{rude.getsockname()[1]}/", {})
        heard.result()
    assert sender.slept == []


def test_a_stop_ends_the_waiting(platform):
    platform.script.extend([(503, {}, "")] * 2)
    with pytest.raises(Undelivered, match="the server stops"):
        Post(lambda: True).send("POST", f"{platform.url}/x", {})


def test_a_huge_reply_is_not_read(sender, platform, monkeypatch):
    monkeypatch.setattr(post, "MOST_BYTES", 100)
    platform.script.append((200, {}, "x" * 100_000))
    assert len(sender.send("POST", f"{platform.url}/x", {})) == 100


# ---------------------------------------------------------------- texts

@given(st.text(alphabet="aé😀 \n", max_size=400), st.integers(min_value=40, max_value=60))
def test_pieces_are_the_text_in_parts(text, most):
    found = texts.pieces(text, most, 100)
    assert all(len(piece.encode("utf-16-le")) <= 2 * most and piece == piece.strip() for piece in found)
    assert "".join("".join(found).split()) == "".join(text.split()) or (found == ["…"] and not text.strip())


def test_pieces_end_where_words_do():
    assert texts.pieces("one two three four", 14) == ["one two three", "four"]
    assert texts.pieces("one\n\ntwo three four", 14) == ["one\n\ntwo three", "four"]
    assert texts.pieces("a fine line\nand more words", 14) == ["a fine line", "and more words"]
    assert texts.pieces("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert texts.pieces("😀😀😀", 3) == ["😀", "😀", "😀"]


def test_too_many_pieces_are_cut():
    found = texts.pieces("word " * 1000, 100)
    assert len(found) == 5 and found[-1].endswith(texts.CUT) and all(len(piece) <= 100 for piece in found)
    assert texts.pieces("\ud800 \0", 10) == ["?"]
