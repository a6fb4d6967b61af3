"""The official `openai` package for Node on a started server: tests/clients/node/check.mjs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import MASTER

FOLDER = Path(__file__).parent / "node"


def test_the_client_for_node(fake):
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: ./setup.sh test checks OpenAI's client for Node only where it is")
    if not (FOLDER / "node_modules" / "openai").is_dir():
        pytest.skip(f"OpenAI's client for Node is not installed: npm ci --prefix {FOLDER.relative_to(Path.cwd())}"
                    if Path.cwd() in FOLDER.parents else "OpenAI's client for Node is not installed")
    done = subprocess.run([node, "check.mjs"], cwd=FOLDER, capture_output=True, text=True, timeout=120,
                          env={"PATH": os.environ["PATH"], "BASE_URL": fake.url + "/v1", "API_KEY": MASTER})
    assert done.returncode == 0, done.stderr
    assert "plain stream tools" in done.stdout
