"""What a GGUF model is and what it needs: `inspect` is the check that runs before every load, listing and download."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from services.engine.gguf_header import Header, Value, printable, read_header
from services.errors import BadModel, NotFound

FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}
MICRO_BATCH = 512           # tokens that a runner computes at once: llama.cpp's n_ubatch
EMBED_BATCH, EMBED_TEXTS = 256, 64      # tokens and texts of a batch: services.runner.embedder's
PAD = 256                   # llama.cpp rounds a sequence's context up to this
MOST_SCORES = 256 << 20     # bytes of attention scores up to which a runner on the CPU does without flash attention
RANK = 4                    # llama.cpp's number of the pooling type of models that rank
MAX_LAYERS = 512            # llama.cpp's own limit: beyond it, it aborts
F16, F32 = 2, 4             # bytes
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf(\.part)?")


@dataclass(frozen=True)
class ModelInfo:
    """A model that may be loaded. Sizes in bytes, lengths in tokens; `size` sums the parts of a split model."""

    file: str
    architecture: str
    name: str
    size: int
    quantisation: str               # "Q4_K_M"; "F16"; …
    n_ctx_train: int
    n_layer: int
    n_embd: int
    n_head: int
    n_head_kv: tuple[int, ...]      # of each layer; 0: the layer keeps no KV (recurrent ones)
    key_length: int                 # of one head
    value_length: int
    n_ff: int
    n_vocab: int
    n_swa: int                      # sliding window, 0: none
    state_bytes: int                # recurrent state of one sequence
    chat_template: str | None
    tokenizer: str
    tokenizer_pre: str | None
    license: str | None
    is_embedding: bool              # it makes embeddings, or ranks, and cannot answer
    ranks: bool                     # it gives pairs of texts a score
    tensors: int
    parameters: int
    parts: int                      # files

    @property
    def made_for(self) -> str:
        """"text", "embeddings" or "ranking"."""
        return "ranking" if self.ranks else "embeddings" if self.is_embedding else "text"

    @property
    def kv_bytes_per_token(self) -> int:
        """Of the KV cache in F16. With a sliding window it is an upper bound: every layer counts in full."""
        return sum(self.n_head_kv) * (self.key_length + self.value_length) * F16

    def cache_bytes(self, n_ctx: int, parallel: int) -> int:
        """KV and recurrent state of `parallel` sequences of `n_ctx` tokens."""
        return parallel * (n_ctx * self.kv_bytes_per_token + self.state_bytes)

    def compute_bytes(self, n_ctx: int, parallel: int) -> int:
        """What llama.cpp sets aside to compute one micro-batch: logits, widest layers, masks, and attention's scores
        where the runner does without flash attention. An upper bound of what llama.cpp reports."""
        cells = -(-n_ctx // PAD) * PAD
        masked = cells + (min(cells, self.n_swa + MICRO_BATCH + PAD) if self.n_swa else 0)
        scores = MICRO_BATCH * cells * self.n_head * F32
        attention = scores + MICRO_BATCH * masked * F32 if scores <= MOST_SCORES else MICRO_BATCH * masked * F16
        width = self.n_vocab + 6 * self.n_embd + 2 * self.n_ff
        return MICRO_BATCH * width * F32 + attention + parallel * self.n_vocab * F32

    def embedding_bytes(self, n_ctx: int) -> int:
        """The same for a runner that embeds texts of up to `n_ctx` tokens: the longest is one micro-batch, and flash
        attention leaves only masks."""
        rows = self.embedding_rows(n_ctx)
        masks = rows * rows * F16 * (2 if self.n_swa else 1)
        return masks + rows * (6 * self.n_embd + 2 * self.n_ff) * F32 + EMBED_TEXTS * self.n_vocab * F32

    def embedding_rows(self, n_ctx: int) -> int:
        """Tokens of the largest batch of a runner that embeds texts of up to `n_ctx` tokens."""
        return max(EMBED_BATCH, min(n_ctx, self.n_ctx_train))

    def memory(self, n_ctx: int, parallel: int) -> int:
        """Bytes that a runner needs, estimated: weights, caches and compute buffers."""
        return self.size + self.cache_bytes(n_ctx, parallel) + self.compute_bytes(n_ctx, parallel)


def inspect(path: Path, *, alone: bool = False) -> ModelInfo:
    """The model in `path`, for a split one its first part. `alone`: a part by itself, the others need not be there.

    Raises `BadModel` with one line that says what is wrong, `NotFound` when there is no such file.
    """
    header = read_header(path)
    fields = _Fields(path.name, header)
    headers = [header]
    if not alone and fields.whole("split.count", 0) > 1:
        headers += [read_header(part) for part in _other_parts(path, fields)]
    return _part(fields) if alone and fields.whole("split.no", 0) else _model(fields, headers)


def siblings(name: str) -> list[str]:
    """The names of all parts of the split model that `name` is a part of; just `name` for others."""
    match = PART.fullmatch(name)
    if not match or not 0 < int(match["number"]) <= int(match["count"]) <= 1000:
        return [name]
    return [f"{match['stem']}-{number:05d}-of-{match['count']}.gguf" for number in range(1, int(match["count"]) + 1)]


class _Fields:
    """A header's values under their architecture's prefix, each of the type that is expected or `BadModel`."""

    def __init__(self, file: str, header: Header) -> None:
        self.file, self.header = file, header
        self.architecture = ""
        self.architecture = self.text("general.architecture") or ""

    def key(self, name: str) -> str:
        return name.replace("{arch}", self.architecture)

    def get(self, name: str) -> Value:
        return self.header.values.get(self.key(name))

    def text(self, name: str) -> str | None:
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise self.bad(name, value, "a text")
        return value

    def whole(self, name: str, default: int | None = None, *, low: int = 0, high: int = (1 << 31) - 1) -> int:
        """A whole number; an array gives its largest. Without `default` it must be there."""
        value = self.get(name)
        if isinstance(value, tuple) and value:
            value = max(value)
        if value is None and default is not None and self.key(name) not in self.header.lengths:
            return default
        if not isinstance(value, int) or not low <= value <= high:
            raise self.bad(name, value, f"a whole number from {low} to {high}")
        return value

    def per_layer(self, name: str, layers: int, default: int) -> tuple[int, ...]:
        value = self.get(name)
        if not isinstance(value, tuple):
            return (self.whole(name, default, high=1 << 20),) * layers
        if len(value) < layers or not all(isinstance(n, int) and 0 <= n <= 1 << 20 for n in value):
            raise self.bad(name, f"{len(value)} numbers", f"one for each of {layers} layers")
        return tuple(int(number) for number in value[:layers])

    def bad(self, name: str, value: object, wanted: str) -> BadModel:
        absent = "of another type" if self.key(name) in self.header.values else "missing"
        shown = absent if value is None else repr(value)[:60]
        return BadModel(f"{self.file} is no model that can be loaded: {self.key(name)} is {shown}, expected {wanted}")


def _other_parts(path: Path, fields: _Fields) -> list[Path]:
    """Paths of parts 2, 3, … of the split model that begins with `path`; all are there."""
    count = fields.whole("split.count", 0, high=1000)
    names = siblings(path.name)
    if len(names) != count:
        raise BadModel(f"{path.name} is one of {count} parts of a model; it must keep its name "
                       f"(…-00001-of-{count:05d}.gguf), or the other parts cannot be found")
    if path.name != names[0]:
        raise BadModel(f"{path.name} is a part of a split model: load its first part, {names[0]}")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise BadModel(f"{path.name} is one of {count} parts; missing are {', '.join(missing[:5])}"
                       f"{' …' if len(missing) > 5 else ''}")
    return [path.with_name(name) for name in names[1:]]


def _part(fields: _Fields) -> ModelInfo:
    """A later part of a split model, which holds tensors and nothing else that is known here."""
    return ModelInfo(
        file=fields.file, architecture=fields.architecture, name="", size=fields.header.size, quantisation="",
        n_ctx_train=0, n_layer=0, n_embd=0, n_head=0, n_head_kv=(), key_length=0, value_length=0, n_ff=0, n_vocab=0,
        n_swa=0, state_bytes=0, chat_template=None, tokenizer="", tokenizer_pre=None, license=None, is_embedding=False,
        ranks=False, tensors=fields.header.tensors, parameters=fields.header.parameters, parts=1)


def _kind(fields: _Fields) -> None:
    """Refuse GGUF files that are no language model."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", fields.architecture):
        raise fields.bad("general.architecture", fields.get("general.architecture"), "the name of an architecture")
    kind = fields.text("general.type") or "model"
    if fields.architecture == "clip" or kind in ("mmproj", "projector"):
        raise BadModel(f"{fields.file} is a vision or audio projector (mmproj) for another model, no model by itself")
    if kind != "model":
        raise BadModel(f"{fields.file} is of the type {printable(kind)!r} and no model by itself")


