"""LocalAI's model files as profiles: their fields, their templates, what is wrong with them, and when they change."""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest

from services.chat import localai
from services.chat.localai import Folder
from services.chat.profiles import Profiles
from services.errors import ConfigError, Conflict, NotFound
from services.settings import Settings

FULL = """
name: mistral
backend: llama-cpp
description: The seed's
parameters:
  model: mistral.gguf
  temperature: 0.2
  top_p: 0.7
  top_k: 80
  max_tokens: 300
  frequency_penalty: 0.5
  presence_penalty: -0.5
  repeat_penalty: 1.2
  repeat_last_n: 32
  seed: 7
  typical_p: 1
context_size: 4096
threads: 3
f16: true
mmap: true
stopwords: ["</s>", "[INST]"]
system_prompt: Be brief.
roles: {user: "U: ", assistant: "A: "}
template:
  chat: mistral-chat
  chat_message: "{{.Role}}{{.Content}}"
  join_chat_messages_by_character: ""
  reply_prefix: x
"""
CONFIG = {"SelectedModel": "one", "one": {"model": "one.gguf"}}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "models").mkdir()
    for name in ("m.gguf", "mistral.gguf", "x.gguf"):
        (tmp_path / "models" / name).touch()
    (tmp_path / "data").mkdir()
    return tmp_path / "models"


@pytest.fixture
def load(folder, monkeypatch):
    """Profiles over `folder` and a config.json; looked at anew at each question."""
    monkeypatch.setattr(localai, "PATIENCE", 0.0)

    def begin(config=CONFIG, **settings):
        path = folder.parent / "data" / "config.json"
        path.write_text(json.dumps(config))
        return Profiles(path, replace(Settings(), models_dir=folder, **settings))
    return begin


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def minimal(name="m", model="m.gguf", **more):
    return json.dumps({"name": name, "parameters": {"model": model}, **more})    # JSON is YAML


def test_every_field_finds_its_place(folder, load, caplog):
    write(folder, "mistral.yaml", FULL)
    write(folder, "mistral-chat.tmpl", "<s>{{.SystemPrompt}} {{.Input}}[/INST]")
    caplog.set_level(logging.INFO)
    profiles = load()
    _, profile = profiles.current().get("mistral")
    shown = profile.model_dump(exclude_defaults=True)
    assert shown == {"model": "mistral.gguf", "n_ctx": 4096, "temperature": 0.2, "top_p": 0.7, "top_k": 80,
                     "max_tokens": 300, "frequency_penalty": 0.5, "presence_penalty": -0.5, "repeat_penalty": 1.2,
                     "repeat_last_n": 32, "seed": 7, "n_threads": 3, "stop": ["</s>", "[INST]"], "system": "Be brief.",
                     "description": "The seed's"}
    assert profile.go.render([{"role": "user", "content": "Hi"}], None, profile.system) == "<s>Be brief. U: Hi[/INST]"
    assert profiles.problem is None
    line, = [record.message for record in caplog.records if "mean nothing here" in record.message]
    assert line == ("models/mistral.yaml: model 'mistral': these fields mean nothing here: f16, mmap, "
                    "parameters.typical_p, template.reply_prefix")


def test_what_is_not_said_is_as_in_localai(folder, load, caplog):
    write(folder, "m.yaml", "parameters: {model: m.gguf}")
    _, profile = load(runner_threads=5).current().get("m")      # called as the file
    assert (profile.temperature, profile.top_p, profile.top_k, profile.repeat_penalty) == (0.9, 0.95, 40, 1.1)
    assert (profile.n_ctx, profile.max_tokens, profile.n_threads, profile.seed) == (512, 512, 5, None)
    assert profile.go.plain
    assert "context_size is not set: 512 tokens, as in LocalAI" in caplog.text


