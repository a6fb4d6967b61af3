"""The page: `/` leads to `/chat`. Everything of it comes from here, and its text never becomes script."""

from __future__ import annotations

from pathlib import Path

from flask import Response, redirect

from auth.gate import PUBLIC
from services.web.routes import Endpoint, Route, op
from services.web.statics import Files

FOLDER = Path(__file__).resolve().parent / "static" / "page"
_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
           "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
           "trusted-types dompurify")
_FILES = Files(FOLDER, "the page", {"Content-Security-Policy": _POLICY})


class Home(Endpoint):
    @op("Leads to the page", scope=PUBLIC, status=302, media="text/html")
    def get(self) -> Response:
        return redirect("/chat")        # type: ignore[return-value]


class Chat(Endpoint):
    @op("The page to talk on, and to look after conversations", scope=PUBLIC, media="text/html")
    def get(self) -> Response:
        return _FILES.response("index.html")


class PageFile(Endpoint):
    @op("A file of the page", scope=PUBLIC, media="text/plain")
    def get(self, name: str) -> Response:
        return _FILES.response(name)


ROUTES = (
    Route("/", Home, "server"),
    Route("/chat", Chat, "server"),
    Route("/page/<string:name>", PageFile, "server"),
)
