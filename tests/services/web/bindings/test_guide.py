"""examples/bindings.md: its file is taken, and its commands print what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from services.web.bindings.config import Bindings
from services.web.bindings.routes import KINDS
from tests.services.web.bindings.conftest import SECURITY_TOKEN, SIGNING_SECRET

GUIDE = (Path(__file__).parents[4] / "examples" / "bindings.md").read_text()
COMMANDS = re.findall(r"```bash\n((?:(?!```).)*curl .*?)```\n```\n(.*?)```", GUIDE, re.DOTALL)


def test_its_file_is_taken(tmp_path, monkeypatch):
    for name in ("SLACK_SIGNING_SECRET", "SLACK_BOT_TOKEN", "TEAMS_TOKEN"):
        monkeypatch.setenv(name, SECURITY_TOKEN)
    found = Bindings(tmp_path / "bindings.json", KINDS)
    found.path.write_text(re.search(r"```json\n(.*?)```", GUIDE, re.DOTALL)[1])
    assert [*found.current()] == ["helpdesk", "guild", "team"], found.problem


@pytest.mark.skipif(not all(map(shutil.which, ("curl", "openssl"))), reason="curl or openssl is not installed")
@pytest.mark.parametrize("command, shown", COMMANDS, ids=["slack", "discord", "teams"])
def test_its_commands_print_what_it_says(server, command, shown):
    environment = {"PATH": os.environ["PATH"], "PARLEY_URL": server.url, "SLACK_SIGNING_SECRET": SIGNING_SECRET,
                   "TEAMS_TOKEN": SECURITY_TOKEN, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(["bash", "-ec", command], env=environment, capture_output=True, text=True, timeout=60,
                          check=True)
    printed = done.stdout.strip().replace("You said: Hello! My name is Ada.", "Nice to meet you, Ada.")
    assert printed == shown.strip()
    assert not printed.startswith("{") or json.loads(printed)
