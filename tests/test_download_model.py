"""models/download_model.sh: a model of a hub with its yaml and tmpl, which are a profile at once (S2.3)."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from services.chat.profiles import Profiles, ensure_default
from services.settings import Settings
from tests.hub_server import Hub
from tests.tiny_gguf import write_tiny

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "models" / "download_model.sh"
MISTRAL = "Mistral-7B-Instruct-v0.2-GGUF"
TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"}]


@pytest.fixture
def hub(tmp_path):
    data = write_tiny(tmp_path / "some.gguf").read_bytes()
    with Hub() as hub:
        hub.add(f"TheBloke/{MISTRAL}", "mistral-7b-instruct-v0.2.Q4_0.gguf", data)
        hub.add("nomic-ai/nomic-embed-text-v1.5-GGUF", "nomic-embed-text-v1.5.Q5_K_M.gguf", data)
        hub.add("me/mine", "mine.gguf", data)
        yield hub


@pytest.fixture
def run(tmp_path, hub):
    folder = tmp_path / "models"
    folder.mkdir()

    def script(*arguments):
        environment = {**os.environ, "MODELS_DIR": str(folder), "DATA_DIR": str(tmp_path), "HF_ENDPOINT": hub.url,
                       "PYTHON": sys.executable}
        return subprocess.run([str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, timeout=100)
    script.folder = folder
    return script


def profiles(folder):
    return Profiles(ensure_default(folder.parent), replace(Settings(), models_dir=folder)).current().profiles


def test_without_a_name_it_gets_one_to_talk_to_and_one_for_embeddings(run):
    done = run()
    assert done.returncode == 0, done.stderr
    found = profiles(run.folder)
    assert (found[MISTRAL].n_ctx, found[MISTRAL].temperature, found[MISTRAL].stop) == (4096, 0.2, ["</s>", "[INST]"])
    assert found[MISTRAL].go.render(TALK) == "[INST] Hi [/INST] Hello.</s>[INST] Bye [/INST]"
    assert found["nomic-embed-text-v1.5-GGUF"].embedding
    (run.folder / "mistral-instruct.tmpl").write_text("mine {{.Content}}")
    again = run("mistral")
    assert again.returncode == 0 and "left as it is" in again.stdout
    assert (run.folder / "mistral-instruct.tmpl").read_text() == "mine {{.Content}}"
    assert not [name for name in os.listdir(run.folder) if name.startswith(".")]


def test_any_other_model(run):
    assert run("me/mine", "mine.gguf", "my-model").returncode == 0
    profile = profiles(run.folder)["my-model"]
    assert (profile.model, profile.chat_format, profile.go) == ("mine.gguf", "model", None)


@pytest.mark.parametrize(("arguments", "told"), [
    (["zzz"], "there is no model zzz"), (["me/mine"], "name a file"), (["mpnet"], "does not run MPNet"),
    (["me/mine", "x.bin"], "no .gguf file"), (["me/mine", "mine.gguf", "../x"], "no plain name"),
    (["me/mine", 'a"b.gguf'], "no plain name"), (["me/none", "x.gguf"], "404")])
def test_what_it_refuses(run, arguments, told):
    done = run(*arguments)
    assert done.returncode != 0 and told in done.stderr
    assert os.listdir(run.folder) == []


def test_help():
    done = subprocess.run([str(SCRIPT), "--help"], env={**os.environ, "PYTHON": sys.executable}, capture_output=True,
                          text=True, timeout=30)
    assert done.returncode == 0 and "download_model.sh mistral" in done.stdout
