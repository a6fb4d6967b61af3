"""`/openapi.json` and the documentation page: Swagger UI, served from here, nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from flask import Response

from auth.gate import ANY_KEY, PUBLIC
from services.web.frame import json_response
from services.web.replies import Document
from services.web.routes import Endpoint, op
from services.web.statics import Files

FOLDER = Path(__file__).resolve().parent / "static" / "docs"
_CSP = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
_FILES = Files(FOLDER, "the documentation page", {"Content-Security-Policy": _CSP, "Cache-Control": "no-cache"})


class OpenApi(Endpoint):
    @op("This description, as OpenAPI 3.1", scope=ANY_KEY, reply=Document)
    def get(self) -> Response:
        return json_response(self.room.openapi)


class Docs(Endpoint):
    @op("The documentation page", scope=PUBLIC, media="text/html")
    def get(self) -> Response:
        return _FILES.response("index.html")


class DocsFile(Endpoint):
    @op("A file of the documentation page", scope=PUBLIC, media="text/plain")
    def get(self, name: str) -> Response:
        return _FILES.response(name)
