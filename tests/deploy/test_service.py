"""The unit of systemd is one that systemd understands, and little is open to what it starts; proxies are patient."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from services import settings

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "parley.service"
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


def analyze(*arguments):
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=60)


@needs_systemd
def test_systemd_understands_it(tmp_path):
    there = tmp_path / UNIT.name
    there.write_text(UNIT.read_text().replace("/opt/parley/.venv/bin/python", "/bin/true"))
    checked = analyze("verify", "--man=no", str(there))
    assert "parley.service" not in checked.stdout + checked.stderr


@needs_systemd
def test_exposure_is_low():
    if "--offline" not in analyze("--help").stdout:
        pytest.skip("this systemd-analyze cannot judge a file")
    judged = analyze("security", "--offline=true", "--threshold=20", "--no-pager", str(UNIT))
    assert judged.returncode == 0, judged.stdout[-200:] + judged.stderr


def test_running_answers_have_their_time():
    lines = dict(line.split("=", 1) for line in UNIT.read_text().splitlines() if "=" in line and line[0] != "#")
    assert int(lines["TimeoutStopSec"]) > settings.load({}, None).drain_timeout
    assert lines["KillMode"] == "mixed"
    assert lines["ExecStart"].endswith("main.py serve")


def test_proxies_wait_longer_than_the_server_does():
    patience = re.findall(r"proxy_(?:read|send)_timeout (\d+)s", (UNIT.parent / "nginx.conf").read_text())
    defaults = settings.load({}, None)
    assert len(patience) == 2
    assert all(int(seconds) > max(defaults.request_timeout, defaults.socket_idle) for seconds in patience)
