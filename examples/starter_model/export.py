"""Write a saved state as a GGUF file that llama.cpp runs.

python export.py --run build --to ../../models/starter.gguf
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
import torch
from dialogues import END, START
from model import Config
from torch import Tensor

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
DESCRIPTION = (
    "The small starter model that ships with Parley: greets, remembers what it is told, repeats, counts, "
    "does small sums and answers from a short text; for anything else it says that a larger model is needed."
)
BLOCK_TENSORS = {
    "q": "attn_q.weight",
    "k": "attn_k.weight",
    "v": "attn_v.weight",
    "o": "attn_output.weight",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "attn_norm": "attn_norm.weight",
    "gate": "ffn_gate.weight",
    "up": "ffn_up.weight",
    "down": "ffn_down.weight",
    "ffn_norm": "ffn_norm.weight",
}
"""The names of a layer's tensors here and in a GGUF file, where "blk.<layer>." stands before them."""


def describe(writer: gguf.GGUFWriter, c: Config) -> None:
    """What the model is, and its sizes."""
    writer.add_name("Parley starter")
    writer.add_description(DESCRIPTION)
    writer.add_license("MIT")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.width)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.ffn)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.heads)
    writer.add_key_length(c.head)
    writer.add_value_length(c.head)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_layer_norm_rms_eps(c.eps)


def add_tokenizer(writer: gguf.GGUFWriter, file: Path) -> None:
    """The byte-level BPE, with the GPT-2 way of splitting, and the chat template."""
    model = json.loads(file.read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    special = {START, END}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    end = model["vocab"][END]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(end)
    writer.add_pad_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def half(tensor: Tensor) -> np.ndarray:
    """A matrix in 16 bits, a vector (a norm's weights) in 32."""
    return tensor.numpy().astype(np.float16 if tensor.ndim == 2 else np.float32)


def export(run: Path, to: Path) -> None:
    """The state saved in the folder run, as the file to."""
    state = torch.load(run / "checkpoint.pt", map_location="cpu")
    c, weights = Config(**state["config"]), state["model"]
    part = to.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "qwen3")
    describe(writer, c)
    add_tokenizer(writer, run / "tokenizer.json")
    writer.add_tensor("token_embd.weight", half(weights["embed"]))
    writer.add_tensor("output_norm.weight", half(weights["norm"]))
    for layer in range(c.layers):
        for ours, theirs in BLOCK_TENSORS.items():
            writer.add_tensor(f"blk.{layer}.{theirs}", half(weights[f"blocks.{layer}.{ours}"]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    part.replace(to)
    print(
        f"{to}: {to.stat().st_size / 1e6:.2f} MB after {state['step']} steps, "
        f"{state['tokens']} tokens, {state['seconds'] / 60:.0f} minutes"
    )


def main() -> None:
    """Read the command line and export."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path, default=Path("build"), help="the folder that train.py wrote")
    parser.add_argument("--to", type=Path, default=Path("../../models/starter.gguf"))
    options = parser.parse_args()
    options.to.parent.mkdir(parents=True, exist_ok=True)
    export(options.run, options.to)


if __name__ == "__main__":
    main()
