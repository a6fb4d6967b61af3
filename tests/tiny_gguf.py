"""Tiny GGUF files with random weights, made in milliseconds: real architectures, a real tokenizer, no meaning.

The tokenizer is byte-level BPE: 256 bytes, a few merged words, and the control tokens of ChatML. A random model's
greedy text depends on the whole prompt, so reuse that goes wrong shows. With `successors` the model is a bigram table
instead: the text after each token is known in advance.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from gguf import GGUFWriter, PoolingType, TokenType

EOS, BOS, START = "<|im_end|>", "<|endoftext|>", "<|im_start|>"
CONTROL = [BOS, START, EOS, "<|tool|>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ġwor ld", "t h", "Ġ th", "Ġth e"]
WIDTH, HEADS, LAYERS, FEED = 64, 4, 2, 96       # attention architectures; mamba uses WIDTH and LAYERS
STATE, CONV, INNER, RANK = 8, 4, 128, 4         # mamba

TEMPLATE = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")


def byte_letters() -> list[str]:
    """GPT-2's letter for each byte, as byte-level BPE vocabularies spell them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    letters = {b: chr(b) for b in plain} | {b: chr(256 + i) for i, b in enumerate(others)}
    return [letters[b] for b in range(256)]


def vocabulary(control: Sequence[str] = ()) -> list[str]:
    """All tokens in id order: bytes, merged words, control tokens and those of `control`."""
    return [*byte_letters(), *(merge.replace(" ", "") for merge in MERGES), *CONTROL, *control]


def write_tiny(path: str | Path, arch: str = "llama", *, seed: int = 0, n_ctx_train: int = 512,
               sliding_window: int = 16, chat_template: str | None = TEMPLATE,
               successors: dict[str, str] | None = None, pooling: int | None = None,
               control: Sequence[str] = ()) -> Path:
    """Write a GGUF and return its path. `arch`: "llama" (plain), "mamba" (recurrent) or "gemma2" (sliding window).

    `successors` maps a token to the one that follows it greedily ("a": "b", "b": "<|im_end|>"); others repeat.
    `pooling` (llama.cpp's number) makes an embedding model of it, which ends each text with its EOS token. `control`:
    more control tokens.
    """
    random = np.random.default_rng(seed)
    writer = GGUFWriter(str(path), arch)
    writer.add_name(f"tiny-{arch}")
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = vocabulary(control)
    _tokenizer(writer, chat_template, tokens)
    if pooling is not None:
        writer.add_pooling_type(PoolingType(pooling))
        writer.add_add_eos_token(True)
    quiet = 0.0 if successors is not None else 1.0
    {"llama": _llama, "gemma2": _gemma2, "mamba": _mamba}[arch](writer, random, quiet, sliding_window)
    _embeddings(writer, random, arch, successors, tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def _tokenizer(writer: GGUFWriter, chat_template: str | None, tokens: list[str]) -> None:
    control = tokens[tokens.index(CONTROL[0]):]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in control else TokenType.NORMAL for token in tokens])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(tokens.index(BOS))
    writer.add_eos_token_id(tokens.index(EOS))
    writer.add_add_bos_token(False)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def _matrix(random: np.random.Generator, rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
    return (random.standard_normal((rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)


def _embeddings(writer: GGUFWriter, random: np.random.Generator, arch: str, successors: dict[str, str] | None,
                tokens: list[str]) -> None:
    """Input and output embeddings; gemma2 has tied ones, and scales them."""
    table = random.standard_normal((len(tokens), WIDTH)).astype(np.float32)
    writer.add_tensor("token_embd.weight", table)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    if successors is not None:
        assert arch == "llama", "a table of successors needs an output matrix of its own"
        output = table / 2
        for token, follower in successors.items():
            output[tokens.index(follower)] = table[tokens.index(token)]
        writer.add_tensor("output.weight", output)
    elif arch != "gemma2":
        writer.add_tensor("output.weight", random.standard_normal((len(tokens), WIDTH)).astype(np.float32))


def _attention(writer: GGUFWriter, random: np.random.Generator, block: str, quiet: float) -> None:
    writer.add_tensor(f"{block}.attn_norm.weight", np.ones(WIDTH, np.float32))
    for name in ("attn_q", "attn_k", "attn_v"):
        writer.add_tensor(f"{block}.{name}.weight", _matrix(random, WIDTH, WIDTH, 2.0))
    writer.add_tensor(f"{block}.attn_output.weight", _matrix(random, WIDTH, WIDTH, 2.0 * quiet))
    writer.add_tensor(f"{block}.ffn_norm.weight", np.ones(WIDTH, np.float32))
    for name in ("ffn_gate", "ffn_up"):
        writer.add_tensor(f"{block}.{name}.weight", _matrix(random, FEED, WIDTH))
    writer.add_tensor(f"{block}.ffn_down.weight", _matrix(random, WIDTH, FEED, 2.0 * quiet))


def _heads(writer: GGUFWriter) -> None:
    writer.add_feed_forward_length(FEED)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_key_length(WIDTH // HEADS)
    writer.add_value_length(WIDTH // HEADS)


def _llama(writer: GGUFWriter, random: np.random.Generator, quiet: float, _window: int) -> None:
    _heads(writer)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    for layer in range(LAYERS):
        _attention(writer, random, f"blk.{layer}", quiet)


def _gemma2(writer: GGUFWriter, random: np.random.Generator, quiet: float, window: int) -> None:
    _heads(writer)
    writer.add_sliding_window(window)
    for layer in range(LAYERS):
        _attention(writer, random, f"blk.{layer}", quiet)
        writer.add_tensor(f"blk.{layer}.post_attention_norm.weight", np.full(WIDTH, 24, np.float32))
        writer.add_tensor(f"blk.{layer}.post_ffw_norm.weight", np.full(WIDTH, 24, np.float32))


def _mamba(writer: GGUFWriter, random: np.random.Generator, quiet: float, _window: int) -> None:
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(CONV)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        writer.add_tensor(f"{block}.attn_norm.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(f"{block}.ssm_in.weight", _matrix(random, 2 * INNER, WIDTH, 2.0))
        writer.add_tensor(f"{block}.ssm_conv1d.weight", _matrix(random, INNER, CONV))
        writer.add_tensor(f"{block}.ssm_conv1d.bias", np.zeros(INNER, np.float32))
        writer.add_tensor(f"{block}.ssm_x.weight", _matrix(random, RANK + 2 * STATE, INNER))
        writer.add_tensor(f"{block}.ssm_dt.weight", _matrix(random, INNER, RANK))
        writer.add_tensor(f"{block}.ssm_dt.bias", np.full(INNER, -2.0, np.float32))
        writer.add_tensor(f"{block}.ssm_a", -np.tile(np.arange(1, STATE + 1, dtype=np.float32) / 8, (INNER, 1)))
        writer.add_tensor(f"{block}.ssm_d", np.ones(INNER, np.float32))
        writer.add_tensor(f"{block}.ssm_out.weight", _matrix(random, WIDTH, INNER, 2.0 * quiet))
