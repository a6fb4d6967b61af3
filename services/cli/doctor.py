"""`main.py doctor`: what is installed, what is wrong, and the command that mends it. Works on a half-installed tree."""

from __future__ import annotations

import fcntl
import http.client
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import click

from services.cli.doctor_data import Finding, config, data_folder, keys, personalities, redis, sessions
from services.errors import ConfigError, ParleyError
from services.settings import ROOT, Settings

LOW_DISK = 1 << 30          # bytes
ASK_LLAMA = """
import json, llama_cpp
llama_cpp.llama_backend_init()
print(json.dumps({"version": llama_cpp.__version__, "gpu": bool(llama_cpp.llama_supports_gpu_offload()),
                  "system": llama_cpp.llama_print_system_info().decode()}))
"""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Look at this installation; exit status 1 when something is broken."""
    findings = list(examine(ctx.obj))
    broken = sum(finding.state == "broken" for finding in findings)
    if as_json:
        click.echo(json.dumps({"ok": not broken, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            click.echo(f"{finding.state:6}  {finding.what:{width}}  {finding.told}")
            if finding.mend:
                click.echo(f"{'':6}  {'':{width}}  -> {finding.mend}")
        click.echo(f"{broken} of {len(findings)} need mending" if broken else "all is well")
    ctx.exit(1 if broken else 0)


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings. A check that fails in a way that it does not know is a finding itself."""
    checks: list[Callable[[Settings], Iterator[Finding]]] = [
        python, packages, llama, machine, data_folder, config, personalities, keys, sessions, redis, running,
        models_folder, selected_model]
    for check in checks:
        try:
            yield from check(settings)
        except ModuleNotFoundError as error:
            yield Finding(check.__name__, "broken", f"cannot be looked at without {error.name}", "./setup.sh")
        except (OSError, ParleyError) as error:
            yield Finding(check.__name__, "broken", getattr(error, "message", None) or str(error))


# ---------------------------------------------------------------- the installation

def python(_: Settings) -> Iterator[Finding]:
    good = sys.version_info[:2] >= (3, 10)
    yield Finding("Python", "ok" if good else "broken", f"{platform.python_version()} at {sys.executable}",
                  None if good else "install Python 3.10 or newer, then ./setup.sh")


def packages(_: Settings) -> Iterator[Finding]:
    """Each line of requirements.txt against what is installed."""
    there: list[str] = []
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?\s*([^#;]*)", line.strip())
        if not match or line.lstrip().startswith("#"):
            continue
        name, wanted = match[1], match[2].strip()
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "broken", f"is not installed (wanted {wanted or 'any version'})", "./setup.sh")
            continue
        if not _within(version, wanted):
            yield Finding(name, "broken", f"has version {version}, wanted {wanted}", "./setup.sh")
        there.append(f"{name} {version}")
    yield Finding("packages", "ok" if there else "broken", ", ".join(there) or "none", None if there else "./setup.sh")


def _within(version: str, wanted: str) -> bool:
    """True also when it cannot be told, for want of the package that knows how."""
    try:
        from packaging.specifiers import SpecifierSet
    except ModuleNotFoundError:
        return True
    return SpecifierSet(wanted).contains(version, prereleases=True)


def llama(_: Settings, code: str = ASK_LLAMA) -> Iterator[Finding]:
    """Asked in a process of its own: one that was built for another processor would end this one."""
    reinstall = (f"{sys.executable} -m pip install --force-reinstall --no-cache-dir --no-deps "
                 f"{_requirement('llama-cpp-python')}")
    try:
        asked = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                               timeout=120, check=False)
    except subprocess.TimeoutExpired:
        yield Finding("llama.cpp", "broken", "does not start within 120 s", reinstall)
        return
    if asked.returncode < 0:
        name = signal.Signals(-asked.returncode).name
        told = f"ends with {name}" + (": built for another processor" if name == "SIGILL" else "")
        yield Finding("llama.cpp", "broken", told, reinstall)
    elif asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["without a word"])[-1]
        yield Finding("llama.cpp", "broken", f"cannot be loaded: {last[:300]}",
                      "./setup.sh" if "ModuleNotFoundError" in last else reinstall)
    else:
        said = json.loads(asked.stdout.strip().splitlines()[-1])
        features = re.findall(r"(\w+) = 1", said["system"])
        kind = "GPU and CPU" if said["gpu"] else "CPU"
        yield Finding("llama.cpp", "ok", f"llama-cpp-python {said['version']}, {kind} ({' '.join(features)})")


