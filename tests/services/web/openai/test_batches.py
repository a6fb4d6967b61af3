"""Batches over the application: what has become of them when their jobs ended in other ways than by their own end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from services.jobs.batches import OK
from services.store.jobs import ERROR
from services.store.uploads_sqlite import AT_ONCE
from tests.services.web.conftest import World


class Batch:
    def __init__(self, world: World, key: str) -> None:
        self.world, self.key = world, key
        self.room = world.app.extensions["parley"]
        self.owner = self.call("GET", "/auth").json["id"]
        self.room.uploads.put(self.owner, f"file-{self.owner}", "file", {"name": "x"},
                              [json.dumps({"custom_id": "a", "body": {"prompt": "hi"}}).encode()])
        made = self.call("POST", "/v1/batches", json={"input_file_id": f"file-{self.owner}", "endpoint": "/answer"})
        self.id, self.output = made.json["id"], made.json["id"].replace("batch_", "file-") + "_output"

    def call(self, method: str, path: str, **more: Any) -> Any:
        return self.world.call(method, path, self.key, **more)

    @property
    def shown(self) -> dict[str, Any]:
        found: dict[str, Any] = self.call("GET", f"/v1/batches/{self.id}").json
        return found

    def sweep(self) -> None:
        assert self.room.jobs.sweep(time.time() + 30 * 86400)


@pytest.fixture
def batch(shared: World, key: str) -> Batch:
    return Batch(shared, key)


def test_one_that_was_cancelled_as_a_job_stays_cancelled(batch: Batch) -> None:
    assert batch.call("DELETE", f"/jobs/{batch.id}").status_code == 200
    assert batch.shown["status"] == "cancelled" and batch.shown["cancelled_at"]
    batch.sweep()
    assert batch.shown["status"] == "cancelled"
    assert batch.call("POST", f"/v1/batches/{batch.id}/cancel").json["status"] == "cancelled"


def test_one_that_failed_is_not_cancelled_but_may_be_deleted(batch: Batch) -> None:
    assert batch.call("DELETE", f"/v1/files/{batch.output}").status_code == 400
    batch.room.jobs.finish(batch.room.jobs.take("w", ["batch"], 30.0), ERROR, "its key ended", "key_ended")
    first = batch.shown
    assert first["status"] == "failed" and first["errors"]["data"][0]["code"] == "key_ended"
    refused = batch.call("POST", f"/v1/batches/{batch.id}/cancel")
    assert (refused.status_code, refused.json["error"]["code"]) == (409, "batch_failed")
    assert batch.shown["failed_at"] == first["failed_at"] and batch.shown["status"] == "failed"
    batch.sweep()
    assert batch.shown["errors"]["data"][0]["code"] == "job_lost"
    assert batch.call("POST", f"/v1/batches/{batch.id}/cancel").status_code == 409
    assert batch.call("DELETE", f"/v1/files/{batch.output}").json["deleted"]
    assert batch.call("GET", f"/v1/batches/{batch.id}").status_code == 404


def test_an_output_comes_piece_by_piece(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(AT_ONCE + 50):
        batch.room.uploads.append(batch.owner, batch.id, OK + b"%d\n" % number)
    real, most = batch.room.uploads.pieces, [0]

    def counted(owner: str, id: str) -> Iterator[bytes]:
        for number, piece in enumerate(real(owner, id)):
            most[0] = number
            yield piece
    monkeypatch.setattr(batch.room.uploads, "pieces", counted)
    answer = batch.call("GET", f"/v1/files/{batch.output}/content", buffered=False)
    assert most[0] < 10
    assert answer.text.split() == [str(number) for number in range(AT_ONCE + 50)]


@pytest.mark.parametrize("metadata", [{"a" * 65: "x"}, {"a": "x" * 513}])
def test_metadata_is_no_place_to_keep_files(batch: Batch, metadata: dict[str, str]) -> None:
    refused = batch.call("POST", "/v1/batches", json={
        "input_file_id": f"file-{batch.owner}", "endpoint": "/answer", "metadata": metadata})
    assert refused.status_code == 400
