"""The page on the starter model, from the first key to an answer, with pictures of the main views."""

from __future__ import annotations

import pytest

from tests.page import pictures


@pytest.mark.model
def test_the_main_views_on_the_starter_model(browser, tmp_path):
    """The pictures stay in tests/page/shots, to be looked at."""
    pictures.SHOTS.mkdir(exist_ok=True)
    server = pictures.starter(tmp_path)
    try:
        pictures.furnish(server)
        said = pictures.take(browser, server, pictures.SHOTS, list(pictures.VIEWS))
    finally:
        server.end()
    assert "Paris" in said["talk"][2] and "Ada" in said["talk"][3] and "Paris" in said["phone"][1]
    for name in ("first", "talk", "profile", "phone", *map(str.lower, pictures.VIEWS)):
        picture = (pictures.SHOTS / f"{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG") and 5_000 < len(picture) < pictures.LARGEST, name
