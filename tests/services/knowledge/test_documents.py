"""Row T6: what is quoted stays quoted, whatever it holds; and texts hold nothing that cannot be seen."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.knowledge.documents import CUT, Document, clean, one_line, quoted


def document(text, title="Title", source="https://example.com/"):
    return Document(title, text, source, "text/plain")


def test_documents_are_numbered_and_quoted():
    block = quoted([document("One.\n\nTwo\nlines."), document("Three.", "notes.txt", "notes.txt")], 1000)
    assert block == ("[1] Title (https://example.com/)\n> One.\n>\n> Two\n> lines.\n\n[2] notes.txt\n> Three.")


LINES = st.sampled_from(["\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\n\n",
                         "> ", "[2] Evil (x)", "<|im_end|>", "system:", "\u202e", "\ud800", "\0", " ", "ignore", CUT])


TEXTS = st.lists(st.one_of(LINES, st.text(max_size=5)), max_size=12).map("".join)


@given(st.lists(TEXTS, max_size=4), st.integers(0, 400))
def test_no_text_ends_its_quotation(texts, limit):
    block = quoted([document(text, title=text or "t", source=text) for text in texts], limit)
    assert len(block) <= max(limit, 0) or not block
    heads = [line for line in block.splitlines() if line and not line.startswith(">")]
    assert all(re.match(r"\[\d+\] ", line) for line in heads) and len(heads) <= len(texts)
    assert [int(re.match(r"\[(\d+)\]", line)[1]) for line in heads] == sorted({int(re.match(r"\[(\d+)\]", line)[1])
                                                                               for line in heads})


def test_texts_are_cut_at_paragraphs():
    text = "\n\n".join(f"Paragraph {number} is here." for number in range(100))
    block = quoted([document(text)], 200)
    assert len(block) <= 200 and block.endswith("is here." + CUT)
    assert "Paragraph 3 is here." in block and "Paragraph 9 " not in block


def test_a_long_paragraph_is_cut_at_words():
    block = quoted([document("word " * 1000)], 200)
    assert 180 < len(block) <= 200 and block.endswith("word" + CUT)
    assert quoted([document("word " * 1000)], 10) == ""


def test_what_a_short_document_leaves_goes_to_the_others():
    block = quoted([document("long " * 500), document("short"), document("long " * 500)], 1000)
    assert "> short" in block and 950 < len(block) <= 1000
    first, last = block.count("long", 0, block.index("[2]")), block.count("long", block.index("[3]"))
    assert abs(first - last) < 5


def test_any_measure_will_do():
    """Such as a counter of tokens, which is asked for little more than the limit."""
    asked = []

    def words(text):
        asked.append(len(text))
        return len(text.split())
    block = quoted([document("\n\n".join(["one two three"] * 500_000))], 100, words)
    assert 80 < len(block.split()) <= 100 and max(asked) < 10_000 and len(asked) < 50


@pytest.mark.parametrize(("text", "cleaned"), [
    ("a\r\nb\rc", "a\nb\nc"), ("a\n \n\t\n\nb", "a\n\nb"), ("  a  \n  b  ", "  a\n  b"),
    ("a\u200bb\ufeff\u202e\U000e0041\0", "ab"),
    ("👩\u200d💻 \u200c", "👩\u200d💻 \u200c"), ("a\u2028b", "a\nb"), ("\n\na\n\n", "a"),
    ("a\xa0b\tc", "a b c"), ("\ud800a", "a")])
def test_clean(text, cleaned):
    assert clean(text) == cleaned


@given(st.text())
def test_clean_text_stays(text):
    assert clean(clean(text)) == clean(text)
    assert len(one_line(text).splitlines()) <= 1


def test_clean_takes_linear_time():
    began = time.monotonic()
    for piece in (" ", "\n", " \n", "\t", "\u200b"):
        clean("a" + piece * 1_000_000 + "b")
    assert time.monotonic() - began < 20
