"""Brings one file of a hub, or of any web server, into its part file: resumed, checked, and only by guarded hops."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from services.engine.gguf_header import not_gguf
from services.engine.guard import Guard
from services.engine.machine import in_words
from services.engine.part import Part
from services.errors import (
    BadModel,
    Forbidden,
    NotFound,
    ParleyError,
    StorageFull,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)

Progress = Callable[[str, int, "int | None"], None]     # file, bytes that are here, bytes in all if known

CONNECT, READ = 10.0, 30.0              # seconds to connect, and between two pieces of data
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0)      # seconds before a cut transfer is taken up again
ENOUGH = 1 << 16                        # bytes that count as progress: the pauses begin anew
MAX_WAIT = 60.0                         # seconds of Retry-After that are waited for
MAX_HOPS = 10
SPARE = 64 << 20                        # bytes of the disk left free
SHA256 = re.compile(r"[0-9a-f]{64}")
log = logging.getLogger("parley.engine")


@dataclass(frozen=True)
class Wanted:
    """One file to get. `size` (bytes) and `sha256` where the hub says them."""

    url: str
    name: str
    size: int | None = None
    sha256: str | None = None


class _Cut(Exception):
    """The transfer ended early and may be taken up again, after `wait` seconds if the server said so."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


def by_hand(folder: Path) -> str:
    """What to do without a network."""
    return f"Without a network: put a .gguf file into {folder} by hand; it is listed at once"


def check_space(folder: Path, needed: int) -> None:
    """`StorageFull` unless `needed` bytes and some more are free in `folder`."""
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise StorageFull(f"{in_words(needed)} are to be downloaded and {in_words(free)} are free in {folder}: make "
                          f"room for {in_words(needed + SPARE - free)} more, or set MODELS_DIR to a larger disk")


def refusal(status: int, host: str, headers: httpx.Headers | dict[str, str], with_token: bool) -> ParleyError:
    """What to say when `host` answers with `status` instead of what was asked for."""
    if status in (401, 403):
        told = "HF_TOKEN is not accepted for it" if with_token else "it is private, gated, or does not exist"
        return (Unauthorized if status == 401 else Forbidden)(
            f"{host} refuses ({status}): {told}. Check the name; for a gated model accept its terms on its page, and "
            "set HF_TOKEN to a token that may read it")
    if status == 404:
        return NotFound(f"{host} has nothing of that name (404): check owner, name and file")
    if status == 429:
        wait = retry_after(headers)
        when = f"in {wait:.0f} s" if wait else "later"
        return TooManyRequests(f"{host} asks to come back {when} (429: too many requests)", retry_after=wait or None)
    return Unavailable(f"{host} answers with HTTP {status}: try again later")


def retry_after(headers: httpx.Headers | dict[str, str]) -> float:
    """Seconds; 0 when the header is absent or a date."""
    text = str(headers.get("retry-after") or "").strip()
    return float(text) if re.fullmatch(r"\d{1,6}", text) else 0.0


