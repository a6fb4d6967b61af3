"""Galleries and their jobs, over a small hub: what they offer, what is put into the folder, and what is refused."""

import hashlib
import ipaddress
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest

from services.engine import addresses, guard, model_jobs, yaml_files
from services.engine.addresses import Sources, plain_name
from services.engine.definitions import Apply, File, combined
from services.engine.gallery import Galleries, Gallery, install
from services.engine.model_jobs import Jobs, Noter
from services.errors import (
    BadModel,
    BadRequest,
    ConfigError,
    Conflict,
    Forbidden,
    NotFound,
    ParleyError,
    TooManyRequests,
    Unavailable,
)
from services.settings import Settings
from services.store import disk
from tests.hub_server import File as HubFile
from tests.hub_server import Hub
from tests.tiny_gguf import write_tiny

DEFINITION = """
name: mistral
license: apache-2.0
config_file: |
  backend: llama-cpp
  context_size: 2048
  parameters:
    model: mistral.gguf
    temperature: 0.2
  template:
    chat: mistral-chat
prompt_templates:
- name: mistral-chat
  content: |
    [INST] {{.Input}} [/INST]
files:
- filename: llama-cpp/models/mistral.gguf
  uri: huggingface://TheBloke/Mistral-GGUF/mistral.gguf
  sha256: SHA
"""
INDEX = """
- &base
  name: mistral
  url: URL/mistral.yaml
  description: a model
  license: apache-2.0
  tags: [llm]
- !!merge <<: *base
  name: mistral-hot
  overrides:
    parameters: {temperature: 1.5}
- name: tiny
  config_file: "parameters: {model: tiny.gguf}"
  files: [{filename: tiny.gguf, uri: "huggingface://TheBloke/Mistral-GGUF/mistral.gguf"}]
- name: beside
  url: sub/other.yaml
- name: outside
  url: ../../secret.yaml
- {no: name}
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def data(tmp_path):
    return write_tiny(tmp_path / "some.gguf").read_bytes()


@pytest.fixture
def hub(data):
    with Hub() as hub:
        hub.add("TheBloke/Mistral-GGUF", "mistral.gguf", data)
        sha = hashlib.sha256(data).hexdigest()
        hub.plain = {"/gallery/index.yaml": HubFile(INDEX.replace("URL", f"{hub.url}/gallery").encode()),
                     "/gallery/mistral.yaml": HubFile(DEFINITION.replace("SHA", sha).encode()),
                     "/gallery/sub/other.yaml": HubFile(b"config_file: {parameters: {model: o.gguf}}")}
        yield hub


@pytest.fixture
def galleries(hub, folder):
    return Galleries([Gallery("test", f"{hub.url}/gallery/index.yaml")], Sources(folder, hub.url))


def quiet(*_):
    """No progress is wanted."""


def config_of(folder, name):
    return yaml_files.read(folder / f"{name}.yaml").value


# ---------------------------------------------------------------- what there is

def test_available_is_what_localai_lists(galleries, folder, hub):
    listed = galleries.available()
    assert listed[1] == {"name": "mistral-hot", "description": "a model", "license": "apache-2.0", "tags": ["llm"],
                         "url": f"{hub.url}/gallery/mistral.yaml", "installed": False,
                         "gallery": {"name": "test", "url": f"{hub.url}/gallery/index.yaml"}}
    (folder / "tiny.yaml").write_text("")
    assert [entry["name"] for entry in galleries.available() if entry["installed"]] == ["tiny"]
    assert len(hub.asked("index.yaml")) == 1        # kept


def test_an_index_is_fetched_again_in_time(hub, folder):
    now = [1.0]
    galleries = Galleries([Gallery("test", f"{hub.url}/gallery/index.yaml")], Sources(folder, hub.url), lambda: now[0])
    galleries.available()
    now[0] = 602.0
    galleries.available()
    assert len(hub.asked("index.yaml")) == 2


def test_a_gallery_that_cannot_be_read_is_asked_again_in_time(hub, folder):
    now = [1.0]
    galleries = Galleries([Gallery("test", f"{hub.url}/late.yaml")], Sources(folder, hub.url), lambda: now[0])
    for _ in range(3):
        with pytest.raises(Unavailable):
            galleries.available()
    assert len(hub.asked("late.yaml")) == 1
    hub.plain["/late.yaml"] = HubFile(INDEX.encode())
    now[0] = 17.0
    assert len(galleries.available()) == 5


def test_one_gallery_that_fails_does_not_hide_the_others(hub, folder, caplog):
    good, bad = Gallery("good", f"{hub.url}/gallery/index.yaml"), Gallery("bad", f"{hub.url}/none.yaml")
    assert len(Galleries([bad, good], Sources(folder, hub.url)).available()) == 5
    assert "gallery bad:" in caplog.text
    with pytest.raises(Unavailable, match="no gallery can be read: bad"):
        Galleries([bad], Sources(folder, hub.url)).available()
    assert Galleries([], Sources(folder, hub.url)).available() == []


@pytest.mark.parametrize(("content", "told"), [
    (b"a: 1", "expected the index"), (b"[", "not YAML"), (b"\xff", "not UTF-8"), (b"<html>", "expected the index"),
    (b"x" * (addresses.MAX_TEXT + 1), "more than")])
def test_a_gallery_that_is_none(hub, folder, content, told):
    hub.plain["/bad.yaml"] = HubFile(content)
    with pytest.raises(Unavailable, match=told):
        Galleries([Gallery("bad", f"{hub.url}/bad.yaml")], Sources(folder, hub.url)).available()


def test_a_local_gallery_lies_in_the_folder_of_models(hub, folder, tmp_path):
    (folder / "index.yaml").write_text("- {name: x, config_file: {parameters: {model: x.gguf}}}")
    (tmp_path / "secret.yaml").write_text("- {name: secret}")
    (folder / "link.yaml").symlink_to(tmp_path / "secret.yaml")
    local = Galleries([Gallery("local", f"file://{folder}/index.yaml")], Sources(folder, hub.url))
    assert [entry["name"] for entry in local.available()] == ["x"]
    for url in (f"file://{tmp_path}/secret.yaml", f"file://{folder}/../secret.yaml", f"file://{folder}/link.yaml",
                "file:///etc/passwd", f"file://{folder}", f"file://{folder}/none"):
        with pytest.raises(Forbidden, match="from elsewhere nothing is read"):
            local.sources.text(url)


# ---------------------------------------------------------------- addresses

@pytest.mark.parametrize(("uri", "url"), [
    ("huggingface://a/b/c.gguf", "HUB/a/b/resolve/main/c.gguf"), ("hf://a/b/d/c.gguf", "HUB/a/b/resolve/main/d/c.gguf"),
    ("hf.co/a/b/c.gguf@v2", "HUB/a/b/resolve/v2/c.gguf"),
    ("https://huggingface.co/a/b/resolve/main/c.gguf", "HUB/a/b/resolve/main/c.gguf"),
    ("github:mudler/LocalAI/gallery/index.yaml@master",
     "https://raw.githubusercontent.com/mudler/LocalAI/master/gallery/index.yaml"),
    ("github:a/b/c.yaml", "https://raw.githubusercontent.com/a/b/main/c.yaml"),
    ("https://example.org/a?b=c", "https://example.org/a?b=c"), ("file:///x", "file:///x"),
    ("sub/other.yaml", "https://g.example/gallery/sub/other.yaml"),
])
def test_addresses(folder, uri, url):
    sources = Sources(folder, "http://hub.example")
    assert sources.expanded(uri, "https://g.example/gallery/index.yaml") == url.replace("HUB", "http://hub.example")


@pytest.mark.parametrize("uri", ["", "ftp://x/y", "oci://x/y", "ollama://x", "huggingface://a", "huggingface://a/b",
                                 "hf://a/../../etc/passwd", "hf://a/b/../../x", "../x.yaml", "/etc/passwd", "a/../../b",
                                 "https://user:secret@x/y", "http://", "%2e%2e/x.yaml", "javascript:1"])
def test_what_is_no_address(folder, uri):
    with pytest.raises(BadRequest):
        Sources(folder, "http://hub.example").expanded(uri, "https://g.example/gallery/index.yaml")


def test_private_addresses_are_only_for_the_operator_to_name(folder, monkeypatch):
    """Rows M9 and R4: what a client or a gallery names is fetched from public addresses only."""
    known = {"hub.example": "93.184.216.34", "lan.example": "192.168.1.9", "meta.example": "169.254.169.254"}
    monkeypatch.setattr(guard, "addresses", lambda host: [ipaddress.ip_address(known.get(host, host))])
    monkeypatch.setattr(guard.Guard, "_proxied", staticmethod(lambda url: False))
    sources = Sources(folder, "https://hub.example", "secret-token", trusted=("http://lan.example/index.yaml",))
    for url in ("https://127.0.0.1/x", "https://lan.example/x", "https://meta.example/x", "http://hub.example/x",
                "https://10.0.0.1:8080/x"):
        with pytest.raises(Forbidden, match="is not fetched"):
            sources.text(url)
    lan, token = sources.guard("http://lan.example/other.yaml")
    assert lan.is_home(guard.parse("http://lan.example/other.yaml")) and token is None
    assert sources.guard("https://hub.example/x")[1] == "secret-token"
    assert sources.guard("https://else.example/x")[1] is None


def test_a_redirect_is_followed_by_the_same_rules(hub, folder):
    hub.plain["/there.yaml"] = HubFile(b"a: 1")
    hub.evil("from.yaml", redirect="/there.yaml")
    sources = Sources(folder, hub.url)
    assert sources.text(f"{hub.url}/from.yaml") == "a: 1"
    for location in ("http://169.254.169.254/x", "file:///etc/passwd"):
        hub.evil("from.yaml", redirect=location)
        with pytest.raises(Forbidden):
            sources.text(f"{hub.url}/from.yaml")
    hub.evil("from.yaml", times=20, loop=True)
    with pytest.raises(Unavailable, match="redirects more than"):
        sources.text(f"{hub.url}/from.yaml")
    hub.evil("x.yaml", status=429, retry_after=7)
    with pytest.raises(TooManyRequests):
        sources.text(f"{hub.url}/x.yaml")


@pytest.mark.parametrize("name", ["../x.gguf", "/x.gguf", "a/../../x.gguf", "", ".", "x\0.gguf", "a\\x.gguf",
                                  ".x.gguf"])
def test_names_stay_in_the_folder(name):
    with pytest.raises(BadRequest):
        plain_name(name, "filename")
    assert plain_name("llama-cpp/models/x.gguf", "filename") == "x.gguf"


# ---------------------------------------------------------------- definitions

def test_layers_are_merged(galleries, hub):
    found = galleries.definition(Apply.of({
        "id": "TEST@Mistral-Hot".replace("TEST", "test"), "name": "mine", "overrides": {"context_size": 99},
        "files": [{"filename": "x.gguf", "uri": "https://e.example/x.gguf"}]}))
    assert found.name == "mine" and found.file == "mine.yaml"
    assert found.config["parameters"] == {"model": "mistral.gguf", "temperature": 1.5}
    assert (found.config["context_size"], found.config["name"]) == (99, "mine")
    assert [file.filename for file in found.files] == ["mistral.gguf", "x.gguf"]
    assert found.templates == (("mistral-chat", "[INST] {{.Input}} [/INST]\n"),)
    assert galleries.definition(Apply(id="beside")).config["parameters"]["model"] == "o.gguf"
    assert galleries.definition(Apply(url=f"{hub.url}/gallery/mistral.yaml")).name == "mistral"
    assert galleries.definition(Apply.of({"config_file": "name: x\nparameters: {model: a/b.gguf}"})).config == {
        "name": "x", "parameters": {"model": "b.gguf"}}


@pytest.mark.parametrize(("body", "told"), [
    ({}, "one of them is needed"), ({"id": 3}, "id must be a text"),
    ({"id": "x", "overrides": []}, "must be an object"),
    ({"id": "x", "files": [1]}, "list of objects"), ({"id": "x", "files": [{"filename": "x.gguf"}]}, "needs filename"),
    ({"id": "x", "files": [{"filename": "../x.gguf", "uri": "hf://a/b/c"}]}, "does not stay"),
    ({"id": "x", "files": [{"filename": "x.sh", "uri": "hf://a/b/c"}]}, "no .gguf file"),
    ({"id": "x", "files": [{"filename": "x.gguf", "uri": "y", "sha256": "12"}]}, "64 hexadecimal"),
    ({"id": "x", "prompt_templates": [{"name": "../x", "content": ""}]}, "does not stay"),
    ({"id": "x", "prompt_templates": [{"name": "x"}]}, "needs name and content"),
    ({"config_file": [1]}, "config_file must be"), ({"config_file": "["}, "not YAML"),
])
def test_a_body_that_is_none(body, told):
    with pytest.raises((BadRequest, ConfigError), match=told):
        Apply.of(body)


def test_a_model_needs_a_name_and_a_file_gets_a_plain_one():
    with pytest.raises(BadRequest, match="no name"):
        combined([], Apply(config={"parameters": {"model": "x.gguf"}}))
    assert combined([], Apply(name="qwen2.5:7b/../x")).file == "qwen2.5_7b_.._x.yaml"
    assert combined([], Apply(name="..")).file == ".yaml"


@pytest.mark.parametrize(("id", "error", "told"), [
    ("test@none", NotFound, "GET /models/available"), ("other@mistral", NotFound, "there are: test"),
    ("outside", BadRequest, "leaves the gallery")])
def test_what_is_not_there(galleries, id, error, told):
    with pytest.raises(error, match=told):
        galleries.definition(Apply(id=id))


# ---------------------------------------------------------------- putting it there

def test_a_model_is_installed_whole(galleries, folder, data):
    seen = []
    install(galleries.definition(Apply(id="mistral")), galleries.sources, lambda *progress: seen.append(progress))
    assert sorted(os.listdir(folder)) == ["mistral-chat.tmpl", "mistral.gguf", "mistral.yaml"]
    assert (folder / "mistral.gguf").read_bytes() == data
    assert config_of(folder, "mistral") == {
        "backend": "llama-cpp", "context_size": 2048, "parameters": {"model": "mistral.gguf", "temperature": 0.2},
        "template": {"chat": "mistral-chat"}, "name": "mistral"}
    assert seen[-1] == (0, 1, "mistral.gguf", len(data), len(data))
    install(galleries.definition(Apply(id="mistral")), galleries.sources, quiet)        # again: what is there is kept


def test_a_damaged_file_installs_nothing_and_a_cut_one_goes_on(galleries, folder, hub, data):
    definition = galleries.definition(Apply(id="mistral"))
    hub.evil("mistral.gguf", times=9, wrong=True)
    with pytest.raises(BadModel, match="came damaged"):
        install(definition, galleries.sources, quiet)
    assert os.listdir(folder) == []
    hub.evils.clear()
    hub.evil("mistral.gguf", cut=len(data) // 2)
    install(definition, galleries.sources, quiet)
    assert [headers.get("range") for headers in hub.asked("mistral.gguf")][-1] == f"bytes={len(data) // 2}-"
    assert (folder / "mistral.gguf").read_bytes() == data


def test_another_file_of_the_name_is_left_alone(galleries, folder):
    (folder / "mistral.gguf").write_bytes(b"mine")
    with pytest.raises(Conflict, match="is not the file that would be downloaded"):
        install(galleries.definition(Apply(id="mistral")), galleries.sources, quiet)
    assert os.listdir(folder) == ["mistral.gguf"] and (folder / "mistral.gguf").read_bytes() == b"mine"


def test_a_page_is_no_model(galleries, folder, hub):
    hub.evil("mistral.gguf", times=9, html=True)
    with pytest.raises(ParleyError):
        install(galleries.definition(Apply(id="tiny")), galleries.sources, quiet)
    assert os.listdir(folder) == []


def test_a_local_file_is_copied(galleries, folder, data, tmp_path):
    (folder / "sub").mkdir()
    (folder / "sub" / "x.gguf").write_bytes(data)
    file = File("y.gguf", f"file://{folder}/sub/x.gguf", hashlib.sha256(data).hexdigest())
    wanted = Apply(name="y", config={"parameters": {"model": "y.gguf"}}, files=(file,))
    wrong = replace(wanted, files=(replace(file, sha256="0" * 64),))
    with pytest.raises(BadModel, match="not what was promised"):
        install(galleries.definition(wrong), galleries.sources, quiet)
    assert not (folder / "y.gguf").exists()
    install(galleries.definition(wanted), galleries.sources, quiet)
    assert (folder / "y.gguf").read_bytes() == data
    away = replace(wanted, name="z", files=(File("z.gguf", f"file://{tmp_path}/some.gguf"),))
    with pytest.raises(Forbidden):
        install(galleries.definition(away), galleries.sources, quiet)


# ---------------------------------------------------------------- jobs

def done(jobs, id, wait=20):
    deadline = time.monotonic() + wait
    while not (job := jobs.get(id)).processed:
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def test_a_job_tells_how_it_is(galleries, folder, tmp_path):
    jobs = Jobs(tmp_path, galleries)
    first = jobs.begin(Apply(id="mistral"))
    assert (first.processed, first.message, first.error) == (False, "queued", None)
    job = done(jobs, first.uuid)
    assert (job.message, job.error, job.progress, job.gallery_element_name) == ("completed", None, 100.0, "mistral")
    assert (folder / "mistral.yaml").exists()
    assert done(Jobs(tmp_path, galleries), first.uuid) == job       # any process can tell
    failed = done(jobs, jobs.begin(Apply(id="test@none")).uuid)
    assert "no gallery has a model 'none'" in failed.error and failed.message == f"error: {failed.error}"
    for id in ("zzz", "../../etc/passwd", first.uuid.upper(), "0" * 8 + "-0000-0000-0000-" + "0" * 12):
        with pytest.raises(NotFound):
            jobs.get(id)


def test_jobs_take_turns_and_are_not_without_number(galleries, tmp_path, monkeypatch):
    jobs, gate, running = Jobs(tmp_path, galleries), threading.Event(), []

    def slow(*_):
        running.append(1)
        assert len(running) == 1
        gate.wait(10)
        running.pop()
        raise NotFound("enough")
    monkeypatch.setattr(model_jobs, "MOST", 3)
    monkeypatch.setattr(galleries, "definition", slow)
    ids = [jobs.begin(Apply(id="x")).uuid for _ in range(3)]
    with pytest.raises(TooManyRequests):
        jobs.begin(Apply(id="x"))
    gate.set()
    assert {done(jobs, id).error for id in ids} == {"enough"}
    assert done(jobs, jobs.begin(Apply(id="x")).uuid).processed


def test_a_surprise_is_told_and_logged(galleries, tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise ValueError("secret detail")
    monkeypatch.setattr(galleries, "definition", broken)
    job = Jobs(tmp_path, galleries).apply(Apply(id="x"))
    assert job.processed and "internal error" in job.error and "secret" not in job.error
    assert "secret detail" in caplog.text


def test_a_job_whose_process_died_is_told_as_failed(galleries, tmp_path):
    code = ("import sys, os, time; from pathlib import Path\n"
            "from services.engine.addresses import Sources\nfrom services.engine.gallery import Galleries\n"
            "from services.engine.model_jobs import Jobs\nfrom services.engine.definitions import Apply\n"
            "galleries = Galleries([], Sources(Path('/nowhere')))\n"
            "galleries.definition = lambda wanted: time.sleep(60)\n"
            "print(Jobs(Path(sys.argv[1]), galleries).begin(Apply(name='x')).uuid, flush=True); time.sleep(60)")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        id = process.stdout.readline().strip()
        jobs = Jobs(tmp_path, galleries)
        assert not jobs.get(id).processed
    finally:
        process.kill()
        process.wait()
    job = jobs.get(id)
    assert job.processed and "was stopped or restarted" in job.error
    assert json.loads((tmp_path / "model_jobs" / f"{id}.json").read_text())["processed"]
    assert done(jobs, jobs.begin(Apply(id="mistral")).uuid).error is None       # its turn is over


def test_all_jobs_are_told_the_newest_first(galleries, tmp_path, monkeypatch, caplog):
    jobs = Jobs(tmp_path, galleries)
    assert jobs.all() == []
    ids = [jobs.apply(wanted).uuid for wanted in (Apply(id="test@none"), Apply(id="mistral"), Apply(name="x"),
                                                  Apply(url="https://u:p@nowhere.invalid/x.yaml?signature=secret"))]
    assert [job.uuid for job in jobs.all()] == ids[::-1] == [job.uuid for job in Jobs(tmp_path, galleries).all()]
    assert [job.gallery_element_name for job in jobs.all()] == ["nowhere.invalid/x.yaml", "x", "mistral", "test@none"]
    record = json.loads((jobs.folder / f"{ids[0]}.json").read_text())
    other, older = (f"{digit * 8}-0000-0000-0000-{'0' * 12}" for digit in "12")
    for name, text in ((ids[1], "{"), (ids[2], json.dumps({**record, "uuid": ids[2], "progress": "half"})),
                       (other, json.dumps({**record, "uuid": other, "created": 1e300})), ("notes", "[]"),
                       (older, json.dumps(record))):
        (jobs.folder / f"{name}.json").write_text(text)
    (jobs.folder / f"{'3' * 8}-0000-0000-0000-{'0' * 12}.json").mkdir()
    (jobs.folder / f"{'4' * 8}-0000-0000-0000-{'0' * 12}.json").symlink_to(jobs.folder / f"{ids[0]}.json")
    assert [job.uuid for job in jobs.all()] == [ids[3], ids[0]]
    del record["created"]                                       # one of an earlier version
    (jobs.folder / f"{older}.json").write_text(json.dumps({**record, "uuid": older, "processed": False}))
    abandoned = jobs.all()[-1]
    assert (abandoned.uuid, abandoned.created, abandoned.processed) == (older, 0.0, True)
    assert "was stopped or restarted" in abandoned.error and not caplog.records[4:]
    monkeypatch.setattr(model_jobs, "KEPT", 2)
    assert len(jobs.all()) <= 2


def test_a_record_that_cannot_be_read_hides_no_other(galleries, tmp_path, monkeypatch):
    jobs = Jobs(tmp_path, galleries)
    ids = [jobs.apply(Apply(id="test@none")).uuid for _ in range(2)]
    real = disk.read_bytes

    def read(path):
        if path.stem == ids[1]:
            raise Unavailable("it cannot be read")
        return real(path)
    monkeypatch.setattr(disk, "read_bytes", read)
    assert [job.uuid for job in jobs.all()] == ids[:1]


def test_a_job_whose_process_died_is_told_on_a_full_disk_too(galleries, tmp_path, monkeypatch):
    jobs = Jobs(tmp_path, galleries)
    id = jobs.apply(Apply(id="test@none")).uuid
    path = jobs.folder / f"{id}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "processed": False}))

    def full(op):
        if op.kind == "write":
            raise OSError(28, "No space left on device")
    monkeypatch.setattr(disk, "watcher", full)
    assert [job.error for job in (*jobs.all(), jobs.get(id), jobs.cancel(id))] == [model_jobs.DIED] * 3
    assert not json.loads(path.read_text())["processed"]


def test_a_job_is_cancelled_by_another_process_while_it_waits_and_while_it_works(galleries, tmp_path, monkeypatch):
    jobs, others, gate = Jobs(tmp_path, galleries), Jobs(tmp_path, galleries), threading.Event()
    steps = []

    def slow(definition, sources, progress):
        steps.append(definition)
        gate.wait(20)
        progress(0, 1, "x.gguf", 4, 4)
        steps.append("too far")
    monkeypatch.setattr(model_jobs, "install", slow)
    works, waits = (jobs.begin(Apply(id="mistral")).uuid for _ in range(2))
    while not steps:
        time.sleep(0.01)
    first, second = others.cancel(works), others.cancel(waits)
    assert (first.message, second.message, second.processed) == ("cancelling", "cancelling", False)
    assert {job.message for job in others.all()} == {"cancelling"}
    gate.set()
    for id in (works, waits):
        job = done(others, id)
        assert (job.error, job.message) == ("cancelled", "error: cancelled") and others.cancel(id) == job
    assert len(steps) == 1
    with pytest.raises(NotFound):
        others.cancel("zzz")
    monkeypatch.setattr(model_jobs, "KEPT", 0)
    jobs._forget_old()
    assert not list(jobs.folder.glob("*.cancel"))


def test_old_records_go(galleries, tmp_path, monkeypatch):
    monkeypatch.setattr(model_jobs, "KEPT", 2)
    jobs = Jobs(tmp_path, galleries)
    ids = [jobs.apply(Apply(id="test@none")).uuid for _ in range(5)]
    assert len(list(jobs.folder.glob("*.json"))) == 3
    assert jobs.get(ids[-1]).processed


def test_progress_is_noted_now_and_then():
    now, written = [0.0], []
    note = Noter(model_jobs.Job("u", "x"), lambda job: written.append(job) or job, lambda: now[0])
    for done_bytes in (1, 2, 3):
        note(1, 2, "x.gguf", done_bytes * 1_000_000, 4_000_000)
    now[0] = 1.0
    note(1, 2, "x.gguf", 4_000_000, 4_000_000)
    assert [(job.progress, job.downloaded_size, job.file_size) for job in written] == [
        (62.5, "1.0 MB", "4.0 MB"), (100.0, "4.0 MB", "4.0 MB")]


def test_preload_puts_there_what_is_not(galleries, folder, tmp_path):
    jobs = Jobs(tmp_path, galleries)
    model_jobs.preload(jobs, [Apply(id="test@none"), Apply(id="mistral")]).join(20)
    assert (folder / "mistral.yaml").exists()
    (folder / "mistral.yaml").write_text("name: mistral\nparameters: {model: mine.gguf}\n")
    model_jobs.preload(jobs, [Apply(id="mistral")]).join(20)
    assert "mine.gguf" in (folder / "mistral.yaml").read_text()


def test_what_is_wanted_at_the_start(tmp_path):
    path = tmp_path / "preload.yaml"
    path.write_text("- id: b\n- {url: 'hf://a/b/c.yaml', name: x}\n")
    settings = replace(Settings(), preload_models=({"id": "a"},), preload_file=path)
    assert model_jobs.wanted_at_start(settings) == [Apply(id="a"), Apply(id="b"),
                                                    Apply(url="hf://a/b/c.yaml", name="x")]
    for text, told in (("a: 1", "expected a list"), ("- {}", "PRELOAD_MODELS"), ("[", "not YAML")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=told):
            model_jobs.wanted_at_start(settings)
    with pytest.raises(ConfigError, match="GALLERIES: 'ftp://x'"):
        model_jobs.wanted_at_start(replace(Settings(), galleries=(("a", "ftp://x"),)))


def test_what_the_operator_names_may_be_anywhere():
    files = (File("x.gguf", "http://lan.example/x.gguf"), File("y.gguf", "hf://a/b/y.gguf"))
    jobs = model_jobs.jobs_of(replace(Settings(), galleries=(("a", "https://g.example/i.yaml"),)),
                              [Apply(url="http://near.example/x.yaml", files=files)])
    assert jobs.galleries.sources.trusted == ("http://near.example/x.yaml", "http://lan.example/x.gguf",
                                              "https://g.example/i.yaml")
