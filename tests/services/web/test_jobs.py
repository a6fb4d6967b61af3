"""`/jobs` over the application: whose they are, what is asked of a list, and failed ones that are tried again."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from services.jobs.batches import BATCH
from services.store.jobs import CALLBACK, ERROR, SUCCESS, Job, JobStore
from tests.services.web.conftest import World, make_world

NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), modules=("summaries:dispatcher",))


class Own:
    """A key, and jobs of it that are put into the queue by hand, each of a type of its own."""

    def __init__(self, world: World) -> None:
        self.world, self.key = world, world.make_key(scopes=["answer"])
        self.id = self.call("GET", "/auth").json["id"]
        self.jobs: JobStore = world.app.extensions["parley"].jobs

    def call(self, method: str, path: str) -> Any:
        return self.world.call(method, path, self.key)

    def put(self, state: str = "", id: str = "", type: str = "") -> str:
        type = type or f"t{next(NUMBERS)}"
        made = self.jobs.put(Job(self.id, type, {"text": "x"}, id or f"j{next(NUMBERS)}"))
        if state:
            self.jobs.finish(self.jobs.take("w", [type], 30.0), state, "why" if state == ERROR else {"text": "well"},
                             "bad_text" if state == ERROR else None)     # type: ignore[arg-type]
        return made.id

    def listed(self, query: str = "") -> list[str]:
        return [job["id"] for job in self.call("GET", f"/jobs{query}").json["jobs"]]


@pytest.fixture
def own(shared: World) -> Own:
    return Own(shared)


def test_only_the_master_is_told_whose_a_job_is(shared: World, own: Own) -> None:
    id, other = own.put(), Own(shared)
    assert other.put(id=id) == id
    assert "owner" not in own.call("GET", f"/jobs/{id}").json | own.call("GET", "/jobs").json["jobs"][0]
    seen = {job["owner"] for job in shared.call("GET", "/jobs").json["jobs"] if job["id"] == id}
    assert seen == {own.id, other.id}
    assert [job["id"] for job in shared.call("GET", f"/jobs?owner={own.id}").json["jobs"]] == [id]
    assert shared.call("GET", "/jobs?owner=nobody").json["jobs"] == []
    assert shared.call("DELETE", f"/jobs/{id}?owner={own.id}").json["owner"] == own.id
    assert own.call("GET", f"/jobs/{id}").json["code"] == "cancelled"
    assert other.call("GET", f"/jobs/{id}?owner={other.id}").json["status"] == "pending"
    for method, path in (("GET", "/jobs"), ("GET", f"/jobs/{id}"), ("DELETE", f"/jobs/{id}"),
                         ("POST", f"/jobs/{id}/retry")):
        refused = other.call(method, f"{path}?owner={own.id}")
        assert refused.status_code == 403 and refused.json["error"]["param"] == "owner"


def test_skynets_routes_tell_nobody_s_owner(shared: World, own: Own) -> None:
    id = own.put(type="summary")
    assert "owner" not in shared.call("GET", f"/summaries/v1/job/{id}").json
    assert all("owner" not in job for job in shared.call("GET", "/summaries/v1/jobs").json["jobs"])


def test_failed_and_cancelled_ones_are_told_apart(own: Own) -> None:
    failed, gone, good = own.put(ERROR), own.put(), own.put(SUCCESS)
    assert own.call("DELETE", f"/jobs/{gone}").json["status"] == "error"
    assert own.listed("?status=failed") == [failed] and own.listed("?status=cancelled") == [gone]
    assert own.listed("?status=error") == [gone, failed] and own.listed("?status=success") == [good]
    assert own.call("GET", "/jobs?status=dead").status_code == 400


def test_a_failed_job_is_tried_again(shared: World, own: Own) -> None:
    id = own.put(ERROR)
    again = own.call("POST", f"/jobs/{id}/retry")
    assert again.status_code == 200 and "owner" not in again.json
    assert (again.json["id"], again.json["status"], again.json["result"]) == (id, "pending", None)
    assert own.call("GET", f"/jobs/{id}").json == again.json and own.listed("?status=failed") == []
    twice = own.call("POST", f"/jobs/{id}/retry")
    assert (twice.status_code, twice.json["error"]["code"]) == (409, "job_not_failed")
    assert "this one is pending" in twice.json["message"]
    theirs = own.put(ERROR)
    assert Own(shared).call("POST", f"/jobs/{theirs}/retry").status_code == 404
    assert shared.call("POST", f"/jobs/{theirs}/retry").json["owner"] == own.id
    assert own.jobs.get(own.id, theirs).payload == {"text": "x"}


def test_a_batch_or_a_callback_is_not_tried_again(own: Own) -> None:
    id = own.put(ERROR, type=BATCH)
    refused = own.call("POST", f"/jobs/{id}/retry")
    assert (refused.status_code, refused.json["error"]["code"]) == (409, "batch_not_retried")
    assert own.listed("?status=failed") == [id]
    assert own.call("POST", f"/jobs/{own.put(ERROR, type=CALLBACK)}/retry").status_code == 404


def test_a_server_that_takes_no_jobs_tries_none_again(tmp_path: Any) -> None:
    other = Own(make_world(tmp_path, modules=()))
    id = other.put(ERROR)
    assert other.call("POST", f"/jobs/{id}/retry").json["error"]["code"] == "jobs_off"
    assert other.listed("?status=failed") == [id]
