"""The whole server, from outside: `main.py serve` with the fake runner, requests as the client."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from services.cli import serve
from services.settings import Settings
from services.store import crypto
from tests.conftest import MASTER, Server

ROOT = Path(__file__).resolve().parent.parent


def wait_for(condition, wait=30.0):
    """What `condition()` returned when it first was true."""
    deadline = time.monotonic() + wait
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)
    return value


def finished(events):
    return bool(events) and events[-1].get("done") is True


# ---------------------------------------------------------------- the story that the README tells

def test_a_script_talks_today_and_tomorrow(start):
    server = start().ready()
    key, other = server.make_key(name="script"), server.make_key()
    assert server.answer("My name is Zorlan.", 7, key).status_code == 200
    reply = server.answer("What is my name?", 7, key).json()
    assert "Zorlan" in reply["result"]
    assert (reply["session_id"], reply["profile"], reply["model"]) == (7, "one", "tiny.gguf")
    assert reply["context"]["turns_used"] == 1

    server.stop(signal.SIGKILL)
    server.start().ready()
    assert "Zorlan" in server.answer("What is my name?", 7, key).json()["result"]
    assert "Zorlan" not in server.answer("What is my name?", 8, key).json()["result"]
    assert "Zorlan" not in server.answer("What is my name?", 7, other).json()["result"]
    assert server.call("GET", "/answer", key).json() == {"7": "My name is Zorlan.", "8": "What is my name?"}
    turns = server.call("GET", "/answer/7", key).json()["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 3


def test_profile_switch_while_clients_stream(start):
    server = start().ready()
    key = server.make_key()
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(lambda n=n: list(server.stream("!tokens 30 !sleep 0.1", n, key)))
                   for n in range(4)]
        wait_for(lambda: in_use(server) == 4)
        switched = server.call("POST", "/models/model", key, json={"model": "other.gguf", "model_config": "two"})
        assert switched.status_code == 200 and switched.json()["model_status"] is True
        during = server.answer("after the switch", None, key).json()
        results = [stream.result() for stream in streams]
    assert (during["model"], during["profile"]) == ("other.gguf", "two")
    assert all(finished(events) and events[-1]["model"] == "tiny.gguf" for events in results)
    assert json.loads((server.data / "config.json").read_text())["SelectedModel"] == "two"
    wait_for(lambda: len(server.children("fake-runner")) == 1)       # the old one is drained and gone


def test_a_switch_where_one_model_may_be_loaded(start):
    server = start(MAX_LOADED="1").ready()
    switched = server.call("POST", "/models/model", json={"model": "other.gguf", "model_config": "two"})
    assert switched.status_code == 200, switched.text
    assert server.answer("hello").json()["model"] == "other.gguf"
    wait_for(lambda: len(server.children("fake-runner")) == 1)


# ---------------------------------------------------------------- stopping

def test_sigterm_lets_running_answers_finish(start):
    server = start().ready()
    with ThreadPoolExecutor(10) as pool:
        streams = [pool.submit(lambda n=n: list(server.stream("!tokens 20 !sleep 0.1", n))) for n in range(10)]
        wait_for(lambda: len(list((server.data / "sessions" / "0").glob("*.jsonl"))) == 10)
        time.sleep(0.3)
        server.process.send_signal(signal.SIGTERM)
        refused = wait_for(lambda: [r for r in [server.answer("too late")] if r.status_code == 503], 10)[0]
        assert refused.json()["error"]["code"] == "draining" and "Retry-After" in refused.headers
        results = [stream.result() for stream in streams]
    assert all(finished(events) for events in results), results
    assert server.process.wait(30) == 0


def test_a_second_sigterm_ends_at_once(start):
    server = start().ready()
    with ThreadPoolExecutor(1) as pool:
        stream = pool.submit(self_ending, server)
        wait_for(lambda: b"user" in read(server.data / "sessions" / "0" / "1.jsonl"))
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 128 + signal.SIGTERM
        events = stream.result()
    assert events[-1]["error"]["code"] == "runner_crashed"
    assert not server.children("main.py")
    server.start().ready()
    session = server.call("GET", "/answer/1").json()
    seen = "".join(event.get("delta", "") for event in events)
    assert seen and (session["turns"][-1]["content"], session["turns"][-1]["interrupted"]) == (seen, True)


def read(path):
    return path.read_bytes() if path.exists() else b""


def self_ending(server):
    try:
        return list(server.stream("!tokens 600 !sleep 0.1", 1, max_tokens=500))
    except (requests.RequestException, AssertionError):
        return []


def test_a_hail_of_signals_stops_it_all_the_same(home):
    """A signal may come in the middle of the handling of another one."""
    for _ in range(3):
        server = Server(home).start()
        for _ in range(300):
            if server.process.poll() is None:
                server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(15) in (0, 128 + signal.SIGTERM)


def test_sighup_drops_no_answer(start):
    server = start().ready()
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(lambda n=n: list(server.stream("!tokens 20 !sleep 0.1", n))) for n in range(4)]
        wait_for(lambda: len(list((server.data / "sessions" / "0").glob("*.jsonl"))) == 4)
        server.process.send_signal(signal.SIGHUP)
        assert all(finished(stream.result()) for stream in streams)
    assert server.answer("still here?").status_code == 200


def test_sighup_during_the_start_is_not_the_end(home):
    server = Server(home)
    starting = threading.Thread(target=server.start)
    starting.start()
    wait_for(lambda: server.process and server.children("main.py web"))
    server.process.send_signal(signal.SIGHUP)
    starting.join()
    assert server.ready().stop() == 0


def test_a_signal_between_two_web_processes_is_not_lost(monkeypatch):
    """The drain of a server without work is over before the next web process is there to be told."""
    class Process:
        def __init__(self):
            self.ended = threading.Event()

        def wait(self):
            assert self.ended.wait(10), "nobody ended the web process"

    server = object.__new__(serve.Server)
    server.web, server.stopping, started = serve.Web(Settings(), "", b""), threading.Event(), []
    server.web.listening.set()

    def start():
        if started:
            server.stopping.set()       # SIGTERM, and a drain that finds no process
        started.append(Process())
        if len(started) == 1:
            started[0].ended.set()      # this one has crashed
        server.web.process = started[-1]

    monkeypatch.setattr(server.web, "start", start)
    monkeypatch.setattr(server.web, "signal", lambda number: started[-1].ended.set())
    assert server.watch() == 0 and len(started) == 2


# ---------------------------------------------------------------- deaths

def test_a_dead_runner_is_told_and_replaced(start):
    server = start().ready()
    events = list(server.stream("!tokens 50 !die SIGKILL 3", 1))
    assert events[-1]["error"]["code"] == "runner_crashed"
    assert "".join(event.get("delta", "") for event in events).startswith("w1")
    assert server.answer("again", 1).status_code == 200
    turns = server.call("GET", "/answer/1").json()["turns"]
    assert turns[1]["interrupted"] is True and turns[3]["content"] == "You said: again"


def test_a_crash_loop_stops_and_says_why(start):
    server = start().ready()
    for _ in range(5):
        server.answer("!die 134")
    response = wait_for(lambda: [r for r in [server.call("GET", "/readyz")] if "134" in r.text])[0]
    assert response.status_code == 503
    assert server.answer("hello").status_code == 503
    assert "Retry-After" in response.headers
    assert server.call("GET", "/healthz").status_code == 200


def test_a_killed_web_worker_and_arbiter_come_back(start):
    server = start().ready()
    arbiter = min(server.children("main.py web"))
    workers = [pid for pid in server.children("main.py web") if pid != arbiter]
    os.kill(workers[0], signal.SIGKILL)
    wait_for(lambda: alive(server))
    before = server.children("main.py web")
    os.kill(arbiter, signal.SIGKILL)
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in before))
    wait_for(lambda: alive(server))
    assert server.answer("hello", 1).status_code == 200


def alive(server):
    try:
        return server.call("GET", "/healthz", timeout=2).status_code == 200
    except requests.RequestException:
        return False


def test_nothing_outlives_a_killed_server(start):
    server = start().ready()
    children = server.children("main.py")
    assert len(children) >= 3
    server.stop(signal.SIGKILL)
    wait_for(lambda: not [pid for pid in children if Path(f"/proc/{pid}/stat").exists()], 10)


@pytest.mark.parametrize("runner", ["fake", pytest.param("llama", marks=pytest.mark.model)])
def test_a_runner_knows_no_secret(start, runner):
    """Row P12: nothing in what /proc shows of it; no network; no file but nothing itself once the model is loaded."""
    secrets = {"MASTER_KEY": MASTER, "HF_TOKEN": "hf_secret", "DATA_KEY": "d" * 40, "AWS_SECRET_ACCESS_KEY": "s3cret"}
    server = start(runner, **secrets).ready()
    assert server.answer("hello", 1).status_code == 200
    derived = crypto.kv_key(server.data, secrets["DATA_KEY"])
    (pid,) = server.children("runner")
    process = Path(f"/proc/{pid}")
    told = (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    for secret in (*map(str.encode, secrets.values()), derived, derived.hex().encode()):
        assert secret not in told
    unix = {line.split()[6] for line in (process / "net" / "unix").read_text().splitlines()[1:]}
    for name in (os.readlink(entry) for entry in (process / "fd").iterdir()):
        kind, _, inode = name.partition(":")
        assert kind in ("pipe", "/dev/null") or name == "anon_inode:[eventpoll]" or inode.strip("[]") in unix, name


# ---------------------------------------------------------------- one server, its limits

def test_one_server_per_data_folder(start, home):
    server = start()
    second = subprocess.run([sys.executable, str(ROOT / "main.py"), "serve"], env=server.environment,
                            capture_output=True, text=True, timeout=30)
    assert second.returncode == 1
    assert f"in use by pid {server.process.pid}" in second.stderr and second.stderr.count("\n") == 1
    server.stop(signal.SIGKILL)
    assert alive(server.start())


def test_sixty_four_clients_on_four_workers_get_exactly_their_limit(start):
    server = start(WEB_WORKERS="4").ready()
    key = server.make_key(requests_per_minute=40)
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda n: server.answer(f"client {n}", None, key), range(64)))
    good = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert (len(good), len(refused)) == (40, 24)
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
    assert {answer.json()["result"] for answer in good} <= {f"You said: client {n}" for n in range(64)}


def test_parallel_answers_are_limited_over_all_workers(start):
    server = start(WEB_WORKERS="4").ready()
    key = server.make_key(max_parallel=3)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: server.answer("!tokens 5 !sleep 0.3", None, key).status_code, range(16)))
    assert answers.count(200) >= 3 and set(answers) == {200, 429}
    assert server.answer("free again", None, key).status_code == 200


def test_a_full_queue_is_503_and_nobody_is_reset(start):
    server = start(MAX_QUEUE="8").ready()
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(lambda n: server.answer(f"!wait 0.5 !echo {n}"), range(40)))
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 503} and statuses.count(200) >= 12
    assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 503)
    assert all(answer.json()["result"] == str(n) for n, answer in enumerate(answers) if answer.status_code == 200)


def test_hundred_sessions_interleaved_keep_apart(start):
    server = start(WEB_WORKERS="2").ready()
    keys = [server.make_key() for _ in range(4)]

    def say(n, turn):
        if n % 2:
            return server.answer(f"tag-{n}-{turn}", n, keys[n % 4]).json()
        *events, done = server.stream(f"tag-{n}-{turn}", n, keys[n % 4])
        assert "".join(event.get("delta", "") for event in events) == done["result"]
        return done

    with ThreadPoolExecutor(16) as pool:
        talks = [list(pool.map(lambda n, turn=turn: say(n, turn), range(100))) for turn in range(3)]
    assert [[said["result"] for said in talk] for talk in talks] == [
        [f"You said: tag-{n}-{turn}" for n in range(100)] for turn in range(3)]
    for said in (said for talk in talks for said in talk):      # what was prepared for one is used by that one alone
        details = said["usage"]["prompt_tokens_details"]
        assert sum(details.values()) == said["usage"]["prompt_tokens"]
        assert (details["cached_tokens"] > 0) == (said["context"]["turns_used"] > 0), said
    for n in range(100):
        turns = server.call("GET", f"/answer/{n}", keys[n % 4]).json()["turns"]
        assert [turn["content"] for turn in turns] == [
            text for turn in range(3) for text in (f"tag-{n}-{turn}", f"You said: tag-{n}-{turn}")]
    server.call("DELETE", "/answer/1", keys[1])
    wait_for(lambda: stats(server)["snapshots"] == 99)


@contextlib.contextmanager
def asking(server, **body):
    """A raw connection that has sent a question."""
    data = json.dumps(body).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST /answer HTTP/1.1\r\nHost: x\r\nAuthorization: {MASTER}\r\nContent-Type: "
                           f"application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        yield connection


def one_at_a_time(home):
    """The selected profile answers one request after the other."""
    path = home / "data" / "config.json"
    config = json.loads(path.read_text())
    config["one"]["parallel"] = 1
    path.write_text(json.dumps(config))


STAGES = {"prefill": ("!tokens 9 !wait 600", []), "decode": ("!tokens 9 !hang 4", ["w1 w2 w3 w4"]),
          "last token": ("!tokens 3 !hang 3", ["w1 w2 w3"]), "queue": ("hello", [])}


def test_a_gone_client_frees_the_runner(start, home):
    """Wherever its answer is; what was said is kept as interrupted, and charged."""
    one_at_a_time(home)
    server = start().ready()
    for number, (stage, (prompt, kept)) in enumerate([*STAGES.items()] * 2):
        with contextlib.ExitStack() as others:
            if stage == "queue":
                others.enter_context(asking(server, prompt="!tokens 2 !wait 600", stream=True))
                wait_for(lambda: stats(server)["running"] == 1)
            leave(server, prompt, number, number < len(STAGES), " ".join(kept))
        wait_for(lambda: in_use(server) == 0, 15)
        assert (stats(server)["running"], stats(server)["waiting"]) == (0, 0)
        question, *answers = server.call("GET", f"/answer/{number}").json()["turns"]
        assert [answer["content"] for answer in answers] == kept
        assert all(turn["interrupted"] for turn in answers or [question])
    assert server.answer("next").json()["result"] == "You said: next"


def leave(server, prompt, session, stream, heard):
    """Ask, and hang up when the runner has got as far as `heard`; until all of it is let go and charged."""
    words, before, charged, others = len(heard.split()), stats(server), usage(server), in_use(server)
    with asking(server, prompt=prompt, stream=stream, session_id=session):
        wait_for(lambda: stats(server)["waiting"] + stats(server)["running"] == others + 1)
        wait_for(lambda: stats(server)["completion_tokens"] - before["completion_tokens"] == words)
    wait_for(lambda: in_use(server) == others, 15)
    wait_for(lambda: usage(server)["completion_tokens"] - charged["completion_tokens"] == words)
    assert (usage(server)["prompt_tokens"] > charged["prompt_tokens"]) == bool(words)


def usage(server):
    return server.call("GET", "/auth").json()["usage"]


def test_a_stream_tells_the_place_in_the_queue(start, home):
    one_at_a_time(home)
    server = start().ready()
    with asking(server, prompt="!tokens 2 !wait 600", stream=True):
        wait_for(lambda: stats(server)["running"] == 1)
        waiting = server.stream("hello")
        assert next(waiting) == {"queue": {"position": 1, "eta_seconds": 1}}
    *_, done = waiting
    assert done["result"] == "You said: hello"


def stats(server):
    """How the one runner is."""
    return server.call("GET", "/models").json()["loaded"][0]["stats"]


def in_use(server):
    """Answers that hold a runner now."""
    return sum(runner["in_use"] for runner in server.call("GET", "/models").json()["loaded"])


# ---------------------------------------------------------------- wrong things that people do

def one_line(home, **environment):
    """The one line that a start in `home` ends with."""
    server = Server(home, **environment)
    result = subprocess.run([sys.executable, str(ROOT / "main.py"), "serve"], env=server.environment,
                            capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    assert result.returncode == 1, result
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_port_in_use(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = one_line(home, PORT=port)
    assert port in said and "in use" in said


def test_a_temporary_folder_with_too_long_a_path(home):
    folder = home / ("long" * 30)
    folder.mkdir()
    assert one_line(home, TMPDIR=str(folder)).startswith(f"main.py: TMPDIR={str(folder)!r} is too long a path")


def test_standard_output_that_cannot_be_written(home):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Server(home, PORT=str(port))
    server.url = f"http://127.0.0.1:{port}"
    with open("/dev/full", "w") as full:
        server.process = subprocess.Popen([sys.executable, str(ROOT / "main.py"), "serve"], env=server.environment,
                                          stdout=full, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: alive(server))
    server.ready().process.send_signal(signal.SIGTERM)
    errors = server.process.communicate(timeout=45)[1]
    assert f"Parley answers at {server.url}; standard output cannot be written" in errors


def test_no_models_folder(home):
    assert "MODELS_DIR='/nosuch'" in one_line(home, MODELS_DIR="/nosuch")


def test_broken_config(home):
    (home / "data" / "config.json").write_text('{"SelectedModel": "one",\n "one": {"model": 5}}')
    said = one_line(home)
    assert "config.json" in said and "line 2" in said and "model" in said


def test_placeholder_master_key(home):
    assert "MASTER_KEY" in one_line(home, MASTER_KEY="YOUR-API-KEY-HERE")


def test_wrong_data_key(start, home):
    server = start(DATA_KEY="first-data-key-0123456789-abcdefghijkl").ready()
    assert server.answer("My name is Ada.", 1).status_code == 200
    server.stop()
    assert b"Ada" not in b"".join(p.read_bytes() for p in server.data.rglob("*") if p.is_file())
    assert "DATA_KEY" in one_line(home, DATA_KEY="wrong-data-key-0123456789-abcdefghijkl")
    assert "DATA_KEY" in one_line(home)
    server.start().ready()
    assert "Ada" in server.answer("What is my name?", 1).json()["result"]


def test_profile_that_names_a_missing_file(home, start):
    (home / "data" / "config.json").write_text(json.dumps({"SelectedModel": "a", "a": {"model": "absent.gguf"}}))
    server = start()
    refused = server.call("GET", "/readyz")
    assert refused.status_code == 503 and "absent.gguf" in refused.text
    assert "tiny.gguf" in refused.text
    answer = server.answer("hello")
    assert answer.status_code in (404, 422, 503) and "absent.gguf" in answer.json()["message"]
    switched = server.call("POST", "/models/model", json={"model": "tiny.gguf", "model_config": "a"})
    assert switched.status_code == 200 and server.answer("hello").status_code == 200


def test_files_that_are_no_models(home, start):
    (home / "models" / "page.gguf").write_text("<!doctype html><title>404</title>")
    (home / "models" / "cut.gguf").write_bytes((home / "models" / "tiny.gguf").read_bytes()[:5000])
    server = start().ready()
    for name, word in (("page.gguf", "web page"), ("cut.gguf", "bytes")):
        refused = server.call("POST", "/models/model", json={"model": name, "model_config": "one"})
        assert refused.status_code == 422 and word in refused.json()["message"], refused.text
    gone = server.call("POST", "/models/model", json={"model": "absent.gguf", "model_config": "one"})
    assert gone.status_code == 404 and "tiny.gguf" in gone.json()["message"]
    assert server.answer("the old one goes on").json()["model"] == "tiny.gguf"


def test_config_edited_while_serving(home, start):
    server = start().ready()
    path = home / "data" / "config.json"
    good = json.loads(path.read_text())
    path.write_text('{"SelectedModel": ')
    warned = server.call("GET", "/readyz")
    assert warned.status_code == 200 and "config.json" in warned.json()["warnings"][0]
    assert server.answer("the last good one").status_code == 200
    good["two"]["max_tokens"] = 2
    good["SelectedModel"] = "two"
    path.write_text(json.dumps(good))
    wait_for(lambda: "other.gguf" in server.log)               # it is loaded before anybody asks
    assert server.call("GET", "/readyz").status_code == 200
    reply = wait_for(lambda: (r := server.answer("!tokens 9").json())["profile"] == "two" and r)
    assert reply["usage"]["completion_tokens"] == 2 and reply["finish_reason"] == "length"


# ---------------------------------------------------------------- keys

def test_keys_from_the_command_line_work_at_once(start):
    server = start().ready()

    def keys(*arguments):
        return subprocess.run([sys.executable, str(ROOT / "main.py"), "keys", *arguments], env=server.environment,
                              capture_output=True, text=True, timeout=30, check=True).stdout

    key = next(word for word in keys("create", "--name", "cli").split() if word.startswith("ply_"))
    about = server.call("GET", "/auth", key).json()
    assert about["name"] == "cli"
    keys("revoke", about["id"])
    wait_for(lambda: server.call("GET", "/auth", key).status_code == 401, 5)


def test_no_secret_in_anything_written(start):
    server = start().ready()
    key = server.make_key(name="scan")
    server.answer("hello", 1, key)
    server.call("GET", "/auth", "ply_" + "x" * 36)
    server.stop()
    written = b"".join(p.read_bytes() for p in server.data.rglob("*") if p.is_file()) + server.log.encode()
    for secret in (key, MASTER, "x" * 36):
        assert secret.encode() not in written


def test_many_threads_may_hold_streams_while_health_answers(start):
    server = start().ready()
    stop = threading.Event()

    def hold(n):
        for _ in server.stream("!tokens 200 !sleep 0.1", None, max_tokens=200):
            if stop.is_set():
                return

    with ThreadPoolExecutor(30) as pool:
        held = [pool.submit(hold, n) for n in range(30)]
        wait_for(lambda: in_use(server) == 30)
        assert server.call("GET", "/healthz", timeout=5).status_code == 200
        stop.set()
        for one in held:
            one.result()
