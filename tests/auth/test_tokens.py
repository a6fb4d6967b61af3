"""JSON Web Tokens: which come in, as whom, and what forgers are told."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jwt.algorithms import HMACAlgorithm, RSAAlgorithm

from auth.keys import Identity, Keys
from auth.records import MASTER_ID
from services.errors import BadRequest, ConfigError, Conflict, Unauthorized
from services.settings import Settings
from tests.auth.key_server import AUDIENCE, KID, OTHER_KID, name_of, new_key, pem_of, token


@pytest.fixture(scope="module")
def signing() -> Any:
    return new_key()


@pytest.fixture(scope="module")
def foreign() -> Any:
    return new_key()


@pytest.fixture
def folder(tmp_path: Path, signing: Any, foreign: Any) -> Path:
    for kid, key in ((KID, signing), (OTHER_KID, foreign)):
        (tmp_path / name_of(kid)).write_bytes(pem_of(key))
    return tmp_path


@pytest.fixture
def open_tokens(data: Path, folder: Path) -> Callable[[], Keys]:
    return lambda: Keys(data, Settings(data_dir=data, asap_keys=folder, asap_audiences=(AUDIENCE, "skynet")))


@pytest.fixture
def tokens(open_tokens: Callable[[], Keys]) -> Keys:
    keys = open_tokens()
    keys.ensure_master()
    keys.create(name="jitsi", identity=Identity(kids=[KID]))
    return keys


def come_in(keys: Keys, text: str) -> str | None:
    key = keys.authenticate(text.encode())
    return key and key.name


@pytest.mark.parametrize("claims", [{}, {"aud": ["x", "skynet"]}, {"nbf": None, "iat": None, "iss": None},
                                    {"exp": time.time() + 3600.5}, {"nbf": int(time.time()) + 5},
                                    {"cid": "customer", "context": {"group": "customer"}}])
def test_a_token_comes_in_as_the_key_of_its_kid(tokens: Keys, signing: Any, claims: dict[str, Any]) -> None:
    assert come_in(tokens, token(signing, **claims)) == "jitsi"


def test_a_key_that_is_expired_by_a_moment_is_a_clocks_fault(tokens: Keys, signing: Any) -> None:
    assert come_in(tokens, token(signing, exp=int(time.time()) - 3)) == "jitsi"


def part(value: Any) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: dict[str, Any], signing: Any, claims: dict[str, Any] | None = None) -> str:
    """A token with a header that no library makes, and a right signature of RS256."""
    good = jwt.decode(token(signing), options={"verify_signature": False})
    body = part({"alg": "RS256", "kid": KID, **header}) + "." + part({**good, **(claims or {})})
    return body + "." + part(RSAAlgorithm(RSAAlgorithm.SHA256).sign(body.encode(), signing))


def by_public_key(algorithm: str, signing: Any) -> str:
    """HS* with the public key for a secret, as anybody can make it."""
    body = forged({"alg": algorithm}, signing).rpartition(".")[0]
    return body + "." + part(HMACAlgorithm(getattr(HMACAlgorithm, "SHA" + algorithm[2:])).sign(
        body.encode(), pem_of(signing)))


HEADER, NO_KID = "Failed to decode JWT header", "Invalid token. No kid header."
DECODING, UNKNOWN = f"Failed decoding JWT with public key {KID}", "no key takes tokens with the kid"
FORGERIES: dict[str, tuple[Callable[[Any, Any], str], str]] = {
    "none": (lambda own, _: token(None, algorithm="none"), DECODING),
    "None": (lambda own, _: forged({"alg": "None"}, own).rpartition(".")[0] + ".", DECODING),
    "no signature": (lambda own, _: token(own).rpartition(".")[0] + ".", DECODING),
    "HS256 by the public key": (lambda own, _: by_public_key("HS256", own), DECODING),
    "HS512 by the public key": (lambda own, _: by_public_key("HS512", own), DECODING),
    "RS512": (lambda own, _: token(own, algorithm="RS512"), DECODING),
    "PS256": (lambda own, _: token(own, algorithm="PS256"), DECODING),
    "algorithms": (lambda own, _: forged({"alg": ["RS256"]}, own), DECODING),
    "no algorithm": (lambda own, _: forged({"alg": None}, own), DECODING),
    "another's key": (lambda _, other: token(other), DECODING),
    "another's kid": (lambda own, _: token(own, kid=OTHER_KID), UNKNOWN),
    "another's key in the header": (lambda _, other: forged({"jwk": {"kty": "RSA"}, "x5c": ["x"],
                                                             "jku": "http://127.0.0.1/"}, other), DECODING),
    "critical": (lambda own, _: forged({"crit": ["x"], "x": 1}, own), HEADER),
    "detached": (lambda own, _: forged({"b64": False, "crit": ["b64"]}, own), HEADER),
    "another audience": (lambda own, _: token(own, aud="other"), DECODING),
    "other audiences": (lambda own, _: token(own, aud=["other", "third"]), DECODING),
    "part of an audience": (lambda own, _: token(own, aud=AUDIENCE[:-1]), DECODING),
    "no audience": (lambda own, _: token(own, aud=None), DECODING),
    "an empty audience": (lambda own, _: token(own, aud=[]), DECODING),
    "audiences in audiences": (lambda own, _: token(own, aud=[[AUDIENCE]]), DECODING),
    "an object for an audience": (lambda own, _: token(own, aud={AUDIENCE: 1}), DECODING),
    "expired": (lambda own, _: token(own, exp=int(time.time()) - 60), "Expired token."),
    "never expires": (lambda own, _: token(own, exp=None), DECODING),
    "expires in a text": (lambda own, _: forged({}, own, {"exp": "soon"}), DECODING),
    "expires in infinity": (lambda own, _: forged({}, own, {"exp": float("inf")}), DECODING),
    "not yet": (lambda own, _: token(own, nbf=int(time.time()) + 60), DECODING),
    "made in the future": (lambda own, _: token(own, iat=int(time.time()) + 60), DECODING),
    "no kid": (lambda own, _: token(own, kid=None), NO_KID),
    "an empty kid": (lambda own, _: token(own, kid=""), NO_KID),
    "a number for a kid": (lambda own, _: forged({"kid": 7}, own), HEADER),
    "a path for a kid": (lambda own, _: token(own, kid="../../../etc/passwd"), UNKNOWN),
    "a path around a kid": (lambda own, _: token(own, kid=f"./{KID}"), UNKNOWN),
    "an address for a kid": (lambda own, _: token(own, kid="http://127.0.0.1/x#"), UNKNOWN),
    "a long kid": (lambda own, _: token(own, kid="k" * 3000), UNKNOWN),
    "a kid with a zero": (lambda own, _: token(own, kid=KID + "\0"), UNKNOWN),
    "half a surrogate pair": (lambda own, _: token(own, kid="\ud800"), UNKNOWN),
    "a kid in other letters": (lambda own, _: token(own, kid="jitsi/prоd 1"), UNKNOWN),
    "no JSON": (lambda own, _: part(b"{") + ".e30.", HEADER),
    "a list": (lambda own, _: part([]) + ".e30.", HEADER),
    "deep": (lambda own, _: part(b"[" * 5000) + ".e30.", HEADER),
    "no base64": (lambda own, _: "a.b.c", HEADER),
    "nothing in it": (lambda own, _: "a..", HEADER),
    "another body": (lambda own, _: token(own).replace(token(own).split(".")[1], part({"aud": AUDIENCE})), DECODING),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_forgeries_stay_out(tokens: Keys, signing: Any, foreign: Any, name: str) -> None:
    make, told = FORGERIES[name]
    with pytest.raises(Unauthorized) as caught:
        tokens.authenticate(make(signing, foreign).encode())
    assert caught.value.message.startswith(told) and len(caught.value.message) < 400
    caught.value.envelope()["message"].encode()         # can be sent


def test_a_kid_that_no_key_names_asks_nobody_for_a_public_key(tokens: Keys, foreign: Any,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens._tokens is not None
    monkeypatch.setattr(tokens._tokens._public_keys, "get", lambda kid: pytest.fail(f"asked for {kid}"))
    with pytest.raises(Unauthorized, match="no key takes tokens"):
        tokens.authenticate(token(foreign, kid=OTHER_KID).encode())


def test_what_is_no_token_is_a_wrong_key(tokens: Keys, signing: Any) -> None:
    for text in ("a.b", "a.b.c.d", "a b.c.d", token(signing) + "é", ".b.c", "x" * 9000 + ".b.c"):
        assert tokens.authenticate(text.encode()) is None
    secret, key = tokens.create()
    assert tokens.authenticate(secret.encode()) == key


def test_without_public_keys_a_token_is_a_wrong_key(keys: Keys, signing: Any) -> None:
    keys.create(identity=Identity(kids=[KID]))
    assert keys.authenticate(token(signing).encode()) is None


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.binary(max_size=60) | st.dictionaries(st.sampled_from(["alg", "kid", "typ", "b64", "crit"]), st.one_of(
           st.none(), st.booleans(), st.integers(), st.text(max_size=9), st.just("RS256"), st.just(KID),
           st.lists(st.text(max_size=3), max_size=2))),
       body=st.binary(max_size=60), signature=st.binary(max_size=300))
def test_whatever_has_three_parts_is_refused(header: Any, body: bytes, signature: bytes, tokens: Keys) -> None:
    text = ".".join((part(header), part(body), part(signature))).encode()
    if text.startswith(b"."):
        assert tokens.authenticate(text) is None
        return
    with pytest.raises(Unauthorized):
        tokens.authenticate(text)


# ---------------------------------------------------------------- whose tokens

def test_the_issuer_tells_keys_of_one_kid_apart(tokens: Keys, signing: Any) -> None:
    tokens.create(name="of one", identity=Identity(kids=[KID], iss="one"))
    assert come_in(tokens, token(signing, iss="one")) == "of one"
    for other in ("two", None):
        assert come_in(tokens, token(signing, iss=other)) == "jitsi"
    tokens.assign_tokens(next(key.id for key in tokens.list() if key.name == "jitsi"), None)
    assert come_in(tokens, token(signing, iss="one")) == "of one"
    for claims in ({"iss": "two"}, {"iss": None}):
        with pytest.raises(Unauthorized, match="of this iss"):
            tokens.authenticate(token(signing, **claims).encode())


def test_a_revoked_or_expired_key_takes_no_tokens(tokens: Keys, signing: Any, foreign: Any,
                                                  open_tokens: Callable[[], Keys]) -> None:
    jitsi = next(key for key in tokens.list() if key.name == "jitsi")
    open_tokens().revoke(jitsi.id)                  # another process
    with pytest.raises(Unauthorized, match="no key takes"):
        tokens.authenticate(token(signing).encode())
    tokens.create(name="again", identity=Identity(kids=[KID, OTHER_KID]))       # the kid is free again
    assert come_in(tokens, token(signing)) == come_in(tokens, token(foreign, kid=OTHER_KID)) == "again"
    _, short = tokens.create(expires_in=1, identity=Identity(kids=["short"]))
    assert tokens._keys_of("short") and short.jwt == Identity(kids=["short"])
    tokens._now = lambda: time.time() + 2
    assert tokens._keys_of("short") == {}


def test_a_rotated_key_takes_its_tokens_still(tokens: Keys, signing: Any) -> None:
    key = next(key for key in tokens.list() if key.name == "jitsi")
    tokens.rotate(key.id)
    assert come_in(tokens, token(signing)) == "jitsi"


def test_who_cannot_have_tokens(tokens: Keys) -> None:
    jitsi = next(key for key in tokens.list() if key.name == "jitsi")
    _, other = tokens.create()
    for key_id, identity in ((MASTER_ID, Identity(kids=["x"])), (other.id, Identity(kids=["x", KID]))):
        with pytest.raises(Conflict):
            tokens.assign_tokens(key_id, identity)
    with pytest.raises(Conflict, match=jitsi.id):
        tokens.create(identity=Identity(kids=[KID]))
    tokens.assign_tokens(jitsi.id, Identity(kids=[KID, OTHER_KID]))         # what a key has itself is no conflict
    tokens.revoke(other.id)
    with pytest.raises(Conflict):
        tokens.assign_tokens(other.id, Identity(kids=["x"]))
    for kids, iss in (([], None), (["x", "x"], None), (["x" * 201], None), (["a\nb"], None), (["x"], "\0"), ([""], "")):
        with pytest.raises(BadRequest):
            tokens.create(identity=Identity(kids=kids, iss=iss))
    assert len(tokens.list()) == 3


def test_a_file_where_two_keys_have_the_same_tokens_is_not_used(tokens: Keys, data: Path) -> None:
    tokens.create(identity=Identity(kids=["x"]))
    path = data / "api_keys.json"
    path.write_text(path.read_text().replace('"x"', f'"{KID}"'))
    assert "same kid and iss" in (tokens.problem or "")
    with pytest.raises(ConfigError):
        Keys(data, Settings(data_dir=data))
