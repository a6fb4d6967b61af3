"""A model that turns texts into vectors: its context, and batches of whole texts.

`embed` is for the loop's thread alone; `read` for any. Nothing of a text stays in the context after its batch.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from services.runner.embedding import EmbedFailed
from services.runner.llama import File, LoadFailed, last_error, lib
from services.runner.threads import cores

log = logging.getLogger("parley.runner")
SHARED = 256            # tokens of a batch of several texts: attention costs tokens times tokens, also between texts
TEXTS = 64              # texts of a batch
POOLINGS = {lib.LLAMA_POOLING_TYPE_MEAN: "mean", lib.LLAMA_POOLING_TYPE_CLS: "cls", lib.LLAMA_POOLING_TYPE_LAST: "last"}


class Embedder(File):
    """A model file, loaded, for texts of at most `n_ctx` tokens: those wanted, or fewer where it has less positions.

    One text may fill a batch by itself, since its tokens all see each other and so cannot be divided.
    """

    def __init__(self, path: str, *, n_ctx: int, n_threads: int = 0, n_gpu_layers: int = 0) -> None:
        super().__init__(path, n_gpu_layers)
        self.n_ctx = min(n_ctx, self.n_ctx_train)
        self.n_batch = max(SHARED, self.n_ctx)
        self.n_shared, self.n_slots = SHARED, TEXTS
        self.n_threads = n_threads or max(1, cores() // 2)      # there is a chat model beside it
        self.n_around = len(self.read(""))
        self.n_embd = lib.llama_model_n_embd_out(self._model)
        self.context = self._open(self._pooling())
        self._memory = lib.llama_get_memory(self.context)       # none where no token waits for later ones
        self._compute = lib.llama_encode if lib.llama_model_has_encoder(self._model) else lib.llama_decode
        self._batch = lib.llama_batch_init(self.n_batch, 0, 1)
        self._self_test()

    def _pooling(self) -> int:
        """How tokens' vectors become the text's: as the file says; the mean where an encoder's file says nothing."""
        said = self.meta(f"{self.architecture}.pooling_type")
        kind = int(said) if said.isdigit() else lib.LLAMA_POOLING_TYPE_NONE
        if kind == lib.LLAMA_POOLING_TYPE_NONE and self._sees_both_ways:
            log.warning("%s does not say how it pools: the mean of all tokens is taken", self.name)
            kind = lib.LLAMA_POOLING_TYPE_MEAN
        if kind not in POOLINGS:
            what = "ranks pairs of texts" if kind == lib.LLAMA_POOLING_TYPE_RANK else "is not made for embeddings"
            raise LoadFailed(f"{self.name} ({self.architecture}) {what}: its header should name a pooling of "
                             f"{', '.join(POOLINGS.values())}")
        return kind

    @property
    def _sees_both_ways(self) -> bool:
        return self.meta(f"{self.architecture}.attention.causal") == "false" or "bert" in self.architecture

    def _open(self, pooling: int) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.n_batch
        params.n_seq_max = self.n_slots
        params.n_threads = params.n_threads_batch = self.n_threads
        params.embeddings = True
        params.pooling_type = pooling
        params.kv_unified = True
        params.no_perf = True
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise LoadFailed(f"{self.name} has no room to embed texts of {self.n_ctx} tokens: "
                             f"{last_error() or 'not enough memory'}")
        return context

    def _self_test(self) -> None:
        """Embed a few tokens: a file that loads may still be broken."""
        try:
            vector, = self.embed([[max(lib.llama_vocab_bos(self.vocab), 0)] * 2])
        except EmbedFailed as error:
            raise LoadFailed(f"{self.name} fails its first batch: {error}") from None
        if not vector:
            raise LoadFailed(f"{self.name} computes numbers that are not finite: its weights are damaged")

    def close(self) -> None:
        lib.llama_batch_free(self._batch)
        lib.llama_free(self.context)
        super().close()

    def read(self, text: str) -> list[int]:
        """The tokens of `text` with those that the model wants around it. Nothing in it is a special token."""
        return self.tokens(text, around=True, parse=False)

    def embed(self, texts: Sequence[Sequence[int]]) -> list[bytes]:
        """The vectors of as many texts as fit a batch: `n_embd` little-endian float32 each, of length 1. b"" stands
        for one whose numbers are not finite. `EmbedFailed` when nothing was computed."""
        assert 0 < len(texts) <= self.n_slots and sum(map(len, texts)) <= self.n_batch
        if self._memory:
            lib.llama_memory_clear(self._memory, False)
        self._fill(texts)
        if code := self._compute(self.context, self._batch):
            raise EmbedFailed(f"llama.cpp returned {code}: {last_error()}")
        return [_unit(self._vector(number)) for number in range(len(texts))]

    def _fill(self, texts: Iterable[Iterable[int]]) -> None:
        batch, row = self._batch, 0
        for number, tokens in enumerate(texts):
            for position, token in enumerate(tokens):
                batch.token[row], batch.pos[row], batch.n_seq_id[row], batch.logits[row] = token, position, 1, True
                batch.seq_id[row][0] = number
                row += 1
        batch.n_tokens = row

    def _vector(self, number: int) -> Any:
        return np.ctypeslib.as_array(lib.llama_get_embeddings_seq(self.context, number), (self.n_embd,))


def _unit(vector: Any) -> bytes:
    length = np.linalg.norm(vector.astype(np.float64))
    return (vector / length).astype("<f4").tobytes() if np.isfinite(length) and length > 0 else b""