class Transfer:
    """Fills `part` with `wanted`. `token` goes to the guard's home only."""

    def __init__(self, wanted: Wanted, part: Part, guard: Guard, token: str | None, progress: Progress) -> None:
        self.wanted, self.part, self.guard, self.token, self.progress = wanted, part, guard, token, progress
        self.size, self.sha256 = wanted.size, wanted.sha256
        self.host = httpx.URL(wanted.url).host
        self.received = 0       # bytes in this run

    def run(self) -> None:
        """The part is whole and is what was promised, or an error says why not. Old bytes that spoil it are dropped."""
        with httpx.Client(timeout=httpx.Timeout(READ, connect=CONNECT), follow_redirects=False) as client:
            while True:
                had = self.part.size
                self._until_whole(client)
                problem = self._mismatch()
                if problem is None:
                    break
                self.part.clear()
                if not had:
                    raise BadModel(f"{self.wanted.name} {problem}: nothing was kept; run the command again")
                log.warning("%s %s: the part from an earlier download is dropped", self.wanted.name, problem)
        self.part.check()

    def _mismatch(self) -> str | None:
        if self.sha256 and (found := self.part.sha256()) != self.sha256:
            return f"came damaged (sha256 {found[:12]}…, expected {self.sha256[:12]}…)"
        return None

    def _until_whole(self, client: httpx.Client) -> None:
        """Go on after cuts for as long as the part grows beyond what it ever was; without any network fail at once."""
        failures, best = 0, self.part.size
        while True:
            try:
                return self._once(client)
            except (httpx.TransportError, _Cut) as error:
                failures = 1 if self.part.size >= best + ENOUGH else failures + 1
                best = max(best, self.part.size)
                wait = error.wait if isinstance(error, _Cut) else 0.0
                if failures > len(PAUSES) or (not self.received and isinstance(error, httpx.TransportError)):
                    raise Unavailable(self._gave_up(error)) from None
                log.info("%s: %s; going on from %s", self.wanted.name, _reason(error), in_words(self.part.size))
            time.sleep(max(wait, PAUSES[failures - 1]))

    def _gave_up(self, error: Exception) -> str:
        if not self.received and not self.part.size:
            return f"{self.host} cannot be reached ({_reason(error)}). {by_hand(self.part.path.parent)}"
        return (f"the download of {self.wanted.name} stopped at {in_words(self.part.size)} ({_reason(error)}): run "
                "the same command again; it goes on from there")

    def _once(self, client: httpx.Client) -> None:
        """One request for what is missing, and all that comes."""
        offset = self._resumable()
        if self.sha256 and offset and offset == self.size:
            return
        headers = {"Accept-Encoding": "identity"}
        if offset:
            headers["Range"] = f"bytes={offset}-"
            if not self.wanted.sha256 and (self.part.source or "").startswith('"'):
                headers["If-Range"] = self.part.source or ""
        with self._open(client, headers) as (response, source):
            self._accept(response, source, offset)
            self._receive(response)

    def _resumable(self) -> int:
        """Bytes of the part that may be kept, so far as can be told before the server is asked."""
        source, known = self.part.source, self.wanted.sha256
        stale = source not in (None, "", known) if known else not source
        if self.part.size and (stale or (self.size is not None and self.part.size > self.size)):
            self.part.clear(known)
        return self.part.size

    @contextmanager
    def _open(self, client: httpx.Client, headers: dict[str, str]) -> Iterator[tuple[httpx.Response, str | None]]:
        """The answer at the end of the redirects, and the version (sha256 or strong ETag) that it is of."""
        url, linked = httpx.URL(self.wanted.url), None
        for _ in range(MAX_HOPS):
            self.guard.check(url)
            bearer = {"Authorization": f"Bearer {self.token}"} if self.token and self.guard.is_home(url) else {}
            response = self._send(client, client.build_request("GET", url, headers={**headers, **bearer}))
            try:
                self.guard.check_peer(url, response)
                linked = linked or response.headers.get("x-linked-etag", "").strip('"') or None
                if not response.has_redirect_location:
                    yield response, linked or _strong(response.headers.get("etag"))
                    return
                url = self._next(url, response.headers["location"])
            finally:
                response.close()
        raise Unavailable(f"{self.host} redirects more than {MAX_HOPS} times for {self.wanted.name}: given up")

    def _send(self, client: httpx.Client, request: httpx.Request) -> httpx.Response:
        """httpx looks at the Location of an answer also when it is not to follow it."""
        try:
            return client.send(request, stream=True)
        except httpx.InvalidURL:
            raise _no_url(request.url) from None

    def _next(self, url: httpx.URL, location: str) -> httpx.URL:
        try:
            return url.join(location)
        except (httpx.InvalidURL, ValueError):
            raise _no_url(url) from None

    def _accept(self, response: httpx.Response, source: str | None, offset: int) -> None:
        """Hold the answer's head against what is known; the part is ready for its body afterwards."""
        self._check_status(response)
        whole = _whole_length(response, offset)
        if self.size is not None and whole is not None and whole != self.size:
            raise BadModel(f"{self.host} sends {self.wanted.name} with {whole:,} bytes, its listing says {self.size:,}"
                           ": not taken")
        if offset and (response.status_code != 206 or (not self.wanted.sha256 and source != self.part.source)):
            self.part.clear()
            if response.status_code == 206:
                raise _Cut("the file has changed on the server")
        self.size = whole if self.size is None else self.size
        self.sha256 = self.sha256 or (source if source and SHA256.fullmatch(source) else None)
        if not self.part.size:
            self.part.clear(self.wanted.sha256 or source)
        check_space(self.part.path.parent, (self.size or 0) - self.part.size)

    def _check_status(self, response: httpx.Response) -> None:
        status, wait = response.status_code, retry_after(response.headers)
        if status == 416:
            self.part.clear()
            raise _Cut("the server has less than was downloaded")
        if status in (408, 500, 502, 503, 504) or (status == 429 and 0 < wait <= MAX_WAIT):
            raise _Cut(f"{response.url.host} answers with HTTP {status}", min(wait, MAX_WAIT))
        if status not in (200, 206):
            raise refusal(status, response.url.host, response.headers, bool(self.token))
        if response.headers.get("content-encoding", "identity") != "identity":
            raise Unavailable(f"{response.url.host} sends {self.wanted.name} compressed, which was not asked for")

    def _receive(self, response: httpx.Response) -> None:
        seen = self.part.size > 0
        for piece in response.iter_raw():
            self.part.append(piece)
            self.received += len(piece)
            if not seen and self.part.size >= 64:
                self._check_start()
                seen = True
            if self.size is not None and self.part.size > self.size:
                self.part.clear()
                raise BadModel(f"{self.host} sends more than the {self.size:,} bytes of {self.wanted.name}: not taken")
            self.progress(self.wanted.name, self.part.size, self.size)
        if self.size is not None and self.part.size < self.size:
            raise _Cut("the connection ended early")
        self._check_start()

    def _check_start(self) -> None:
        if problem := not_gguf(self.part.start()):
            self.part.clear()
            raise BadModel(f"what {self.host} sends as {self.wanted.name} {problem}")


def _no_url(url: httpx.URL) -> Forbidden:
    return Forbidden(f"{url.host} redirects to something that is no URL: not followed")


def _strong(etag: str | None) -> str | None:
    return etag if etag and etag.startswith('"') else None


def _whole_length(response: httpx.Response, offset: int) -> int | None:
    """Length of the whole file by the answer's head; `_Cut` when a 206 is not about what was asked for."""
    if response.status_code == 206:
        match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("content-range", ""))
        if not match or int(match[1]) != offset:
            raise Unavailable(f"{response.url.host} answers with another range than was asked for")
        return int(match[2]) if match[2] != "*" else None
    length = response.headers.get("content-length", "")
    return int(length) if re.fullmatch(r"\d{1,18}", length) else None


def _reason(error: Exception) -> str:
    """One short line, also for errors without a text."""
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
