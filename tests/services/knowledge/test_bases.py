"""Knowledge bases as their users see them, where one of them is damaged."""

from __future__ import annotations

import pytest

from services.errors import Gone, NotFound
from tests.services.knowledge.test_ingest import World


@pytest.fixture
def bases(tmp_path):
    """Ann's `facts`, and Bob's `broken`, which he shares and whose file is damaged."""
    world = World(tmp_path)
    folder = tmp_path / "knowledge"
    world.bases.create("kBob", "broken", shared=True)
    world.library.delete("kBob", "broken")
    (folder / "kBob" / "broken.sqlite3").write_bytes(b"junk" * 1000)
    (folder / "lost and found").mkdir()
    (folder / "lost and found" / "facts.sqlite3").write_bytes(b"")
    return world.bases


def test_a_damaged_base_is_nobody_elses_trouble(bases):
    assert [base["name"] for base in bases.all("kAnn")] == ["facts"] and bases.all("kBob") == []
    assert bases.find("kAnn", "facts").owner == "kAnn"
    for ref in ("broken", "broken@kBob"):
        with pytest.raises(NotFound):
            bases.find("kAnn", ref)


@pytest.mark.parametrize(("owner", "ref"), [("kBob", "broken"), ("kBob", "broken@kBob"), ("0", "broken@kBob")])
def test_who_owns_a_damaged_base_is_told_and_may_delete_it(bases, owner, ref):
    with pytest.raises(Gone, match="or delete the base"):
        bases.get(owner, ref)
    bases.delete(owner, ref)
    with pytest.raises(NotFound):
        bases.delete(owner, ref)


def test_others_may_not_delete_it(bases):
    for ref in ("broken", "broken@kBob", "facts@kAnn"):
        with pytest.raises(NotFound):
            bases.delete("kCarl", ref)
    assert bases.find("kAnn", "facts")
