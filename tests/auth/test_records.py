from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth import records
from auth.records import Document, Record
from services.errors import ConfigError

PATH = Path("api_keys.json")


def record(key_id: str = "k1", **fields: object) -> dict[str, object]:
    return {"id": key_id, "hash": key_id.encode().hex().rjust(64, "0"), "prefix4": "abcd", "scopes": ["answer"],
            "created": "2026-11-21T00:00:00Z", **fields}


def text_of(*found: dict[str, object]) -> str:
    return json.dumps({"version": 1, "keys": found}, indent=2)


def problem(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        records.parse(text if isinstance(text, bytes) else text.encode(), PATH)
    return caught.value.message


def test_what_is_written_is_read_again() -> None:
    made = Document(keys=[Record(id="0", hash="a" * 64, prefix4="", scopes=["admin"], created=records.moment(1.5))])
    assert records.parse(records.encode(made), PATH) == made


def test_a_few_fields_are_enough_and_a_byte_order_mark_no_harm() -> None:
    document = records.parse(b"\xef\xbb\xbf" + text_of(record()).encode(), PATH)
    assert isinstance(document, Document)
    key = records.key_of(document.keys[0])
    assert (key.profiles, key.requests_per_minute, key.created) == (None, None, "2026-11-21T00:00:00Z")


@pytest.mark.parametrize(("text", "wanted"), [
    ('{\n"version": 1,\n"keys": [}', "line 3"),
    (text_of(record(), record("k2", scopes=["answer", "root"])), "$.keys[1].scopes[1]"),
    (text_of(record(expire_at=None)), "unknown field `expire_at`"),
    (text_of(record(tokens_per_minute=0)), "tokens_per_minute"),
    (text_of(record(hash="zz")), "$.keys[0].hash"),
    (text_of(record(requests_per_minute=0)), "requests_per_minute"),
    (text_of(record(created="2026-11-21T00:00:00")), "created"),
    (text_of(record(id="../x")), "$.keys[0].id"),
    (text_of(record(), record()), "the same id"),
    (text_of(record(), record("k2", hash=record()["hash"])), "the same hash"),
    ('{"version": 2, "keys": []}', "version"),
    ('{"version": 1, "version": 1, "keys": []}', "twice"),
    ("[]", "api_keys.json"), ("7", "api_keys.json"), ('"x"', "api_keys.json"),
    ("[" * 100_000, "line 1"), (b"{\n\xff}", "line 2"), ('{\n"0": "abc",\n"1": 5}', "line 3"),
])
def test_a_broken_file_is_told_by_name_and_place(text: str | bytes, wanted: str) -> None:
    assert wanted in problem(text) and "api_keys.json" in problem(text)


def test_the_line_is_that_of_the_record() -> None:
    text = text_of(record(), record("k2", max_parallel=-1))
    line = int(problem(text).split("line ")[1].split(":")[0])
    assert "k2" in text.splitlines()[line - 1]


@given(st.dictionaries(st.text(max_size=5), st.text(min_size=1), max_size=5))
def test_a_broken_plain_file_never_tells_its_keys(found: dict[str, str]) -> None:
    found = {**found, "9": "ply_SECRETSECRETSECRET"}
    text = json.dumps({**found, "bad": None})
    assert "SECRET" not in problem(text)
    assert "SECRET" not in problem(text[:-1])


def test_the_master_may_all_whatever_its_record_says() -> None:
    document = records.parse(text_of(record("0", profiles=["a"])).encode(), PATH)
    assert isinstance(document, Document)
    master = records.key_of(document.keys[0])
    assert master.is_master and master.scopes == records.SCOPES and master.profiles is None


def test_public_is_json_without_hash_or_secret() -> None:
    document = records.parse(text_of(record("k1", expires_at="2030-01-01T00:00:00Z")).encode(), PATH)
    assert isinstance(document, Document)
    public = json.loads(json.dumps(records.key_of(document.keys[0]).public()))
    assert public["id"] == "k1" and public["expires_at"] == "2030-01-01T00:00:00Z"
    assert document.keys[0].hash not in json.dumps(public)