@pytest.mark.parametrize(("said", "field", "meant"), [
    ({"parameters": {"model": "m.gguf", "seed": -1}}, "seed", None),
    ({"parameters": {"model": "m.gguf", "max_tokens": 0}, "context_size": 99}, "max_tokens", 99),
    ({"parameters": {"model": "m.gguf", "repeat_last_n": -1}, "context_size": 99}, "repeat_last_n", 99),
    ({"parameters": {"model": "m.gguf", "repeat_penalty": 0}}, "repeat_penalty", 1.0),
    ({"gpu_layers": 0}, "n_gpu_layers", 0),
    ({"stopwords": ["a", "", "a", 3]}, "stop", ["a", "3"]),
    ({"embeddings": True}, "embedding", True),
    ({"embeddings": "yes"}, "embedding", True),
    ({"template": {"use_tokenizer_template": True}}, "chat_format", "model"),
])
def test_words_that_differ(folder, load, said, field, meant):
    write(folder, "m.yaml", minimal(**said))
    profile = load().current().get("m")[1]
    assert getattr(profile, field) == meant
    assert (profile.go is None) == ("template" in said)


def test_layers_for_a_gpu_need_one(folder, load, monkeypatch, caplog):
    write(folder, "m.yaml", minimal(gpu_layers=99999))
    monkeypatch.setattr(localai, "gpu_backends", lambda: [])
    assert load().current().get("m")[1].n_gpu_layers == 0
    assert "gpu_layers: this llama-cpp-python is built for the CPU only" in caplog.text
    monkeypatch.setattr(localai, "gpu_backends", lambda: ["cuda"])
    assert load().current().get("m")[1].n_gpu_layers == -1


def test_a_list_of_models_and_aliases(folder, load, caplog):
    write(folder, "all.yaml", "- {name: a, parameters: {model: a.gguf}}\n- {name: b, disabled: true, parameters: {}}\n"
                              "- {name: gpt-4, alias: a}\n- {name: gpt-3, alias: one}\n- {name: gpt-2, alias: zzz}\n")
    current = load().current()
    assert list(current.profiles) == ["one", "a", "gpt-4", "gpt-3"]
    assert current.profiles["gpt-4"] == current.profiles["a"] and current.profiles["gpt-3"].model == "one.gguf"
    assert current.sources == {"a": "models/all.yaml", "gpt-4": "models/all.yaml", "gpt-3": "models/all.yaml"}
    assert "there is no model 'zzz'" in caplog.text


def test_templates_are_files_beside_or_texts(folder, load, caplog):
    write(folder, "m.gguf.tmpl", "beside {{.Input}}")
    write(folder, "named.tmpl", "named {{.Input}}")
    write(folder, "a.yaml", minimal("a"))
    write(folder, "b.yaml", minimal("b", template={"chat": "named"}))
    write(folder, "c.yaml", minimal("c", template={"chat": "inline {{.Input}}", "completion": "named"}))
    write(folder, "d.yaml", minimal("d", template={"chat": "no where"}))
    profiles = load().current().profiles
    talk = [{"role": "user", "content": "Hi"}]
    assert [profiles[name].go.render(talk) for name in "abcd"] == ["beside Hi", "named Hi", "inline Hi", "no where"]
    assert profiles["c"].go.completion_prompt("x") == "named x"
    assert profiles["b"].go.completion_prompt("x") == "beside x"
    assert "there is no models/no where.tmpl: the text itself is the template" in caplog.text


