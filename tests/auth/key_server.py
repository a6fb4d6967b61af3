"""A server of public keys for tests, as ASAP_PUB_KEYS_REPO_URL names one, and tokens."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

KID, OTHER_KID = "jitsi/prod 1", "jitsi/prod 2"
AUDIENCE = "parley"


def new_key(bits: int = 2048) -> RSAPrivateKey:
    return generate_private_key(65537, bits)


def pem_of(key: Any) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def name_of(kid: str) -> str:
    return hashlib.sha256(kid.encode()).hexdigest() + ".pem"


def token(key: Any, kid: str | None = KID, algorithm: str = "RS256", **claims: Any) -> str:
    """A good token, but for what `claims` say; those that are None are left out."""
    now = int(time.time())
    body = {"aud": AUDIENCE, "iss": "meet", "iat": now, "nbf": now, "exp": now + 600, **claims}
    return jwt.encode({name: value for name, value in body.items() if value is not None}, key, algorithm,
                      headers={} if kid is None else {"kid": kid})


class KeyServer:
    """`files` by path; `answer` replaces them: (status, headers, body). `asked`: the paths. While `hold` is not set no
    answer ends."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.answer: tuple[int, dict[str, str], bytes] | None = None
        self.asked: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        self.url = ""

    def put(self, kid: str, key: Any, folder: str = "prod") -> None:
        self.files[f"/{folder}/{name_of(kid)}"] = pem_of(key)


@contextmanager
def key_server() -> Iterator[KeyServer]:
    keys = KeyServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.asked.append(self.path)
            found = keys.files.get(self.path)
            status, headers, body = keys.answer or (200 if found else 404, {}, found or b"no")
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:10])
            self.wfile.flush()
            keys.hold.wait(20)
            try:
                self.wfile.write(body[10:])
            except OSError:
                pass        # it did not wait

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    keys.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield keys
    finally:
        keys.hold.set()
        server.shutdown()
        server.server_close()
