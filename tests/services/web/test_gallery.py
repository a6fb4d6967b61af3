"""LocalAI's files and galleries through a started server: dropped into the folder, asked, applied from a hub."""

import hashlib
import json
import os
import time

import pytest

from tests.conftest import MASTER
from tests.hub_server import File, Hub

YAML = """
name: mistral
parameters:
  model: tiny.gguf
  temperature: 0
context_size: 512
system_prompt: Be brief.
roles: {user: "USER: ", assistant: "HE: "}
f16: true
template:
  chat: mistral-chat
  completion: "complete: {{.Input}}"
  chat_message: "{{if eq .RoleName \\"user\\"}}[INST] {{.Content}} [/INST]{{else}}{{.Role}}{{.Content}}{{end}}"
"""
CHAT = "<s>{{.SystemPrompt}}\n{{.Input}}"
INDEX = """
- name: fresh
  description: a model of a gallery
  license: mit
  config_file: |
    parameters: {model: fresh.gguf}
    context_size: 256
    template: {chat: fresh-chat}
  prompt_templates: [{name: fresh-chat, content: "fresh {{.Input}}"}]
  files: [{filename: sub/fresh.gguf, uri: "huggingface://owner/repo/fresh.gguf", sha256: SHA}]
- name: damaged
  config_file: {parameters: {model: damaged.gguf}}
  files: [{filename: damaged.gguf, uri: "huggingface://owner/repo/fresh.gguf", sha256: ZERO}]
"""


@pytest.fixture
def hub(home):
    data = (home / "models" / "tiny.gguf").read_bytes()
    with Hub() as hub:
        hub.add("owner/repo", "fresh.gguf", data)
        index = INDEX.replace("SHA", hashlib.sha256(data).hexdigest()).replace("ZERO", "0" * 64)
        hub.plain["/index.yaml"] = File(index.encode())
        yield hub


def served(start, hub, **environment):
    galleries = json.dumps([{"name": "test", "url": f"{hub.url}/index.yaml"}])
    return start(GALLERIES=galleries, HF_ENDPOINT=hub.url, **environment)


def drop(home, name, text):
    """As an editor does it: never half a file."""
    (home / "models" / f".{name}").write_text(text)
    os.replace(home / "models" / f".{name}", home / "models" / name)


def soon(what, wait=30):
    deadline = time.monotonic() + wait
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def applied(server, **body):
    response = server.call("POST", "/models/apply", json=body)
    assert response.status_code == 200, response.text
    uuid, status = response.json()["uuid"], response.json()["status"]
    assert status == f"{server.url}/models/jobs/{uuid}"

    def processed():
        job = server.call("GET", f"/models/jobs/{uuid}").json()
        return job if job["processed"] else None
    return soon(processed)


def test_files_dropped_into_the_folder_are_profiles(home, start):
    server = start().ready()
    assert server.answer("Hi", profile="mistral").status_code == 404
    drop(home, "mistral-chat.tmpl", CHAT)
    drop(home, "mistral.yaml", YAML)
    profiles = soon(lambda: (found := server.call("GET", "/models").json()["profiles"]).get("mistral") and found)
    assert profiles["mistral"]["n_ctx"] == 512 and "go" not in profiles["mistral"]
    said = server.answer("My name is Ada.", 1, profile="mistral").json()["result"]
    assert server.answer("!prompt", 1, profile="mistral").json()["result"] == (
        f"<s>Be brief.\n[INST] My name is Ada. [/INST]\nHE: {said}\n[INST] !prompt [/INST]")
    talk = [{"role": "user", "content": "{{.Input}}"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "!prompt"}]
    answer = server.call("POST", "/v1/chat/completions", json={"model": "mistral", "messages": talk}).json()
    assert answer["choices"][0]["message"]["content"] == (
        "<s>Be brief.\n[INST] {{.Input}} [/INST]\nHE: b\n[INST] !prompt [/INST]")
    completion = server.call("POST", "/v1/completions", json={"model": "mistral", "prompt": "!prompt"}).json()
    assert completion["choices"][0]["text"] == "complete: !prompt"
    drop(home, "mistral-chat.tmpl", "new: {{.Input}}")
    soon(lambda: server.answer("!prompt", profile="mistral").json()["result"]
         == "new: Be brief.\n[INST] !prompt [/INST]")
    assert "these fields mean nothing here: f16" in server.log
    a_wrong_file_is_told_of_and_hurts_nobody(home, server)
    one_of_localais_may_be_selected(home, server)


