"""A model that turns texts into vectors, or ranks them: its context, and batches of whole texts.

`embed` is for the loop's thread alone; `read` for any. Nothing of a text stays in the context after its batch.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from services.runner.embedding import EmbedFailed
from services.runner.llama import File, LoadFailed, last_error, lib
from services.runner.threads import cores

log = logging.getLogger("parley.runner")
SHARED = 256            # tokens of a batch of several texts: attention costs tokens times tokens, also between texts
TEXTS = 64              # texts of a batch
RANK = lib.LLAMA_POOLING_TYPE_RANK
POOLINGS = {lib.LLAMA_POOLING_TYPE_MEAN: "mean", lib.LLAMA_POOLING_TYPE_CLS: "cls", lib.LLAMA_POOLING_TYPE_LAST: "last",
            RANK: "rank"}


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
        self._before, self._behind = self._marks()
        self.n_around = len(self._before) + len(self._behind)
        pooling = self._pooling()
        self.ranks = pooling == RANK
        self.n_embd = 1 if self.ranks else lib.llama_model_n_embd_out(self._model)
        self.context = self._open(pooling)
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
            raise LoadFailed(f"{self.name} ({self.architecture}) is not made for embeddings: its header should name a "
                             f"pooling of {', '.join(POOLINGS.values())}")
        if kind == RANK and lib.llama_model_n_cls_out(self._model) < 1:
            raise LoadFailed(f"{self.name} says that it ranks texts, but not how many scores it gives a text")
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

    def around(self, tokens: list[int]) -> list[int]:
        """The `tokens` of a text with those that the model wants around it, where they are not there already."""
        before = [] if tokens[:len(self._before)] == self._before else self._before
        behind = [] if tokens[max(0, len(tokens) - len(self._behind)):] == self._behind else self._behind
        return [*before, *tokens, *behind]

    def _marks(self) -> tuple[list[int], list[int]]:
        """The tokens that the model wants before and behind a whole text."""
        plain, whole = self.tokens("a", parse=False), self.read("a")
        start = next((at for at in range(len(whole)) if whole[at:at + len(plain)] == plain), 0)
        return whole[:start], whole[start + len(plain):]

    def pair(self, query: str, text: str) -> list[int]:
        """The tokens by which a model that ranks is asked how well `text` answers `query`, as llama.cpp's server has
        them: what the file's own template says, else `[BOS] query EOS [SEP] text EOS`, as far as it wants these."""
        if template := self._rank_template:
            return self.tokenize(filled(template, {"{query}": query, "{document}": text}, self._markers))
        vocab, sep = self.vocab, lib.llama_vocab_sep(self.vocab)
        eos = lib.llama_vocab_eos(vocab)
        bos = [lib.llama_vocab_bos(vocab)] if lib.llama_vocab_get_add_bos(vocab) else []
        end = [eos if eos >= 0 else sep] if lib.llama_vocab_get_add_eos(vocab) else []
        between = [sep] if lib.llama_vocab_get_add_sep(vocab) else []
        return [*bos, *self.tokens(query, parse=False), *end, *between, *self.tokens(text, parse=False), *end]

    @cached_property
    def _rank_template(self) -> str:
        template = lib.llama_model_chat_template(self._model, b"rerank")
        return template.decode("utf-8", "replace") if template else ""

    @cached_property
    def _markers(self) -> list[str]:
        return self.special_tokens

    def embed(self, texts: Sequence[Sequence[int]]) -> list[bytes]:
        """The vectors of as many texts as fit a batch: `n_embd` little-endian float32 each, of length 1. b"" stands
        for one whose numbers are not finite. Of a model that ranks, each pair's score instead. `EmbedFailed` when
        nothing was computed."""
        assert 0 < len(texts) <= self.n_slots and sum(map(len, texts)) <= self.n_batch
        if self._memory:
            lib.llama_memory_clear(self._memory, False)
        self._fill(texts)
        if code := self._compute(self.context, self._batch):
            raise EmbedFailed(f"llama.cpp returned {code}: {last_error()}")
        shown = _score if self.ranks else _unit
        return [shown(self._vector(number)) for number in range(len(texts))]

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


def _score(vector: Any) -> bytes:
    return vector.astype("<f4").tobytes() if np.isfinite(vector).all() else b""


def filled(template: str, values: dict[str, str], markers: Sequence[str]) -> list[str]:
    """`template` with `values` in their places, as segments for `tokenize`: a boundary stands inside of whatever is
    spelled like a special token in a value."""
    special = re.compile("|".join(map(re.escape, sorted(markers, key=len, reverse=True))) or "(?!)")
    segments = [""]
    for part in re.split(f"({'|'.join(map(re.escape, values))})", template):
        if part not in values:
            segments[-1] += part
            continue
        text, start = values[part], 0
        for found in special.finditer(text):
            segments[-1] += text[start:found.start() + 1]
            segments.append("")
            start = found.start() + 1
        segments[-1] += text[start:]
    return segments
