"""The web process by itself, over a supervisor in this one: starts, stops, reloads, and being left behind (row P8)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from auth.keys import Keys
from auth.limits import Limiter
from services.engine.supervisor import Supervisor
from services.metrics import Figures
from services.settings import Settings
from services.web.serve import PORT_IN_USE, bind
from tests.conftest import MASTER, ROOT, SECRETS, descendants, make_home
from tests.services.web.conftest import wait_until

AUTHKEY = b"k" * 32


class Web:
    """`main.py web` and what it needs around it."""

    def __init__(self, home: Path, run_dir: Path, **environment: str) -> None:
        self.settings = Settings(data_dir=home / "data", models_dir=home / "models", master_key=MASTER, runner="fake")
        Keys(self.settings.data_dir, self.settings).ensure_master()
        self.limiter = Limiter(self.settings.data_dir)
        self.supervisor = Supervisor(self.settings, run_dir, AUTHKEY, self.limiter, Figures(10))
        self.supervisor.start()
        clean = {name: value for name, value in os.environ.items() if name not in SECRETS}
        self.environment = {**clean, "PORT": "0", "DATA_DIR": str(home / "data"), "MODELS_DIR": str(home / "models"),
                            "RUNNER": "fake", "DRAIN_TIMEOUT": "20", **environment}
        self.errors = home / "stderr.txt"
        self.url, self.process = "", self.spawn()

    def spawn(self) -> subprocess.Popen[str]:
        with self.errors.open("w") as errors:
            process = subprocess.Popen([sys.executable, str(ROOT / "main.py"), "web"], env=self.environment, text=True,
                                       stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdin
        process.stdin.write(json.dumps({"control": self.supervisor.address, "authkey": AUTHKEY.hex()}) + "\n")
        process.stdin.flush()
        return process

    def listening(self) -> Web:
        assert self.process.stdout
        self.url = json.loads(self.process.stdout.readline())["listening"]
        return self

    def ended(self) -> tuple[int, str, str]:
        """Its exit status and what it wrote to standard output and error, once it has ended."""
        assert self.process.stdout
        status = self.process.wait(40)
        return status, self.process.stdout.read(), self.errors.read_text()

    def call(self, method: str = "GET", path: str = "/auth", **kwargs) -> requests.Response:
        return requests.request(method, self.url + path, headers={"Authorization": MASTER}, timeout=60, **kwargs)

    def answering(self, prompt: str) -> tuple[threading.Thread, list]:
        """A streamed answer that has begun; its events once the thread has ended."""
        events: list = []

        def follow() -> None:
            try:
                with self.call("POST", "/answer", json={"prompt": prompt, "stream": True}, stream=True) as response:
                    events.extend(json.loads(line[6:]) for line in response.iter_lines() if line.startswith(b"data"))
            except requests.RequestException as error:
                events.append(error)
        thread = threading.Thread(target=follow)
        thread.start()
        wait_until(lambda: any(runner.leases for runner in self.supervisor.status().runners))
        return thread, events

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(20)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            stream.close()
        self.supervisor.stop(0)
        self.limiter.close()


@pytest.fixture
def begin(tmp_path) -> Iterator:
    begun: list[Web] = []
    with tempfile.TemporaryDirectory(prefix="parley-test-") as run_dir:
        def start(**environment: str) -> Web:
            begun.append(Web(make_home(tmp_path / f"home{len(begun)}"), Path(run_dir), **environment))
            return begun[-1]
        yield start
        for web in begun:
            web.close()


def test_the_port_it_got_is_told_once_and_nothing_else(begin):
    web = begin(WEB_WORKERS="2").listening()
    assert web.call().json()["auth"] is True
    web.process.send_signal(signal.SIGTERM)
    status, out, err = web.ended()
    assert (status, out) == (0, ""), err
    assert "Traceback" not in err and MASTER not in err


def test_no_gunicorn_control_socket(begin, tmp_path):
    begin(HOME=str(tmp_path), XDG_RUNTIME_DIR=str(tmp_path)).listening()
    assert not list(tmp_path.rglob("gunicorn.ctl"))


def test_a_port_in_use_is_one_line(begin):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        web = begin(PORT=str(taken.getsockname()[1]))
        status, out, err = web.ended()
    assert (status, out) == (PORT_IN_USE, "")
    assert err.count("\n") == 1 and "in use" in err


@pytest.mark.parametrize("host, port", [("192.0.2.1", 0), ("no.such.host.invalid", 0)])
def test_hosts_that_cannot_be_bound_name_the_setting(host, port):
    from services.errors import ConfigError
    with pytest.raises(ConfigError, match="HOST"):
        bind(host, port, patience=0)


def test_ipv6(begin):
    try:
        bind("::1", 0).close()
    except Exception:
        pytest.skip("no IPv6 here")
    assert begin(HOST="::1").listening().url.startswith("http://[::1]:")


def test_what_cannot_start_says_why_in_a_line(begin, tmp_path):
    (tmp_path / "plain").write_text("")
    web = begin(DATA_DIR=str(tmp_path / "plain"))
    status, out, err = web.ended()
    assert status not in (0, PORT_IN_USE) and out == "" and "Traceback" not in err
    assert "plain" in err.splitlines()[0], err


def test_sigterm_lets_answers_finish_and_refuses_new_ones(begin):
    web = begin().listening()
    thread, events = web.answering("!tokens 6 !sleep 0.5")
    web.process.send_signal(signal.SIGTERM)
    wait_until(lambda: web.call().status_code == 503)
    refused = web.call("POST", "/answer", json={"prompt": "x"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
    assert refused.headers["Retry-After"]
    thread.join(30)
    assert events[-1]["done"] and events[-1]["result"].split()[-1] == "w6"
    assert web.process.wait(20) == 0


def test_an_answer_longer_than_the_drain_is_cut_with_words(begin):
    web = begin(DRAIN_TIMEOUT="1").listening()
    thread, events = web.answering("!tokens 200 !sleep 0.3")
    web.process.send_signal(signal.SIGTERM)
    thread.join(30)
    assert events[-1]["error"]["code"] == "draining"
    assert web.process.wait(20) == 0


@pytest.mark.parametrize("prompt", ["!tokens 200 !sleep 0.3", "!wait 60"])
def test_a_second_sigterm_ends_at_once(begin, prompt):
    web = begin().listening()
    thread, _ = web.answering(prompt)
    web.process.send_signal(signal.SIGTERM)
    wait_until(lambda: web.call().status_code == 503)
    web.process.send_signal(signal.SIGTERM)
    web.process.wait(10)
    thread.join(20)


def test_sigint_from_the_terminal_is_the_supervisor_s(begin):
    web = begin().listening()
    for pid in [web.process.pid, *descendants(web.process.pid)]:
        os.kill(pid, signal.SIGINT)
    assert web.call().status_code == 200


def test_hup_drops_nobody(begin):
    web = begin().listening()
    old = descendants(web.process.pid)
    thread, events = web.answering("!tokens 6 !sleep 0.4")
    web.process.send_signal(signal.SIGHUP)
    while thread.is_alive():
        assert web.call().status_code == 200
    assert events[-1]["done"]
    wait_until(lambda: not set(old) & set(descendants(web.process.pid)))
    assert web.call().status_code == 200 and web.process.poll() is None


@pytest.mark.parametrize("prompt", [None, "!tokens 200 !sleep 0.3", "!wait 60"])
def test_the_end_of_its_parent_is_its_own(begin, prompt):
    web = begin().listening()
    workers = descendants(web.process.pid)
    thread = web.answering(prompt)[0] if prompt else None
    web.process.stdin.close()
    web.process.wait(10)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 5)
    if thread:
        thread.join(20)


def test_a_killed_arbiter_frees_its_port(begin):
    web = begin().listening()
    web.answering("!tokens 200 !sleep 0.3")
    port = int(web.url.rpartition(":")[2])
    web.process.kill()
    bind("127.0.0.1", port).close()


def test_a_killed_worker_is_replaced(begin):
    web = begin().listening()
    (worker,) = descendants(web.process.pid)
    os.kill(worker, signal.SIGKILL)

    def replaced() -> bool:
        try:
            return web.call().status_code == 200
        except requests.ConnectionError:
            return False
    wait_until(replaced)
    assert descendants(web.process.pid) != [worker]