def a_wrong_file_is_told_of_and_hurts_nobody(home, server):
    drop(home, "good.yaml", "parameters: {model: tiny.gguf}\ncontext_size: 256\n")
    drop(home, "bad.yaml", "name: bad\nparameters: {model: tiny.gguf}\ntemplate:\n  chat: \"{{.Input | env}}\"\n")
    warnings = soon(lambda: server.call("GET", "/readyz").json()["warnings"])
    assert "models/bad.yaml, template.chat, line 1: the function env is not supported" in warnings[0]
    assert server.answer("Hi", profile="good").status_code == 200
    assert server.answer("Hi", profile="one").status_code == 200
    assert server.answer("Hi", profile="bad").status_code == 404


def one_of_localais_may_be_selected(home, server):
    switch = {"model": "tiny.gguf", "model_config": "good"}
    assert server.call("POST", "/models/model", json=switch).status_code == 200
    assert server.answer("Hi").json()["profile"] == "good"
    refused = server.call("POST", "/models/model", json={**switch, "model": "other.gguf"})
    assert refused.status_code == 409 and "models/good.yaml" in refused.json()["message"]
    written = json.loads((home / "data" / "config.json").read_text())
    assert written["SelectedModel"] == "good" and set(written) == {"SelectedModel", "one", "two"}
    without = server.call("POST", "/models/apply", json={"id": "x"})
    assert without.status_code == 400 and "GALLERIES" in without.json()["message"]
    assert server.call("GET", "/models/available").json() == []


def test_models_of_a_gallery_are_applied_and_answer(home, start, hub):
    server = served(start, hub).ready()
    listed = server.call("GET", "/models/available").json()
    assert [(entry["name"], entry["installed"]) for entry in listed] == [("fresh", False), ("damaged", False)]
    job = applied(server, id="test@fresh", name="mine", overrides={"description": "of mine"})
    assert (job["message"], job["error"], job["progress"]) == ("completed", None, 100.0)
    profiles = soon(lambda: (found := server.call("GET", "/models").json()["profiles"]).get("mine") and found)
    assert profiles["mine"]["description"] == "of mine"
    assert server.answer("!prompt", profile="mine").json()["result"] == "fresh !prompt"
    assert applied(server, id="fresh")["error"] is None
    assert [entry["installed"] for entry in server.call("GET", "/models/available").json()] == [True, False]
    before = sorted(os.listdir(home / "models"))
    assert "came damaged" in applied(server, id="damaged")["error"]
    assert "no gallery has a model" in applied(server, id="test@none")["error"]
    assert sorted(os.listdir(home / "models")) == before
    all_jobs_are_listed(home, server, job)
    for body, status, told in BAD:
        response = server.call("POST", "/models/apply", json=body)
        assert response.status_code == status and told in response.json()["message"], response.text
    who_may_do_what(server)


def all_jobs_are_listed(home, server, first):
    (home / "data" / "model_jobs" / f"{'1' * 8}-0000-0000-0000-{'0' * 12}.json").write_text("{")
    jobs = server.call("GET", "/models/jobs").json()
    assert [one["error"] is None for one in jobs.values()] == [False, False, True, True]
    assert list(jobs)[-1] == first["uuid"] and jobs[first["uuid"]] == first and first["created"].endswith("Z")
    assert server.call("DELETE", f"/models/jobs/{first['uuid']}").json() == first       # it is done


