"""What goes into a build: .dockerignore by Docker's rules, and ours."""

from pathlib import Path

import pytest

from deploy.in_root.ignore import Ignored, files

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("rules", "path", "ignored"), [
    ("*.md", "a.md", True), ("*.md", "b/a.md", False), ("**/*.md", "b/a.md", True), ("**/*.md", "a.md", True),
    ("/a", "a", True), ("a/", "a/b/c", True), ("a", "ab", False), ("a?c", "abc", True), ("[ab]c", "bc", True),
    ("*\n!a", "a/b", False), ("*\n!a\n**/x", "a/b/x/y", True), ("!a\n*", "a", True), ("# *\n\n", "a", False),
    ("a.c", "abc", False), ("b/**", "b/c/d", True),
])
def test_rules(rules, path, ignored):
    assert Ignored(rules)(path) is ignored


def test_files_of_folders_and_files(tmp_path):
    for name in (".dockerignore", "a/b.py", "a/__pycache__/b.pyc", "c", "d"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    (tmp_path / ".dockerignore").write_text("**/__pycache__\nd\n")
    assert files(tmp_path, ["a", "c", "d"]) == ["a/b.py", "c"]


@pytest.mark.parametrize("path", [
    ".env", "deploy/.env", "services/.env", ".git/config", ".venv/bin/python", "data/keys.json", "data/config.json",
    "models/big.gguf", "tests/conftest.py", "auth/__pycache__/gate.pyc", "README.md", "key.pem"])
def test_ours_keeps_out(path):
    assert Ignored((ROOT / ".dockerignore").read_text())(path)


@pytest.mark.parametrize("path", ["main.py", "auth/gate.py", "services/web/static/docs/LICENSE", "models/starter.gguf",
                                  "requirements.txt", "constraints.txt"])
def test_ours_takes_in(path):
    assert (ROOT / path).exists()
    assert not Ignored((ROOT / ".dockerignore").read_text())(path)
