"""Long texts in parts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from services.jobs.chunks import chunks


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


@pytest.mark.parametrize(("count", "room"), [(50, 100), (50, 140), (500, 300), (2000, 1500)])
def test_parts_are_few_and_about_as_long_and_hold_it_all(count: int, room: int) -> None:
    sentences = [f"Sentence {n} has five words." for n in range(count)]
    parts = chunks(" ".join(sentences), 5 * count, room, words, overlap=20)
    sizes = words(parts)
    assert max(sizes) <= room and sizes[-1] > max(sizes) / 2, sizes
    assert len(parts) <= 5 * count // (room - 20) + 2
    assert all(any(sentence in part for part in parts) for sentence in sentences)
    assert all(part.endswith(".") for part in parts)
    assert sum(sizes) > 5 * count, "they overlap"


def test_without_an_overlap_nothing_is_said_twice() -> None:
    paragraphs = [f"Paragraph {n}. " + "word " * 30 for n in range(20)]
    parts = chunks("\n\n".join(paragraphs), sum(words(paragraphs)), 200, words, overlap=0)
    assert sum(words(parts)) == sum(words(paragraphs))
    assert all(part.startswith("Paragraph") for part in parts)


def test_a_text_without_blanks_is_cut_all_the_same() -> None:
    parts = chunks("x" * 4000, 2000, 300, lambda texts: [(len(text) + 1) // 2 for text in texts], 0)
    assert "".join(parts) == "x" * 4000


def test_headings_do_not_make_parts() -> None:
    text = "\n\n".join(f"# Heading {n}\n\nSome words." for n in range(100))
    assert len(chunks(text, 500, 300, words)) <= 3
