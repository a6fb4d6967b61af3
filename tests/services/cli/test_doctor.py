"""`main.py doctor` finds what is wrong and says the command that mends it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from auth.keys import Keys
from services.chat.sessions import Sessions
from services.cli import doctor as module
from services.cli.doctor import Finding, doctor, examine
from services.cli.doctor_data import redis
from services.engine import catalog
from services.errors import ConfigError
from services.settings import Settings
from services.store import redis_client
from services.store.opening import open_store
from tests.redis_server import needs_redis, running
from tests.tiny_gguf import write_tiny

ROOT = Path(__file__).resolve().parents[3]
TRUE_LLAMA = module.llama
FINE = 'import json; print(json.dumps({"version": "1", "gpu": False, "system": "CPU : AVX2 = 1 | FMA = 0"}))'


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    """A good installation; llama.cpp is not loaded by these tests."""
    monkeypatch.setattr(module, "llama", lambda settings: TRUE_LLAMA(settings, FINE))
    made = Settings(data_dir=tmp_path / "data", models_dir=tmp_path / "models", port=0)
    made.data_dir.mkdir(0o700)
    made.models_dir.mkdir()
    write_tiny(made.models_dir / "starter.gguf")
    return made


def found(settings: Settings, what: str) -> Finding:
    return next(finding for finding in examine(settings) if finding.what == what)


def test_all_is_well(settings):
    result = CliRunner().invoke(doctor, [], obj=settings)
    assert result.exit_code == 0 and result.stdout.endswith("all is well\n"), result.output
    told = json.loads(CliRunner().invoke(doctor, ["--json"], obj=settings).stdout)
    assert told["ok"] and {"what", "state", "told", "mend"} == set(told["findings"][0])


def test_what_is_broken_comes_with_its_remedy(settings):
    (settings.data_dir / "config.json").write_text("{")
    (settings.data_dir / "api_keys.json").write_text("{}")
    (settings.data_dir / "api_keys.json").chmod(0o644)
    result = CliRunner().invoke(doctor, [], obj=settings)
    assert result.exit_code == 1 and "need mending" in result.stdout
    assert "config.json, line 1" in found(settings, "config.json").told
    assert found(settings, "api_keys.json").mend == f"chmod 600 '{settings.data_dir / 'api_keys.json'}'"


def told_of(settings: Settings, what: str) -> str:
    """What the report says of a broken `what`; the data folder is as it was, to the byte and the mode."""
    def state() -> dict[Path, object]:
        return {path: (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
                for path in settings.data_dir.rglob("*")}
    before = state()
    result = CliRunner().invoke(doctor, ["--json"], obj=settings)
    assert state() == before and result.exit_code == 1, result.output
    finding = next(finding for finding in json.loads(result.stdout)["findings"] if finding["what"] == what)
    assert finding["state"] == "broken" and finding["mend"], finding
    return f"{finding['told']} -> {finding['mend']}"


def refusal(settings: Settings) -> str:
    with pytest.raises(ConfigError) as caught:
        open_store(settings)
    return caught.value.message


def test_a_wrong_file_of_localais_is_told(settings):
    (settings.data_dir / "config.json").write_text('{"SelectedModel": "a", "a": {"model": "starter.gguf"}}')
    (settings.models_dir / "bad.yaml").write_text("name: [")
    finding = found(settings, "LocalAI's files")
    assert finding.state == "note" and finding.told.startswith("models/bad.yaml, line ")


def test_a_personality_that_nobody_can_answer_as_is_told(settings):
    (settings.data_dir / "config.json").write_text('{"SelectedModel": "a", "a": {"model": "starter.gguf"}}')
    folder = settings.data_dir / "personalities.d"
    folder.mkdir()
    (folder / "mine.json").write_text('{"guide": {"profile": "a"}}')
    assert found(settings, "personalities") == Finding("personalities", "ok", "guide")
    (folder / "mine.json").write_text('{"guide": {"profile": "b"}, "sage": {"local_file": "sage.gguf"}, "x": {}}')
    finding = found(settings, "personalities")
    assert finding.state == "note" and finding.told.startswith("guide: no profile 'b'; there are: a; sage: this "
                                                               "personality needs the model file 'sage.gguf'")


def test_a_data_key_that_a_start_would_refuse_is_told(settings):
    sealed = replace(settings, data_key="k" * 32)
    assert found(sealed, "sessions").told == "in the clear; the next start encrypts them with DATA_KEY"
    with Sessions(open_store(sealed)).turn("0", "1", 1) as turn:
        turn.prompt("secret")
    assert found(sealed, "sessions").told == "encrypted with DATA_KEY"
    assert CliRunner().invoke(doctor, [], obj=sealed).exit_code == 0
    for wrong in (settings, replace(settings, data_key="o" * 32)):
        told = told_of(wrong, "sessions")
        assert told.startswith(refusal(wrong)) and "-> set DATA_KEY" in told
    path = settings.data_dir / "data_keys.json"
    path.write_text("{")
    assert told_of(sealed, "sessions").startswith(refusal(sealed))
    path.unlink()
    told = told_of(sealed, "sessions")
    assert told.startswith(refusal(sealed)) and f"-> put a copy of '{path}' back" in told


def test_sessions_that_a_start_would_refuse_are_told(settings, tmp_path):
    (settings.data_dir / "sessions.json").write_text("{")
    assert told_of(settings, "sessions").startswith(refusal(settings))
    (settings.data_dir / "sessions.json").unlink()
    (settings.data_dir / "sessions").rmdir()
    (settings.data_dir / "sessions").symlink_to(tmp_path)
    assert "mend or move away" in told_of(settings, "sessions")


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 1}', '{"version": 1, "keys": [{"id": "a b"}]}',
                                     '{"0": 5}'])
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_api_keys_that_a_start_would_refuse_are_told(settings, content, mode):
    path = settings.data_dir / "api_keys.json"
    path.write_text(content)
    path.chmod(mode)
    told = told_of(settings, "API keys")
    with pytest.raises(ConfigError) as caught:
        Keys(settings.data_dir, settings)
    assert told.startswith(caught.value.message) and f"-> edit '{path}'" in told


def test_api_keys(settings):
    path = settings.data_dir / "api_keys.json"
    path.write_text('{"0": "an-old-plain-key-of-the-seed"}')
    path.chmod(0o600)
    assert "which the next start takes over" in found(settings, "API keys").told
    assert "plain-key" in path.read_text()
    secret, _ = Keys(settings.data_dir, settings).create()
    assert found(settings, "API keys").told.startswith("2 in the list")
    assert "MASTER_KEY=(not shown)" in told_of(replace(settings, master_key=secret), "API keys")
    path.rename(path.with_name("other"))
    path.symlink_to(path.with_name("other"))
    assert "no link" in told_of(settings, "API keys")


def test_a_master_key_that_still_lies_there_is_told(settings):
    path = settings.data_dir / "master_key.txt"
    path.write_text("ply_x\n")
    path.chmod(0o600)
    result = CliRunner().invoke(doctor, [], obj=settings)
    assert result.exit_code == 0 and "in the clear: note it and delete it" in result.stdout
    assert "ply_x" not in result.stdout and found(settings, "master_key.txt").state == "note"
    path.chmod(0o644)
    assert CliRunner().invoke(doctor, [], obj=settings).exit_code == 1


def test_packages(settings, monkeypatch, tmp_path):
    (tmp_path / "requirements.txt").write_text("# a comment\nclick>=8\nclick>=99\nno-such-thing==1.0\n\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    findings = list(module.packages(settings))
    assert [(finding.what, finding.state) for finding in findings] == \
        [("click", "broken"), ("no-such-thing", "broken"), ("packages", "ok")]
    assert "wanted >=99" in findings[0].told and findings[1].mend == "./setup.sh"


@pytest.mark.parametrize(("code", "says"), [
    ("import no_such_module_at_all", "No module named"), ("import os; os.kill(os.getpid(), 4)", "another processor"),
    ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"), ("raise SystemExit(3)", "without a word")])
def test_a_back_end_that_dies_takes_nobody_along(settings, code, says):
    finding, = TRUE_LLAMA(settings, code)
    assert finding.state == "broken" and says in finding.told and finding.mend


def test_the_true_back_end_answers():
    finding, = module.llama(Settings())
    assert finding.state == "ok" and "llama-cpp-python 0.3" in finding.told, finding


def test_without_packages_the_rest_is_told(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "services.chat.profiles", None)
    findings = list(examine(settings))
    assert {"models", "port"} & {finding.what for finding in findings}
    assert any(finding.state == "broken" and finding.mend == "./setup.sh" for finding in findings)


def test_it_runs_where_only_the_command_line_is_installed(tmp_path):
    """No numpy, pydantic, msgspec, httpx, …: each is told, nothing is raised."""
    code = ("import sys\n"
            "for name in ('pydantic', 'msgspec', 'httpx', 'numpy', 'flask', 'packaging', 'langchain_core'):\n"
            "    sys.modules[name] = None\n"
            f"sys.path.insert(0, {str(ROOT)!r})\n"
            "from services.cli import doctor\n"
            "from services.settings import Settings\n"
            "from pathlib import Path\n"
            f"doctor.doctor.main([], obj=Settings(data_dir=Path({str(tmp_path / 'd')!r}), port=0,"
            f" models_dir=Path({str(tmp_path / 'm')!r})))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "models_folder  " in done.stdout and "cannot be looked at without msgspec" in done.stdout
    assert "-> ./setup.sh" in done.stdout and "3 of 11 need mending" in done.stdout


def test_data_folder(settings):
    settings.data_dir.chmod(0o777)
    assert found(settings, "data folder").mend == f"chmod 700 '{settings.data_dir}'"
    absent = replace(settings, data_dir=settings.data_dir / "new")
    assert "will be made" in found(absent, "data folder").told
    file = replace(settings, data_dir=settings.models_dir / "starter.gguf")
    assert found(file, "data folder").state == "broken"


def test_a_server_that_runs_is_told_with_its_pid(settings):
    assert found(settings, "server").told == "does not run"
    lock = settings.data_dir / "parley.lock"
    lock.write_text("4711\n")
    assert module.holder(lock) is None
    with lock.open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "pid 4711" in found(settings, "server").told


def test_ports(settings):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(0)
        taken = replace(settings, port=other.getsockname()[1])
        finding = found(taken, "port")
        assert finding.state == "broken" and "set PORT" in (finding.mend or "")
    assert found(taken, "port").told.endswith("is free")


def test_the_port_of_a_parley_is_known(settings):
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "ok"}')

        def log_message(self, *_: object) -> None:
            """Quiet."""
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        finding = found(replace(settings, port=server.server_address[1]), "port")
        thread.join(10)
    assert finding.state == "note" and "in use by Parley" in finding.told


def test_models(settings):
    (settings.models_dir / "bad.gguf").write_bytes(b"")
    (settings.models_dir / "x.gguf.part").write_bytes(b"GGUF")
    (settings.models_dir / "a b.gguf").write_bytes(b"GGUF")
    told = [finding.told for finding in module.models_folder(settings)]
    assert "is empty" in told[0] and "rename it" in told[1] and "did not end" in told[2]
    assert found(settings, "starter model").state == "ok"
    empty = replace(settings, models_dir=settings.models_dir / "none")
    finding, = module.models_folder(empty)
    assert finding.state == "broken" and "MODELS_DIR='" in finding.told and "mkdir -p" in (finding.mend or "")
    empty.models_dir.mkdir()
    assert found(empty, "starter model").state == "note"
    assert [finding.state for finding in module.models_folder(empty)] == ["broken", "note"]


def test_the_selected_model(settings, monkeypatch):
    config = {"SelectedModel": "one", "one": {"model": "starter.gguf"}}
    (settings.data_dir / "config.json").write_text(json.dumps(config))
    assert found(settings, "selected").state == "ok"
    monkeypatch.setattr(catalog, "available_memory", lambda: 1000)
    assert "1.0 kB are free" in found(settings, "selected").told
    os.unlink(settings.models_dir / "starter.gguf")
    assert "there is no model 'starter.gguf'" in found(settings, "selected").told


@needs_redis
def test_redis(settings):
    with running() as server:
        shared = replace(settings, redis_url=server.url)
        assert found(shared, "Redis").told == "holds jobs"
        shared = replace(shared, store="redis")
        assert found(shared, "Redis").told == "holds jobs, sessions and 0 keys"
        client = redis_client.connect(shared)
        assert client.keys("*") == []
        client.config_set("appendfsync", "everysec")
        client.set("{parley}:sessions:check", "plain")
        assert [finding.state for finding in redis(shared)] == ["ok", "note"]
        assert "in the clear" in found(replace(shared, data_key="k" * 32), "Redis").told
    assert found(shared, "Redis").state == "broken"
