"""The folder of models: what is in it, which file a name means, and whether a model fits this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import msgspec

from services import paths
from services.engine import gguf
from services.engine.gguf import ModelInfo
from services.engine.machine import available_memory, gpu_backends, in_words
from services.errors import BadModel, BadRequest, NotFound, OutOfMemory, ParleyError, Unprocessable
from services.wire import RunnerSpec

MAX_THREADS = 512               # ggml's own limit: beyond it, it aborts
MAX_PARALLEL = 256              # llama.cpp's own limit of sequences
MAX_CONTEXT = (1 << 31) - 1     # tokens of all slots together; llama.cpp counts them in 32 bits
RUNNER_BYTES = 64 << 20         # a runner's process before it loads anything
SPARE = 0.05                    # of the free memory, left to everybody else
log = logging.getLogger("parley.engine")


def list_models(models_dir: Path) -> list[str]:
    """Names of the model files, sorted: regular `*.gguf` files that `resolve` takes; of a split one its first part."""
    return [name for name, problem in _entries(models_dir) if problem is None]


def ignored(models_dir: Path) -> dict[str, str]:
    """Files that look like models but are not listed: name -> why, and what to do."""
    return {name: problem for name, problem in _entries(models_dir) if problem}


def resolve(models_dir: Path, name: str) -> Path:
    """The path of the model file `name`. `BadRequest` for what is no plain name of a regular file, `NotFound` naming
    those there are."""
    try:
        path = paths.inside(models_dir, name, what="model")
    except BadRequest as error:
        problem = ignored(models_dir).get(name)
        if not problem:
            raise
        raise BadRequest(f"model {name!r} {problem}", code=error.code, param=error.param) from None
    if path.suffix != ".gguf" or not path.exists():
        there = ", ".join(list_models(models_dir)) or "none; `main.py models pull` gets one"
        raise NotFound(f"there is no model {name!r} in {models_dir.name}/; those there are: {there}", param="model")
    return path


def made_for(models_dir: Path, name: str) -> str:
    """What the model file `name` is made for: "text", "embeddings" or "ranking". "text" where it is missing or damaged:
    who loads it is told."""
    try:
        path = resolve(models_dir, name)
        status = path.stat()
        return _made_for(path, (status.st_mtime_ns, status.st_size, status.st_ino))
    except (ParleyError, OSError):
        return "text"


@lru_cache(maxsize=256)
def _made_for(path: Path, _signature: tuple[int, int, int]) -> str:
    return gguf.inspect(path).made_for


def _entries(models_dir: Path) -> list[tuple[str, str | None]]:
    """(name, problem) of everything in `models_dir` called *.gguf, sorted; problem "" is a later part of a split."""
    try:
        with os.scandir(models_dir) as entries:
            found = [entry for entry in entries if entry.name.endswith(".gguf")]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((entry.name, _problem(models_dir, entry)) for entry in found)


def _problem(models_dir: Path, entry: os.DirEntry[str]) -> str | None:
    if entry.is_symlink():
        return "is a link: copy or hard-link the model file instead"
    if not entry.is_file(follow_symlinks=False):
        return "is not a regular file"
    try:
        paths.inside(models_dir, entry.name, what="model")
    except BadRequest:
        return "has a name that cannot be used: rename it to letters, digits, '-', '_' and '.'"
    return "" if gguf.siblings(entry.name)[0] != entry.name else None


# ---------------------------------------------------------------- does it fit?

def check_fits(model: Path | ModelInfo, spec: RunnerSpec, *, available: int | None = None) -> ModelInfo:
    """Refuse a runner that cannot work before it is started; what `inspect` says when it can.

    `BadModel` for a file that is no model, `Unprocessable` naming the field of the profile that cannot be met,
    `OutOfMemory` with the figures. `available` (bytes) stands for the machine's free memory.
    """
    info = model if isinstance(model, ModelInfo) else gguf.inspect(model)
    _check_kind(info, spec)
    _check_numbers(spec)
    free = available_memory() if available is None else available
    needed = needed_memory(info, spec, spec.parallel)
    if free is not None and needed > free * (1 - SPARE):
        raise OutOfMemory(_too_big(info, spec, needed, free), needed=needed, available=free)
    if spec.n_ctx > info.n_ctx_train and not spec.embedding:
        log.warning("%s was trained with %d tokens of context; n_ctx %d goes beyond it, answers may become nonsense",
                    info.file, info.n_ctx_train, spec.n_ctx)
    return info


def precheck(spec: RunnerSpec) -> None:
    """What the supervisor does before it starts a runner: `check_fits` with the machine's own figures."""
    check_fits(Path(spec.model), spec)


