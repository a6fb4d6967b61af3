"""`/openapi.json` says what is served: valid, complete, and true of thousands of made-up requests (row B8)."""

from __future__ import annotations

import json
import re

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from openapi_spec_validator import OpenAPIV31SpecValidator
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.web import replies
from services.web.app import ROUTES
from tests.services.web.conftest import MASTER

EXAMPLES = {"body": 30, "path": 40, "nothing": 3}      # of an operation, by what there is to make up
CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance, response_headers_conformance]


@pytest.fixture(scope="module")
def document(shared):
    return shared.call("GET", "/openapi.json").json


def test_the_document_is_valid(document):
    assert document["openapi"].startswith("3.1")
    assert not list(OpenAPIV31SpecValidator(document).iter_errors())


def test_every_route_is_in_it(document, shared):
    aliases = {route.alias for route in ROUTES}
    served = {(re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule), method.lower())
              for rule in shared.app.url_map.iter_rules() if rule.rule not in aliases
              for method in rule.methods - {"HEAD", "OPTIONS"}}
    described = {(path, method) for path, item in document["paths"].items() for method in set(item) - {"parameters"}}
    assert described == served


def test_public_routes_are_marked(document):
    for route in ROUTES:
        item = document["paths"][re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", route.path)]
        for method, op in route.ops().items():
            assert (item[method].get("security") == []) == (op.scope == "public")


def test_fields_carry_their_bounds(document):
    fields = document["components"]["schemas"]["AnswerBody"]["properties"]
    assert fields["seed"]["anyOf"][0] == {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
    assert "schema" in fields and "schema_" not in fields
    assert document["components"]["schemas"]["AnswerBody"]["additionalProperties"] is False
    assert document["components"]["schemas"]["AnswerBody"]["required"] == ["prompt"]


def test_answers_are_what_the_models_say(shared):
    """Every field that the interface fixes is there; `response_schema_conformance` below holds the types."""
    shared.call("POST", "/answer", json={"prompt": "x", "session_id": 1})
    for path, model in [("/answer/1", replies.Session), ("/models", replies.Models), ("/auth", replies.Whoami),
                        ("/auth/keys", replies.KeyList), ("/readyz", replies.Readiness), ("/healthz", replies.Health)]:
        model.model_validate_json(shared.call("GET", path).data)


def test_stream_events_are_what_the_model_says(shared):
    for event in shared.events(prompt="x"):
        replies.AnswerEvent.model_validate(event)


def fuzz(shared, mode, told):
    """Send made-up requests to every operation and hold each answer to the document."""
    api = schemathesis.openapi.from_wsgi("/openapi.json", shared.app, headers={"Authorization": MASTER})

    def check(case):
        others = {name: case.headers[name] for name in case.headers or {} if name == "Idempotency-Key"}
        case.headers = {**others, "Authorization": MASTER}
        response = case.call()
        told[response.status_code] = told.get(response.status_code, 0) + 1
        assert response.status_code not in (500, 401), response.text
        case.validate_response(response, checks=CHECKS)

    for operation in (result.ok() for result in api.get_all_operations()):
        if mode == GenerationMode.NEGATIVE and not operation.body:
            continue
        made_up = "body" if operation.body else "path" if "{" in operation.path else "nothing"
        bounded = settings(max_examples=EXAMPLES[made_up], deadline=None, database=None, derandomize=True,
                           phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        bounded(given(operation.as_strategy(mode))(check))()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_made_up_requests_get_documented_answers(shared, mode):
    """Never a 500, never an undocumented status, type or shape, for valid and invalid requests alike."""
    told: dict[int, int] = {}
    fuzz(shared, mode, told)
    assert sum(told.values()) > 500, json.dumps(told)
    assert told[200 if mode == GenerationMode.POSITIVE else 400] > 50, json.dumps(told)