def _requirement(package: str) -> str:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    return next((line.strip() for line in lines if line.startswith(package)), package)


def machine(settings: Settings) -> Iterator[Finding]:
    from services.engine.machine import available_memory, in_words
    free = available_memory()
    yield Finding("machine", "ok", f"{platform.machine()}, {os.cpu_count()} cores, "
                                   f"{in_words(free) if free is not None else 'an unknown amount'} of memory free")
    for what, variable, folder in (("data disk", "DATA_DIR", settings.data_dir),
                                   ("models disk", "MODELS_DIR", settings.models_dir)):
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        room = shutil.disk_usage(there).free
        yield Finding(what, "ok" if room >= LOW_DISK else "note", f"{in_words(room)} free",
                      None if room >= LOW_DISK else f"make room where {folder} lies, or move it ({variable})")


# ---------------------------------------------------------------- the server

def running(settings: Settings) -> Iterator[Finding]:
    """Who holds the data folder, and who the port."""
    pid = holder(settings.data_dir / "parley.lock")
    yield Finding("server", "ok", f"runs on this data folder (pid {pid})" if pid else "does not run")
    if settings.port == 0:
        return
    where = f"{settings.host}:{settings.port}"
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
        yield Finding("port", "ok", f"{where} is free")
    except OSError as error:
        if _is_parley(settings):
            yield Finding("port", "ok" if pid else "note", f"{where} is in use by Parley" +
                          ("" if pid else " with another data folder"), None if pid else "PORT=5001 ./setup.sh serve")
        else:
            yield Finding("port", "broken", f"{where} cannot be used: {error.strerror}",
                          f"ss -ltnp 'sport = :{settings.port}' shows who uses it; or set PORT (and HOST)")


def holder(lock: Path) -> str | None:
    """The pid in the lock file of a server that runs; None when nobody holds it. Takes no lock beyond a moment's."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return None
    except BlockingIOError:
        return os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
    finally:
        os.close(fd)


def _is_parley(settings: Settings) -> bool:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)
    connection = http.client.HTTPConnection(host, settings.port, timeout=3)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        return answer.status == 200 and b'"status"' in answer.read(1000)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


# ---------------------------------------------------------------- the models

def models_folder(settings: Settings) -> Iterator[Finding]:
    from services.cli.core import check_models_dir
    from services.engine import catalog, gguf
    folder, bad = settings.models_dir, 0
    if folder != ROOT / "models":       # which a start makes
        try:
            check_models_dir(folder)
        except ConfigError as error:
            yield Finding("models", "broken", error.message, f"mkdir -p '{folder}', or set MODELS_DIR")
            return
    names = catalog.list_models(folder)
    for name in names:
        try:
            gguf.inspect(folder / name)
        except ParleyError as error:
            bad += 1
            yield Finding("models", "note", error.message, f"rm '{folder / name}', or get it again")
    for name, why in catalog.ignored(folder).items():
        if why:
            yield Finding("models", "note", f"{name!r} is not listed: it {why}")
    for part in sorted(folder.glob("*.part")) if folder.is_dir() else []:
        yield Finding("models", "note", f"{part.name} is a download that did not end",
                      f"run the same `main.py models pull` again, or rm '{part}'")
    good = len(names) - bad
    yield Finding("models", "ok" if good else "broken", f"{good} in {folder}",
                  None if good else "main.py models pull OWNER/REPO [FILE], or put a .gguf file there")
    starter = "starter.gguf" in names
    yield Finding("starter model", "ok" if starter else "note", "is there" if starter else "is not there",
                  None if starter else "git checkout -- models/starter.gguf")


def selected_model(settings: Settings) -> Iterator[Finding]:
    """Whether what would be loaded at the start can be."""
    from services.chat.profiles import Profiles
    from services.engine import catalog
    path = settings.data_dir / "config.json"
    if not path.exists() or holder(settings.data_dir / "parley.lock"):
        return
    try:
        profiles = Profiles(path, settings)
        name, profile = profiles.current().get()
    except ParleyError:
        return      # `config` has told it
    try:
        spec = profiles.spec(profile, settings.models_dir)
        info = catalog.check_fits(Path(spec.model), spec)
    except ParleyError as error:
        yield Finding("selected", "broken", f"profile {name!r}: {error.message}",
                      f"main.py models select {name} FILE, or edit {path}")
        return
    yield Finding("selected", "ok", f"profile {name!r} with {info.file}")
