"""`/openapi.json` and the documentation page: Swagger UI, served from here, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from flask import Response

from auth.gate import ANY_KEY, PUBLIC
from services.errors import NotFound
from services.web.frame import json_response
from services.web.replies import Document
from services.web.routes import Endpoint, op

FOLDER = Path(__file__).resolve().parent / "static" / "docs"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}
_FILES = {path.name: path for path in sorted(FOLDER.iterdir()) if path.suffix in _TYPES}
_CSP = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


class OpenApi(Endpoint):
    @op("This description, as OpenAPI 3.1", scope=ANY_KEY, reply=Document)
    def get(self) -> Response:
        return json_response(self.room.openapi)


class Docs(Endpoint):
    @op("The documentation page", scope=PUBLIC, media="text/html")
    def get(self) -> Response:
        return _file("index.html")


class DocsFile(Endpoint):
    @op("A file of the documentation page", scope=PUBLIC, media="text/plain")
    def get(self, name: str) -> Response:
        return _file(name)


def _file(name: str) -> Response:
    """One of the files that were there at start; a client's text only ever picks from that table."""
    path = _FILES.get(name)
    if path is None:
        raise NotFound("the documentation page has no such file")
    response = Response(path.read_bytes(), mimetype=_TYPES[path.suffix])
    response.headers["Content-Security-Policy"] = _CSP
    response.headers["Cache-Control"] = "no-cache"
    return response
