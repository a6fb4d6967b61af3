"""Answers that run on without a client: which run, in whatever process, and which are to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from services.chat.background import Background, Cancelled
from services.errors import BadRequest
from tests.conftest import ROOT


@pytest.fixture
def background(tmp_path):
    return Background(tmp_path / "background")


def test_one_runs_until_its_block_ends(background):
    assert not background.runs("0", "a")
    with background.running("0", "a"):
        assert background.runs("0", "a")
        assert not background.runs("0", "b") and not background.runs("1", "a")
    assert not background.runs("0", "a")


def test_one_that_is_cancelled(background, tmp_path):
    with background.running("0", "a"), background.running("0", "b"):
        background.check("0", "a")
        background.cancel("0", "a")
        with pytest.raises(Cancelled):
            background.check("0", "a")
        background.check("0", "b")
        assert background.runs("0", "a")
    background.cancel("0", "a")
    background.check("0", "a")
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_one_whose_process_was_killed(background, tmp_path):
    code = ("import sys, time; from pathlib import Path; from services.chat.background import Background\n"
            "with Background(Path(sys.argv[1])).running('0', 'a'):\n print('x', flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "background")], cwd=ROOT,
                               stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    assert background.runs("0", "a")
    background.cancel("0", "a")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not background.runs("0", "a") and not any(path.is_file() for path in tmp_path.rglob("*"))
    with background.running("0", "a"):
        background.check("0", "a")


def test_a_name_cannot_leave_the_folder(background):
    with pytest.raises(BadRequest):
        background.runs("../x", "a")
    with background.running("0", "../../x"):
        assert background.runs("0", "../../x")
