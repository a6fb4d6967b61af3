"""What was built is started as an image is: its user, volumes, health, signals; and nothing of it stays."""

import os
import signal
import time
from pathlib import Path

import pytest

from deploy.in_root.__main__ import bind, main, parser, variable
from deploy.in_root.container import Container, run, volume
from deploy.in_root.dockerfile import Refused

USR = ("/usr", "/usr", "ro")
SERVER = """FROM debian:tiny
RUN install -d -o 9 -g 8 /data && echo first >/data/note && chown 9:8 /data/note && mkdir /models
USER 9:8
ENV GREETING=hello
HEALTHCHECK --interval=1s CMD ["test", "-e", "/tmp/ready"]
ENTRYPOINT ["sh", "-c", "trap 'echo stopped >>/data/note; exit 5' TERM; \
echo $GREETING $1 >>/data/note; touch /tmp/ready; while :; do sleep 0.05; done", "server"]
CMD ["world"]
"""


@pytest.fixture
def server(built, folder):
    built(SERVER)
    return folder


def data(folder):
    return volume(folder, str(folder / "kept"), "/data", "rw")


def test_it_is_healthy_then_stops_by_signal(server):
    with Container(server, {}, [USR, data(server)]) as container:
        assert container.healthy()
        assert container.execute(["id", "-u"]).stdout.strip() == "9"
        container.signal(signal.SIGTERM)
        assert container.process.wait(20) == 5
    note = server / "kept" / "note"
    assert note.read_text().split() == ["first", "hello", "world", "stopped"]
    assert (note.stat().st_uid, note.stat().st_gid, note.parent.stat().st_uid) == (9, 8, 9)


def test_nothing_outlives_it(server):
    with Container(server, {}, [USR, data(server)]) as container:
        assert container.healthy()
        first = container.first
    until = time.monotonic() + 20
    while Path(f"/proc/{first}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(f"/proc/{first}").exists()
    assert not os.path.ismount(server / "root" / "proc")
    assert container.execute(["true"]).returncode == 1 and not container.healthy()


def test_run_has_volumes_of_its_own_and_gives_the_status(built, folder):
    built("FROM debian:tiny\nRUN mkdir /data /models\nENTRYPOINT [\"sh\", \"-c\"]\nCMD [\"exit 3\"]")
    assert run(folder, {}, [USR], []) == 3
    assert run(folder, {"A": "b"}, [USR], ["echo $A >/data/x; exit 4"]) == 4
    assert (folder / "volumes/data/x").read_text() == "b\n"


@pytest.mark.parametrize(("text", "meant"), [
    ("/a", ("/a", "/a", "rw")), ("/a:/b", ("/a", "/b", "rw")), ("/a:/b:ro", ("/a", "/b", "ro"))])
def test_binds(text, meant):
    assert bind(text) == meant


@pytest.mark.parametrize("wrong", [["-v", "/a:b"], ["-v", "/a:/b:no"], ["-e", "NOT_SET_ANYWHERE"]])
def test_wrong_arguments(wrong, capsys):
    with pytest.raises(SystemExit):
        parser().parse_args(["run", "/x", *wrong])
    assert "error: argument" in capsys.readouterr().err


def test_variables(monkeypatch):
    monkeypatch.setenv("SET_HERE", "yes")
    assert (variable("SET_HERE"), variable("A=b=c")) == (("SET_HERE", "yes"), ("A", "b=c"))


def test_what_stands_behind_two_dashes_is_the_command(server, monkeypatch):
    asked = []
    monkeypatch.setattr("deploy.in_root.__main__.run", lambda *arguments: asked.append(arguments) or 7)
    monkeypatch.setattr("shutil.which", str)
    assert main(["run", str(server), "-v", "/a:/data", "-e", "A=b", "--", "keys", "create", "--name", "x"]) == 7
    assert asked == [(server, {"A": "b"}, [("/a", "/data", "rw")], ["keys", "create", "--name", "x"])]


def test_only_root_may(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(Refused, match="this needs root"):
        main(["build", "/nowhere"])