@pytest.mark.parametrize(("text", "told"), [
    ("name: [", "models/bad.yaml, line "),
    ("- 1", "models/bad.yaml, line 1: expected a model"),
    ("just text", "expected a model"), ("", "expected a model"),
    ("name: x\n", "parameters.model is missing"),
    ("name: x\nparameters:\n  model: x.bin\n", "line 3: parameters.model 'x.bin' is no .gguf file"),
    ("name: x\nparameters:\n  model: huggingface://a/b/c.gguf\n", "line 3: parameters.model 'huggingface://a/b/c.gguf'"),
    ("name: x\nparameters:\n  model: ../x.gguf\n", "line 3"),
    ("name: x\nparameters: {model: x.gguf}\nbackend: whisper\n", "line 3: model 'x': the backend 'whisper'"),
    ("name: x\nparameters:\n  model: x.gguf\n  temperature: hot\n",
     "line 4: model 'x': parameters.temperature: input should be a valid number, not \"hot\""),
    ("name: x\nparameters: {model: x.gguf}\ncontext_size: 3\n", "line 3: model 'x': context_size: input should be gr"),
    ("name: x\nparameters: {model: x.gguf}\ntemplate: {chat: \"{{foo}}\"}\n",
     "models/bad.yaml, template.chat, line 1: the function foo is not supported"),
    ("name: x\nparameters: {model: x.gguf}\ntemplate: {chat: ../secret}\n", "line 3: template.chat: template"),
    ("name: x\nparameters: {model: x.gguf}\ntemplate:\n  chat: greeter\n",
     "models/bad.yaml, line 4: template.chat: there is no models/greeter.tmpl, and a single word is no template"),
    ("name: x\nparameters: {model: x.gguf}\nembeddings: 3\n", "line 3: embeddings must be true or false"),
    ("name: x\nname: y\n", "line 2: 'name' is given twice"),
    ("name: SelectedModel\nparameters: {model: x.gguf}\n",
     "models/bad.yaml: model 'SelectedModel': a model cannot be called"),
    ("name: \"a\\nb\"\nparameters: {model: x.gguf}\n", "line 1: a model needs a name"),
    ("name: good\nparameters: {model: x.gguf}\n", "models/good.yaml has one of this name already"),
])
def test_a_wrong_file_is_left_out_and_told_of(folder, load, text, told):
    write(folder.parent, "secret.tmpl", "secret")
    write(folder, "bad.yaml", text)
    write(folder, "aaa.yaml", minimal("first"))
    if "models/good.yaml" not in told:
        write(folder, "good.yaml", minimal("good"))
    else:
        write(folder, "zzz.yaml", text)
        (folder / "bad.yaml").rename(folder / "good.yaml")
    profiles = load()
    assert sorted(profiles.current().profiles) == ["first", "good", "one"]
    assert told in (profiles.problem or "").replace("models/zzz.yaml", "models/bad.yaml"), profiles.problem


def test_files_that_are_none_of_models(folder, load):
    (folder / "link.yaml").symlink_to("/etc/hostname")
    os.mkfifo(folder / "pipe.yaml")
    write(folder, ".hidden.yaml", minimal("hidden"))
    write(folder, "index.yaml", "- {name: x, url: 'github:a/b/c.yaml@master', files: []}")
    write(folder, "gallery.yaml", "name: x\nconfig_file: |\n  name: y\n")
    write(folder, "a b.yaml", minimal("space"))
    profiles = load()
    assert list(profiles.current().profiles) == ["one"]
    problem = profiles.problem or ""
    assert "link.yaml" in problem and "pipe.yaml" in problem and "'a b.yaml'" in problem
    assert "hidden" not in problem and "index" not in problem and "gallery" not in problem


def test_config_json_overrules_a_name(folder, load, caplog):
    write(folder, "one.yaml", minimal("one", "other.gguf"))
    current = load().current()
    assert current.profiles["one"].model == "one.gguf" and current.sources == {}
    told = "models/one.yaml: the model 'one' is left out: data/config.json has a profile of this name"
    assert told in caplog.text and load().problem == told


def test_a_model_whose_file_is_missing_is_told_until_it_is_there(folder, load):
    write(folder, "new.yaml", "name: new\nparameters:\n  model: new.gguf\n")
    profiles = load()
    assert profiles.problem == "models/new.yaml, line 3: model 'new': parameters.model: there is no new.gguf in models/"
    (folder / "new.gguf").touch()
    assert profiles.problem is None