def _model(fields: _Fields, headers: list[Header]) -> ModelInfo:
    _kind(fields)
    layers = fields.whole("{arch}.block_count", low=1, high=MAX_LAYERS)
    width = fields.whole("{arch}.embedding_length", low=1, high=1 << 20)
    heads = fields.whole("{arch}.attention.head_count", 0, high=1 << 20)
    head_width = width // heads if heads else 0
    tensors = sum(header.tensors for header in headers)
    if not tensors and len(headers) == 1 and fields.whole("split.count", 0) < 2:
        raise BadModel(f"{fields.file} has no tensors: it is only a vocabulary")
    tokenizer = fields.text("tokenizer.ggml.model")
    if tokenizer is None:
        raise fields.bad("tokenizer.ggml.model", None, "the name of a tokenizer")
    text_of = {key: printable(fields.text(key) or "") for key in ("general.name", "general.license")}
    return ModelInfo(
        file=fields.file, architecture=fields.architecture, name=text_of["general.name"],
        size=sum(header.size for header in headers), quantisation=_quantisation(fields, headers),
        n_ctx_train=fields.whole("{arch}.context_length", low=1), n_layer=layers, n_embd=width, n_head=heads,
        n_head_kv=_heads_kv(fields, layers, heads),
        key_length=fields.whole("{arch}.attention.key_length", head_width, high=1 << 20),
        value_length=fields.whole("{arch}.attention.value_length", head_width, high=1 << 20),
        n_ff=fields.whole("{arch}.feed_forward_length", 0), n_vocab=_vocabulary(fields),
        n_swa=fields.whole("{arch}.attention.sliding_window", 0, high=(1 << 32) - 1),
        state_bytes=_state(fields, layers, width),
        chat_template=fields.text("tokenizer.chat_template"), tokenizer=printable(tokenizer),
        tokenizer_pre=fields.text("tokenizer.ggml.pre"), license=text_of["general.license"] or None,
        is_embedding=_embeds(fields), ranks=_ranks(fields, headers), tensors=tensors,
        parameters=sum(header.parameters for header in headers), parts=len(headers))


