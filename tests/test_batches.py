"""Answers that nobody waits for, on a started server: `async`, files and batches, by OpenAI's own client."""

from __future__ import annotations

import io
import json
import os
import signal
import time

import openai
import pytest

from services.web import replies
from services.web.jobs import AcceptedJob, AnyJob
from services.web.openai.batches import Batch
from tests.conftest import Server, make_home

PATIENCE = 60.0


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(make_home(tmp_path_factory.mktemp("batches") / "home"), DRAIN_TIMEOUT="1").start().ready()
    yield server
    server.end()


@pytest.fixture
def own(server):
    return server.make_key()


@pytest.fixture
def client(server, own):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=own, max_retries=0)


def until(condition):
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.02)
    return found


def ask(server, own, status=202, **body):
    response = server.call("POST", "/answer", own, json={"async": True, **body})
    assert response.status_code == status, response.text
    return response.json()


def job(server, own, id):
    return AnyJob.model_validate(server.call("GET", f"/jobs/{id}", own).json())


def ended(server, own, id):
    return until(lambda: (found := job(server, own, id)).status in ("success", "error") and found)


def test_an_answer_comes_later_and_is_in_its_session(server, own):
    accepted = AcceptedJob.model_validate(ask(server, own, prompt="My name is Ada.", session_id="s"))
    done = ended(server, own, accepted.job_id)
    assert (done.status, done.type, done.result) == ("success", "answer", "You said: My name is Ada.")
    replies.Answer.model_validate(done.answer.model_dump())
    assert done.usage["total_tokens"] > 0 and done.profile == "one"
    again = ask(server, own, prompt="What is my name?", session_id="s")
    assert "Ada" in ended(server, own, again["job_id"]).result
    turns = server.call("GET", "/answer/s", own).json()["turns"]
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 2
    assert server.call("GET", f"/jobs/{again['job_id']}", server.make_key()).status_code == 404
    assert {one["id"] for one in server.call("GET", "/jobs", own).json()["jobs"]} == {
        accepted.job_id, again["job_id"]}


def test_a_retry_is_the_same_job(server, own):
    same = {"headers": {"Idempotency-Key": "once"}, "json": {"prompt": "hi", "async": True}}
    ids = {server.call("POST", "/answer", own, **same).json()["job_id"] for _ in range(3)}
    assert len(ids) == 1
    other = {**same, "json": {"prompt": "ho", "async": True}}
    refused = server.call("POST", "/answer", own, **other)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_mismatch")


@pytest.mark.parametrize(("body", "status", "param"), [
    ({"prompt": "x", "stream": True}, 400, "stream"), ({"prompt": "x", "profile": "none"}, 404, "profile"),
    ({"prompt": "x", "callback_url": "ftp://x"}, 400, "callback_url"), ({"prompt": " "}, 400, "prompt"),
    ({"prompt": "x", "async": False, "priority": "high"}, 400, "priority")])
def test_what_can_be_told_at_once_is(server, own, body, status, param):
    error = ask(server, own, status, **body)["error"]
    assert error["param"] == param


def test_an_error_is_the_jobs(server, own):
    done = ended(server, own, ask(server, own, prompt="x !fail context_length_exceeded")["job_id"])
    assert done.status == "error" and done.code and done.answer is None


def test_a_job_is_cancelled_and_its_answer_ends(server, own):
    id = ask(server, own, prompt="x !sleep 0.2 !tokens 600", session_id="c")["job_id"]
    until(lambda: job(server, own, id).status == "running")
    assert server.call("DELETE", f"/jobs/{id}", own).json()["code"] == "cancelled"
    assert job(server, own, id).status == "error"


def test_a_killed_executor_answers_once(server, own):
    id = ask(server, own, prompt="x !sleep 0.02 !tokens 60", session_id="k")["job_id"]
    until(lambda: job(server, own, id).status == "running")
    for pid in server.children("executor"):
        os.kill(pid, signal.SIGKILL)
    assert ended(server, own, id).result.startswith("w1 w2")
    turns = server.call("GET", "/answer/k", own).json()["turns"]
    assert [turn["role"] for turn in turns if not turn.get("interrupted")] == ["user", "assistant"]


# ---------------------------------------------------------------- files and batches

def upload(client, lines):
    text = "\n".join(json.dumps(line) for line in lines).encode()
    return client.files.create(file=("in.jsonl", io.BytesIO(text)), purpose="batch").id


