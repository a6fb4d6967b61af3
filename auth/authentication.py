"""What an API key looks like: `ply_` + 30 random base62 characters + 6 of checksum.

The checksum is the CRC32 of the 30, in base62, padded with "0": a mistyped or leaked key is told from other text
offline. It proves nothing about who made the key; that is for `auth.keys`.
"""

from __future__ import annotations

import re
import secrets
import zlib

ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
PREFIX = "ply_"
BODY_LENGTH = 30            # log2(62) * 30 = 178 bits: needs no slow hash
CHECKSUM_LENGTH = 6         # 62**6 > 2**32

KEY_PATTERN = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{BODY_LENGTH + CHECKSUM_LENGTH}}}")
"""Finds what may be a key in any text, for scanners; `looks_like_key` then tells by the checksum."""


def generate_api_key() -> str:
    """A new random key of 40 characters."""
    body = random_base62(BODY_LENGTH)
    return PREFIX + body + checksum(body)


def looks_like_key(text: str) -> bool:
    """Whether `text` has the form of a key and its checksum is right. Says nothing about being valid here."""
    if not KEY_PATTERN.fullmatch(text):
        return False
    body, check = text[len(PREFIX):-CHECKSUM_LENGTH], text[-CHECKSUM_LENGTH:]
    return checksum(body) == check


def checksum(body: str) -> str:
    """The CRC32 of `body` as 6 base62 digits, the most significant first."""
    number = zlib.crc32(body.encode("ascii"))
    digits = ""
    while number:
        number, digit = divmod(number, len(ALPHABET))
        digits = ALPHABET[digit] + digits
    return digits.rjust(CHECKSUM_LENGTH, ALPHABET[0])


def random_base62(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
