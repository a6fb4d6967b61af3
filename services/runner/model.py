"""A model that continues text: its context, and the KV memory of its slots.

`Model` is used by the loop's thread alone, but for what only reads the file (see `File`). ctypes gives the GIL back
during each call.
"""

from __future__ import annotations

import ctypes
import math
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from services.runner.batch import Chunk, DecodeFailed
from services.runner.likely import NEVER
from services.runner.llama import File, LoadFailed, last_error, lib
from services.runner.threads import Governor, cores
from services.wire import Logprob

BATCH = 512                     # tokens that one decode may carry
DRAFTS = 16                     # drafted tokens that one decode may check, of all sequences
SELF_TEST = 16                  # tokens of the decode that proves a loaded model
PAD = 256                       # llama.cpp rounds a sequence's context up to this
MOST_SCORES = 256 << 20         # bytes of attention scores; services/engine/gguf.py reckons with the same
FLASH_ROWS = 64                 # tokens of one sequence from which flash attention on the CPU is fast


class Model(File):
    """A model file, loaded, with a KV memory of `n_slots` sequences of `n_ctx` tokens each."""

    def __init__(self, path: str, *, n_ctx: int, n_slots: int, n_threads: int = 0, n_gpu_layers: int = 0) -> None:
        super().__init__(path, n_gpu_layers)
        self._refuse_what_does_not_write()
        self.n_ctx, self.n_slots = n_ctx, n_slots
        self.n_threads = self._threads = n_threads or cores()
        self._governor = Governor(self.n_threads)
        self.n_batch = max(min(BATCH, padded(n_ctx) * n_slots), n_slots)
        self.n_drafts = min(DRAFTS, self.n_batch - n_slots)
        self.flash = not self._scores_fit(n_gpu_layers)
        self.context = self._open()
        self._memory = lib.llama_get_memory(self.context)
        self._batch = lib.llama_batch_init(self.n_batch, 0, 1)
        self._self_test()

    def _refuse_what_does_not_write(self) -> None:
        if lib.llama_model_has_encoder(self._model) or not lib.llama_model_has_decoder(self._model) \
                or lib.llama_model_is_diffusion(self._model):
            raise LoadFailed(f"{self.name} ({self.architecture}) is not a model that continues text")

    def _open(self) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = padded(self.n_ctx) * self.n_slots
        params.n_seq_max = self.n_slots
        params.n_batch = params.n_ubatch = self.n_batch
        params.n_outputs_max = self.n_slots + self.n_drafts     # rows that are sampled, or told of prompts
        params.n_threads = params.n_threads_batch = self.n_threads
        if not self.flash:
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.kv_unified = False
        params.swa_full = False
        params.no_perf = True
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise LoadFailed(f"{self.name} has no room for {self.n_slots} x {self.n_ctx} tokens of context: "
                             f"{last_error() or 'not enough memory'}")
        return context

    def _scores_fit(self, n_gpu_layers: int) -> bool:
        """Whether to do without flash attention: on the CPU it is several times slower for the small doses of prompt
        that go beside answers (and hardly faster for large ones), but it needs no room for scores."""
        on_cpu = n_gpu_layers == 0 or not lib.llama_supports_gpu_offload()
        heads = max(map(int, re.findall(r"\d+", self.meta(f"{self.architecture}.attention.head_count"))), default=0)
        return on_cpu and heads * padded(self.n_ctx) * BATCH * 4 <= MOST_SCORES

    def _self_test(self) -> None:
        """Decode a few tokens, as a prompt does: a file that loads may still be broken."""
        token, count = max(lib.llama_vocab_bos(self.vocab), 0), min(SELF_TEST, self.n_batch, self.n_ctx)
        if code := self._decode([(token, i, 0, i == count - 1) for i in range(count)]):
            raise LoadFailed(f"{self.name} fails its first decode (code {code}): {last_error()}")
        logits = lib.llama_get_logits_ith(self.context, count - 1)
        if not all(math.isfinite(logit) for logit in logits[:self.n_vocab]):
            raise LoadFailed(f"{self.name} computes numbers that are not finite: its weights are damaged")
        lib.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        """Free everything. Samplers must be closed before."""
        lib.llama_batch_free(self._batch)
        lib.llama_free(self.context)
        super().close()

    @property
    def rewindable(self) -> bool:
        """Whether a sequence can be cut back to any length: plain attention only."""
        return not (lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model)
                    or lib.llama_model_n_swa(self._model) > 0)

    @property
    def threads(self) -> int:
        """Threads of the latest decode; `n_threads` at most."""
        return self._threads

    @property
    def n_least(self) -> int:
        return FLASH_ROWS if self.flash else 1

    # ------------------------------------------------------------ decoding

    def decode(self, chunks: list[Chunk]) -> list[int]:
        """Decode the chunks as one batch; the batch row of each chunk's last known token, its draft's rows follow."""
        rows: list[tuple[int, int, int, bool]] = []
        last: list[int] = []
        for chunk in chunks:
            sequence, start = chunk.sequence, chunk.sequence.past
            assert sequence.slot is not None
            known, wanted = len(rows) + chunk.count - 1, chunk.wanted
            rows += [(token, start + i, sequence.slot, i >= wanted)
                     for i, token in enumerate([*sequence.tokens[start:start + chunk.count], *chunk.draft])]
            last.append(known)
        if code := self._decode(rows):
            raise DecodeFailed(f"llama.cpp's decode returned {code}: {last_error()}")
        return last

    def logprob(self, row: int, token: int, top: int) -> Logprob:
        """How likely `token` was behind batch row `row` of the last decode, and the `top` likeliest ones, by what the
        model says before any sampler."""
        logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(self.context, row), (self.n_vocab,))
        most = logits.max()
        whole = float(most) + math.log(np.exp(logits - most).sum(dtype=np.float64))
        likeliest = np.argpartition(logits, -top)[-top:] if 0 < top < self.n_vocab else np.arange(self.n_vocab)[:top]
        ordered = likeliest[np.lexsort((likeliest, -logits[likeliest]))]

        def told(token: int) -> tuple[int, bytes, float]:
            return token, self.spelled(token), max(float(logits[token]) - whole, NEVER)

        _, text, logprob = told(token)
        return Logprob(token=token, text=text, logprob=logprob, top=[told(int(other)) for other in ordered])

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> int:
        assert len(rows) <= self.n_batch
        batch = self._batch
        token, pos, seq_id, n_seq_id, logits = batch.token, batch.pos, batch.seq_id, batch.n_seq_id, batch.logits
        for i, (token_id, position, slot, wanted) in enumerate(rows):
            token[i], pos[i], n_seq_id[i], logits[i] = token_id, position, 1, wanted
            seq_id[i][0] = slot
        batch.n_tokens = len(rows)
        return self._decode_batch()

    def _decode_batch(self) -> int:
        """Decode what the batch holds, with the threads that pay; llama.cpp's code, 0 when it is done."""
        count, threads = self._batch.n_tokens, self._governor.choose(self._batch.n_tokens)
        if threads != self._threads:
            lib.llama_set_n_threads(self.context, threads, threads)
            self._threads = threads
        began = time.perf_counter()
        code: int = lib.llama_decode(self.context, self._batch)
        lib.llama_synchronize(self.context)
        self._governor.told(threads, count, time.perf_counter() - began)
        return code

    def cut(self, slot: int, keep: int) -> bool:
        return bool(lib.llama_memory_seq_rm(self._memory, slot, keep if keep else -1, -1))

    def copy(self, source: int, target: int) -> bool:
        """By way of the state: llama.cpp's own copy takes place only with the next decode, of whatever the source holds
        by then, so a state that is saved or loaded before would be a wrong one."""
        state = self.save(source)
        return bool(state) and self.load(target, state, self.held(source))

    def save(self, slot: int) -> bytes:
        size = lib.llama_state_seq_get_size(self.context, slot)
        state = _bytes(None, size)
        written = lib.llama_state_seq_get_data(self.context, _pointer(state), size, slot)
        return state if size and written == size else b""

    def load(self, slot: int, state: bytes, count: int) -> bool:
        read = lib.llama_state_seq_set_data(self.context, _pointer(state), len(state), slot)
        return bool(read == len(state) and self.held(slot) == count)

    def held(self, slot: int) -> int:
        """Tokens that the memory holds for a slot, as llama.cpp sees it."""
        return lib.llama_memory_seq_pos_max(self._memory, slot) + 1


# Bytes that C fills before anybody sees them (Python/C API: "the contents are uninitialized"): several MB at once, of
# which a copy costs more than the filling.
_bytes: Any = ctypes.pythonapi.PyBytes_FromStringAndSize
_bytes.argtypes, _bytes.restype = (ctypes.c_char_p, ctypes.c_ssize_t), ctypes.py_object


def _pointer(state: bytes) -> Any:
    return ctypes.cast(ctypes.c_char_p(state), ctypes.POINTER(ctypes.c_uint8))


def padded(n_ctx: int) -> int:
    return -(-n_ctx // PAD) * PAD
