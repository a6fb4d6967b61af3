"""`/v1/files`: what batches read, and what they made. A batch's output is kept with the batch, as two files of it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Literal

from flask import Response, g, request
from pydantic import BaseModel, Field

from services.errors import BadRequest, NotFound
from services.jobs.batches import BATCH, FAILED, FILE, OK, output
from services.store.uploads import Upload, not_found
from services.web import upload
from services.web.bodies import Body
from services.web.frame import json_response
from services.web.routes import Endpoint, Route, op

OUTPUT, ERRORS = "_output", "_errors"       # what a batch's id ends with in the names of its files
MARKS = {OUTPUT: OK, ERRORS: FAILED}
PAGE = 100
_FORM: dict[str, Any] = {"required": True, "content": {upload.MULTIPART: {"schema": {
    "type": "object", "required": ["file", "purpose"], "additionalProperties": False, "properties": {
        "file": upload.FILE, "purpose": {"const": "batch"}}}}}}


class FileObject(BaseModel):
    id: str
    object: Literal["file"]
    bytes: int
    created_at: int = Field(description="seconds since 1970")
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]


class FileList(BaseModel):
    object: Literal["list"]
    data: list[FileObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Deleted(BaseModel):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class PageQuery(Body):
    """Which page, the newest first."""

    after: str | None = Field(None, min_length=1, max_length=200, description="`last_id` of the page before")
    limit: str | None = Field(None, pattern=r"^[0-9]{1,5}$", description="at most 10000; default: 100")
    order: Literal["desc"] | None = None


class FilesQuery(PageQuery):
    """Which page of which files, the newest first."""

    purpose: Literal["batch", "batch_output"] | None = None


class Files(Endpoint):
    @op("The key's files; the master key sees everybody's", scope="answer", query=FilesQuery, reply=FileList,
        errors=(404,))
    def get(self, query: FilesQuery) -> Response:
        """Outputs are named by their batches, and not listed."""
        return json_response(page(self, FILE, query, _file, none=query.purpose == "batch_output"))

    @op("Upload the requests of a batch: a form with `file`, one JSON object a line, and `purpose`", scope="answer",
        files=_FORM, reply=FileObject, errors=(415, 507))
    def post(self) -> Response:
        form = upload.read_form(request, self.room.settings.max_body_bytes)
        g.raw_body = form.raw
        purpose = dict(form.texts).get("purpose")
        if purpose != "batch":
            told = "is missing: it should be batch" if purpose is None else f"should be batch, not {purpose[:40]!r}"
            raise BadRequest(f"purpose {told}; files are for batches here", param="purpose")
        if len(form.files) != 1:
            raise BadRequest("the form should have one file, in the field file", param="file")
        file = form.files[0]
        made = self.room.uploads.put(g.key.id, f"file-{uuid.uuid4().hex}", FILE, {"name": file.name}, [file.data])
        return json_response(_file(made))


class OneFile(Endpoint):
    @op("A file", scope="answer", reply=FileObject)
    def get(self, file_id: str) -> Response:
        return json_response(_shown(self, file_id))

    @op("Delete a file; with an output goes its batch", scope="answer", reply=Deleted)
    def delete(self, file_id: str) -> Response:
        found, _ = find(self, file_id)
        if found.kind == BATCH and _goes_on(self, found):
            raise BadRequest("its batch is not done: cancel that first", param="file_id")
        self.room.uploads.delete(found.owner, found.id)
        return json_response({"id": file_id, "object": "file", "deleted": True})


class FileContent(Endpoint):
    @op("What is in a file", scope="answer", media="application/octet-stream")
    def get(self, file_id: str) -> Response:
        content = _content(self, *find(self, file_id))
        first = next(content, b"")              # what cannot be read says so before the answer has begun
        return Response(chain([first], content), mimetype="application/octet-stream")


def find(endpoint: Endpoint, id: str) -> tuple[Upload, bytes]:
    """The upload that the file is, or is of; and which of its lines (OK, FAILED; b"": it is all of them)."""
    for ending, mark in MARKS.items():
        if id.endswith(ending):
            batch = "batch_" + id.removeprefix("file-").removesuffix(ending)
            return _get(endpoint, batch, BATCH, not_found(id)), mark
    return _get(endpoint, id, FILE, not_found(id)), b""


def _get(endpoint: Endpoint, id: str, kind: str, missing: NotFound) -> Upload:
    try:
        found = endpoint.room.uploads.get(endpoint.whose, id)
    except NotFound:
        raise missing from None
    if found.kind != kind:
        raise missing
    return found


def _goes_on(endpoint: Endpoint, batch: Upload) -> bool:
    if "completed_at" in batch.about:
        return False
    try:
        return not endpoint.room.jobs.get(batch.owner, batch.id).ended
    except NotFound:
        return False


def output_id(batch: Upload, ending: str) -> str:
    return f"file-{batch.id.removeprefix('batch_')}{ending}"


def _content(endpoint: Endpoint, found: Upload, mark: bytes) -> Iterator[bytes]:
    uploads = endpoint.room.uploads
    return output(uploads, found, mark) if mark else uploads.pieces(found.owner, found.id)


def _shown(endpoint: Endpoint, id: str) -> dict[str, Any]:
    found, mark = find(endpoint, id)
    if not mark:
        return _file(found)
    size = sum(map(len, output(endpoint.room.uploads, found, mark)))
    return _object(id, size, int(found.about.get("completed_at") or time.time()), f"{id}.jsonl", "batch_output")


def _file(found: Upload) -> dict[str, Any]:
    return _object(found.id, found.size, int(found.created), found.about["name"], "batch")


def _object(id: str, size: int, created: int, name: str, purpose: str) -> dict[str, Any]:
    return {"id": id, "object": "file", "bytes": size, "created_at": created, "filename": name, "purpose": purpose,
            "status": "processed"}


def page(endpoint: Endpoint, kind: str, query: PageQuery, shape: Callable[[Upload], dict[str, Any]],
         none: bool = False) -> dict[str, Any]:
    """A page of uploads in OpenAI's shape; `none`: one of nothing."""
    uploads, owner = endpoint.room.uploads, endpoint.whose
    limit = min(max(int(query.limit or PAGE), 1), 10_000)
    after = query.after or ""
    missing = NotFound(f"after: there is no {kind} {after[:80]!r}", code=f"{kind}_not_found", param="after")
    before = _get(endpoint, after, kind, missing).number if after else None
    there = [] if none else uploads.all(owner, kind, limit + 1, before)
    data = [shape(one) for one in there[:limit]]
    return {"object": "list", "data": data, "has_more": len(there) > limit,
            "first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}


ROUTES = (
    Route("/v1/files", Files, "openai", alias="/files"),
    Route("/v1/files/<string:file_id>", OneFile, "openai", alias="/files/<string:file_id>"),
    Route("/v1/files/<string:file_id>/content", FileContent, "openai", alias="/files/<string:file_id>/content"),
)
