"""The one door to llama.cpp: its library, what it logs, and a loaded model file with its vocabulary.

What is done with a file is elsewhere: services.runner.model continues texts, services.runner.embedder turns them into
vectors. ctypes gives the GIL back during each call.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
from array import array
from collections.abc import Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import llama_cpp.llama_cpp as lib
from llama_cpp import __version__ as VERSION

__all__ = ["VERSION", "File", "LoadFailed", "last_error", "lib"]
log = logging.getLogger("parley.runner")

CONTROL = lib.LLAMA_TOKEN_ATTR_CONTROL | lib.LLAMA_TOKEN_ATTR_UNKNOWN      # parsed only where special tokens are
NO_MEMORY = re.compile(r"(?:failed|unable) to allocate|cannot allocate memory|insufficient memory|bad_alloc", re.I)
LEVELS = {3: logging.WARNING, 4: logging.ERROR}     # of ggml's log; the rest is chatter


class LoadFailed(Exception):
    """The file cannot be served; the message says why."""

    @property
    def code(self) -> str:
        """Which of `services.errors`' codes it is: the file's fault, or want of memory in llama.cpp's words."""
        return "out_of_memory" if NO_MEMORY.search(str(self)) else "bad_model"


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


class File:
    """A model file, loaded, and its vocabulary. Any thread may call what is here, but for `close`."""

    def __init__(self, path: str, n_gpu_layers: int = 0) -> None:
        lib.llama_log_set(_log.callback, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.path, self.name = path, Path(path).name
        self._model = self._load(n_gpu_layers)
        self.vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)
        if not self.n_vocab or lib.llama_vocab_type(self.vocab) == 0:
            raise LoadFailed(f"{self.name} holds no vocabulary, so it cannot read or write text")
        self.n_ctx_train = lib.llama_model_n_ctx_train(self._model)
        self.ends = frozenset(t for t in range(self.n_vocab) if lib.llama_vocab_is_eog(self.vocab, t))

    def _load(self, n_gpu_layers: int) -> Any:
        """Map the file. Builds with AMX kernels crash in them on quantised weights (llama.cpp issue 20824: the compiler
        drops the tile configuration), so they do without; setup without AMX brings the repacked weights back."""
        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.load_mode = lib.LLAMA_LOAD_MODE_MMAP
        params.use_extra_bufts = b"AMX_INT8 = 1" not in (lib.llama_print_system_info() or b"")
        model = lib.llama_model_load_from_file(os.fsencode(self.path), params)
        if not model:
            raise LoadFailed(f"{self.name} cannot be loaded: {last_error() or 'llama.cpp gave no reason'}")
        return model

    def close(self) -> None:
        """Free the model; nothing that was made from it may live."""
        lib.llama_model_free(self._model)

    # ------------------------------------------------------------ what the file says

    @property
    def architecture(self) -> str:
        return self.meta("general.architecture")

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

    def meta(self, key: str) -> str:
        """A value of the file's header as text, "" when it is not there; of an array all its numbers."""
        buffer = ctypes.create_string_buffer(8192)
        size = lib.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if size >= 0 else ""

    def _text_or_nothing(self, token: int) -> str:
        return self.spelled(token).decode("utf-8", "replace") if token >= 0 else ""

    def _marker(self, token: int) -> str:
        attributes = lib.llama_vocab_get_attr(self.vocab, token)
        if attributes & CONTROL or token in self.ends:
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
                tokens += self._continue(segment) if tokens else self.tokens(segment)
        bos = lib.llama_vocab_bos(self.vocab)
        if bos >= 0 and tokens[:1] != [bos] and (lib.llama_vocab_get_add_bos(self.vocab) or not tokens):
            tokens.insert(0, bos)
        return tokens

    @cached_property
    def infill(self) -> bool:
        """Whether the model knows what a gap in a text is."""
        return min(self._gap) >= 0

    def around_gap(self, prefix: str, suffix: str) -> list[int]:
        """Tokens after which a model with `infill` writes what is between two texts. Nothing in these is special."""
        (before, behind, between), read = self._gap, partial(self._continue, parse=False)
        bos = self.tokenize([]) if lib.llama_vocab_get_add_bos(self.vocab) else []
        return [*bos, before, *read(prefix), behind, *read(suffix), between]

    @property
    def _gap(self) -> tuple[int, int, int]:
        """The tokens before a prefix, a suffix, and what is between; -1 for one that there is not."""
        return (lib.llama_vocab_fim_pre(self.vocab), lib.llama_vocab_fim_suf(self.vocab),
                lib.llama_vocab_fim_mid(self.vocab))

    def _continue(self, text: str, parse: bool = True) -> list[int]:
        """Tokens of `text` as a continuation: tokenised behind a line end, whose tokens are then taken off."""
        if lib.llama_vocab_type(self.vocab) != lib.LLAMA_VOCAB_TYPE_SPM:
            return self.tokens(text, parse=parse)
        lead, whole = self.tokens("\n"), self.tokens("\n" + text, parse=parse)
        return whole[len(lead):] if whole[:len(lead)] == lead else self.tokens(text, parse=parse)

    def tokens(self, text: str, around: bool = False, parse: bool = True) -> list[int]:
        """Tokens of a text by itself. `around`: with those that the model wants before and behind a whole text.
        `parse`: what is spelled like a special token is one."""
        data = text.encode("utf-8", "replace")
        room = len(data) + 8
        while True:
            tokens = (lib.llama_token * room)()
            count = lib.llama_tokenize(self.vocab, data, len(data), tokens, room, around, parse)
            if count >= 0:
                return tokens[:count]
            room = -count

    def piece(self, token: int) -> bytes:
        return self._render(token, special=False)

    def spelled(self, token: int) -> bytes:
        """As `piece`, but of a special token the text by which it is known."""
        return self._render(token, special=True)

    def text_of(self, tokens: list[int]) -> bytes:
        """The text that tokens are together, the special ones as they are spelled: without the space that some
        tokenisers put before a text."""
        given, room = (lib.llama_token * len(tokens))(*tokens), 8 * len(tokens) + 8
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = lib.llama_detokenize(self.vocab, given, len(tokens), buffer, room, False, True)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    @cached_property
    def beginnings(self) -> array[int]:
        """How each token's piece begins: 257 x its first byte (256: none) + its second byte + 1 (0: none).

        The first use takes a while: 0.3 s for 150,000 tokens.
        """
        pieces = (self.piece(token)[:2] for token in range(self.n_vocab))
        return array("i", (257 * piece[0] + (piece[1] + 1 if len(piece) > 1 else 0) if piece else 257 * 256
                           for piece in pieces))

    @cached_property
    def byte_tokens(self) -> dict[int, int]:
        """The token that is this one byte; of some bytes there may be none."""
        texts = ((token, lib.llama_vocab_get_text(self.vocab, token)) for token in range(self.n_vocab))
        pieces = ((token, self.piece(token)) for token, text in texts if len(text) <= 3 or text.startswith(b"<0x"))
        return {piece[0]: token for token, piece in pieces if len(piece) == 1}

    def is_end(self, token: int) -> bool:
        return token in self.ends

    def _render(self, token: int, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = lib.llama_token_to_piece(self.vocab, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count
