"""`/openapi.json`: OpenAPI 3.1, made from the declarations that are served and the models that validate."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from auth.gate import PUBLIC
from auth.keys import SCOPES
from services.web import replies
from services.web.query import FORM
from services.web.routes import Op, Route

VERSION = "0.1.0"
_REFS = "#/components/schemas/{model}"
_PARAMETER = re.compile(r"<(?:\w+:)?(\w+)>")
_ALWAYS = (400, 401, 403, 405, 408, 411, 413, 414, 421, 429, 431, 500, 503)
_WITH_BODY = (415,)
_WITH_PARAMETER = (404,)


def document(routes: tuple[Route, ...]) -> dict[str, Any]:
    """The document for `routes`."""
    schemas = _schemas(routes)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Parley", "version": VERSION, "license": {"name": "MIT", "identifier": "MIT"},
                 "description": "An API-key-secured LLM server for the machine you already have."},
        "security": [{"raw": []}, {"bearer": []}, {"x-api-key": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": {_template(route.path): _path(route) for route in routes},
        "components": {"schemas": schemas, "securitySchemes": _SECURITY,
                       "responses": {f"E{status}": _error(status) for status in _statuses(routes)}},
    }


_SECURITY = {
    "raw": {"type": "apiKey", "in": "header", "name": "Authorization", "description": "the key as it is"},
    "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "key or JWT", "description":
               "the key; or a JSON Web Token (RS256, with kid), where the server has public keys for them"},
    "x-api-key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def _schemas(routes: tuple[Route, ...]) -> dict[str, Any]:
    wanted: dict[type[BaseModel], str] = {replies.Error: "validation"}
    for declared in (declared for route in routes for declared in route.ops().values()):
        models = (declared.body, declared.reply, declared.stream, declared.accepted)
        wanted |= {model: "validation" for model in models if model}
    inputs = [(model, mode) for model, mode in wanted.items()]
    _, schema = models_json_schema(inputs, ref_template=_REFS)    # type: ignore[arg-type]
    return schema["$defs"]


def _template(path: str) -> str:
    return _PARAMETER.sub(r"{\1}", path)


def _path(route: Route) -> dict[str, Any]:
    item: dict[str, Any] = {method: _operation(route, method, declared) for method, declared in route.ops().items()}
    names = _PARAMETER.findall(route.path)
    if names:
        item["parameters"] = [{"name": name, "in": "path", "required": True,
                               "schema": {"type": "string", "minLength": 1}} for name in names]
    return item


def _operation(route: Route, method: str, declared: Op) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": f"{method}_{route.endpoint}", "tags": [route.tag], "summary": declared.summary,
        "responses": _responses(route, method, declared)}
    if declared.scope == PUBLIC:
        operation["security"] = []
    elif declared.scope in SCOPES:
        also = f" Answers at `{_template(route.alias)}` too." if route.alias else ""
        operation["description"] = f"Needs the scope `{declared.scope}`.{also}"
    if declared.body is not None:
        content = _json(declared.body)
        if declared.form:
            content[FORM] = content["application/json"]
        operation["requestBody"] = {"required": not declared.body_optional, "content": content}
    if declared.files:
        operation["requestBody"] = declared.files
    parameters = [*_query(declared), *([_IDEMPOTENCY] if declared.retryable else []),
                  *(_condition(name) for name in _CONDITIONS.get(method, ()) if declared.tagged)]
    if parameters:
        operation["parameters"] = parameters
    return operation


def _query(declared: Op) -> Iterator[dict[str, Any]]:
    schema = declared.query.model_json_schema() if declared.query else {}
    for name, field in schema.get("properties", {}).items():
        shown = {"description": field["description"]} if "description" in field else {}
        kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
        yield {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": kinds[0], **shown}


_IDEMPOTENCY = {
    "name": "Idempotency-Key", "in": "header", "required": False,
    "description": "a retry with the same key and body gets the first one's answer",
    "schema": {"type": "string", "minLength": 1, "maxLength": 200, "pattern": "^[\\x21-\\x7e]+$"}}


_CONDITIONS = {"put": ("If-Match", "If-None-Match"), "delete": ("If-Match",)}


def _condition(name: str) -> dict[str, Any]:
    told = {"If-Match": "the ETag of what is to be changed: 412 where it is not in that state any more",
            "If-None-Match": "*: 412 where there is one already"}
    return {"name": name, "in": "header", "required": False, "description": told[name], "schema": {"type": "string"}}


def _json(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFS.format(model=model.__name__)}}}


def _responses(route: Route, method: str, declared: Op) -> dict[str, Any]:
    success: dict[str, Any] = {"description": HTTPStatus(declared.status).phrase}
    content = _json(declared.reply) if declared.reply else {}
    if declared.stream:
        content["text/event-stream"] = {"schema": _event_schema(declared.stream)}
    if declared.plain:
        content["text/plain"] = {"schema": {"type": "string"}}
    if not content and declared.status not in (101, 204):
        content = {declared.media: {"schema": {"type": "string"}}}
    if content:
        success["content"] = content
    if declared.tagged and declared.reply:
        success["headers"] = {"ETag": {"description": "of its state", "schema": {"type": "string"}}}
    made = {"201": {**success, "description": "Created"}} if declared.tagged and method == "put" else {}
    errors = _errors(route, declared)
    accepted = {"202": {"description": "Accepted", "content": _json(declared.accepted)}} if declared.accepted else {}
    return {str(declared.status): success} | made | accepted | {
        str(status): {"$ref": f"#/components/responses/E{status}"} for status in sorted(errors)}


def _errors(route: Route, declared: Op) -> set[int]:
    return {*_ALWAYS, *declared.errors, *(_WITH_BODY if declared.body or declared.files else ()),
            *(_WITH_PARAMETER if "<" in route.path else ())}


def _statuses(routes: tuple[Route, ...]) -> list[int]:
    return sorted({status for route in routes for declared in route.ops().values()
                   for status in _errors(route, declared)})


def _event_schema(model: type[BaseModel]) -> dict[str, Any]:
    """`END` of a model is what stands in the place of its last event."""
    data: dict[str, Any] = {"type": "string", "contentMediaType": "application/json",
                            "contentSchema": {"$ref": _REFS.format(model=model.__name__)}}
    if end := getattr(model, "END", ""):
        data = {"anyOf": [{"const": end}, data]}
    return {"type": "object", "properties": {"data": data}}


def _error(status: int) -> dict[str, Any]:
    reply: dict[str, Any] = {"description": HTTPStatus(status).phrase, "content": _json(replies.Error)}
    if status in (429, 503):
        reply["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}}
    return reply
