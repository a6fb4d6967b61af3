from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth.authentication import ALPHABET, KEY_PATTERN, PREFIX, checksum, generate_api_key, looks_like_key

VECTORS = ["ply_0000000000000000000000000000002C8GjS",
           "ply_ABCDEFGHIJabcdefghij01234567890iDXGk",
           "ply_zzzzzzzzzzzzzzzzzzzzzzzzzzzzzz4IlJEz",
           "ply_qqqqqqqqqqqqqqqqqqqqqqqqqqq22200roHR"]     # a checksum that needs its zeros


@pytest.mark.parametrize("key", VECTORS)
def test_fixed_vectors(key: str) -> None:
    assert looks_like_key(key)


@given(st.text(ALPHABET, min_size=30, max_size=30))
def test_the_checksum_is_the_crc_in_base62(body: str) -> None:
    number = 0
    for digit in checksum(body):
        number = number * 62 + ALPHABET.index(digit)
    assert number == zlib.crc32(body.encode())
    assert looks_like_key(PREFIX + body + checksum(body))


def test_keys_are_of_the_form_and_all_different() -> None:
    made = {generate_api_key() for _ in range(1000)}
    assert len(made) == 1000
    assert all(len(key) == 40 and looks_like_key(key) for key in made)


@given(st.integers(0, 39), st.sampled_from(ALPHABET + "_-é"))
def test_one_wrong_character_is_seen(at: int, character: str) -> None:
    key = VECTORS[1]
    wrong = key[:at] + character + key[at + 1:]
    assert looks_like_key(wrong) == (wrong == key)


@pytest.mark.parametrize("text", ["", "ply_", VECTORS[0] + "0", VECTORS[0][:-1], VECTORS[0] + "\n", "x" + VECTORS[0]])
def test_other_text_is_no_key(text: str) -> None:
    assert not looks_like_key(text)


def test_the_pattern_finds_keys_in_any_text() -> None:
    text = f'x{VECTORS[0]}"; key={VECTORS[1]}\nply_short'
    assert [found for found in KEY_PATTERN.findall(text) if looks_like_key(found)] == VECTORS[:2]
