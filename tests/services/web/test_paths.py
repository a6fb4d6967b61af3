"""What is said where nothing is."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize("path, told, kind", [
    ("/v1/v1/chat/completions", "take one /v1 out of the base URL", None),
    ("/v1/v1/messages", "take one /v1 out of the base URL", "error"),
    ("/v1/v1/messages/count_tokens", "take one /v1 out of the base URL", "error"),
    ("/api/v1/messages", "GET /docs", "error"), ("/nothing", "GET /docs", None)])
def test_a_path_with_nothing_says_what_to_do(scripted, path, told, kind):
    response = scripted.call("POST", path, json={})
    assert response.status_code == 404 and told in response.json["message"]
    assert response.json.get("type") == kind
    assert response.json["error"]["type"] == ("not_found_error" if kind else "invalid_request_error")