def test_who_asks_for_what_is_left_out_is_told_which_file_is_wrong(folder, load):
    write(folder, "greeter.yaml", minimal("greeter", template={"chat": "greeter"}))
    write(folder, "broken.yaml", "name: [")
    write(folder, "hot.yaml", minimal("warm", context_size=3))
    profiles = load()
    for name, file in (("greeter", "greeter"), ("broken", "broken"), ("warm", "hot")):
        with pytest.raises(NotFound, match=rf"no model '{name}' \(models/{file}.yaml, line .*; there are: one"):
            profiles.named(name)
        with pytest.raises(NotFound, match=rf"no profile '{name}' \(models/{file}.yaml, line "):
            profiles.current().get(name)
        with pytest.raises(NotFound, match=rf"no model '{name}'; there are: one$"):
            profiles.named(name, ["one"])


def test_files_are_taken_in_without_a_restart(folder, load):
    profiles = load()
    assert list(profiles.current().profiles) == ["one"]
    write(folder, "m.yaml", minimal(template={"chat": "t"}))
    assert "m" not in profiles.current().profiles and "there is no models/t.tmpl" in profiles.problem
    write(folder, "t.tmpl", "old {{.Input}}")
    assert "m" in profiles.current().profiles
    write(folder, "t.tmpl", "new {{.Input}}")
    assert profiles.current().profiles["m"].go.render([{"role": "user", "content": "x"}]) == "new x"
    write(folder, "m.yaml", "name: [")
    assert "m" not in profiles.current().profiles and "models/m.yaml" in profiles.problem
    (folder / "m.yaml").unlink()
    assert profiles.current() is profiles.current() and profiles.problem is None


def test_what_is_not_as_a_file_says_is_told_once(folder, load, caplog):
    write(folder, "m.yaml", minimal(f16=True))
    write(folder, "bad.yaml", "name: [")
    profiles = load()
    for name in ("n", "o"):
        write(folder, f"{name}.yaml", minimal(name))
        profiles.current()
    assert caplog.text.count("these fields mean nothing here: f16") == 1 and caplog.text.count("not YAML") == 1
    write(folder, "m.yaml", minimal(f16=True, mmap=True))
    profiles.current()
    assert caplog.text.count("these fields mean nothing here: f16, mmap") == 1


def test_the_folder_is_looked_at_once_a_second(folder):
    now = [0.0]
    files = Folder(folder, now=lambda: now[0])
    before = files.current()
    write(folder, "m.yaml", minimal())
    assert files.current() is before
    now[0] = 1.5
    assert [model.name for model in files.current().models] == ["m"]


def test_one_may_be_selected_but_not_rewritten(folder, load):
    write(folder, "m.yaml", minimal())
    profiles = load()
    assert profiles.select("m", "m.gguf").selected == "m"
    assert json.loads(profiles.path.read_text()) == {**CONFIG, "SelectedModel": "m"}
    for change in (profiles.select, profiles.candidate):
        with pytest.raises(Conflict, match=r"comes from models/m\.yaml, which says that its model is m\.gguf"):
            change("m", "other.gguf")
    assert profiles.candidate("m", "m.gguf").go.plain
    (folder / "m.yaml").unlink()        # the last good one stays in use
    assert profiles.current().get()[0] == "m" and "which is no profile" in profiles.problem


def test_a_selected_one_that_is_wrong_at_the_start_stops_nobody_else(folder, load):
    write(folder, "m.yaml", "name: [")
    profiles = load({**CONFIG, "SelectedModel": "m"})
    assert profiles.current().get("one")[1].model == "one.gguf"
    with pytest.raises(NotFound, match="no profile 'm'"):
        profiles.current().get()
    assert "models/m.yaml" in profiles.problem
    write(folder, "m.yaml", minimal())
    assert profiles.current().get()[0] == "m" and profiles.problem is None
    (folder / "m.yaml").unlink()
    with pytest.raises(ConfigError, match="which is no profile"):
        load({**CONFIG, "SelectedModel": "m"})


def test_what_is_set_in_a_request_keeps_the_templates(folder, load):
    write(folder, "m.yaml", minimal())
    profile = load().current().get("m")[1]
    assert profile.overridden(temperature=0.0).go is profile.go


def test_go_cannot_come_from_config_json(load):
    for name in ("go", "_go"):
        with pytest.raises(ConfigError, match="unknown field"):
            load({**CONFIG, "one": {"model": "one.gguf", name: {}}})
