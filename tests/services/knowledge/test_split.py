"""Texts in parts: no part is too long, nothing is lost, and each says where it stands."""

from __future__ import annotations

import re
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.knowledge.split import sections, split, told


def words(texts):
    """Two tokens around each text."""
    return [len(text.split()) + 2 for text in texts]


def letters(texts):
    """A model to which every four characters are a token, blanks too: not the sum of its words."""
    return [len(text) // 4 + 2 for text in texts]


def test_a_short_text_is_one_part_with_its_title():
    part, = split("All of it.", "Title", 50, words)
    assert (part.start, part.title, part.text) == (0, "Title", "All of it.")


def test_long_texts_are_cut_between_sentences_and_overlap():
    text = " ".join(f"Sentence {n} has five words." for n in range(100))
    parts = split(text, "T", 43, words)
    assert len(parts) > 10 and all(words([told(part.title, part.text)])[0] <= 43 for part in parts)
    assert all(part.text.startswith("Sentence") and part.text.endswith(".") for part in parts)
    assert all(first.start + len(first.text) > second.start for first, second in pairwise(parts))


def test_headings_become_titles():
    text = "Intro.\n\n# One\nFirst.\n\n## Deep ##\nSecond.\n\n```\n# no heading\n```\n\n# Two\n\nThird."
    parts = split(text, "Doc", 40, words)
    assert [(part.title, part.text.split("\n")[0]) for part in parts] == [
        ("Doc", "Intro."), ("Doc > One", "First."), ("Doc > One > Deep", "Second."), ("Doc > Two", "Third.")]
    assert "# no heading" in parts[2].text
    assert list(sections("# only\n")) == [] and split("", "T", 20, words) == split(" \n", "T", 20, words) == []


def test_headings_take_no_longer_however_they_are_written():
    found = list(sections("# a" + " " * 8000 + "b\none\n# C# ##\ntwo\n# #\nthree"))
    assert [headings for _, headings, _ in found] == [["a" + " " * 8000 + "b"], ["C"], ["#"]]


def test_known_sections_are_taken_as_they_are():
    text = "before # one two\n# three after"
    parts = split(text, "Doc", 20, words, [("page 1", 9, 16), ("page 2", 17, 24)])
    assert [(part.title, part.text, part.start) for part in parts] == [
        ("Doc", "before #", 0), ("Doc > page 1", "one two", 9), ("Doc > page 2", "# three", 17), ("Doc", "after", 25)]


def test_a_title_that_is_too_long_gives_way():
    part, = split("text", "very long title " * 9, 20, words)
    assert part.title == "" or words([part.title])[0] <= 10
    part, = split("# " + "h " * 5 + "\ntext", "many words of title " * 3, 20, words)
    assert part.title == "h h h h h" and part.text == "text"


def test_what_has_no_blanks_is_cut_too():
    for text in ("x" * 5000, "漢字" * 2000, "https://example.org/" + "a/" * 2000):
        parts = split(text, "T", 64, letters)
        assert all(letters([told(part.title, part.text)])[0] <= 64 for part in parts)
        assert parts[-1].start + len(parts[-1].text) == len(text)


@given(st.text(alphabet="ab .\n#é漢", max_size=600), st.integers(16, 60))
def test_every_word_is_in_a_part_that_fits(text, size):
    for count in (words, letters):
        parts = split(text, "T", size, count)
        assert all(text[part.start:part.start + len(part.text)] == part.text for part in parts)
        assert all(count([told(part.title, part.text)])[0] <= size for part in parts)
        covered = set()
        for part in parts:
            covered.update(range(part.start, part.start + len(part.text)))
        for start, _, section in sections(text):
            for word in re.finditer(r"\S", section):
                assert start + word.start() in covered


def test_words_count_as_they_do_behind_a_blank():
    """To models with byte-pair encoding a word at the beginning may be three tokens, and one anywhere else."""
    def pairs(texts):
        return [len(text.split()) + 2 * (not text.startswith("a")) for text in texts]
    text = " ".join(f"Sentence {n} has five words." for n in range(100))
    assert len(split(text, "", 132, pairs, known=[("", 0, len(text))], overlap=0)) == 4
