"""`POST /tokenize` and `POST /detokenize`, with the bodies and answers of llama.cpp's server."""

from __future__ import annotations

from typing import Annotated, Any

from flask import Response, g
from pydantic import Discriminator, Field

from services.chat.tokens import Tokenizer
from services.web import watch
from services.web.bodies import Body, Name
from services.web.frame import json_response
from services.web.openai import shapes
from services.web.routes import Endpoint, op, taken
from services.wire import Tokens

MODEL = Field(None, description="a profile, or a model file; default: the selected profile")
Token = Annotated[int, Field(ge=0, lt=1 << 31)]
TokenList = Annotated[list[Token], Field(min_length=1)]


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "str"
    first = value[0] if isinstance(value, list) and value else None
    return "list[list[]]" if isinstance(first, list) else "list[token]" if isinstance(first, int) else "list[str]"


# Of a union's branches tagged "str", "list[str]", "list[token]" and "list[list[]]", the one that a value's own type
# means, so that only this one's faults are told.
TEXT_OR_TOKENS = Discriminator(_kind)


def each(given: str | list[str] | list[int] | list[list[int]]) -> list[str | list[int]]:
    """One or several, each as text or as its tokens."""
    if isinstance(given, str) or isinstance(given[0], int):
        return [given]
    return list(given)


class TokenizeBody(Body):
    """A text."""

    content: str
    add_special: bool | None = Field(None, description="with the tokens that the model wants around a text (BOS)")
    parse_special: bool | None = Field(None, description="special tokens in it are parsed; default: true")
    with_pieces: bool | None = Field(None, description="tell the text of each token")
    model: Name | None = MODEL


class DetokenizeBody(Body):
    """Tokens."""

    tokens: list[Token]
    model: Name | None = MODEL


class _Tokens(Endpoint):
    """Base of both."""

    def tokenizer(self, model: str | None) -> Tokenizer:
        return Tokenizer(self.room.settings, self.parts.profiles, self.parts.engine, model, g.key.profiles,
                         watch.of_request(self.room.drain).check)


class Tokenize(_Tokens):
    @op("The tokens of a text", scope="answer", body=TokenizeBody, reply=shapes.Tokens, errors=(404, 409, 422, 504),
        answer=True)
    def post(self, body: TokenizeBody) -> Response:
        with taken(self.room.places):
            found = self.tokenizer(body.model).tokenize(body.content, body.parse_special is not False,
                                                        bool(body.add_special))
        return json_response({"tokens": _with_pieces(found) if body.with_pieces else found.tokens})


class Detokenize(_Tokens):
    @op("The text of tokens", scope="answer", body=DetokenizeBody, reply=shapes.Detokenized,
        errors=(404, 409, 422, 504), answer=True)
    def post(self, body: DetokenizeBody) -> Response:
        with taken(self.room.places):
            return json_response({"content": self.tokenizer(body.model).detokenize(body.tokens).text})


def _with_pieces(found: Tokens) -> list[dict[str, Any]]:
    return [{"id": token, "piece": _shown(piece)} for token, piece in zip(found.tokens, found.pieces, strict=True)]


def _shown(piece: bytes) -> str | list[int]:
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)
