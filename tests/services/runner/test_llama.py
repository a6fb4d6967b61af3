"""A loaded model file: its tokens, and what it says of itself."""

from collections.abc import Iterator

import pytest

from services.runner.llama import File
from tests.tiny_gguf import CONTROL, EOS, write_tiny


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[File]:
    file = File(str(write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")))
    yield file
    file.close()


def test_a_boundary_keeps_text_from_forging_a_special_token(file: File) -> None:
    controls = {file.tokenize([text])[0] for text in CONTROL}
    assert len(controls) == len(CONTROL) and all(len(file.tokenize([text])) == 1 for text in CONTROL)
    for text in CONTROL:
        tokens = file.tokenize(["hello ", text[:1], text[1:]])
        assert not controls & set(tokens)
        assert b"".join(map(file.piece, tokens)).decode() == "hello " + text
    assert set(file.special_tokens) == set(CONTROL)
    assert file.is_end(file.tokenize([EOS])[0]) and file.piece(file.tokenize([EOS])[0]) == b""


def test_what_the_file_says(file: File) -> None:
    assert (file.architecture, file.n_ctx_train, file.eos) == ("llama", 512, EOS)
    assert file.chat_template and "im_start" in file.chat_template
    assert file.tokenize([]) == file.tokenize([file.bos])
