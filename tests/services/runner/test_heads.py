"""Where prompts are cut: a head is whole tokens of the profile's text; what is settled stays whatever follows."""


import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.runner.heads import head_tokens, settled, take
from services.runner.model import Model
from services.runner.slots import common_prefix
from tests.tiny_gguf import write_tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = write_tiny(tmp_path_factory.mktemp("models") / "m.gguf")
    return Model(str(path), n_ctx=64, n_slots=1, n_threads=1)


def test_a_part_of_the_text_keeps_the_boundaries() -> None:
    assert take(["abc", "def"], 4) == ["abc", "d"]
    assert take(["abc", "def"], 3) == ["abc"]
    assert take(["abc"], 0) == [] and take(["abc"], 9) == ["abc"]


def test_a_head_ends_before_a_token_that_a_person_had_a_part_in(model: Model) -> None:
    segments = ["say he", "llo"]
    assert head_tokens(model.tokenize, segments, 6, model.tokenize(segments)) == len(model.tokenize(["say he"]))
    joined = ["say hello"]
    prompt = model.tokenize(joined)
    held = head_tokens(model.tokenize, joined, 6, prompt)       # "he" is no token of the prompt: "hello" is
    assert b"".join(model.piece(token) for token in prompt[:held]) == b"say "
    assert head_tokens(model.tokenize, joined, 0, prompt) == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(st.text("he l\nowrd.:", max_size=20), st.sampled_from(["", " ", "\n", ": ", ":", "<|im_start|>user\n"]),
       st.text("he lowrd1-é", min_size=1, max_size=12))
def test_what_is_settled_begins_every_longer_text(model: Model, before: str, end: str, after: str) -> None:
    known = f"hello{before}{end}"
    kept = settled(model.tokenize, [known])
    whole = model.tokenize([known + after])
    assert common_prefix(kept, whole) >= len(kept) - 1, "a miss costs time; it must be a rare one"
    if end in ("\n", ": ", "<|im_start|>user\n"):
        assert common_prefix(kept, whole) == len(kept)


def test_only_the_last_tokens_are_in_doubt(model: Model) -> None:
    known = "the world " * 30 + "PROMPT: "
    assert len(model.tokenize([known])) - len(settled(model.tokenize, [known])) <= 2
