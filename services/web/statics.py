"""Files that pages are made of: those that were there at start, under a policy of their own."""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path

from flask import Response, request

from services.errors import NotFound

_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".txt": "text/plain"}


class Files:
    """The files below `folder`, each of a name of its own, served with `headers`. `what`: whose they are."""

    def __init__(self, folder: Path, what: str, headers: dict[str, str]) -> None:
        self._paths = {path.name: path for path in sorted(folder.rglob("*")) if path.suffix in _TYPES}
        self._what, self._headers = what, headers

    def response(self, name: str) -> Response:
        """One of the files; a client's text only ever picks from that table. `NotFound`."""
        path = self._paths.get(name)
        if path is None:
            raise NotFound(f"{self._what} has no such file")
        data, headers = path.read_bytes(), {**self._headers, "Vary": "Accept-Encoding"}
        if request.accept_encodings["gzip"]:
            data, headers["Content-Encoding"] = _packed(data), "gzip"
        response = Response(data, mimetype=_TYPES[path.suffix])
        response.headers.update(headers)
        return response


@lru_cache(maxsize=128)         # more than there are files
def _packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)
