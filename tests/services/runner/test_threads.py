"""Threads: the governor finds the number that pays on a machine that changes, and its trials cost next to nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from services.runner.threads import Governor, cores, ladder

Machine = Callable[[int], float]        # threads -> seconds of a step


def quiet(threads: int) -> float:
    return 0.002 + 0.020 / threads


def busy(threads: int) -> float:
    """The other job has a core of its own, and a thread beside it holds all the others up."""
    return 0.1 if threads > 1 else 0.030


def run(governor: Governor, machine: Machine, steps: int, tokens: int = 1, noise: float = 0.0,
        seed: int = 1) -> tuple[float, list[int]]:
    """The time that the steps took, in all, and the threads of each."""
    dice, seconds = random.Random(seed), 0.0
    used: list[int] = []
    for _ in range(steps):
        threads = governor.choose(tokens)
        took = machine(threads) * (1 + noise * dice.expovariate(1))
        governor.told(threads, tokens, took)
        seconds, used = seconds + took, [*used, threads]
    return seconds, used


@pytest.mark.parametrize("most", [1, 2, 3, 4, 8, 64])
@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_alone_trials_cost_less_than_two_percent(most: int, noise: float) -> None:
    seconds, used = run(Governor(most), quiet, 5000, noise=noise)
    assert max(used) == most
    without = sum(quiet(most) * (1 + noise * dice.expovariate(1)) for dice in [random.Random(1)] for _ in used)
    assert seconds < 1.02 * without


def test_a_busy_machine_is_found_soon_and_a_quiet_one_again() -> None:
    governor = Governor(2)
    run(governor, quiet, 500)
    for _ in range(3):
        seconds, used = run(governor, busy, 200)
        assert seconds < 200 * busy(1) + 2.0 and used[-50:].count(1) > 45
        seconds, used = run(governor, quiet, 400)
        assert seconds < 400 * quiet(2) + 1.0 and used[-50:].count(2) > 45


def test_where_waiting_costs_more_than_threads_bring_few_are_used() -> None:
    _, used = run(Governor(8), lambda threads: 0.001 * (1 + 0.1 * threads), 3000, noise=0.2)
    assert sum(used[-1000:]) < 1.5 * 1000


def test_a_core_that_is_taken_on_a_large_machine_costs_one_thread() -> None:
    _, used = run(Governor(16), lambda threads: 0.16 / threads * (1 if threads < 16 else 2), 2000, noise=0.1)
    assert used[-500:].count(15) > 400


def test_each_size_of_batch_has_its_own_number() -> None:
    governor = Governor(2)
    for _ in range(300):
        for tokens, machine in ((1, busy), (16, quiet)):
            run(governor, machine, 1, tokens)
    assert governor.choose(1) == 1 and governor.choose(16) == 2


def test_runners_beside_each_other_settle() -> None:
    """Two on two cores: each is the other's noise, and threads beyond the cores wait for each other."""
    governors = [Governor(2), Governor(2)]
    slow = 0
    for step in range(3000):
        chosen = [governor.choose(1) for governor in governors]
        for governor, threads in zip(governors, chosen, strict=True):
            governor.told(threads, 1, {2: 0.022, 3: 0.035 if threads == 2 else 0.030, 4: 0.100}[sum(chosen)])
        slow += sum(chosen) == 4 and step > 100
    assert slow < 60


def test_what_was_chosen_before_another_decode_was_told_changes_nothing() -> None:
    governor = Governor(2)
    governor.told(1, 1, 0.000001)
    run(governor, quiet, 100)
    assert governor.choose(1) == 2


@pytest.mark.parametrize(("most", "numbers"), [
    (1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 6, 7, 8]), (64, [1, 2, 4, 8, 16, 32, 48, 63, 64])])
def test_the_numbers_worth_trying(most: int, numbers: list[int]) -> None:
    assert ladder(most) == numbers


def groups(folder: Path, text: str, **quotas: str) -> tuple[Path, Path]:
    """A tree of control groups; `quotas` by folder and file, with "__" for "/"."""
    for name, value in quotas.items():
        file = folder / "fs" / name.replace("__", "/").replace("_dot_", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(value)
    (folder / "cgroup").write_text(text)
    return folder / "fs", folder / "cgroup"


def test_cores_are_bounded_by_the_quota_of_any_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)
    two = groups(tmp_path / "made", "0::/a/b\n", a__b__cpu_dot_max="max 100000\n", a__cpu_dot_max="350000 100000\n")
    assert cores(*two) == 3
    one = groups(tmp_path / "one", "5:cpuset:/\n4:cpu,cpuacct:/x\n", cpu__cpu_dot_cfs_quota_us="50000\n",
                 cpu__cpu_dot_cfs_period_us="100000\n", cpu__x__cpu_dot_cfs_quota_us="-1\n",
                 cpu__x__cpu_dot_cfs_period_us="100000\n")
    assert cores(*one) == 1
    free = groups(tmp_path / "free", "0::/\n", cpu_dot_max="max 100000\n")
    assert cores(*free) == 8 and cores(tmp_path, tmp_path / "none") == 8