def needs(spec: RunnerSpec) -> Callable[[int], int]:
    """Bytes that a runner process of `spec` takes, by its tokens of context. What `inspect` raises."""
    info = gguf.inspect(Path(spec.model))
    return lambda n_ctx: RUNNER_BYTES + needed_memory(info, msgspec.structs.replace(spec, n_ctx=n_ctx), spec.parallel)


def fit_parallel(info: ModelInfo, spec: RunnerSpec, *, available: int | None = None) -> int:
    """The most slots, at least 1 and at most `spec.parallel`, that fit the free memory."""
    free = available_memory() if available is None else available
    if free is None:
        return max(1, spec.parallel)
    room = free * (1 - SPARE)
    return next((n for n in range(spec.parallel, 1, -1) if needed_memory(info, spec, n) <= room), 1)


def needed_memory(info: ModelInfo, spec: RunnerSpec, parallel: int) -> int:
    """Bytes of the machine's own memory for `parallel` slots; layers given to a GPU do not count."""
    layers = info.n_layer + 1
    offloaded = spec.n_gpu_layers if spec.n_gpu_layers >= 0 else layers
    here = layers - min(offloaded, layers) if gpu_backends() else layers
    cache, compute = _beside_weights(info, spec, parallel)
    return (info.size + cache) * here // layers + compute


def _beside_weights(info: ModelInfo, spec: RunnerSpec, parallel: int) -> tuple[int, int]:
    """Bytes of the caches, and of what is set aside to compute."""
    if spec.embedding:
        return info.cache_bytes(info.embedding_rows(spec.n_ctx), 1), info.embedding_bytes(spec.n_ctx)
    return info.cache_bytes(spec.n_ctx, parallel), info.compute_bytes(spec.n_ctx, parallel)


def _check_kind(info: ModelInfo, spec: RunnerSpec) -> None:
    """A model that writes could be pooled too, but its vectors would place texts badly, and nobody would be told."""
    if info.is_embedding and not spec.embedding:
        raise BadModel(f"{info.file} is made for embeddings and cannot answer: choose a model for chat or text, or set "
                       "\"embedding\": true in its profile and ask it by POST /v1/embeddings")
    if spec.embedding and not info.is_embedding:
        raise BadModel(f"{info.file} is made for text, not for embeddings: choose a model that is made for them, such "
                       "as `main.py models pull minilm` brings, or take \"embedding\" out of its profile")


def _check_numbers(spec: RunnerSpec) -> None:
    cores = os.cpu_count() or 1
    _within("n_ctx", spec.n_ctx, 16, MAX_CONTEXT)
    _within("parallel", spec.parallel, 1, MAX_PARALLEL)
    _within("n_threads", spec.n_threads, 0, MAX_THREADS)
    _within("n_gpu_layers", spec.n_gpu_layers, -1, 10_000)
    if spec.n_ctx * spec.parallel > MAX_CONTEXT:
        raise Unprocessable(f"n_ctx {spec.n_ctx} x parallel {spec.parallel} is more than llama.cpp can count "
                            f"({MAX_CONTEXT}): lower one of them", param="n_ctx")
    if spec.n_gpu_layers > 0 and not gpu_backends():
        raise Unprocessable(f"n_gpu_layers is {spec.n_gpu_layers}, but llama-cpp-python is built for the CPU only: set "
                            "it to 0, or install it again with CMAKE_ARGS=\"-DGGML_CUDA=on\"", param="n_gpu_layers")
    if spec.n_threads > cores:
        log.warning("n_threads is %d on a machine of %d cores: more threads than cores are slower", spec.n_threads,
                    cores)


def _within(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise Unprocessable(f"{field} is {value}, expected a whole number from {low} to {high}", param=field)


def _too_big(info: ModelInfo, spec: RunnerSpec, needed: int, free: int) -> str:
    cache, compute = _beside_weights(info, spec, spec.parallel)
    weights = max(0, needed - cache - compute)
    slots = "1 slot" if spec.parallel == 1 else f"{spec.parallel} slots"
    return (f"{info.file} needs {in_words(needed)}: {in_words(weights)} weights + {in_words(cache)} for {slots} of "
            f"{spec.n_ctx} tokens + {in_words(max(0, needed - weights - cache))} to compute; "
            f"{in_words(free)} are free. {_advice(info, spec, free)}")


def _advice(info: ModelInfo, spec: RunnerSpec, free: int) -> str:
    """What would fit: fewer slots, less context, or a smaller model."""
    slots = fit_parallel(info, spec, available=free)
    if needed_memory(info, spec, slots) <= free * (1 - SPARE):
        return f"Lower parallel to {slots}, or n_ctx"
    fits = [n for n in (65536, 32768, 16384, 8192, 4096, 2048, 1024, 512)
            if n < spec.n_ctx and info.memory(n, 1) <= free * (1 - SPARE)]
    return f"Lower n_ctx to {fits[0]} and parallel to 1" if fits else \
        "Take a smaller model or a smaller quantisation of it"
