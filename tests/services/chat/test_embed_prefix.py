"""What models want to see before a text that they turn into a vector."""

from __future__ import annotations

import pytest

from services.chat import embed
from services.chat.profiles import Profile


@pytest.mark.parametrize(("model", "fields", "kind", "prefix"), [
    ("nomic-embed-text-v1.5.Q5_K_M.gguf", {}, "document", "search_document: "),
    ("Nomic-Embed-Text.gguf", {}, "query", "search_query: "), ("nomic-embed-text.gguf", {}, "", ""),
    ("nomic-embed-text.gguf", {"query_prefix": ""}, "query", ""), ("minilm.gguf", {}, "document", ""),
    ("minilm.gguf", {"document_prefix": "passage: "}, "document", "passage: ")])
def test_prefix_is_the_profiles_or_what_the_model_is_known_to_want(model, fields, kind, prefix):
    assert embed.prefix(Profile(model=model, embedding=True, **fields), kind) == prefix
