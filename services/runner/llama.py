"""The one door to llama.cpp: a loaded model with its context and its memory.

`Model` is used by the loop's thread alone, but for what only reads the file (`tokenize`, `piece`, the properties),
which any thread may call. ctypes gives the GIL back during each call.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
import llama_cpp.llama_grammar

from services.runner.scheduler import Chunk, DecodeFailed

__all__ = ["LoadFailed", "Model", "SchemaConverter", "last_error", "lib"]
log = logging.getLogger("parley.runner")
SchemaConverter: Any = llama_cpp.llama_grammar.SchemaConverter

BATCH = 512                     # tokens that one decode may carry
SELF_TEST = 16                  # tokens of the decode that proves a loaded model
PAD = 256                       # llama.cpp rounds a sequence's context up to this
MOST_SCORES = 256 << 20         # bytes of attention scores; services/engine/gguf.py reckons with the same
FLASH_ROWS = 64                 # tokens of one sequence from which flash attention on the CPU is fast
CONTROL = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN      # parsed only where special tokens are
LEVELS = {3: logging.WARNING, 4: logging.ERROR}     # of ggml's log; the rest is chatter


class LoadFailed(Exception):
    """The file cannot be served; the message says why."""


class _Log:
    """llama.cpp's warnings and errors go to our log; the last error is kept, to say why a load failed."""

    def __init__(self) -> None:
        self.last = ""
        self.callback = lib.llama_log_callback(self._take)

    def _take(self, level: int, text: bytes, _data: Any) -> None:
        known = LEVELS.get(level)
        if known is None:
            return
        line = text.decode("utf-8", "replace").strip()
        if known == logging.ERROR and line:
            self.last = line
        log.log(known, "llama.cpp: %s", line)


_log = _Log()


def last_error() -> str:
    """llama.cpp's last error line, told once; "" when there is none."""
    line, _log.last = _log.last, ""
    return line


