"""`main.py chat` against a small server of its own: pipes, a terminal, Ctrl-C, Ctrl-D, and clear errors."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from services.cli.chat import chat
from services.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
KEY = "ply_right"


class Handler(BaseHTTPRequestHandler):
    """Answers `You said: …` word by word; words of the prompt ask for something else."""

    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(body)
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self.answer(401, {"message": "Unauthorized"})
        elif "busy" in body["prompt"]:
            self.answer(409, {"message": "the session\nis busy"})
        elif "strange" in body["prompt"]:
            self.answer(200, "data: <html>\n\n")
        else:
            self.stream(body["prompt"])

    def answer(self, status: int, payload: Any) -> None:
        raw = (payload if isinstance(payload, str) else json.dumps(payload)).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def stream(self, prompt: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if "queue" in prompt:
            self.event({"queue": {"position": 3, "eta_seconds": 4}})
        for word in ("You", " said:", f" {prompt}"):
            self.event({"delta": word})
        if "cut" in prompt:
            return
        if "fail" in prompt:
            self.event({"error": {"message": "the runner died"}})
            return
        if "endless" in prompt:
            with contextlib.suppress(OSError):
                while True:
                    self.event({"delta": " more"})
                    time.sleep(0.02)
            self.server.left.set()
            return
        self.event({"done": True, "warnings": ["max_tokens is clamped"] if "warn" in prompt else []})

    def event(self, payload: dict[str, Any]) -> None:
        raw = b": hb\n\ndata: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"
        for at in range(0, len(raw), 7):        # chunks that end anywhere, also inside a character
            self.wfile.write(raw[at:at + 7])
            self.wfile.flush()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies: list[dict[str, Any]] = []
        self.left = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def run(server: Server | str, text: str, *arguments: str, key: str = KEY) -> Result:
    url = server if isinstance(server, str) else server.url
    return CliRunner().invoke(chat, ["--url", url, "--key", key, *arguments], input=text)


def test_each_line_of_a_pipe_is_a_question_of_one_session(server: Server) -> None:
    result = run(server, "Hello there\n\n  \nünïcode €\r\nlast", "--profile", "two")
    assert result.stdout == "You said: Hello there\nYou said: ünïcode €\nYou said: last\n", result.stderr
    assert (result.exit_code, result.stderr) == (0, "")
    assert len({body["session_id"] for body in server.bodies}) == 1
    assert server.bodies[0] | {"session_id": 0} == {"session_id": 0, "stream": True, "profile": "two",
                                                    "prompt": "Hello there"}


@pytest.mark.parametrize(("given", "sent"), [("7", 7), ("-3", -3), ("007", "007"), ("talk-1", "talk-1")])
def test_a_session_may_be_named(server: Server, given: str, sent: Any) -> None:
    run(server, "x\n", f"--session={given}")
    assert server.bodies[0]["session_id"] == sent and "profile" not in server.bodies[0]


def test_warnings_and_control_characters(server: Server) -> None:
    result = run(server, "warn \x1b[2J\x07\x9b\n")
    assert result.stdout == "You said: warn \ufffd[2J\ufffd\ufffd\n" and "[max_tokens is clamped]" in result.stderr


def test_the_place_in_the_queue_is_told_aside(server: Server) -> None:
    result = run(server, "queue\n")
    assert (result.stdout, result.stderr) == ("You said: queue\n", "waiting: position 3, about 4 s\n")


@pytest.mark.parametrize(("text", "message"), [
    ("fail\n", "the runner died"), ("busy\n", "the session is busy"), ("cut\n", "the answer broke off"),
    ("strange\n", "no Parley server"),
])
def test_what_goes_wrong_is_one_line(server: Server, text: str, message: str) -> None:
    result = run(server, text)
    assert result.exit_code == 1 and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["--session", "\udcff"], ["--profile", "\udcff"]])
def test_bytes_that_are_no_text_are_one_line(server: Server, arguments: list[str]) -> None:
    """As Python hands them over where the locale is C or names UTF-8 mode."""
    done = subprocess.run([sys.executable, "main.py", "chat", "--url", server.url, "--key", KEY, *arguments], cwd=ROOT,
                          input=b"\xff\n", capture_output=True, env={**os.environ, "LC_ALL": "C"}, timeout=60,
                          check=False)
    assert done.returncode == 1 and server.bodies == []
    assert done.stderr.decode().count("\n") == 1 and "is not UTF-8 text" in done.stderr.decode()


def test_a_wrong_key_and_no_server_are_said(server: Server) -> None:
    wrong = run(server, "x\n", key="ply_wrong")
    assert wrong.exit_code == 1 and "does not know this key" in wrong.stderr and "ply_wrong" not in wrong.output
    assert run(server, "x\n", key="schlüssel").stderr.startswith("Error: the key holds characters")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = run(f"http://127.0.0.1:{unused.getsockname()[1]}", "x\n")
    assert nobody.exit_code == 1 and "no server answers at" in nobody.stderr and nobody.stderr.count("\n") == 1
    for url in ("localhost:5000", "ftp://x", "http://[::1", ""):
        if url:
            result = run(url, "x\n")
            assert result.exit_code == 1 and "cannot be used" in result.stderr, result.stderr


def test_key_and_url_have_defaults(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARLEY_API_KEY", raising=False)
    monkeypatch.delenv("API_KEY", raising=False)
    monkeypatch.delenv("PARLEY_URL", raising=False)
    assert CliRunner().invoke(chat, [], input="x\n").exit_code == 2
    monkeypatch.setenv("PARLEY_API_KEY", KEY)
    result = CliRunner().invoke(chat, [], input="x\n", obj=Settings(host="0.0.0.0", port=server.server_port))
    assert result.stdout == "You said: x\n"


def test_the_examples_variables_serve_as_well(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PARLEY_API_KEY", raising=False)
    monkeypatch.setenv("API_KEY", KEY)
    monkeypatch.setenv("PARLEY_URL", server.url)
    elsewhere = Settings(port=1)
    assert CliRunner().invoke(chat, [], input="x\n", obj=elsewhere).stdout == "You said: x\n"
    monkeypatch.setenv("PARLEY_API_KEY", "ply_wrong")
    assert "check --key, or PARLEY_API_KEY or API_KEY" in CliRunner().invoke(chat, [], input="x\n").stderr
    assert run(server, "x\n").stdout == "You said: x\n"
    monkeypatch.setenv("PARLEY_URL", "nowhere")
    assert "the address nowhere of --url or PARLEY_URL" in CliRunner().invoke(chat, ["--key", KEY], input="x\n").stderr
    told = CliRunner().invoke(chat, ["--help"]).stdout
    assert "[env var: PARLEY_URL]" in told and "PARLEY_API_KEY, API_KEY" in " ".join(told.split())


class Terminal:
    """The verb at a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.seen = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from services.cli.chat import chat; chat()", *arguments], cwd=ROOT, stdin=slave,
            stdout=slave, stderr=slave, start_new_session=True, preexec_fn=self._own)
        os.close(slave)

    @staticmethod
    def _own() -> None:
        import fcntl
        import termios
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen
            if select.select([self.master], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.master, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]


def test_at_a_terminal_ctrl_c_stops_an_answer_and_ctrl_d_ends(server: Server) -> None:
    terminal = Terminal("--url", server.url, "--key", KEY)
    try:
        terminal.expect("Ctrl-D ends")
        terminal.type("endless\n")
        terminal.expect(" more more")
        terminal.type("\x03")
        terminal.expect("[stopped]")
        assert server.left.wait(20)
        terminal.type("busy\n")
        terminal.expect("Error: the session is busy")
        terminal.expect("> ")
        time.sleep(0.3)         # input() begins to read a moment after its prompt; what comes between waits for a key
        terminal.type("\x03")
        terminal.expect("> ")
        terminal.type("Hello\n")
        terminal.expect("You said: Hello")
        terminal.type("\x04")
        assert terminal.process.wait(20) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.master)
