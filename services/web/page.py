"""The page: `/` leads to `/chat`. Everything of it comes from here, and its text never becomes script."""

from __future__ import annotations

from pathlib import Path

from flask import Response, redirect

from auth.gate import PUBLIC
from services.errors import NotFound
from services.web.routes import Endpoint, Route, op

FOLDER = Path(__file__).resolve().parent / "static" / "page"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}
_FILES = {path.name: path for path in sorted(FOLDER.rglob("*")) if path.suffix in _TYPES}
_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
           "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
           "trusted-types dompurify")


class Home(Endpoint):
    @op("Leads to the page", scope=PUBLIC, status=302, media="text/html")
    def get(self) -> Response:
        return redirect("/chat")        # type: ignore[return-value]


class Chat(Endpoint):
    @op("The page to talk on, and to look after conversations", scope=PUBLIC, media="text/html")
    def get(self) -> Response:
        return _file("index.html")


class PageFile(Endpoint):
    @op("A file of the page", scope=PUBLIC, media="text/plain")
    def get(self, name: str) -> Response:
        return _file(name)


def _file(name: str) -> Response:
    """One of the files that were there at start; a client's text only ever picks from that table."""
    path = _FILES.get(name)
    if path is None:
        raise NotFound("the page has no such file")
    response = Response(path.read_bytes(), mimetype=_TYPES[path.suffix])
    response.headers["Content-Security-Policy"] = _POLICY
    return response


ROUTES = (
    Route("/", Home, "server"),
    Route("/chat", Chat, "server"),
    Route("/page/<string:name>", PageFile, "server"),
)
