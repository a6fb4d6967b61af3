"""The public keys of JSON Web Tokens, kept where jitsi/skynet keeps them (S1.42).

The key `kid` is the file `<sha256 of kid>.pem` in ASAP_PUB_KEYS_FOLDER of ASAP_PUB_KEYS_REPO_URL, or where that has
none in ASAP_PUB_KEYS_FALLBACK_FOLDER of it. The "URL" may be a folder of this machine. A key is asked for again from
time to time, so that one that was taken away ends; while its place does not answer, one that was there goes on working.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from concurrent import futures
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from services.errors import Unauthorized, Unavailable
from services.settings import Settings

log = logging.getLogger("parley.auth")
SECONDS = 3.0               # that a request waits for a key ...
SHORT = 1.0                 # ... that it has an older one of
FRESH = 600.0               # seconds after which a key is asked for again
ABSENT = 30.0               # the same, where there was none
RETRY = 10.0                # the same, where its place did not answer
RETRY_OLD = 60.0            # the same, while an older one works
MOST_WAITING = 16           # requests that wait, of this process
MOST_BYTES = 1 << 14        # of a file
BITS = range(2048, 8193)    # of an RSA key: fewer are too weak, more too slow
NOT_THERE = (403, 404, 410)     # 403 is what S3 says of a file that is not there


class _Gone(Exception):
    """The place of keys does not say whether there is one."""


@dataclass(frozen=True)
class _Known:
    """What is known of a key until then (monotonic time). Without one: `why` it could not be had, "" where there is
    none."""

    key: RSAPublicKey | None
    until: float = 0.0
    why: str = ""


class PublicKeys:
    """Any thread may ask. A key is looked up once, however many ask for it, and in a thread of its own."""

    def __init__(self, settings: Settings) -> None:
        assert settings.asap_keys is not None, "without a place of keys there are no tokens"
        self._place = settings.asap_keys
        self._folders = [settings.asap_folder] + ([settings.asap_fallback] if settings.asap_fallback else [])
        self._most = settings.asap_cached
        self._lock = threading.Lock()               # owns the two below
        self._known: dict[str, _Known] = {}
        self._going: dict[str, futures.Future[_Known]] = {}
        self._seats = threading.BoundedSemaphore(MOST_WAITING)

    def get(self, kid: str) -> RSAPublicKey:
        """The key `kid`. `Unauthorized` when there is none, `Unavailable` when that is not to be told now."""
        known, going = self._look(kid)
        if going is not None:
            known = self._awaited(going, known)
        if known is not None and known.key is not None:
            return known.key
        if known is None or known.why:
            raise Unavailable("the public key that this token was signed with cannot be looked up now; try again",
                              code="public_key_unavailable", retry_after=RETRY)
        raise Unauthorized(f"Failed to retrieve public key {kid}", code="invalid_token",
                           hint="there is none of this kid where ASAP_PUB_KEYS_REPO_URL says")

    def _look(self, kid: str) -> tuple[_Known | None, futures.Future[_Known] | None]:
        """What is known, and the look-up that is going on, where it is not known well enough."""
        with self._lock:
            known, going = self._known.get(kid), self._going.get(kid)
            if known is not None and time.monotonic() < known.until:
                return known, None
            if going is None:
                going = self._going[kid] = futures.Future()
                threading.Thread(target=self._ask, args=(kid, known, going), name="public-key", daemon=True).start()
            return known, going

    def _awaited(self, going: futures.Future[_Known], old: _Known | None) -> _Known | None:
        """What was looked up; where that takes long, or many wait already, the key of before, or None."""
        old = old if old is not None and old.key is not None else None
        if not self._seats.acquire(blocking=False):
            return old
        try:
            return going.result(SECONDS if old is None else SHORT)
        except futures.TimeoutError:
            return old
        finally:
            self._seats.release()

    # ------------------------------------------------------------ the look-up's thread

    def _ask(self, kid: str, old: _Known | None, going: futures.Future[_Known]) -> None:
        found = _Known(None, time.monotonic() + RETRY, "the look-up failed")
        try:
            found = self._found(kid, old)
        finally:                        # nobody waits for ever, whatever happened
            with self._lock:
                del self._going[kid]
                self._known.pop(kid, None)
                self._known[kid] = found
                while len(self._known) > self._most:
                    del self._known[next(iter(self._known))]        # which was looked up the longest ago
            going.set_result(found)

    def _found(self, kid: str, old: _Known | None) -> _Known:
        try:
            data = self._file(hashlib.sha256(kid.encode("utf-8", "surrogatepass")).hexdigest() + ".pem")
            key = None if data is None else _parsed(data)
        except _Gone as error:
            log.warning("the public key %r cannot be looked up: %s", kid, error)
            if old is not None and old.key is not None:
                return replace(old, until=time.monotonic() + RETRY_OLD)
            return _Known(None, time.monotonic() + RETRY, str(error))
        if key is None:
            log.warning("there is no public key %r where ASAP_PUB_KEYS_REPO_URL says", kid)
        return _Known(key, time.monotonic() + (ABSENT if key is None else FRESH))

    def _file(self, name: str) -> bytes | None:
        for folder in self._folders:
            data = _local(self._place / folder / name) if isinstance(self._place, Path) else \
                _remote("/".join(filter(None, (self._place, folder, name))))
            if data is not None:
                return data
        return None


def _local(path: Path) -> bytes | None:
    try:
        with path.open("rb") as stream:
            return _bounded(stream.read(MOST_BYTES + 1))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Gone(f"{path} cannot be read: {error.strerror}") from None


def _remote(url: str) -> bytes | None:
    """What is at `url`, where nothing but a plain answer is taken: no redirect leads elsewhere."""
    deadline, data = time.monotonic() + SECONDS, b""
    try:
        with (httpx.Client(timeout=SECONDS, follow_redirects=False) as client,
              client.stream("GET", url, headers={"Accept-Encoding": "identity"}) as response):
            if response.status_code in NOT_THERE:
                return None
            if response.status_code != 200:
                raise _Gone(f"its server answers with HTTP {response.status_code}")
            for piece in response.iter_raw():
                data = _bounded(data + piece)
                if time.monotonic() > deadline:
                    raise _Gone(f"its server takes longer than {SECONDS:g} s")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _Gone(f"its server cannot be asked ({type(error).__name__})") from None
    return data


def _bounded(data: bytes) -> bytes:
    if len(data) > MOST_BYTES:
        raise _Gone(f"it has more than {MOST_BYTES} bytes")
    return data


def _parsed(pem: bytes) -> RSAPublicKey:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise _Gone("its file holds no public key in PEM") from None
    if not isinstance(key, RSAPublicKey) or key.key_size not in BITS:
        raise _Gone(f"it is no RSA key of {BITS[0]} to {BITS[-1]} bits")
    return key
