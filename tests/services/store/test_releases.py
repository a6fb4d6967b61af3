"""Data folders of each schema that was ever released open as they did. `releases/` is only added to."""

import shutil
from pathlib import Path

import pytest

from services.chat.sessions import Sessions
from services.settings import Settings
from services.store.opening import open_store

RELEASES = Path(__file__).parent / "releases"
KEY = "golden-data-key-0123456789-abcdef"
AT = "2026-11-21T10:00:00.000+00:00"
TURNS = [
    {"role": "user", "content": "¿Qué tal? 😀", "at": AT},
    {"role": "assistant", "content": "Bien.\n", "at": AT, "usage": {"total_tokens": 7}, "finish_reason": "stop"},
    {"role": "user", "content": "cut", "at": AT, "interrupted": True},
]


@pytest.mark.parametrize("release", sorted(path.name for path in RELEASES.iterdir()))
def test_opens_as_before(tmp_path, release):
    data = tmp_path / "data"
    shutil.copytree(RELEASES / release, data)
    sessions = Sessions(open_store(Settings(data_dir=data, data_key=KEY if release.startswith("encrypted") else None)))
    assert sessions.list("0") == {"1": "renamed", "2": "renamed"}
    assert sessions.get("0", "1") == {"session_id": 1, "name": "renamed", "created": AT, "updated": AT, "turns": TURNS}
    assert sessions.get("0", "2")["turns"] == TURNS[:2]
    with sessions.turn("0", "1", 1) as turn:
        assert [record.content for pair in turn.history for record in pair] == ["¿Qué tal? 😀", "Bien.\n"]
        assert turn.prompt("cut", request="ab" * 32).n == 3
