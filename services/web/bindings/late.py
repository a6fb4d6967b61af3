"""Answers that came when the platform waited no longer, until somebody writes in the same conversation again.

A small file for each names the question, whose answer is in the session; only what no session has is written down.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from services.chat.sessions import Sessions, pairs, unfold
from services.errors import NotFound
from services.store import disk
from services.web.bindings.claims import prune


class Late:
    """The answers below `folder` that are to be told yet, for a day. Any thread of any process may ask."""

    def __init__(self, folder: Path, sessions: Sessions) -> None:
        self._folder, self._sessions = folder, sessions

    def put(self, owner: str, session: str, digest: str, text: str) -> None:
        """`text` is the answer to the question with this `digest`. Raises StorageFull or Unavailable."""
        disk.make_dirs(self._folder.parent, follow=False)
        disk.make_dirs(self._folder, follow=False)
        prune(self._folder)
        kept = {"question": digest} if self._answer(owner, session, digest) else {"text": text}
        disk.write_atomic(self._folder / f"{session}.{time.time_ns():020}.json", json.dumps(kept).encode())

    def take(self, owner: str, session: str) -> list[str]:
        """What is to be told in a conversation, the oldest first; it counts as told from now on."""
        found = []
        for path in sorted(self._folder.glob(f"{session}.*.json")):
            with suppress(FileNotFoundError):       # another process tells it
                kept = json.loads(disk.read_bytes(path))
                disk.unlink_durable(path)
                found.append(kept.get("text") or self._answer(owner, session, kept["question"]))
        return [text for text in found if text]

    def _answer(self, owner: str, session: str, digest: str) -> str | None:
        try:
            turns = unfold(self._sessions.store.read(owner, session))
        except NotFound:
            return None
        return next((answer.content for prompt, answer in pairs(turns) if prompt.request == digest), None)
