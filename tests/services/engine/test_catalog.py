"""Names never lead out of the folder, and a model that does not fit is refused with the figures."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.engine import catalog, machine
from services.engine.catalog import check_fits, fit_parallel, list_models, resolve
from services.engine.gguf import inspect
from services.errors import BadModel, BadRequest, NotFound, OutOfMemory, ParleyError, Unprocessable, from_code
from services.wire import RunnerSpec
from tests.tiny_gguf import write_tiny

BAD_NAMES = ["../x.gguf", "/etc/passwd", "..\\x.gguf", "%2e%2e%2fx.gguf", "x\0.gguf", "a/../../b.gguf", "con:",
             "x" * 4096, "x.gguf.", "x\uff0fy.gguf", "x\u2215y.gguf", "x.gguf/", "", ".", "..", ".hidden.gguf",
             "a b.gguf", "x\n.gguf", "~"]


@pytest.fixture
def models(tmp_path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    write_tiny(folder / "b.gguf")
    write_tiny(folder / "a.gguf")
    return folder


def test_listed_are_regular_models_that_can_be_named(models, tmp_path):
    (tmp_path / "outside.gguf").write_bytes(b"x")
    (models / "link.gguf").symlink_to(tmp_path / "outside.gguf")
    (models / "folder.gguf").mkdir()
    os.mkfifo(models / "fifo.gguf")
    for name in ("c.gguf.part", "notes.txt", "big-00001-of-00002.gguf", "big-00002-of-00002.gguf", "my model.gguf"):
        (models / name).write_bytes(b"x")
    os.link(tmp_path / "outside.gguf", models / "hard.gguf")
    assert list_models(models) == ["a.gguf", "b.gguf", "big-00001-of-00002.gguf", "hard.gguf"]
    assert list(catalog.ignored(models)) == ["fifo.gguf", "folder.gguf", "link.gguf", "my model.gguf"]
    assert "rename it" in catalog.ignored(models)["my model.gguf"]
    assert list_models(tmp_path / "absent") == []


def test_a_name_is_found_or_those_there_are_named(models):
    assert resolve(models, "a.gguf") == models / "a.gguf"
    with pytest.raises(NotFound, match=r"'c.gguf' in models/; those there are: a.gguf, b.gguf"):
        resolve(models, "c.gguf")
    (models / "a.gguf.part").write_bytes(b"x")
    with pytest.raises(NotFound):
        resolve(models, "a.gguf.part")


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_no_plain_file_names(models, name):
    with pytest.raises(BadRequest) as caught:
        resolve(models, name)
    assert caught.value.code == "bad_name"


def test_links_fifos_and_folders_are_refused_without_opening(models, tmp_path):
    (tmp_path / "outside.gguf").write_bytes(b"x")
    (models / "link.gguf").symlink_to(tmp_path / "outside.gguf")
    (models / "folder.gguf").mkdir()
    os.mkfifo(models / "fifo.gguf")
    with pytest.raises(BadRequest, match="copy or hard-link"):
        resolve(models, "link.gguf")
    for name in ("folder.gguf", "fifo.gguf"):
        with pytest.raises(BadRequest, match="not a regular file"):
            resolve(models, name)


OPENED: list[str] = []
WATCHING = False


def _watch(event: str, arguments: tuple[object, ...]) -> None:
    if WATCHING and event == "open":
        OPENED.append(str(arguments[0]))


def test_ten_thousand_odd_names_open_nothing_outside(models):
    """Row M1: an audit hook sees every open of this process."""
    global WATCHING
    sys.addaudithook(_watch)
    dice = random.Random(4)
    pieces = ["..", "/", "\\", "%2e", "\0", "a.gguf", "a", ".gguf", "etc", "passwd", "~", " ", "\u2044", "C:", "\r\n"]
    WATCHING = True
    try:
        for _ in range(10_000):
            name = "".join(dice.choice(pieces) for _ in range(dice.randint(1, 6)))
            try:
                assert resolve(models, name).parent == models
            except (BadRequest, NotFound):
                continue
    finally:
        WATCHING = False
    assert OPENED == []


def spec(**more: int) -> RunnerSpec:
    return RunnerSpec(**{"model": "", "n_ctx": 512, "parallel": 4, **more})


def test_what_does_not_fit_is_told_with_figures(models):
    info = inspect(models / "a.gguf")
    big = spec(n_ctx=1_000_000)
    needed = info.memory(1_000_000, 4)
    with pytest.raises(OutOfMemory) as caught:
        check_fits(models / "a.gguf", big, available=needed // 3 * 2)
    error = caught.value
    assert error.status == 422 and error.code == "out_of_memory" and error.details["needed"] == needed
    assert "for 4 slots of 1000000 tokens" in error.message
    assert " are free. Lower parallel to 1, or n_ctx" in error.message
    assert isinstance(from_code("out_of_memory", "x"), OutOfMemory)
    with pytest.raises(OutOfMemory, match=r"Lower n_ctx to \d+ and parallel to 1"):
        check_fits(info, big, available=info.memory(1_000_000, 1) // 2)
    with pytest.raises(OutOfMemory, match="smaller model"):
        check_fits(info, big, available=1000)
    assert check_fits(info, big, available=needed * 2) is info


def test_what_the_machine_says_counts(models, monkeypatch):
    monkeypatch.setattr(catalog, "available_memory", lambda: 1000)
    with pytest.raises(OutOfMemory):
        catalog.precheck(spec(model=str(models / "a.gguf")))
    monkeypatch.setattr(catalog, "available_memory", lambda: None)
    catalog.precheck(spec(model=str(models / "a.gguf")))
    (models / "bad.gguf").write_bytes(b"<html>")
    with pytest.raises(BadModel, match="web page"):
        catalog.precheck(spec(model=str(models / "bad.gguf")))
    with pytest.raises(NotFound):
        catalog.precheck(spec(model=str(models / "gone.gguf")))


@pytest.mark.parametrize(("field", "value"), [("n_ctx", 10 ** 9), ("n_ctx", 0), ("n_ctx", -1), ("n_threads", -1),
                                              ("n_threads", 513), ("parallel", 0), ("parallel", 257),
                                              ("n_gpu_layers", 1), ("n_gpu_layers", -2)])
def test_impossible_numbers_are_refused_by_name(models, monkeypatch, field, value):
    """Row C7."""
    monkeypatch.setattr(catalog, "gpu_backends", lambda: [])
    with pytest.raises(Unprocessable, match=field):
        check_fits(models / "a.gguf", spec(**{field: value}), available=1 << 40)


def test_a_model_for_embeddings_cannot_answer(models):
    with pytest.raises(BadModel, match="made for embeddings"):
        check_fits(dataclasses.replace(inspect(models / "a.gguf"), is_embedding=True), spec(), available=1 << 40)


def test_gpu_layers_leave_the_machine_memory_alone(models, monkeypatch):
    info = inspect(models / "a.gguf")
    on_cpu = catalog.needed_memory(info, spec(n_gpu_layers=-1), 4)
    monkeypatch.setattr(catalog, "gpu_backends", lambda: ["cuda"])
    assert catalog.needed_memory(info, spec(n_gpu_layers=-1), 4) == info.compute_bytes(512, 4)
    assert info.compute_bytes(512, 4) < catalog.needed_memory(info, spec(n_gpu_layers=1), 4) < on_cpu
    check_fits(info, spec(n_gpu_layers=99), available=1 << 40)


def test_slots_that_fit(models):
    info = inspect(models / "a.gguf")
    wanted = spec(n_ctx=100_000, parallel=8)
    assert fit_parallel(info, wanted, available=1 << 40) == 8
    assert fit_parallel(info, wanted, available=int(info.memory(100_000, 3) / (1 - catalog.SPARE)) + 1) == 3
    assert fit_parallel(info, wanted, available=1) == 1


def test_beyond_the_trained_context_is_a_warning(models, caplog):
    check_fits(models / "a.gguf", spec(n_ctx=4096), available=1 << 40)
    assert "trained with 512 tokens" in caplog.text


# ---------------------------------------------------------------- the machine

def test_available_memory_is_the_least_of_what_is_known(monkeypatch):
    assert (machine.available_memory() or 0) > 1 << 20
    monkeypatch.setattr(machine, "_machine_memory", lambda: 5)
    monkeypatch.setattr(machine, "_cgroup_memory", lambda root: 3)
    assert machine.available_memory() == 3
    monkeypatch.setattr(machine, "_machine_memory", lambda: None)
    monkeypatch.setattr(machine, "_cgroup_memory", lambda root: None)
    assert machine.available_memory() is None


def cgroup(folder: Path, limit: str, used: int, cache: int, files: tuple[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / files[0]).write_text(f"{limit}\n")
    (folder / files[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")


def test_cgroup_limits_count_at_every_level(tmp_path):
    member, root = tmp_path / "self", tmp_path / "cgroup"
    names = ("memory.max", "memory.current")
    member.write_text("0::/outer/inner\n")
    cgroup(root / "outer" / "inner", "max", 10, 0, names)
    assert machine._cgroup_memory(root, member) is None
    cgroup(root / "outer", "1000", 700, 200, names)
    assert machine._cgroup_memory(root, member) == 500
    cgroup(root / "outer" / "inner", "300", 100, 0, names)
    assert machine._cgroup_memory(root, member) == 200
    (root / "outer" / "memory.stat").write_text("inactive_file 200\nactive_file 50\n")
    cgroup(root / "outer" / "inner", "max", 100, 0, names)
    assert machine._cgroup_memory(root, member) == 550
    member.write_text("5:memory:/old\n3:cpu:/old\n")
    cgroup(root / "memory" / "old", "900", 100, 0, ("memory.limit_in_bytes", "memory.usage_in_bytes"))
    assert machine._cgroup_memory(root, member) == 800
    assert machine._cgroup_memory(root, tmp_path / "absent") is None


def test_gpu_backends_are_told_by_library_names(tmp_path, monkeypatch):
    (tmp_path / "lib").mkdir()
    for name in ("libggml-base.so.0", "libggml-cpu.so", "libggml-cpu-haswell.so", "libggml-cuda.so", "libllama.so"):
        (tmp_path / "lib" / name).touch()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    assert machine.gpu_backends() == ["cuda"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert machine.gpu_backends() == []


def test_sizes_in_words():
    assert [machine.in_words(size) for size in (0, 512, 4_900_000, 4_120_000_000, 54_300_000_000, 3e14)] == \
        ["0 B", "512 B", "4.9 MB", "4.1 GB", "54.3 GB", "300000 GB"]


def test_every_error_here_is_told_to_a_person():
    assert all(issubclass(error, ParleyError) for error in (BadModel, OutOfMemory, Unprocessable))


def test_a_model_that_writes_makes_no_embeddings(models):
    with pytest.raises(BadModel, match="pull minilm"):
        check_fits(models / "a.gguf", spec(embedding=True), available=1 << 40)
