"""Records as lines of a file: readable JSON with a checksum, or boxed when there is a cipher; and what damage is.

    {"n":1,"type":"user","at":"…","content":"Hello","extra":{},"sum":"<16 hex digits>"}
    {"n":1,"box":"<base64>","sum":"<16 hex digits>"}

`sum` is the start of the SHA-256 of the line without its `sum`. A box belongs to its owner, session and number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from services.errors import BadRequest
from services.store.base import SCHEMA, Record
from services.store.crypto import Seals

_SUM = b',"sum":"'
_SUFFIX = len(_SUM) + 16 + 2
_SECTOR = 512               # bytes; what a disk writes whole


class Damaged(Exception):
    """A line that is not what was written."""


class BadSum(Damaged):
    """A line whose checksum is wrong: changed, or never written to its end."""


class Newer(Exception):
    """A log of a newer schema. The argument is that schema's number."""


@dataclass(frozen=True)
class Parsed:
    records: list[Record]
    good: int               # bytes that the records take up; what follows is a torn tail
    ended: bool             # the last good line has its newline


def encode(owner: str, sid: str, record: Record, cipher: Seals | None) -> bytes:
    """One line with its newline. BadRequest (`bad_unicode`) for text that UTF-8 cannot hold."""
    try:
        body = msgspec.json.encode(record)
    except UnicodeEncodeError:
        raise BadRequest("the text holds half of a surrogate pair, which is no character", code="bad_unicode") from None
    if cipher is not None:
        plain = {key: record[key] for key in ("n", "v") if key in record}
        box = cipher.seal(owner, f"{owner}/{sid}/{record['n']}", body)
        body = msgspec.json.encode({**plain, "box": box})
    return body[:-1] + _SUM + _digest(body) + b'"}\n'


def encode_all(owner: str, sid: str, records: Iterable[Record], cipher: Seals | None) -> bytes:
    return b"".join(encode(owner, sid, record, cipher) for record in records)


def _digest(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:16].encode()


def decode(owner: str, sid: str, number: int, line: bytes, cipher: Seals | None) -> Record:
    """The record of one line (without newline) at place `number`. BadSum, Damaged, Newer."""
    body = line[:-_SUFFIX] + b"}"
    if line[-_SUFFIX:] != _SUM + _digest(body) + b'"}':
        raise BadSum("its checksum is wrong")
    try:
        record = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise Damaged(f"it is not JSON ({error})") from None
    if not isinstance(record, dict) or record.get("n") != number:
        raise Damaged(f"it is not record {number}")
    if number == 0 and isinstance(record.get("v"), int) and record["v"] > SCHEMA:
        raise Newer(record["v"])
    if ("box" in record) != (cipher is not None):
        raise Damaged("it is encrypted, but DATA_KEY is not set" if cipher is None else
                      "it is not encrypted although DATA_KEY is set; the next start of the server encrypts it")
    if cipher is not None:
        record = _unbox(owner, sid, record, cipher)
    if not isinstance(record.get("type"), str) or (number == 0) != (record["type"] == "head"):
        raise Damaged(f"record {number} has a wrong type")
    if number == 0 and (record.get("owner"), record.get("id")) != (owner, sid):
        raise Damaged("it belongs to another session")
    return record


def _unbox(owner: str, sid: str, record: Record, cipher: Seals) -> Record:
    try:
        opened = msgspec.json.decode(cipher.unseal(owner, f"{owner}/{sid}/{record['n']}", str(record["box"])))
    except ValueError as error:
        raise Damaged(f"its box does not open: {error}") from None
    if not isinstance(opened, dict) or opened.get("n") != record["n"]:
        raise Damaged("its box holds another record")
    return opened


def parse(owner: str, sid: str, data: bytes, cipher: Seals | None) -> Parsed:
    """The records of a whole log.

    A last line that was never written to its end is a torn tail: left out, and `good` says where it begins. It is one
    when its newline is missing, or when it holds a hole of NULs where a disk lost power between sectors. A last line
    that lacks only the newline counts. Anything else that is wrong raises Damaged naming the line.
    """
    lines = data.split(b"\n")
    rest = lines.pop()
    records: list[Record] = []
    good = 0
    for number, line in enumerate(lines):
        try:
            records.append(decode(owner, sid, number, line, cipher))
        except Damaged as error:
            last = number == len(lines) - 1 and not rest
            if last and records and isinstance(error, BadSum) and _has_hole(line, good):
                return Parsed(records, good, True)
            raise Damaged(f"line {number + 1}: {error}") from None
        good += len(line) + 1
    if rest and _is_whole(owner, sid, len(records), rest, cipher):
        records.append(decode(owner, sid, len(records), rest, cipher))
        return Parsed(records, good + len(rest), False)
    if not records:
        raise Damaged("line 1: there is no whole first line")
    return Parsed(records, good, True)


def _is_whole(owner: str, sid: str, number: int, rest: bytes, cipher: Seals | None) -> bool:
    try:
        decode(owner, sid, number, rest, cipher)
        return True
    except BadSum:
        pass
    except Damaged as error:
        raise Damaged(f"line {number + 1}: {error}") from None
    if rest[-_SUFFIX - 1:-_SUFFIX + len(_SUM) - 1] == _SUM:     # all there, but the newline became something else
        raise Damaged(f"line {number + 1}: its end was changed")
    return False


def _has_hole(line: bytes, at: int) -> bool:
    """Whether a sector of the line at offset `at` was never written: the rest of its first one, or a whole one."""
    leading = len(line) - len(line.lstrip(b"\0"))
    return (leading > 0 and (at + leading) % _SECTOR == 0) or bytes(_SECTOR) in line
