"""The least that a Python loop over llama.cpp's low-level API does for a batch of requests: the measure of a server.

A process of its own: it is told `<first seed> <requests>` a line and answers with the seconds that all of them took,
prompts included. No scheduling, no text, no sockets; partitioned KV, one batch a step, samplers in C.
"""

from __future__ import annotations

import ctypes
import sys
import time
from typing import Any

import llama_cpp.llama_cpp as lib

from tests.bench.shapes import words
from tests.bench.speed import ANSWER, PROMPT

BATCH = 512


class Raw:
    """A model and a context of `slots` sequences of `n_ctx` tokens, each with its own part of the KV memory."""

    def __init__(self, path: str, slots: int, n_ctx: int, threads: int, flash: bool) -> None:
        self.silence = lib.llama_log_callback(lambda *_: None)
        lib.llama_log_set(self.silence, ctypes.c_void_p(0))
        lib.llama_backend_init()
        model_params = lib.llama_model_default_params()
        model_params.use_extra_bufts = b"AMX_INT8 = 1" not in (lib.llama_print_system_info() or b"")
        self.model = lib.llama_model_load_from_file(path.encode(), model_params)
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = n_ctx * slots, slots, BATCH, BATCH
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified, params.no_perf = False, True
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = lib.llama_init_from_model(self.model, params)
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.batch = lib.llama_batch_init(BATCH, 0, 1)

    def tokens(self, text: str) -> list[int]:
        data = text.encode()
        room = (lib.llama_token * len(data))()
        return room[:lib.llama_tokenize(self.vocab, data, len(data), room, len(data), False, False)]

    def decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """`rows`: token, position, sequence, whether something is sampled from it."""
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index], batch.n_seq_id[index] = token, position, 1
            batch.seq_id[index][0], batch.logits[index] = sequence, wanted
        if code := lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode: {code}")

    def sampler(self, seed: int) -> Any:
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for step in (lib.llama_sampler_init_top_k(40), lib.llama_sampler_init_top_p(0.95, 1),
                     lib.llama_sampler_init_temp(0.8), lib.llama_sampler_init_dist(seed)):
            lib.llama_sampler_chain_add(chain, step)
        return chain

    def run(self, first: int, count: int) -> float:
        """Seconds that `count` requests of PROMPT tokens take, answered with ANSWER tokens each."""
        lib.llama_memory_clear(lib.llama_get_memory(self.context), True)
        texts = [words(PROMPT, first + n) for n in range(count)]
        samplers = [self.sampler(first + n) for n in range(count)]
        began = time.monotonic()
        last = self._prompts([self.tokens(text) for text in texts], samplers)
        for step in range(1, ANSWER):
            self.decode([(token, PROMPT + step - 1, n, True) for n, token in enumerate(last)])
            last = [lib.llama_sampler_sample(sampler, self.context, n) for n, sampler in enumerate(samplers)]
        seconds = time.monotonic() - began
        for sampler in samplers:
            lib.llama_sampler_free(sampler)
        return seconds

    def _prompts(self, prompts: list[list[int]], samplers: list[Any]) -> list[int]:
        """As many whole prompts a batch as fit; the first token of each answer."""
        last: list[int] = []
        at_a_time = BATCH // PROMPT
        for start in range(0, len(prompts), at_a_time):
            some = prompts[start:start + at_a_time]
            self.decode([(token, position, start + n, position == len(prompt) - 1)
                         for n, prompt in enumerate(some) for position, token in enumerate(prompt)])
            ends = [sum(map(len, some[:n + 1])) - 1 for n in range(len(some))]
            last += [lib.llama_sampler_sample(samplers[start + n], self.context, row) for n, row in enumerate(ends)]
        return last


def main() -> None:
    """Arguments: model, sequences, tokens of each, threads, flash attention (0 or 1)."""
    path, slots, n_ctx, threads, flash = sys.argv[1], *map(int, sys.argv[2:6])
    raw = Raw(path, slots, n_ctx, threads, bool(flash))
    print("ready", flush=True)
    for line in sys.stdin:
        first, count = map(int, line.split())
        print(raw.run(first, count), flush=True)


if __name__ == "__main__":
    main()