def _heads_kv(fields: _Fields, layers: int, heads: int) -> tuple[int, ...]:
    each = fields.per_layer("{arch}.attention.head_count_kv", layers, heads)
    interval = fields.whole("{arch}.full_attention_interval", 1, low=1, high=MAX_LAYERS)
    return tuple(n if (layer + 1) % interval == 0 else 0 for layer, n in enumerate(each))


def _vocabulary(fields: _Fields) -> int:
    return fields.header.lengths.get("tokenizer.ggml.tokens") or fields.whole("{arch}.vocab_size", 0)


def _state(fields: _Fields, layers: int, width: int) -> int:
    """Bytes of a sequence's recurrent state in F32; an upper bound where only some layers are recurrent."""
    inner = fields.whole("{arch}.ssm.inner_size", 0, high=1 << 24)
    state = fields.whole("{arch}.ssm.state_size", 0, high=1 << 20)
    kernel = fields.whole("{arch}.ssm.conv_kernel", 0, high=1 << 16)
    groups = fields.whole("{arch}.ssm.group_count", 0, high=1 << 16)
    wkv = fields.whole("{arch}.wkv.head_size", 0, high=1 << 16)
    ssm = max(0, kernel - 1) * (inner + 2 * groups * state) + state * inner
    return layers * (ssm + width * (wkv + 2 if wkv else 0)) * F32


def _quantisation(fields: _Fields, headers: list[Header]) -> str:
    """From the file's own word, else the type that most bytes are in."""
    kind = fields.get("general.file_type")
    if isinstance(kind, int) and kind in FILE_TYPES:
        return FILE_TYPES[kind]
    sums: dict[str, int] = {}
    for header in headers:
        for label, length in header.bytes_by_type.items():
            sums[label] = sums.get(label, 0) + length
    return max(sums, key=lambda label: sums[label]) if sums else "unknown"


def _embeds(fields: _Fields) -> bool:
    """Whether the model is made for embeddings and cannot answer."""
    pooling = fields.whole("{arch}.pooling_type", 0)
    return pooling > 0 or fields.get("{arch}.attention.causal") is False or "bert" in fields.architecture


def _ranks(fields: _Fields, headers: list[Header]) -> bool:
    """Whether the model ranks. `BadModel` when its head is missing: it would be loaded, and its scores be noise."""
    if fields.whole("{arch}.pooling_type", 0) != RANK:
        return False
    whole = len(headers) >= fields.whole("split.count", 0)
    if whole and not any(header.classifies for header in headers):
        raise BadModel(f"{fields.file} is made to rank texts, but has lost its head (the tensors cls): get another "
                       "conversion of the model, made with llama.cpp's convert_hf_to_gguf.py")
    return True


__all__ = ["BadModel", "ModelInfo", "NotFound", "inspect", "siblings"]
