"""What search finds is measured, on a started server with the real small sentence model: counts, never times."""

from __future__ import annotations

import pytest

from services.engine import minilm
from services.errors import Unavailable
from services.store import disk
from tests.bench.bench_retrieval import fill, furnished, measure, shown
from tests.bench.retrieval_unseen import make
from tests.conftest import Server

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Kept beside the runs' temporary folders, so that it is fetched once."""
    folder = tmp_path_factory.getbasetemp().parent / "minilm"
    folder.mkdir(mode=0o700, exist_ok=True)
    with disk.locked(folder / minilm.FILE, 120):
        if not (folder / minilm.FILE).exists():
            try:
                minilm.pull(folder)
            except Unavailable as error:
                pytest.skip(error.message)
    return folder / minilm.FILE


def test_both_halves_together_find_at_least_what_each_finds(model, tmp_path):
    """A part of the set that no number was tuned on; the bench asks all of it."""
    documents, questions = make()
    assert len(documents) >= 300 and len(questions) >= 150
    questions = questions[::5]
    asked = {question.title for question in questions}
    others = [title for title in documents if title not in asked]
    documents = {title: documents[title] for title in [*asked, *others[::6]]}
    server = Server(furnished(tmp_path, model), "llama").start()
    try:
        fill(server, "unseen", documents)
        table = measure(server, "unseen", questions)
    finally:
        server.end()
    told = shown(table, "unseen", len(documents), len(questions))
    for kind in ("paraphrases", "codes", "forms", "all"):
        best = max(table["vectors", kind, 5], table["words", kind, 5])
        assert table["hybrid", kind, 5] >= best, f"{kind}\n{told}"
    assert table["hybrid", "all", 5] >= 29 and table["hybrid", "all", 1] >= table["vectors", "all", 1], told