BAD = [
    ({}, 400, "one of them is needed"), ({"id": "zzz@x"}, 404, "there are: test"), ({"idd": "x"}, 400, "unknown field"),
    ({"id": 3}, 400, "id"), ({"config_file": "["}, 400, "not YAML"),
    ({"id": "fresh", "files": [{"filename": "../x.gguf", "uri": "hf://a/b/c"}]}, 400, "does not stay"),
    ({"url": "hf://a/b/c.yaml", "files": [{"filename": "x.gguf", "uri": "hf://a", "sha256": "1"}]}, 400, "hexadecimal"),
]


def who_may_do_what(server):
    reader, user = server.make_key(scopes=["models:read"]), server.make_key(scopes=["answer"])
    assert server.call("GET", "/models/available", reader).status_code == 200
    assert server.call("GET", "/models/available", user).status_code == 403
    assert [server.call("GET", "/models/jobs", key).status_code for key in (reader, user)] == [200, 403]
    assert [server.call("DELETE", "/models/jobs/zzz", key).status_code for key in (reader, MASTER)] == [403, 404]
    assert server.call("POST", "/models/apply", reader, json={"id": "fresh"}).status_code == 403
    assert server.call("GET", "/models/jobs/zzz", reader).status_code == 404
    assert server.call("GET", "/models/jobs/zzz", user).status_code == 403
    assert server.call("GET", "/models/available", "").status_code == 401


@pytest.mark.model
def test_a_go_template_gives_a_model_the_prompt_that_its_own_does(home, start):
    """ChatML in LocalAI's files, beside the same in the model's own: the same answers, word for word."""
    drop(home, "chatml.tmpl", "<|im_start|>{{.RoleName}}\n{{.Content}}<|im_end|>")
    drop(home, "go.yaml", 'parameters: {model: starter.gguf, temperature: 0, repeat_penalty: 1, max_tokens: 40}\n'
         'context_size: 512\ntemplate: {chat_message: chatml, chat: "{{.Input}}\\n<|im_start|>assistant\\n"}\n')
    own = {"model": "starter.gguf", "n_ctx": 512, "temperature": 0, "max_tokens": 40, "chat_format": "model"}
    (home / "data" / "config.json").write_text(json.dumps({"SelectedModel": "own", "own": own}))
    server = start(runner="llama").ready()
    for prompt in ("Hello!", "My name is Ada.", "What is my name?"):
        answers = [server.answer(prompt, profile, profile=profile).json() for profile in ("own", "go")]
        assert answers[0]["result"] == answers[1]["result"] != ""
        assert answers[0]["usage"]["prompt_tokens"] == answers[1]["usage"]["prompt_tokens"]
    assert "Ada" in answers[1]["result"]


def test_models_are_preloaded_and_several_workers_know_the_jobs(home, start, hub):
    drop(home, "preload.txt", "- {id: fresh, name: second}\n")
    server = served(start, hub, PRELOAD_MODELS='[{"id": "test@fresh", "name": "first"}]', WEB_WORKERS="2",
                    PRELOAD_MODELS_CONFIG=str(home / "models" / "preload.txt"))
    soon(lambda: {"first", "second"} <= set(server.call("GET", "/models").json()["profiles"]))
    uuid = server.call("POST", "/models/apply", json={"id": "fresh"}).json()["uuid"]
    assert {server.call("GET", f"/models/jobs/{uuid}").status_code for _ in range(10)} == {200}
    assert {len(server.call("GET", "/models/jobs").json()) for _ in range(10)} == {3}


def test_a_wrong_setting_ends_the_start(start):
    with pytest.raises(AssertionError, match="PRELOAD_MODELS or PRELOAD_MODELS_CONFIG: id must be a text"):
        start(PRELOAD_MODELS='[{"id": 3}]')