def chat(id, prompt, **body):
    return {"custom_id": id, "method": "POST", "url": "/v1/chat/completions",
            "body": {"model": "one", "messages": [{"role": "user", "content": prompt}], **body}}


def finished(client, id):
    return until(lambda: (found := client.batches.retrieve(id)).status not in ("validating", "in_progress") and found)


def test_a_batch_by_openais_client(server, own, client):
    file = upload(client, [*(chat(f"c{number}", f"Hello {number}") for number in range(20)),
                           chat("bad", "x", temperature=9)])
    batch = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h",
                                  metadata={"for": "test"})
    done = finished(client, batch.id)
    Batch.model_validate(server.call("GET", f"/v1/batches/{batch.id}", own).json())
    assert done.status == "completed" and done.metadata == {"for": "test"}
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (21, 20, 1)
    lines = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
    said = {line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in lines}
    assert said == {f"c{number}": f"You said: Hello {number}" for number in range(20)}
    wrong, = (json.loads(line) for line in client.files.content(done.error_file_id).text.splitlines())
    assert wrong["custom_id"] == "bad" and wrong["response"]["status_code"] == 400
    assert "temperature" in wrong["response"]["body"]["error"]["message"]
    assert client.files.retrieve(done.output_file_id).purpose == "batch_output"
    assert [one.id for one in client.batches.list().data] == [batch.id]
    assert [one.id for one in client.files.list().data] == [file]
    usage = server.call("GET", "/auth", own).json()["usage"]
    assert usage["completion_tokens"] > 0 and usage["requests"] < 40       # lines are no requests of the key


def test_files_and_batches_are_their_keys_own(server, client):
    file = upload(client, [chat("a", "hi")])
    other = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.make_key(), max_retries=0)
    for act in (lambda: other.files.content(file), lambda: other.files.delete(file),
                lambda: other.batches.create(input_file_id=file, endpoint="/v1/chat/completions",
                                             completion_window="24h")):
        with pytest.raises(openai.NotFoundError):
            act()
    assert client.files.content(file).text and other.files.list().data == []
    assert client.files.delete(file).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file)


def test_a_batch_is_cancelled(client):
    file = upload(client, [chat(f"c{number}", "x !sleep 0.05 !tokens 100") for number in range(40)])
    batch = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
    until(lambda: client.batches.retrieve(batch.id).status == "in_progress")
    assert client.batches.cancel(batch.id).status == "cancelled"
    assert client.batches.retrieve(batch.id).request_counts.completed < 40


def test_a_killed_executor_does_no_line_twice(server, own, client):
    file = upload(client, [chat(f"c{number}", f"{number} !sleep 0.01 !tokens 40") for number in range(40)])
    batch = client.batches.create(input_file_id=file, endpoint="/v1/chat/completions", completion_window="24h")
    until(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 5)
    for pid in server.children("executor"):
        os.kill(pid, signal.SIGKILL)
    done = finished(client, batch.id)
    ids = [json.loads(line)["custom_id"] for line in client.files.content(done.output_file_id).text.splitlines()]
    assert done.status == "completed" and sorted(ids) == sorted(f"c{number}" for number in range(40))


@pytest.mark.parametrize(("endpoint", "body", "field"), [
    ("/v1/completions", {"prompt": "Hi"}, "choices"), ("/v1/responses", {"input": "Hi"}, "output"),
    ("/answer", {"prompt": "Hi"}, "result")])
def test_other_endpoints(server, own, client, endpoint, body, field):
    file = upload(client, [{"custom_id": "a", "url": endpoint, "body": body}])
    made = server.call("POST", "/v1/batches", own, json={"input_file_id": file, "endpoint": endpoint}).json()
    done = finished(client, made["id"])
    assert json.loads(client.files.content(done.output_file_id).text)["response"]["body"][field]


def test_what_is_no_batch_is_told_at_once(server, own, client):
    file = upload(client, [{"custom_id": "a", "url": "/v1/embeddings", "body": {}}])
    refused = server.call("POST", "/v1/batches", own, json={"input_file_id": file,
                                                            "endpoint": "/v1/chat/completions"})
    assert refused.status_code == 400 and "line 1 of the file: url is" in refused.json()["error"]["message"]
    with pytest.raises(openai.BadRequestError, match="purpose should be batch"):
        client.files.create(file=("a", b"x"), purpose="fine-tune")
    with pytest.raises(openai.NotFoundError):
        client.batches.retrieve("batch_none")
