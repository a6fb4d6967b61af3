"""Files that clients send: the parts of a form, or one file as the body."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flask import Request
from werkzeug.formparser import FormDataParser

from services.errors import BadRequest
from services.web.json_body import read_raw

MULTIPART = "multipart/form-data"
UNSAID = "application/x-www-form-urlencoded"     # what curl says of any body, unless it is told what to say
MOST_PARTS = 100                # of one form
FILE = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
FILES: dict[str, Any] = {       # what `files` takes, for /openapi.json
    "required": True,
    "description": "Files as the parts of a form, under any names, each with a filename. Or one file as the body, with "
                   "its Content-Type, whichever that is, and its name in the address.",
    "content": {MULTIPART: {"schema": {
                    "type": "object", "required": ["file"], "additionalProperties": FILE,
                    "properties": {"file": {"type": "array", "minItems": 1, "maxItems": 100, "items": FILE}}}},
                "application/octet-stream": {"schema": FILE}}}


@dataclass(frozen=True)
class File:
    """`media`: its type as the sender says, lower case, "" when it does not."""

    name: str
    media: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class Form:
    """A form's texts, in their order, and files. `raw`: the bytes of it all."""

    raw: bytes
    texts: Sequence[tuple[str, str]]
    files: Sequence[File]


def files(request: Request, max_bytes: int, name: str | None) -> Sequence[File]:
    """What was sent, at least one. `name`: of a file that is the body. `BadRequest` for a file that is empty."""
    if request.mimetype != MULTIPART:
        media = "" if request.mimetype == UNSAID else request.mimetype
        found: Sequence[File] = [_file(name, media, read_raw(request, max_bytes))]
    elif not (found := read_form(request, max_bytes).files):
        raise BadRequest("the form has no file: send each as a part with a filename")
    return found


def read_form(request: Request, max_bytes: int) -> Form:
    """A multipart form. Parts without a filename are texts; a file field that was left empty is none."""
    raw = read_raw(request, max_bytes)
    _, texts, parts = FormDataParser(max_form_parts=MOST_PARTS).parse(
        io.BytesIO(raw), request.mimetype, len(raw), request.mimetype_params)
    named = [(one.filename, one.mimetype or "", one.read()) for _, one in parts.items(multi=True)]
    return Form(raw, list(texts.items(multi=True)), [_file(*one) for one in named if one[0] or one[2]])


def _file(name: str | None, media: str, data: bytes) -> File:
    """Without the folders in its name, however its sender writes them."""
    name = (name or "").replace("\\", "/").rpartition("/")[2].strip()
    name = "".join(sign for sign in name if sign.isprintable())[:200] or "file"
    if not data:
        raise BadRequest(f"{name}: the file is empty")
    return File(name, media, data)
