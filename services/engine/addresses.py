"""The addresses that LocalAI's galleries speak of models by, and their texts, fetched by guarded hops.

Who may be asked: the hub and the galleries that the operator named, wherever they are. What a gallery's text or a
client names besides is taken for a redirect from the hub: to public addresses only, and never from https down to http.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urlsplit

import httpx

from services import paths
from services.engine import transfer, yaml_files
from services.engine.guard import Guard, parse
from services.engine.hub import DEFAULT_HUB, REPO
from services.errors import BadRequest, ConfigError, Forbidden, TooLarge, Unavailable

MAX_TEXT = 16 << 20         # bytes of a gallery's index
SECONDS = 60.0              # that a text may take to come
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:")
_HUB = re.compile(r"(?:huggingface://|hf://|hf\.co/|huggingface\.co/)(?P<path>[^@?#]+)(?:@(?P<branch>[\w./-]+))?")
_GITHUB = re.compile(r"github:(?://)?(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+)/(?P<path>[^@?#]+)(?:@(?P<branch>[\w./-]+))?")
RAW = "https://raw.githubusercontent.com"


@dataclass(frozen=True)
class Sources:
    """Where things may come from. `trusted`: addresses that the operator named, beside the hub's."""

    models_dir: Path
    hub_url: str = DEFAULT_HUB
    token: str | None = None
    trusted: tuple[str, ...] = ()

    def expanded(self, uri: str, base: str = "") -> str:
        """`uri` as an http(s) or file URL; one without a scheme lies beside or below `base`. `BadRequest` for others.
        The hub's own addresses are those of the hub that is set."""
        if match := _HUB.fullmatch(uri):
            return self._on_hub(match["path"], match["branch"] or "main", uri)
        if match := _GITHUB.fullmatch(uri):
            return f"{RAW}/{match['owner']}/{match['repo']}/{match['branch'] or 'main'}/{quote(match['path'])}"
        if uri.startswith(DEFAULT_HUB + "/"):
            return self.hub_url + uri.removeprefix(DEFAULT_HUB)
        if uri.startswith(("http://", "https://")):
            return str(parse(uri))
        if uri.startswith("file://"):
            return uri
        if uri and base and not _SCHEME.match(uri):
            return _beside(base, uri)
        raise BadRequest(f"{uri[:200]!r} cannot be used: expected https://, http://, huggingface://owner/repo/file, "
                         "github:owner/repo/file@branch, or file:// inside the folder of models", param="url")

    def _on_hub(self, path: str, branch: str, uri: str) -> str:
        owner, _, rest = path.partition("/")
        name, _, file = rest.partition("/")
        if not REPO.fullmatch(f"{owner}/{name}") or not file or ".." in file.split("/"):
            raise BadRequest(f"{uri[:200]!r} names no file: expected huggingface://owner/repo/file", param="url")
        return f"{self.hub_url}/{owner}/{name}/resolve/{branch}/{quote(file)}"

    def guard(self, url: str) -> tuple[Guard, str | None]:
        """The guard of a request for `url`, and the token that it carries: the hub's, on the way to it."""
        homes = [home for home in (self.hub_url, *self.trusted) if home.startswith("http")]
        home = next((home for home in homes if _origin(home) == _origin(url)), None)
        return Guard(home or self.hub_url), self.token if home == self.hub_url else None

    def local(self, url: str) -> Path:
        """The file that a file URL names, which is inside the folder of models."""
        path = Path(unquote(urlsplit(url).path))
        folder = self.models_dir.resolve()
        if path.is_symlink() or not path.resolve().is_relative_to(folder) or not path.is_file():
            raise Forbidden(f"{url[:200]!r} is no file in {self.models_dir.name}/: from elsewhere nothing is read",
                            param="url")
        return path.resolve()

    def text(self, url: str) -> str:
        """What is at `url`, an `expanded` one, as text."""
        if url.startswith("file://"):
            return yaml_files.read_text(self.local(url), MAX_TEXT)
        guard, token = self.guard(url)
        try:
            return _download(httpx.URL(url), guard, token).decode("utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{shown(url)}: not UTF-8 text") from None
        except Forbidden as error:
            raise Forbidden(f"{shown(url)} is not fetched: {error.message}", param="url") from None


def shown(url: str) -> str:
    """Host and path, without a query, which may hold a signature."""
    parts = urlsplit(url)
    return f"{parts.hostname or 'file:'}{parts.path}"[:300]


def _origin(url: str) -> tuple[str, str, int | None]:
    parsed = parse(url)
    return parsed.scheme, parsed.host, parsed.port


def _beside(base: str, uri: str) -> str:
    if uri.startswith(("/", "?", "#")) or ".." in PurePosixPath(unquote(uri)).parts or "\\" in uri:
        raise BadRequest(f"{uri[:200]!r} leaves the gallery that names it", param="url")
    folder = base.partition("?")[0].rpartition("/")[0]
    return f"{folder}/{quote(unquote(uri))}"


def _download(url: httpx.URL, guard: Guard, token: str | None) -> bytes:
    deadline = time.monotonic() + SECONDS
    with httpx.Client(timeout=httpx.Timeout(transfer.READ, connect=transfer.CONNECT)) as client:
        try:
            for _ in range(transfer.MAX_HOPS):
                guard.check(url)
                bearer = {"Authorization": f"Bearer {token}"} if token and guard.is_home(url) else {}
                with client.stream("GET", url, headers={"Accept-Encoding": "identity", **bearer}) as response:
                    guard.check_peer(url, response)
                    if not response.has_redirect_location:
                        return _body(response, token, deadline)
                    url = url.join(response.headers["location"])
        except httpx.InvalidURL:
            raise Forbidden(f"{url.host} redirects to something that is no URL: not followed") from None
        except httpx.HTTPError as error:
            raise Unavailable(f"{url.host} cannot be reached ({str(error)[:200] or type(error).__name__})") from None
    raise Unavailable(f"{url.host} redirects more than {transfer.MAX_HOPS} times: given up")


def _body(response: httpx.Response, token: str | None, deadline: float) -> bytes:
    if response.status_code != 200:
        raise transfer.refusal(response.status_code, response.url.host, response.headers, bool(token))
    data = bytearray()
    for piece in response.iter_raw():
        data += piece
        if len(data) > MAX_TEXT:
            raise TooLarge(f"{shown(str(response.url))} has more than {MAX_TEXT} bytes: not taken")
        if time.monotonic() > deadline:
            raise Unavailable(f"{response.url.host} takes longer than {SECONDS:.0f} s: given up")
    return bytes(data)


def plain_name(name: str, what: str) -> str:
    """The last part of `name`, which a folder of models takes: galleries sort their files into folders."""
    parts: Sequence[str] = PurePosixPath(name).parts
    if not parts or name.startswith("/") or ".." in parts or "\\" in name:
        raise BadRequest(f"{what} {name[:80]!r} does not stay in the folder of models", code="bad_name", param=what)
    paths.inside(Path(), parts[-1], what=what)
    return parts[-1]
