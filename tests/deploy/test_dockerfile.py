"""Dockerfiles are read strictly, and what they come to is told before anything is done; ours is among them."""

from pathlib import Path

import pytest

from deploy.in_root.dockerfile import Refused, instructions, read
from deploy.in_root.plan import PATH, Copy, Folder, Health, Run, plan

ROOT = Path(__file__).resolve().parents[2]
OURS = (ROOT / "deploy" / "Dockerfile").read_text()


def planned(text, **asked):
    return plan(read(text, asked), asked)


def only(text, **asked):
    return planned("FROM debian:bookworm\n" + text, **asked)[-1]


def test_lines_are_joined_and_comments_left_out():
    text = "# syntax=docker/dockerfile:1\nFROM a\nRUN one && \\\n  # in between\n\n  two\nrun three\n"
    assert [(item.line, item.word, item.text) for item in instructions(text)] == [
        (2, "FROM", "a"), (3, "RUN", "one &&   two"), (7, "RUN", "three")]


@pytest.mark.parametrize(("text", "said"), [
    ("", "there is no FROM"),
    ("RUN x\nFROM a", "line 1: RUN x: only ARG may stand before"),
    ("FROM a\nADD x /x", "line 2: 'ADD' is not an instruction known here"),
    ("FROM a\nRUN <<END\nx\nEND", "line 2: .*heredoc"),
    ("FROM a\nRUN --mount=type=cache,target=/x y", "line 2: RUN with --mount is not supported"),
    ("FROM a\nRUN", "RUN with nothing"),
    ("FROM a\nRUN x \\", "line 2: the file ends within"),
    ("# escape=`\nFROM a", "another escape character"),
    ("FROM a b", "FROM <image> AS <name>"),
    ("FROM a\nENV x y", "'x' is not NAME=value"),
    ("FROM a\nENV x='y'", "single quotes"),
    ("FROM a\nENV x=\"y", "no closing quotation"),
    ("FROM a\nENV x=${y%z}", r"is no variable of a kind known here"),
    ("FROM a\nUSER parley", "not <uid>:<gid> in numbers"),
    ("FROM a\nCMD [1]", "not a JSON list of strings"),
    ("FROM a\nCMD [\"x\"", "not a JSON list of strings"),
    ("FROM a\nCOPY x y z", "COPY <source> ... <folder>/"),
    ("FROM a\nCOPY *.py /x/", "patterns and .. are not supported"),
    ("FROM a\nCOPY ../x /x/", "patterns and .. are not supported"),
    ("FROM a\nCOPY --from=b /x /x", "COPY --from=b: there is no such stage"),
    ("FROM a\nHEALTHCHECK --interval=5 CMD x", "'5' is not a time such as 15s"),
    ("FROM a\nHEALTHCHECK x", "expected HEALTHCHECK"),
])
def test_what_is_not_known_is_refused(text, said):
    with pytest.raises(Refused, match=said):
        planned(text)


def test_a_build_argument_that_is_nowhere_is_refused():
    with pytest.raises(Refused, match="no build argument 'CUDDA', but: BACKEND, CPU_FLAGS, CUDA"):
        read(OURS, {"CUDDA": "1"})


def test_variables():
    built = only("ARG A=1\nENV B=$A C=\"x y\" D=${NONE:-else} E=${B:+no} F=a${NONE}b\nENV G=${C} H=${B:+set}\n"
                 "WORKDIR /w/$A")
    assert built.image.env == {"PATH": PATH, "B": "1", "C": "x y", "D": "else", "E": "", "F": "ab", "G": "x y",
                               "H": "set"}
    assert built.steps == (Folder("/w/1"),)


def test_arguments_are_of_their_stage_and_of_its_commands():
    text = "ARG OUT=o\nFROM a AS one\nARG A=1\nENV KEPT=$A\nRUN x\nFROM one\nARG OUT\nRUN y"
    first, second = planned(text, A="2", OUT="p")
    assert first.steps == (Run(["/bin/sh", "-c", "x"], {"PATH": PATH, "A": "2", "KEPT": "2"}, "0:0", "/"),)
    assert second.steps == (Run(["/bin/sh", "-c", "y"], {"PATH": PATH, "OUT": "p", "KEPT": "2"}, "0:0", "/"),)


def test_only_stages_that_the_last_one_is_made_of():
    text = ("FROM a AS one\nFROM b AS two\nRUN x\nFROM c AS three\nCOPY --from=two /x /x\n"
            "FROM one\nCOPY --from=two /y /y")
    assert [built.stage.name for built in planned(text)] == ["one", "two", "3"]


def test_copies():
    steps = only("WORKDIR /app\nCOPY a b ./\nCOPY [\"c d\", \"/e\"]\nCOPY --chown=7:8 f/ g").steps
    assert steps[1:] == (Copy(None, ["a", "b"], "/app/", "0:0"), Copy(None, ["c d"], "/e", "0:0"),
                         Copy(None, ["f"], "/app/g", "7:8"))


def test_how_it_is_started():
    image = only("USER 7:8\nCMD [\"gone\"]\nENTRYPOINT [\"a\", \"b\"]\nCMD c d\nSTOPSIGNAL SIGINT\nLABEL x=\"y z\"\n"
                 "HEALTHCHECK --interval=2m --timeout=500ms --retries=5 CMD [\"h\"]\nEXPOSE 5000").image
    assert (image.user, image.entrypoint, image.cmd) == ("7:8", ["a", "b"], ["/bin/sh", "-c", "c d"])
    assert (image.stop_signal, image.health) == ("SIGINT", Health(["h"], 120, 0.5, 0, 5))
    assert only("HEALTHCHECK CMD x\nHEALTHCHECK NONE").image.health is None


class TestOurs:
    def test_it_is_for_the_cpu_unless_asked(self):
        assert [built.stage.base for built in planned(OURS)] == [
            "debian:bookworm-slim", "debian:bookworm-slim", "build-cpu", "run-cpu"]

    def test_cuda(self):
        stages = planned(OURS, BACKEND="cuda")
        assert [built.stage.base for built in stages][:2] == [
            "nvidia/cuda:12.8.1-devel-ubuntu24.04", "nvidia/cuda:12.8.1-runtime-ubuntu24.04"]
        compiled = next(step for step in stages[2].steps if isinstance(step, Run) and "CMAKE_ARGS" in step.command[-1])
        assert "-DGGML_CUDA=ON" in compiled.env["BACKEND_FLAGS"]
        assert stages[-1].image.env["LLM_GPU_LAYERS"] == "-1"

    def test_it_runs_as_nobody_special_and_is_looked_after(self):
        image = planned(OURS)[-1].image
        assert image.user == "10001:10001"
        assert image.entrypoint[0] == "tini" and image.cmd == ["serve"] and image.health is not None
        assert {"HOST": "0.0.0.0", "DATA_DIR": "/data", "MODELS_DIR": "/models"}.items() <= image.env.items()

    def test_every_package_is_pinned(self):
        commands = [step.command[-1] for built in planned(OURS) for step in built.steps if isinstance(step, Run)]
        installs = [command for command in commands if "pip install" in command]
        assert len(installs) == 2 and all("-c constraints.txt" in command for command in installs)

    def test_it_holds_no_secret(self):
        assert not {"MASTER_KEY", "DATA_KEY", "HF_TOKEN"} & set(planned(OURS)[-1].image.env)
        assert "SECRET" not in OURS and "KEY=" not in OURS
