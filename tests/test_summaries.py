"""Summaries through the real door: a started server with its executor, skynet's routes, and the pages' own clients."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MASTER, Server, make_home

ROOT = Path(__file__).resolve().parent.parent
TEXT = "Anna said that the release is on Friday, and that she will write the notes of it until then, or Ben does it."
LONG = "\n".join(f"Point {n} of the agenda is about the plan of the team for it and the next week." for n in range(60))
CONFIG = {"SelectedModel": "one", "one": {"model": "tiny.gguf", "n_ctx": 512, "max_tokens": 40, "parallel": 4}}
LANGUAGES = {"bash": ["bash", "-c"], "python": [sys.executable, "-c"],
             "js": ["node", "--input-type=module", "-e"]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    started = Server(make_home(tmp_path_factory.mktemp("home") / "home", CONFIG)).start().ready()
    yield started
    started.end()


def post(server: Server, key: str, path: str = "summary", text: str = TEXT, **body: Any) -> str:
    response = server.call("POST", f"/summaries/v1/{path}", key, json={"text": text, **body})
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def job(server: Server, key: str, id: str) -> dict[str, Any]:
    found: dict[str, Any] = server.call("GET", f"/summaries/v1/job/{id}", key).json()
    return found


def ended(server: Server, key: str, id: str, waiting: tuple[str, ...] = ("pending", "running")) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while (found := job(server, key, id))["status"] in waiting:
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def test_texts_become_what_they_were_sent_for(server: Server) -> None:
    key = server.make_key()
    item = {"task": "Write the notes", "owner": "Anna", "due": "Friday"}
    asked = {"summary": "!echo All of it.", "action-items": f"!echo {json.dumps([item])}",
             "table-of-contents": "!echo 00:00:05 – Welcome", "process-text": "!echo Arrr."}
    ids = {path: post(server, key, path, f"{TEXT}\n{said}", prompt="As a pirate." if path == "process-text" else None)
           for path, said in asked.items()}
    done = {path: ended(server, key, id) for path, id in ids.items()}
    assert all(one["status"] == "success" for one in done.values()), done
    assert [one["result"] for one in done.values()] == [
        "All of it.", "Write the notes [Anna]", "00:00:05 – Welcome", "Arrr."]
    assert done["action-items"]["data"] == [item]
    used = server.call("GET", "/auth", key).json()["usage"]
    assert used["prompt_tokens"] == sum(one["usage"]["prompt_tokens"] for one in done.values()) > 400
    assert used["completion_tokens"] == sum(one["usage"]["completion_tokens"] for one in done.values())
    listed = server.call("GET", "/summaries/v1/jobs?status=success", key).json()["jobs"]
    assert [one["id"] for one in listed] == list(ids.values())[::-1]


def test_a_long_text_is_done_in_parts_at_once_and_then_as_one(server: Server) -> None:
    key = server.make_key()
    done = ended(server, key, post(server, key, text=LONG.replace("\n", " !wait 0.1\n")))
    assert done["status"] == "success" and done["result"] == "You said: Write the summary.", done
    assert done["chunks_done"] == done["chunks_total"] > 3
    assert done["usage"]["prompt_tokens"] > len(LONG.split())
    told = server.call("GET", "/metrics").text
    assert re.search(r'^Skynet_Summaries_map_reduce_chunking_total\{job_type="summary"\} [1-9]', told, re.M)
    assert re.search(r"^Skynet_Summaries_summary_duration_seconds_count [1-9]", told, re.M)
    assert re.search(r"^parley_runner_max_batch\{.*\} [2-9]", told, re.M), "the parts' answers were computed together"
    assert server.call("GET", "/metrics/autoscaler").json() == {"queueSize": 0}


def test_a_running_job_can_be_cancelled(server: Server) -> None:
    key = server.make_key(max_parallel=1)
    id = post(server, key, text=f"{TEXT}\n!wait 60")
    assert ended(server, key, id, ("pending",))["status"] == "running"
    assert server.call("DELETE", f"/summaries/v1/job/{id}", key).json()["code"] == "cancelled"
    done = ended(server, key, post(server, key, text=f"{TEXT}\n!echo Free."))
    assert done["result"] == "Free.", "its place is another's now"


def test_jobs_count_against_the_keys_limits(server: Server) -> None:
    key = server.make_key(token_budget={"tokens": 100, "per": "total"})
    assert ended(server, key, post(server, key))["status"] == "success"
    refused = ended(server, key, post(server, key))
    assert (refused["status"], refused["code"]) == ("error", "insufficient_quota")
    assert "token_budget" in refused["result"]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_original_sample_of_skynets_works(server: Server) -> None:
    """Its loop ends when a job is seen running; here the server is given the time that skynet's gives itself."""
    code = """
        const url = process.env.URL, headers = { 'Authorization': `Bearer ${process.env.KEY}`,
                                                 'Content-Type': 'application/json' };
        const sleep = ms => new Promise(resolve => setTimeout(resolve, ms));
        const body = JSON.stringify({ hint: 'conversation', text: process.env.TEXT });
        const { id } = await (await fetch(`${url}/summaries/v1/summary`, { method: 'POST', headers, body })).json();
        let job;
        do {
            await sleep(1000);
            job = await (await fetch(`${url}/summaries/v1/job/${id}`, { headers })).json();
        } while (job.status === 'pending');
        console.log(job.result);"""
    key = server.make_key()
    ended(server, key, post(server, key))
    ran = subprocess.run([*LANGUAGES["js"], code], capture_output=True, text=True, timeout=60, check=True,
                         env={**os.environ, "URL": server.url, "KEY": key, "TEXT": f"{TEXT}\n!echo Done."})
    assert ran.stdout == "Done.\n"


@pytest.mark.model
def test_the_pages_clients_get_what_they_ask_a_model_for(tmp_path: Path) -> None:
    home = make_home(tmp_path / "home", {"SelectedModel": "starter", "starter": {
        "model": "starter.gguf", "n_ctx": 1024, "max_tokens": 80, "temperature": 0, "chat_format": "model"}})
    server = Server(home, "llama").start().ready()
    page = (ROOT / "examples" / "summaries.md").read_text().replace("http://127.0.0.1:5000", server.url)
    try:
        for language, command in LANGUAGES.items():
            code, = re.findall(rf"```{language}\n(.*?)```", page, re.S)
            if shutil.which(command[0]):
                ran = subprocess.run([*command, code], env={**os.environ, "API_KEY": MASTER}, capture_output=True,
                                     text=True, timeout=120, check=False)
                assert ran.returncode == 0 and "success" in ran.stdout, (language, ran.stdout, ran.stderr)
        done = ended(server, MASTER, post(server, MASTER, text=LONG))
        assert done["status"] == "success" and done["chunks_done"] > 2, done
        contents = ended(server, MASTER, post(server, MASTER, "table-of-contents", "[0:05] Anna: Welcome! " * 9))
        assert re.fullmatch(r"00:00:05 – .+", contents["result"]), contents
    finally:
        server.end()