class Model:
    """A model file, loaded, with a KV memory of `n_slots` sequences of `n_ctx` tokens each."""

    def __init__(self, path: str, *, n_ctx: int, n_slots: int, n_threads: int = 0, n_gpu_layers: int = 0) -> None:
        lib.llama_log_set(_log.callback, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.path, self.n_ctx, self.n_slots = path, n_ctx, n_slots
        self.n_threads = n_threads or _cores()
        self._model = self._load(n_gpu_layers)
        self.vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)
        self._refuse_what_does_not_write()
        self.n_ctx_train = lib.llama_model_n_ctx_train(self._model)
        self.n_batch = max(min(BATCH, _padded(n_ctx)), n_slots)
        self.flash = not self._scores_fit(n_gpu_layers)
        self.context = self._open()
        self._memory = lib.llama_get_memory(self.context)
        self._batch = lib.llama_batch_init(self.n_batch, 0, 1)
        self._ends = frozenset(t for t in range(self.n_vocab) if lib.llama_vocab_is_eog(self.vocab, t))
        self._self_test()

    def _load(self, n_gpu_layers: int) -> Any:
        """Map the file. Builds with AMX kernels crash in them on quantised weights (llama.cpp issue 20824: the compiler
        drops the tile configuration), so they do without; setup without AMX brings the repacked weights back."""
        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP
        params.use_extra_bufts = b"AMX_INT8 = 1" not in (lib.llama_print_system_info() or b"")
        model = lib.llama_model_load_from_file(os.fsencode(self.path), params)
        if not model:
            raise LoadFailed(f"{Path(self.path).name} cannot be loaded: {last_error() or 'llama.cpp gave no reason'}")
        return model

    def _refuse_what_does_not_write(self) -> None:
        name = Path(self.path).name
        if not self.n_vocab or lib.llama_vocab_type(self.vocab) == 0:
            raise LoadFailed(f"{name} holds no vocabulary, so it cannot read or write text")
        if lib.llama_model_has_encoder(self._model) or not lib.llama_model_has_decoder(self._model) \
                or lib.llama_model_is_diffusion(self._model):
            raise LoadFailed(f"{name} ({self.architecture}) is not a model that continues text")

    def _open(self) -> Any:
        params = lib.llama_context_default_params()
        params.n_ctx = _padded(self.n_ctx) * self.n_slots
        params.n_seq_max = self.n_slots
        params.n_batch = params.n_ubatch = self.n_batch
        params.n_outputs_max = self.n_slots     # a decode samples each slot once: no logits for prompt tokens
        params.n_threads = params.n_threads_batch = self.n_threads
        if not self.flash:
            params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.kv_unified = False
        params.swa_full = False
        params.no_perf = True
        context = lib.llama_init_from_model(self._model, params)
        if not context:
            raise LoadFailed(f"{Path(self.path).name} has no room for {self.n_slots} x {self.n_ctx} tokens of context: "
                             f"{last_error() or 'not enough memory'}")
        return context

    def _scores_fit(self, n_gpu_layers: int) -> bool:
        """Whether to do without flash attention: on the CPU it is several times slower for the small doses of prompt
        that go beside answers (and hardly faster for large ones), but it needs no room for scores."""
        on_cpu = n_gpu_layers == 0 or not lib.llama_supports_gpu_offload()
        heads = max(map(int, re.findall(r"\d+", self._meta(f"{self.architecture}.attention.head_count"))), default=0)
        return on_cpu and heads * _padded(self.n_ctx) * BATCH * 4 <= MOST_SCORES

    def _self_test(self) -> None:
        """Decode a few tokens, as a prompt does: a file that loads may still be broken."""
        token, count = max(lib.llama_vocab_bos(self.vocab), 0), min(SELF_TEST, self.n_batch, self.n_ctx)
        if code := self._decode([(token, i, 0, i == count - 1) for i in range(count)]):
            raise LoadFailed(f"{Path(self.path).name} fails its first decode (code {code}): {last_error()}")
        logits = lib.llama_get_logits_ith(self.context, count - 1)
        if not all(math.isfinite(logit) for logit in logits[:self.n_vocab]):
            raise LoadFailed(f"{Path(self.path).name} computes numbers that are not finite: its weights are damaged")
        lib.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        """Free everything. Samplers must be closed before."""
        lib.llama_batch_free(self._batch)
        lib.llama_free(self.context)
        lib.llama_model_free(self._model)

    # ------------------------------------------------------------ what the file says

    @property
    def architecture(self) -> str:
        return self._meta("general.architecture")

    @property
    def chat_template(self) -> str | None:
        template = lib.llama_model_chat_template(self._model, None)
        return template.decode("utf-8", "replace") if template else None

    @property
    def bos(self) -> str:
        return self._text_or_nothing(lib.llama_vocab_bos(self.vocab))

    @property
    def eos(self) -> str:
        return self._text_or_nothing(lib.llama_vocab_eos(self.vocab))

    @property
    def special_tokens(self) -> list[str]:
        """Texts that mean something to the model beyond themselves: control tokens, ends, and `<|…|>` of any kind."""
        return [text for token in range(self.n_vocab) if (text := self._marker(token))]

    @property
    def rewindable(self) -> bool:
        """Whether a sequence can be cut back to any length: plain attention only."""
        return not (lib.llama_model_is_recurrent(self._model) or lib.llama_model_is_hybrid(self._model)
                    or lib.llama_model_n_swa(self._model) > 0)

    @property
    def n_least(self) -> int:
        return FLASH_ROWS if self.flash else 1

    def _meta(self, key: str) -> str:
        """A value of the file's header as text, "" when it is not there; of an array all its numbers."""
        buffer = ctypes.create_string_buffer(8192)
        size = lib.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if size >= 0 else ""

    def _text_or_nothing(self, token: int) -> str:
        return self._render(token, special=True).decode("utf-8", "replace") if token >= 0 else ""

    def _marker(self, token: int) -> str:
        attributes = lib.llama_vocab_get_attr(self.vocab, token)
        if attributes & CONTROL or token in self._ends:
            return self._text_or_nothing(token)
        text = self._text_or_nothing(token) if attributes & lib.LLAMA_TOKEN_ATTR_USER_DEFINED else ""
        return text if text.startswith(("<|", "<｜")) and text.endswith(("|>", "｜>")) else ""

    # ------------------------------------------------------------ text and tokens

    def tokenize(self, segments: Iterable[str]) -> list[int]:
        """Tokens of a prompt: each segment by itself, special tokens parsed; the BOS token first where the model
        wants one. Only a file with a known space prefix needs care: it would put a space before each segment."""
        tokens: list[int] = []
        for segment in segments:
            if segment:
                tokens += self._continue(segment) if tokens else self._tokens(segment)
        bos = lib.llama_vocab_bos(self.vocab)
        if bos >= 0 and tokens[:1] != [bos] and (lib.llama_vocab_get_add_bos(self.vocab) or not tokens):
            tokens.insert(0, bos)
        return tokens

    def _continue(self, text: str) -> list[int]:
        """Tokens of `text` as a continuation: tokenised behind a line end, whose tokens are then taken off."""
        if lib.llama_vocab_type(self.vocab) != lib.LLAMA_VOCAB_TYPE_SPM:
            return self._tokens(text)
        lead, whole = self._tokens("\n"), self._tokens("\n" + text)
        return whole[len(lead):] if whole[:len(lead)] == lead else self._tokens(text)

    def _tokens(self, text: str) -> list[int]:
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            tokens = (lib.llama_token * room)()
            count = lib.llama_tokenize(self.vocab, data, len(data), tokens, room, False, True)
            if count >= 0:
                return tokens[:count]
            room = -count

    def piece(self, token: int) -> bytes:
        return self._render(token, special=False)

    def is_end(self, token: int) -> bool:
        return token in self._ends

    def _render(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = lib.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    # ------------------------------------------------------------ decoding

    def decode(self, chunks: list[Chunk]) -> list[int]:
        """Decode the chunks as one batch; the batch row of each chunk's last token."""
        rows: list[tuple[int, int, int, bool]] = []
        last: list[int] = []
        for chunk in chunks:
            sequence, start = chunk.sequence, chunk.sequence.past
            assert sequence.slot is not None
            rows += [(token, start + i, sequence.slot, False)
                     for i, token in enumerate(sequence.tokens[start:start + chunk.count])]
            last.append(len(rows) - 1)
            if chunk.samples:
                rows[-1] = (*rows[-1][:3], True)
        if code := self._decode(rows):
            raise DecodeFailed(f"llama.cpp's decode returned {code}: {last_error()}")
        return last

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
        return lib.llama_decode(self.context, self._batch)

    def cut(self, slot: int, keep: int) -> bool:
        return bool(lib.llama_memory_seq_rm(self._memory, slot, keep if keep else -1, -1))

    def copy(self, source: int, target: int) -> None:
        lib.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def held(self, slot: int) -> int:
        """Tokens that the memory holds for a slot, as llama.cpp sees it."""
        return lib.llama_memory_seq_pos_max(self._memory, slot) + 1


def _padded(n_ctx: int) -> int:
    return -(-n_ctx // PAD) * PAD


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
