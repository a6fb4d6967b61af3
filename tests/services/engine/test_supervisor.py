"""Loading, lending, switching, making room, stopping: with real processes, the fake runner's."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from services.engine.supervisor import limits_of, runner_command
from services.errors import BadModel, ConfigError, NoRoom, NotFound, ParleyError, Unavailable, Unprocessable
from services.settings import Settings
from services.store import crypto
from services.wire import Piece
from tests.services.engine.house import SOON, House, eventually, generate, gone, together


def test_fifty_callers_share_one_load(house: House):
    spec = house.spec(script="!sleep 0.3", parallel=16)
    answers = together(50, lambda n: house.say(spec, f"!sleep 0.02\ncaller {n}"))
    assert answers == [f"You said: caller {n}" for n in range(50)]
    assert house.spawns() == 1
    state = house.state(spec)
    assert state and state.stats and 1 < state.stats.max_batch <= 16 and state.leases == 0


def test_a_load_that_fails_fails_for_all_and_is_not_repeated_at_once(house: House):
    spec = house.spec(script="!sleep 0.3\n!fail bad_model no such tensor")
    errors = together(20, lambda n: house.say(spec))
    assert all(isinstance(error, BadModel) and "no such tensor" in error.message for error in errors)
    with pytest.raises(BadModel):
        house.say(spec)
    assert house.spawns() == 1


def test_a_failed_load_is_tried_again_when_the_file_has_changed(house: House):
    spec = house.spec(script="!fail bad_model cut short")
    with pytest.raises(BadModel):
        house.say(spec, select=True)
    state = house.state(spec)
    assert state and (state.state, state.selected, state.reason) == ("failed", True, "cut short")
    Path(spec.model).write_text("whole now")
    assert house.say(spec) == "You said: hello"


def test_a_missing_model_is_not_found(house: House):
    spec = house.spec()
    Path(spec.model).unlink()
    with pytest.raises(NotFound):
        house.say(spec)


def test_the_precheck_refuses_before_anything_is_started(open_house: Any):
    def precheck(spec: Any) -> None:
        if "huge" in spec.model:
            raise Unavailable("it needs 90 GB, there are 8", code="too_big")

    house = open_house(precheck=precheck)
    huge, small = house.spec("huge.gguf"), house.spec()
    assert house.say(small, select=True)
    with pytest.raises(Unavailable, match="90 GB") as caught:
        house.say(huge, select=True)
    assert caught.value.code == "too_big" and caught.value.status == 503
    assert house.spawns() == 1 and house.state(huge) is None
    state = house.state(small)
    assert state and state.selected and state.state == "ready"


def test_what_the_precheck_says_of_a_field_arrives_whole(open_house: Any):
    def precheck(_: Any) -> None:
        raise Unprocessable("n_ctx is too large", param="n_ctx", most=7)

    house = open_house(precheck=precheck)
    with pytest.raises(Unprocessable) as caught:
        house.say(house.spec())
    assert (caught.value.param, caught.value.details) == ("n_ctx", {"most": 7})


def test_without_threads_for_a_while_nobody_waits_for_ever(house: House, monkeypatch: pytest.MonkeyPatch):
    def start(thread: threading.Thread) -> None:
        if thread.name.startswith("runner "):
            raise RuntimeError("can't start new thread")
        begin(thread)

    begin, spec = threading.Thread.start, house.spec()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(ParleyError):
            house.say(spec)
    assert together(1, lambda _: house.say(spec)) == ["You said: hello"]


def test_a_command_that_cannot_be_run_is_an_error(open_house: Any):
    house = open_house()
    house.supervisor._driver.command = ["/nowhere/python"]
    with pytest.raises(Unavailable, match="cannot be started"):
        house.say(house.spec())


class TestSwitch:
    def test_running_answers_finish_on_the_old_one_which_then_goes(self, house: House):
        old, new = house.spec("old.gguf"), house.spec("new.gguf", script="!sleep 0.2")
        assert house.say(old, select=True)
        pid, halfway = house.pid(old), threading.Barrier(5)

        def stream(number: int) -> str:
            text = ""
            with house.engine.lease(old) as lease:
                for event in lease.generate(generate("!tokens 30 !sleep 0.03")):
                    text += event.text if isinstance(event, Piece) else ""
                    if isinstance(event, Piece) and text == "w1 w2":
                        halfway.wait(SOON)
            return text

        def switch() -> str:
            halfway.wait(SOON)
            answer = house.say(new, select=True)
            state = house.state(old)
            assert state and state.state == "retiring" and not gone(pid)
            return answer

        answers = together(5, lambda n: switch() if n == 4 else stream(n))
        assert answers[:4] == [" ".join(f"w{n + 1}" for n in range(30))] * 4 and answers[4] == "You said: hello"
        eventually(lambda: gone(pid), "the end of the old runner")
        eventually(lambda: house.state(old) is None)
        state = house.state(new)
        assert state and state.selected

    @pytest.mark.parametrize("script", ["!fail bad_model broken", "!die 134", "!first !die SIGSEGV"])
    def test_a_new_one_that_fails_leaves_the_old_one_alone(self, house: House, script: str):
        old, new = house.spec("old.gguf"), house.spec("new.gguf", script=script)
        assert house.say(old, select=True)
        pid = house.pid(old)
        with pytest.raises(ParleyError):
            house.say(new, select=True)
        state = house.state(old)
        assert state and state.selected and state.state == "ready" and state.pid == pid
        assert house.say(old) == "You said: hello"

    def test_one_that_is_kept_stays(self, house: House):
        old, new = house.spec("old.gguf"), house.spec("new.gguf")
        assert house.say(old, select=True, keep=math.inf)
        pid = house.pid(old)
        assert house.say(new, select=True)
        assert house.pid(old) == pid and house.say(old, keep=math.inf)

    def test_one_that_is_kept_no_longer_goes(self, house: House):
        old, new = house.spec("old.gguf"), house.spec("new.gguf")
        assert house.say(old, select=True, keep=math.inf) and house.say(new, select=True)
        pid = house.pid(old)
        house.engine.keep(house.spec("absent.gguf"), math.inf)
        house.engine.keep(old, 0.01)
        eventually(lambda: gone(pid), "the end of what nobody keeps")
        assert {state.spec for state in house.supervisor.status().runners} == {new}

    def test_back_to_one_that_is_retiring(self, house: House):
        old, new = house.spec("old.gguf"), house.spec("new.gguf")
        assert house.say(old, select=True)
        pid = house.pid(old)
        with house.engine.lease(old):
            house.say(new, select=True)
            house.say(old, select=True)
        state = house.state(old)
        assert state and state.pid == pid and state.selected and state.state == "ready"

    def test_asked_for_while_it_ends_it_is_loaded_anew(self, house: House):
        old, new = house.spec("old.gguf", script="!stubborn"), house.spec("new.gguf")
        assert house.say(old, select=True)
        pid = house.pid(old)
        assert house.say(new, select=True)              # `old` has ignored SIGTERM for now
        assert house.say(old) == "You said: hello"      # so it was killed, and another one has said this
        assert gone(pid) and house.pid(old) != pid

    def test_many_switches_at_once_end_in_one_selected(self, house: House):
        specs = [house.spec(f"{n}.gguf") for n in range(3)]
        answers = together(12, lambda n: house.say(specs[n % 3], f"{n}", select=True))
        assert answers == [f"You said: {n}" for n in range(12)]
        assert sum(state.selected for state in house.supervisor.status().runners) == 1
        eventually(lambda: all(state.state == "ready" for state in house.supervisor.status().runners))


class TestRoom:
    def test_the_idle_one_used_least_recently_goes(self, open_house: Any):
        house = open_house(max_loaded=3)
        selected, a, b, c = (house.spec(f"{name}.gguf") for name in ("s", "a", "b", "c"))
        house.say(selected, select=True)
        house.say(a)
        house.say(b)
        house.say(a)
        pid = house.pid(b)
        house.say(c)
        assert gone(pid) and house.state(b) is None
        assert {state.spec for state in house.supervisor.status().runners} == {selected, a, c}

    def test_when_all_are_pinned_it_says_so_at_once(self, open_house: Any):
        house = open_house(max_loaded=2)
        house.say(house.spec("s.gguf"), select=True)
        house.say(house.spec("k.gguf"), keep=math.inf)
        with pytest.raises(NoRoom, match="MAX_LOADED=2") as caught:
            house.say(house.spec("x.gguf"))
        assert caught.value.status == 409 and [one["model"] for one in caught.value.details["loaded"]] \
            == ["s.gguf", "k.gguf"]

    def test_a_load_waits_for_a_busy_one(self, open_house: Any):
        house = open_house(max_loaded=2)
        house.say(house.spec("s.gguf"), select=True)
        busy, other = house.spec("b.gguf"), house.spec("x.gguf")
        with house.engine.lease(busy):
            waiter = threading.Thread(target=house.say, args=(other,))
            waiter.start()
            eventually(lambda: (state := house.state(other)) and state.state == "loading")
            time.sleep(0.2)
            assert house.state(other).state == "loading" and house.state(busy).state == "ready"
        waiter.join(SOON)
        assert house.say(other) and house.state(busy) is None

    def test_a_switch_goes_beside_a_full_house(self, open_house: Any):
        house = open_house(max_loaded=1)
        old, new = house.spec("old.gguf"), house.spec("new.gguf")
        with house.engine.lease(old, select=True) as lease:
            assert house.say(new, select=True)
            assert [event for event in lease.generate(generate("still here")) if isinstance(event, Piece)]
        eventually(lambda: house.state(old) is None)


class TestStop:
    def test_answers_finish_and_nobody_new_comes_in(self, house: House):
        spec = house.spec()
        house.say(spec, select=True)
        pid, begun = house.pid(spec), threading.Event()

        def stream() -> str:
            text = ""
            with house.engine.lease(spec) as lease:
                for event in lease.generate(generate("!tokens 20 !sleep 0.03")):
                    begun.set()
                    text += event.text if isinstance(event, Piece) else ""
            return text

        def stop() -> None:
            begun.wait(SOON)
            house.supervisor.stop(SOON)

        def late() -> str:
            begun.wait(SOON)
            eventually(lambda: house.supervisor.draining)
            return house.say(spec)

        answer, _, refused = together(3, lambda n: (stream, stop, late)[n]())
        assert answer == " ".join(f"w{n + 1}" for n in range(20))
        assert isinstance(refused, Unavailable) and refused.code == "draining" and refused.status == 503
        assert gone(pid)

    def test_a_second_stop_cuts_the_first_one_short(self, house: House):
        spec = house.spec()
        with house.engine.lease(spec, select=True) as lease:
            answer = lease.generate(generate("!hang 1"))
            assert next(answer)
            first = threading.Thread(target=house.supervisor.stop, args=(600,))
            first.start()
            eventually(lambda: house.supervisor.draining)
            house.supervisor.stop(0)
            first.join(SOON)
            assert not first.is_alive()
            with pytest.raises(Unavailable):
                list(answer)

    def test_a_load_in_progress_is_given_up(self, house: House):
        spec = house.spec(script="!stubborn\n!hang")
        waiter = threading.Thread(target=together, args=(1, lambda n: house.say(spec)))
        waiter.start()
        pid = eventually(lambda: (state := house.state(spec)) and state.pid)
        house.supervisor.stop(0)
        waiter.join(SOON)
        assert gone(pid) and not waiter.is_alive()

    def test_kill_ends_all_at_once(self, house: House):
        pids = []
        for name in ("a.gguf", "b.gguf"):
            house.say(house.spec(name, script="!stubborn"))
            pids.append(house.pid(house.spec(name)))
        house.supervisor.kill()
        eventually(lambda: all(gone(pid) for pid in pids))


def test_the_runner_sees_no_secret(house: House, monkeypatch: pytest.MonkeyPatch):
    for name in ("MASTER_KEY", "DATA_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "not for runners")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    spec = house.spec()
    house.say(spec)
    proc = Path(f"/proc/{house.pid(spec)}")
    names = {entry.partition(b"=")[0].decode() for entry in (proc / "environ").read_bytes().split(b"\0") if entry}
    assert "PATH" in names and "OMP_NUM_THREADS" in names
    assert not {name for name in names if "KEY" in name or "TOKEN" in name}
    open_files = [os.readlink(entry) for entry in (proc / "fd").iterdir()]
    assert not [name for name in open_files if str(house.folder) in name]
    assert b"authkey" not in (proc / "cmdline").read_bytes()


ORPHANS = """
import sys, threading, time
from pathlib import Path
from tests.services.engine.house import House
house = House(Path(sys.argv[1]))
for name in ("a.gguf", "b.gguf"):
    house.say(house.spec(name))
    print(house.pid(house.spec(name)), flush=True)
time.sleep(600)
"""


def test_no_runner_outlives_a_supervisor_that_was_killed(tmp_path: Path):
    parent = subprocess.Popen([sys.executable, "-c", ORPHANS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pids = [int(parent.stdout.readline()) for _ in range(2)]
    assert not any(gone(pid) for pid in pids)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    eventually(lambda: all(gone(pid) for pid in pids), "the end of the orphans")


def test_which_runner_is_started():
    real, fake = runner_command(Settings()), runner_command(Settings(runner="fake"))
    assert real[:2] == fake[:2] == [sys.executable, real[1]] and real[1].endswith("main.py")
    assert (real[2:], fake[2:]) == (["runner"], ["fake-runner"])


def test_a_runner_gets_a_key_of_its_own_and_no_secret(tmp_path: Path):
    plain = Settings(data_dir=tmp_path)
    assert limits_of(plain).kv_key == "" and limits_of(plain).kv_folder == str(tmp_path / "kv")
    secret = Settings(data_dir=tmp_path, data_key="d" * 32)
    with pytest.raises(ConfigError):
        limits_of(secret)
    crypto.Cipher.open(tmp_path, "d" * 32)
    assert limits_of(secret).kv_key == crypto.kv_key(tmp_path, "d" * 32).hex() != ""
