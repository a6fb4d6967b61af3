"""Bytes of any kind to a `Document`, read by a child process that has little time, little memory and no network."""

from __future__ import annotations

from services.knowledge.documents import Document


def extract(data: bytes, media_type: str, url_or_name: str, charset: str | None = None) -> Document:
    """The text in `data`. `media_type` is what was said of it ("" when nothing was); the content and the name overrule
    it. Raises `UnsupportedMedia` (415) for kinds that have no text, `Unprocessable` (`unreadable_document`, 422) for
    damaged, locked or hostile ones."""
    raise NotImplementedError
