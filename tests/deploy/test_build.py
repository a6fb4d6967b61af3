"""A plan is carried out as Docker would: files, owners, stages, and commands in a root of their own."""

import subprocess

import pytest

from deploy.in_root import build as building
from deploy.in_root import chamber
from deploy.in_root.build import image_of, mount_points, within
from deploy.in_root.dockerfile import Refused


def test_files_stages_and_commands(built, folder):
    root = built("""
ARG WHO=nobody
FROM debian:tiny AS made
ARG WHO
WORKDIR /work
COPY a ./
COPY --chown=7:8 three /new/
RUN pwd >seen && echo $WHO >>seen && id -u >>seen && echo $LENT >>seen && echo $$ >>seen
USER 9:9
RUN cat /proc/self/status | grep -E 'Uid|CapEff' >/tmp/seen
FROM debian:tiny
COPY --from=made /work /kept
COPY --from=made /new/three /kept/
COPY --from=made /tmp/seen /tmp/
ENV A=b
CMD ["sh"]
""", WHO="Ada")
    assert (root / "kept/seen").read_text().split() == ["/work", "Ada", "0", "yes", "1"]
    assert (root / "tmp/seen").read_text().split() == ["Uid:", *["9"] * 4, "CapEff:", "0" * 16]
    assert sorted(path.name for path in (root / "kept").iterdir()) == ["one", "seen", "three"]
    assert (root / "kept/three").stat().st_uid == 0
    assert (folder / "stages").glob("made-*").__next__().joinpath("new/three").stat().st_gid == 8
    assert list((root / "usr").iterdir()) == [], "what is lent is not kept"
    assert not (root / "etc/resolv.conf").exists()
    assert image_of(folder).env["A"] == "b" and image_of(folder).cmd == ["sh"]


def test_what_has_not_changed_is_not_done_again(built, context, capsys):
    text = "FROM debian:tiny AS one\nRUN echo x >/etc/x\nFROM one\nCOPY three /\n"
    first = built(text).resolve()
    capsys.readouterr()
    assert built(text).resolve() == first
    assert "step" not in capsys.readouterr().err
    (context / "three").write_text("changed")
    second = built(text).resolve()
    said = capsys.readouterr().err
    assert "stage one: nothing has changed" in said and "stage 1, step 1 of 1" in said
    assert (second / "three").read_text() == "changed" and not first.exists()


@pytest.mark.parametrize(("text", "said"), [
    ("FROM nvidia/cuda:12", "only debian:<suite> can be had"),
    ("FROM debian:tiny\nRUN exit 3", "the command ended with status 3: exit 3"),
    ("FROM debian:tiny\nCOPY a/two.pyc /", "there is no such file, or .dockerignore leaves it out"),
    ("FROM debian:tiny\nRUN ln -s /etc /x\nCOPY three /x/", "is a link out of"),
])
def test_what_fails_says_so_and_leaves_no_stage(built, folder, text, said):
    with pytest.raises(Refused, match=said):
        built(text)
    assert not [path for path in (folder / "stages").iterdir() if path.suffix != ".partial"]
    assert not (folder / "root").exists()


def test_a_sealed_chamber_is_read_only_and_ends_with_its_first_process(built, folder):
    root = built("FROM debian:tiny\nRUN mkdir /data\n").resolve()
    data = folder / "data"
    data.mkdir(mode=0o777)
    data.chmod(0o777)
    binds = [("/usr", "/usr", "ro"), (str(data), "/data", "rw")]
    script = ("echo x >/data/x; echo x >/tmp/x; echo x >/x; echo $? >>/data/x; "
              "grep NoNewPrivs /proc/self/status >>/data/x")
    chamber.start(chamber.Chamber(str(root), ["sh", "-c", script], {"PATH": "/usr/bin"}, "9:9", "/", binds, True),
                  stderr=subprocess.DEVNULL).wait()
    assert (data / "x").read_text().split() == ["x", "2", "NoNewPrivs:", "1"]


def test_mount_points_that_were_not_there_go_again(tmp_path):
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/kept").touch()
    with mount_points(tmp_path / "root", [(str(tmp_path), "/a/b", "rw"), ("/etc/hosts", "/etc/kept", "ro"),
                                          ("/etc/hosts", "/etc/hosts", "ro")]):
        assert (tmp_path / "root/a/b").is_dir() and (tmp_path / "root/etc/hosts").is_file()
    assert [path.name for path in (tmp_path / "root").rglob("*")] == ["etc", "kept"]


def test_within(tmp_path):
    (tmp_path / "out").symlink_to("/etc")
    assert within(tmp_path, "/in/side") == tmp_path / "in/side"
    with pytest.raises(Refused, match="is a link out of"):
        within(tmp_path, "/out/x")


def test_what_a_step_is_called_is_short():
    assert building.shown(building.Run(["/bin/sh", "-c", "a   &&\tb"], {}, "0:0", "/")) == "a && b"
