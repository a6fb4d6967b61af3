"""The examples: each gets an answer from a started server, and says in one line what it lacks."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import MASTER, Server, make_home, serving

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {"sh": ["bash", "examples/answer.sh"], "py": [sys.executable, "examples/api_requests.py"],
            "mjs": ["node", "examples/answer.mjs"]}
NAMES = [pytest.param(name, marks=pytest.mark.skipif(shutil.which(command[0]) is None,
                                                     reason=f"{command[0]} is not installed"))
         for name, command in COMMANDS.items()]


def example(name: str, *words: str, key: str, url: str) -> subprocess.CompletedProcess[str]:
    """The example's run. Empty variables hide those of a .env file, and no proxy comes between."""
    inherited = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    return subprocess.run([*COMMANDS[name], *words], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
                          env={**inherited, "API_KEY": key, "PARLEY_URL": url})


def one_line(done: subprocess.CompletedProcess[str], status: int | None = None) -> str:
    assert done.returncode == status if status else done.returncode != 0
    assert done.stdout == "" and done.stderr.count("\n") == 1, (done.stdout, done.stderr)
    return done.stderr


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nothing listens, for as long as the test lasts."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """It answers one question at a time."""
    home = make_home(tmp_path_factory.mktemp("examples") / "home", {"SelectedModel": "one", "one": {
        "model": "tiny.gguf", "n_ctx": 512, "max_tokens": 128, "parallel": 1}})
    with serving(home) as server:
        yield server.ready()


@pytest.mark.parametrize("name", NAMES)
def test_each_gets_an_answer(server, name):
    key = server.make_key()
    session = ["--session", "seven"] if name == "py" else ["seven"]
    done = example(name, "Hello 'you' é", *session, key=key, url=server.url)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith("You said: Hello 'you' é\n") and key not in done.stdout
    assert "nauthorized" in one_line(example(name, "Hello", key="ply_wrong", url=server.url))
    shown = example("py", "--sessions", "--models", "--auth", key=key, url=server.url)
    assert shown.returncode == 0 and '"seven"' in shown.stdout and "tiny.gguf" in shown.stdout, shown.stderr


@pytest.mark.parametrize("name", [name for name in NAMES if name.values != ("sh",)])
def test_who_waits_hears_it(server, name):
    running = server.stream("!tokens 2 !sleep 2")
    assert next(running) == {"delta": "w1"}
    done = example(name, "Hello", key=server.make_key(), url=server.url)
    assert done.stdout.startswith("You said: Hello\n") and done.stderr == "waiting: position 1, about 1 s\n"
    assert list(running)[-1]["done"] is True


@pytest.mark.parametrize("name", NAMES)
def test_nothing_listens(name, nobody):
    assert one_line(example(name, "Hello", key="ply_x", url=nobody)) == \
        f"no server answers at {nobody}; set PARLEY_URL\n"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_missing_is_said(name, nobody):
    assert one_line(example(name, "Hello", key="", url=nobody), 2).startswith("set API_KEY ")
    assert "PROMPT" in one_line(example(name, key="ply_x", url=nobody), 2).upper()


@pytest.mark.parametrize("name", NAMES)
def test_an_address_that_is_none(name):
    assert "nowhere:x" in one_line(example(name, "Hello", key="ply_x", url="http://nowhere:x"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_parley(name, tmp_path):
    """A server of files, which refuses with a page."""
    page = subprocess.Popen([sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d",
                             str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert page.stdout is not None
        url = page.stdout.readline().partition("(")[2].partition("/)")[0]
        assert one_line(example(name, "Hello", key="ply_x", url=url)) == f"what answers at {url} is no Parley server\n"
    finally:
        page.terminate()
        page.wait(10)


@pytest.mark.model
@pytest.mark.parametrize("page", ["README.md", "examples/clients.md"])
def test_the_clients_code_prints_what_stands_beside_it(page, tmp_path):
    """Every block of Python for a client of OpenAI's or Anthropic's, one after the other."""
    blocks = [block for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
              if "embeddings.create" not in block]
    code = "\n".join(blocks)
    told = [line.strip() for line in re.findall(r"^ *print\(.*#(.*)$", code, re.M)]
    home = make_home(tmp_path / "home", {"SelectedModel": "starter", "starter": {
        "model": "starter.gguf", "n_ctx": 1024, "max_tokens": 200, "temperature": 0, "chat_format": "model"}})
    with serving(home, "llama") as server:
        ran = subprocess.run([sys.executable, "-c", code.replace("http://127.0.0.1:5000", server.ready().url)],
                             env={**os.environ, "API_KEY": MASTER}, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    printed = ran.stdout.splitlines()
    assert len(printed) == len(told) and told
    for line, expected in zip(printed, told, strict=True):
        assert re.fullmatch(re.escape(expected).replace(r"\.\.\.", ".*"), line), (line, expected)
