"""skynet's routes over the application, a queue on disk, and its work done on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from services.jobs import summaries
from services.jobs.callbacks import secret_of
from services.jobs.executor import Executor, Rules
from tests.services.web.conftest import World, make_world

TEXT = "Anna said that the release is on Friday, and that she will write the notes of it until then, or Ben does it."
PATHS = {"summary": "summary", "action-items": "action_items", "table-of-contents": "table_of_contents",
         "process-text": "process_text"}
SKYNETS = {"id", "type", "status", "result", "duration", "processor"}


def post(world: World, key: str, path: str = "summary", **body: Any) -> Any:
    return world.call("POST", f"/summaries/v1/{path}", key, json={"text": TEXT, **body})


def do_all(world: World) -> None:
    """Every job that waits."""
    parts = world.parts
    jobs = world.app.extensions["parley"].jobs
    executor = Executor(jobs, summaries.handlers(parts.chat, parts.keys, parts.admissions), "w", Rules(look=0.01))
    while jobs.sizes().pending:
        executor.step()
    executor.stop(drain=30.0)
    executor.run()


@pytest.mark.parametrize("path", PATHS)
def test_a_job_goes_from_pending_to_success(shared: World, key: str, path: str) -> None:
    words = {"action-items": '[{"task": "Write notes", "owner": "Anna", "due": null}]',
             "table-of-contents": "– Release"}.get(path, "All of it.")
    shared.parts.engine.script = says(words)        # type: ignore[attr-defined]
    made = post(shared, key, path, prompt="Shout.") if path == "process-text" else post(shared, key, path)
    assert made.status_code == 200 and made.json.keys() == {"id"}, made.text
    job = shared.call("GET", f"/summaries/v1/job/{made.json['id']}", key).json
    assert job.keys() >= SKYNETS and job["id"] == made.json["id"]
    assert (job["status"], job["type"], job["result"], job["duration"]) == ("pending", PATHS[path], None, 0.0)
    do_all(shared)
    job = shared.call("GET", f"/summaries/v1/jobs/{made.json['id']}", key).json
    assert job["status"] == "success" and isinstance(job["duration"], float)
    assert job["result"] == {"action-items": "Write notes [Anna]", "table-of-contents": "– Release"}.get(path, words)
    assert job["data"] == ([{"task": "Write notes", "owner": "Anna", "due": None}] if path == "action-items" else None)
    assert (job["chunks_done"], job["chunks_total"], job["processor"], job["code"]) == (1, 1, "LOCAL", None)
    assert job["usage"]["total_tokens"] > 50 and job["model"] == "one.gguf" and job["started"] < job["ended"]


def test_the_work_is_done_for_keys_that_have_not_ended(shared: World, key: str) -> None:
    id = post(shared, key).json["id"]
    shared.parts.keys.revoke(shared.call("GET", "/auth", key).json["id"])
    do_all(shared)
    job = shared.call("GET", f"/summaries/v1/job/{id}").json
    assert (job["status"], job["code"]) == ("error", "key_ended")


def says(words: str) -> Any:
    from services import wire

    def script(request: wire.Generate) -> Any:
        yield wire.Piece(id=request.id, text=words)
        yield wire.Done(id=request.id, finish_reason="stop", prompt_tokens=60, completion_tokens=3, cached_tokens=0,
                        processed_tokens=60)
    return script


@pytest.mark.parametrize(("path", "body", "status", "detail", "param"), [
    ("summary", {"text": "Too short."}, 422, "Payload is too short", "text"),
    ("summary", {"text": " " * 500}, 422, "Payload is too short", "text"),
    ("summary", {"is_live_summary": True}, 422, "Payload is too short", "text"),
    ("process-text", {}, 422, "Prompt is required", "prompt"),
    ("process-text", {"prompt": " \n"}, 422, "Prompt is required", "prompt"),
    ("summary", {"hint": "poem"}, 400, None, "hint"),
    ("summary", {"text": None}, 400, None, "text"),
    ("summary", {"preferred_locale": "pt"}, 400, None, "preferred_locale"),
    ("summary", {"max_completion_tokens": 0}, 400, None, "max_completion_tokens"),
    ("summary", {"priority": "urgent"}, 400, None, "priority"),
    ("summary", {"job_id": "../../etc"}, 400, None, "job_id"),
    ("summary", {"callback_url": "ftp://example.org/"}, 400, None, "callback_url"),
    ("summary", {"callback_url": "http://127.0.0.1/"}, 400, None, "callback_url"),
    ("summary", {"callback_url": "http://[fd00::1]/"}, 400, None, "callback_url"),
    ("summary", {"callback_url": "https://example.org:5000/"}, 400, None, "callback_url"),
    ("summary", {"profile": "three"}, 404, None, None),
    ("summary", {"nonsense": 1}, 400, None, "nonsense")])
def test_what_is_wrong_is_said_in_both_forms(shared: World, key: str, path: str, body: dict[str, Any], status: int,
                                             detail: str | None, param: str | None) -> None:
    response = post(shared, key, path, **body)
    assert response.status_code == status, response.text
    assert response.json["detail"] == response.json["message"] == response.json["error"]["message"]
    assert detail is None or response.json["detail"] == detail
    assert param is None or response.json["error"]["param"] == param


def test_every_field_of_skynets_is_taken(shared: World, key: str) -> None:
    for hint in ("conversation", "emails", "meeting", "text"):
        response = post(shared, key, hint=hint, prompt=None, job_id=f"mine-{hint}", max_completion_tokens=100,
                        preferred_locale="fr", priority="high", is_live_summary=False)
        assert response.json == {"id": f"mine-{hint}"}
    again = post(shared, key, job_id="mine-text")
    assert again.status_code == 409 and again.json["detail"] == "Job ID already exists"
    assert post(shared, shared.make_key(), job_id="mine-text").json == {"id": "mine-text"}, "ids are a key's own"
    assert shared.call("POST", "/summaries/v1/summary?customerId=7", key, json={"text": TEXT}).status_code == 200


def test_a_job_is_its_keys_and_the_masters(shared: World, key: str) -> None:
    other, id = shared.make_key(), post(shared, key).json["id"]
    missing = shared.call("GET", "/summaries/v1/job/00000000-0000-0000-0000-000000000000", other)
    for method in ("GET", "DELETE"):
        hidden = shared.call(method, f"/summaries/v1/job/{id}", other)
        assert hidden.status_code == missing.status_code == 404
        assert hidden.json == missing.json and hidden.json["detail"] == "Job not found"
    assert shared.call("GET", "/summaries/v1/jobs", other).json == {"jobs": [], "next": None}
    assert shared.call("GET", f"/summaries/v1/job/{id}").json["id"] == id
    assert id in [job["id"] for job in shared.call("GET", "/summaries/v1/jobs").json["jobs"]]
    assert shared.call("DELETE", f"/summaries/v1/job/{id}").json["code"] == "cancelled"


def test_cancelled_is_an_end_that_skynets_clients_know(shared: World, key: str) -> None:
    id = post(shared, key).json["id"]
    for _ in range(2):
        job = shared.call("DELETE", f"/summaries/v1/job/{id}", key).json
        assert (job["status"], job["result"], job["code"]) == ("error", "Job cancelled", "cancelled")
    assert [job["id"] for job in shared.call("GET", "/summaries/v1/jobs?status=error", key).json["jobs"]] == [id]


def test_a_failed_job_says_why(shared: World, key: str) -> None:
    shared.parts.engine.script = says("")           # type: ignore[attr-defined]
    id = post(shared, key, callback_url="https://example.org/done").json["id"]
    do_all(shared)
    job = shared.call("GET", f"/summaries/v1/job/{id}", key).json
    assert job["status"] == "error" and "nothing" in job["result"] and job["code"] == "empty_result"
    assert job["callback"]["url"] == "https://example.org/done" and job["usage"] is None


def test_a_key_can_see_what_its_callbacks_are_signed_with(shared: World, key: str) -> None:
    secret = shared.call("GET", "/callbacks/secret", key).json["secret"]
    jobs = shared.app.extensions["parley"].jobs
    assert secret == secret_of(jobs, shared.call("GET", "/auth", key).json["id"])
    assert secret.startswith("whsec_") and secret != shared.call("GET", "/callbacks/secret").json["secret"]
    assert shared.call("GET", "/callbacks/secret", shared.make_key(scopes=["models:read"])).status_code == 403


@pytest.mark.parametrize("query", ["limit=x", "limit=-1", "before=x", "limit=99999"])
def test_what_is_no_number_in_a_list_s_query_is_said(shared: World, key: str, query: str) -> None:
    response = shared.call("GET", f"/summaries/v1/jobs?{query}", key)
    assert response.status_code == 400 and "should match pattern '^[0-9]" in response.json["detail"]


def test_lists_have_pages_and_states(shared: World, key: str) -> None:
    ids = [post(shared, key).json["id"] for _ in range(5)]
    path, found = "/summaries/v1/jobs?limit=2&status=pending", []
    page = shared.call("GET", path, key).json
    while True:
        found += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            break
        page = shared.call("GET", f"{path}&before={page['next']}", key).json
    assert found == ids[::-1]
    assert shared.call("GET", "/summaries/v1/jobs?status=running", key).json["jobs"] == []
    assert shared.call("GET", "/summaries/v1/jobs?limit=many", key).status_code == 400


def test_a_key_needs_the_scope(shared: World) -> None:
    poor = shared.make_key(scopes=["models:read"])
    for method, path in (("POST", "summary"), ("GET", "jobs"), ("GET", "job/1"), ("DELETE", "job/1")):
        response = shared.call(method, f"/summaries/v1/{path}", poor, json={"text": TEXT} if method == "POST" else None)
        assert response.status_code == 403 and response.json["detail"]
    assert shared.call("GET", "/summaries/v1/jobs", None).status_code == 401


def test_a_profile_must_be_the_keys(shared: World) -> None:
    narrow = shared.make_key(scopes=["answer"], profiles=["two"])
    assert post(shared, narrow, profile="one").status_code == 403
    assert post(shared, narrow).status_code == 403, "the selected one is not its"
    assert post(shared, narrow, profile="two").status_code == 200


@pytest.mark.parametrize("modules", [(), ("summaries:executor",)])
def test_a_server_without_a_dispatcher_takes_no_jobs(tmp_path: Path, modules: tuple[str, ...]) -> None:
    world = make_world(tmp_path, modules=modules)
    for path, body in (("/summaries/v1/summary", {"text": TEXT}), ("/answer", {"prompt": "Hi", "async": True}),
                       ("/v1/batches", {"input_file_id": "file-1", "endpoint": "/answer"})):
        refused = world.call("POST", path, json=body)
        assert refused.status_code == 404 and refused.json["error"]["code"] == "jobs_off", refused.text
    assert world.call("GET", "/jobs").json == {"jobs": [], "next": None}


def test_lengths_are_settings(tmp_path: Path) -> None:
    world = make_world(tmp_path, summary_minimum=5, live_summary_minimum=0)
    key = world.make_key()
    assert post(world, key, text="12345").status_code == post(world, key, text="1", is_live_summary=True).status_code
    assert post(world, key, text="1234").status_code == 422
    assert post(world, key, text=" ", is_live_summary=True).status_code == 422


def test_a_server_that_asks_no_others_takes_no_callback_url(tmp_path: Path) -> None:
    world = make_world(tmp_path, fetch=False)
    refused = world.call("POST", "/summaries/v1/summary", json={"text": TEXT, "callback_url": "https://example.org/"})
    assert (refused.status_code, refused.json["error"]["code"]) == (403, "fetch_off")
    assert refused.json["error"]["param"] == "callback_url"
