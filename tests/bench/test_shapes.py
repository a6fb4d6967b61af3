"""Words are what they are said to be: one token each, also to llama.cpp."""

import numpy as np
from gguf import GGUFReader

from tests.bench import shapes
from tests.bench.shapes import TOKENS, VOCABULARY, Shape, model_file, passage, words


def test_the_vocabulary_is_complete():
    assert len(TOKENS) == len(set(TOKENS)) == VOCABULARY


def test_a_small_model_holds_words(tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "SHAPES", {"small": Shape("llama", 1, 32, 1, 1, 32, copies=True)})
    path = model_file("small", tmp_path)
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    table, output = (np.array(tensors[name].data) for name in ("token_embd.weight", "output.weight"))
    first = shapes.FIRST_WORD
    assert (output[first + 1] == table[first]).all() and (output[first] == table[first + shapes.PASSAGE - 1]).all()
    assert not output[0].reshape(-1, 18)[:, :2].any()

    from services.runner.llama import File
    file = File(str(path))
    assert len(file.tokenize([words(50, 1)])) == 50
    assert file.tokenize([passage(3)]) == [first, first + 1, first + 2]
