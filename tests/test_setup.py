"""setup.sh says what is missing and how to get it. That it installs is shown by every CI run, which begins with it."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["bash", "env", "sed", "dirname", "basename", "cat", "cksum", "tr", "mkdir", "grep", "tail", "sleep"]


@pytest.fixture
def folder(tmp_path):
    """A checkout's installer alone, and a PATH of a few plain tools in `bin`."""
    for name in ("setup.sh", "requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    return tmp_path


def give(folder, name, script):
    path = folder / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def setup(folder, *arguments, **environment):
    return subprocess.run([folder / "setup.sh", *arguments], capture_output=True, text=True, timeout=60,
                          env={"PATH": str(folder / "bin"), **environment}, stdin=subprocess.DEVNULL)


def test_help_names_the_three_uses():
    shown = subprocess.run([ROOT / "setup.sh", "--help"], capture_output=True, text=True)
    assert shown.returncode == 0
    assert all(word in shown.stdout for word in ("./setup.sh serve", "./setup.sh test", "PYTHON="))


def test_unknown_word(folder):
    result = setup(folder, "instal")
    assert result.returncode == 1
    assert "unknown word 'instal'" in result.stderr


def test_no_python(folder):
    result = setup(folder)
    assert result.returncode == 1
    assert "Python 3.10 or newer is missing" in result.stderr


def test_python_too_old(folder):
    give(folder, "python3", 'case "$1" in --version) echo Python 3.8.2;; *) exit 1;; esac')
    result = setup(folder)
    assert result.returncode == 1
    assert "Python 3.10 or newer is missing (Python 3.8.2)" in result.stderr
    assert setup(folder, PYTHON="python3").stderr.startswith("setup: PYTHON=python3 is not a Python of 3.10")


@pytest.mark.parametrize(("missing", "said"), [("c++", "a C++ compiler is missing"), ("make", "make is missing"),
                                               ("cmake", "cmake is missing")])
def test_missing_tool_comes_with_its_command(folder, missing, said):
    (folder / "bin" / "python3").symlink_to(sys.executable)
    give(folder, "apt-get", "exit 0")
    for tool in {"c++", "make", "cmake"} - {missing}:
        give(folder, tool, "exit 0")
    result = setup(folder)
    assert result.returncode == 1
    assert said in result.stderr
    assert "sudo apt-get install -y" in result.stderr


def test_other_build_arguments_build_llama_again_once(folder):
    for tool in ("c++", "make", "cmake", "python3"):
        give(folder, tool, "exit 0")
    (folder / ".venv" / "bin").mkdir(parents=True)
    calls = folder / "calls"
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\necho "$CMAKE_ARGS: $*" >>{calls}\n')
    python.chmod(0o755)

    def builds(**environment):
        calls.write_text("")
        result = setup(folder, **environment)
        assert result.returncode == 0, result.stderr
        return [line for line in calls.read_text().splitlines() if "--force-reinstall" in line]

    assert not builds() and "pip install" in calls.read_text()
    cuda = builds(CMAKE_ARGS="-DGGML_CUDA=on")
    assert len(cuda) == 1 and cuda[0].startswith("-DGGML_CUDA=on: ") and "llama-cpp-python==" in cuda[0]
    assert "--no-cache-dir" in cuda[0]
    assert not builds(CMAKE_ARGS="-DGGML_CUDA=on")
    assert not builds(), "and without a word about it what is there stays"
    assert builds(CMAKE_ARGS="-DGGML_CUDA=off")


def test_old_python_is_told_by_main_too(tmp_path):
    """main.py must parse on old Pythons, so that its first lines can say what is wrong."""
    source = (ROOT / "main.py").read_text()
    compile(source, "main.py", "exec", dont_inherit=True)
    changed = tmp_path / "main.py"
    changed.write_text(source.replace("(3, 10)", "(99, 0)"))
    result = subprocess.run([sys.executable, changed], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
    assert "Parley needs Python 3.10 or newer" in result.stderr
