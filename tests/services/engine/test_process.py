"""One runner process: its first word, its probe, its end."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from services import wire
from services.engine.process import Died, RunnerProcess, describe
from services.errors import BadModel
from tests.services.engine.house import FAKE, SOON, eventually, gone


def begin(tmp_path: Path, script: str = "", command: list[str] | None = None) -> RunnerProcess:
    model = tmp_path / "m.gguf"
    model.write_text(script)
    process = RunnerProcess(command or FAKE, wire.RunnerSpec(model=str(model), n_ctx=64), tmp_path,
                            wire.RunnerLimits(max_queue=8))
    process.start()
    return process


def soon() -> float:
    return time.monotonic() + SOON


def test_it_says_ready_answers_the_probe_and_ends(tmp_path: Path):
    process = begin(tmp_path)
    ready = process.wait_ready(soon())
    assert (ready.model, ready.n_ctx, ready.n_slots, ready.chat_template) == ("m.gguf", 64, 4, None)
    process.probe(soon())
    stats = process.stats()
    assert stats and stats.requests == 1 and process.alive() and not process.wait(0.01)
    process.terminate()
    assert process.wait(SOON) and str(process.death()) == "killed by SIGTERM"
    assert process.stats() is None
    process.bury()
    assert not Path(process.address).exists()


@pytest.mark.parametrize(("script", "reason"), [
    ("!die SIGKILL", "killed by SIGKILL"), ("!die SIGABRT", "killed by SIGABRT"), ("!die 134", "exit 134"),
    ("!die 0", "exit 0"), ("!noise llama_model_load: hello", "it said something else than Ready")])
def test_a_load_that_dies_says_how(tmp_path: Path, script: str, reason: str):
    process = begin(tmp_path, script)
    with pytest.raises(Died, match=reason):
        process.wait_ready(soon())
    process.bury()


def test_a_load_that_fails_says_why(tmp_path: Path):
    process = begin(tmp_path, "!fail bad_model tensor 3 lies outside the file")
    with pytest.raises(BadModel, match="tensor 3") as caught:
        process.wait_ready(soon())
    assert caught.value.status == 422
    process.bury()


def test_a_load_that_hangs_is_ended(tmp_path: Path):
    process = begin(tmp_path, "!hang")
    with pytest.raises(Died, match="did not say Ready in time"):
        process.wait_ready(time.monotonic() + 0.3)
    pid = process.pid
    process.bury()
    assert pid and gone(pid)


def test_output_closed_without_a_word(tmp_path: Path):
    process = begin(tmp_path, command=[sys.executable, "-c", "import os, time; os.close(1); time.sleep(60)"])
    with pytest.raises(Died, match="closed its output"):
        process.wait_ready(soon())
    process.bury()


def test_a_command_that_ends_at_once(tmp_path: Path):
    process = begin(tmp_path, command=["/bin/true"])
    with pytest.raises(Died, match="exit 0"):
        process.wait_ready(soon())
    process.bury()


def test_a_probe_that_kills(tmp_path: Path):
    process = begin(tmp_path, "!first !die SIGSEGV")
    process.wait_ready(soon())
    with pytest.raises(Died, match="killed by SIGSEGV"):
        process.probe(soon())
    process.bury()


def test_a_probe_without_answer(tmp_path: Path):
    process = begin(tmp_path, "!first !hang")
    process.wait_ready(soon())
    with pytest.raises(Died, match="did not answer the probe in time"):
        process.probe(time.monotonic() + 0.3)
    process.bury()


def test_a_stopped_process_is_silent_but_does_not_hold_up_who_asks(tmp_path: Path):
    process = begin(tmp_path, "!first !freeze")
    process.wait_ready(soon())
    with wire.connect(process.address, process.authkey) as channel:
        channel.send(wire.Generate(id="1", owner="", prompt=["x"], max_tokens=1))
        eventually(lambda: process.stats(0.2) is None, "the stop")
    process.kill("for a reason")
    assert process.wait(SOON) and str(process.death()) == "for a reason"
    process.bury()


def test_a_stopped_process_with_a_crowd_at_its_door_does_not_hold_up_who_asks(tmp_path: Path):
    """Else the watchdog would wait for as long as what it watches."""
    process = RunnerProcess(FAKE, wire.RunnerSpec(model="m.gguf", n_ctx=64), tmp_path)
    door = wire.Door(process.address, process.authkey, backlog=1)       # a stopped one accepts nobody
    crowd = [wire.connect(process.address, process.authkey) for _ in range(2)]
    with pytest.raises(wire.Crowded):
        wire.connect(process.address, process.authkey, 0.05)
    assert process.stats(0.05) is None
    for channel in crowd:
        channel.close()
    threading.Thread(target=door.serve, args=(wire.Channel.close,), daemon=True).start()
    wire.connect(process.address, process.authkey).close()
    door.close()


def test_exit_statuses_in_words():
    assert [describe(status) for status in (0, 134, -9, -6, -11, -64, -99)] == [
        "exit 0", "exit 134", "killed by SIGKILL", "killed by SIGABRT", "killed by SIGSEGV", "killed by SIGRTMAX",
        "killed by signal 99"]
