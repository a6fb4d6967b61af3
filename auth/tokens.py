"""JSON Web Tokens in the place of keys, as jitsi/skynet takes them (S1.4, S1.42): RS256, `kid`, `aud`, `exp`, `nbf`.

A token comes in as the key whose record names its `kid`, and its `iss` where the record has one: rights, limits, use
and sessions are that key's. Only for such a `kid` a public key is looked up, so tokens that somebody makes up ask no
server anything. HS512, which skynet takes too, is not: it would verify with the public key, which everybody may have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jwt

from auth.credentials import looks_like_token
from auth.publickeys import PublicKeys
from auth.records import Key
from services.errors import Unauthorized
from services.settings import Settings

ALGORITHM = "RS256"
LEEWAY = 10.0               # seconds that clocks may differ
SHOWN = 200                 # characters of a kid that an error tells


class Tokens:
    """Verifies tokens. Any thread may ask."""

    def __init__(self, settings: Settings) -> None:
        self._audiences = settings.asap_audiences
        self._public_keys = PublicKeys(settings)

    def key(self, secret: bytes, keys_of: Callable[[str], Mapping[str | None, Key]]) -> Key | None:
        """The key that the token `secret` comes in as; None for what has not even the form of one.

        `keys_of(kid)` gives the keys to choose from by `iss`. `Unauthorized` with skynet's words for a token that does
        not count, `Unavailable` when its public key cannot be had now.
        """
        token = secret.decode("latin-1")
        if not looks_like_token(token):
            return None
        kid = _kid(token)
        keys = keys_of(kid)
        if not keys:
            raise Unauthorized(f"no key takes tokens with the kid {kid[:SHOWN]!r}", code="unknown_kid",
                               hint="`main.py keys jwt` on the server has them come in as a key")
        issuer = self._claims(token, kid).get("iss")
        key = (keys.get(issuer) if isinstance(issuer, str) else None) or keys.get(None)
        if key is None:
            raise Unauthorized(f"no key takes tokens with the kid {kid[:SHOWN]!r} of this iss", code="unknown_issuer")
        return key

    def _claims(self, token: str, kid: str) -> dict[str, Any]:
        try:
            return jwt.decode(token, self._public_keys.get(kid), algorithms=[ALGORITHM], leeway=LEEWAY,
                              audience=self._audiences, options={"require": ["exp", "aud"]})
        except jwt.ExpiredSignatureError:
            raise Unauthorized("Expired token.", code="expired_token") from None
        except jwt.InvalidTokenError as error:
            raise Unauthorized(f"Failed decoding JWT with public key {kid[:SHOWN]}", code="invalid_token",
                               hint=f"{type(error).__name__}: expected {ALGORITHM}, a valid signature, exp, and an aud "
                                    "that ASAP_PUB_KEYS_AUDS has") from None


def _kid(token: str) -> str:
    try:
        header = jwt.get_unverified_header(token)
    except jwt.InvalidTokenError:
        raise Unauthorized("Failed to decode JWT header", code="invalid_token") from None
    if not header.get("kid"):
        raise Unauthorized("Invalid token. No kid header.", code="invalid_token")
    return header["kid"]
