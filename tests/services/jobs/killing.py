"""Executors of tiny jobs, killed at random: run as a process of its own, which forks them and so starts one in no time.

    killing.py <store> <ledger> <jobs> <kills>      <store>: a data folder, or the address of a Redis
    killing.py <store> <ledger> <name>              one executor, until SIGTERM

The ledger gets a line for each attempt that began (`begin <id> <fence>`) and each end that a store said yes to
(`end <id> <fence>`). Ends when all jobs have.
"""

import os
import random
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from services.errors import Unavailable
from services.jobs.executor import Executor, Rules
from services.settings import Settings
from services.store.jobs import Job
from services.store.opening import open_jobs

RULES = Rules(concurrency=2, lease=0.6, beat=0.1, house=0.1, look=0.05, attempts=1000)


class Ledger:
    def __init__(self, path):
        self.fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, *words):
        os.write(self.fd, (" ".join(map(str, words)) + "\n").encode())


def store_at(place):
    address = {"redis_url": place} if ":" in place else {"data_dir": Path(place)}
    return open_jobs(Settings(**address))


def executor(place, ledger, name):
    """Until SIGTERM. A job takes as many seconds as it says, and gives its fence."""
    store = store_at(place)
    real = store.finish

    def finish(job, state, result=None, code=None):
        ended = real(job, state, result, code)
        ledger.write("end", job.id, job.fence)
        return ended

    def handle(job, tell):
        ledger.write("begin", job.id, job.fence)
        until = time.monotonic() + job.payload["seconds"]
        while (left := until - time.monotonic()) > 0:
            tell(0, 1)
            time.sleep(min(left, 0.01))
        return job.fence

    store.finish = finish
    working = Executor(store, {"tiny": handle}, name, RULES)
    signal.signal(signal.SIGTERM, lambda *_: working.stop(0.0))
    working.run()


def started(place, ledger, name):
    if (pid := os.fork()) == 0:
        status = 1
        try:
            executor(place, ledger, name)
            status = 0
        finally:
            os._exit(status)
    return pid


def main(place, path, jobs, kills):
    ledger, chance = Ledger(path), random.Random(7)
    store = store_at(place)
    for n in range(jobs):
        store.put(Job(owner=f"k{n % 3}", type="tiny", payload={"seconds": chance.uniform(0.005, 0.08)}, id=f"j{n}"))
    store.close()                                       # nothing is shared with those that are forked
    working = {started(place, ledger, f"w{n}"): f"w{n}" for n in range(2)}
    try:
        kill_some(place, ledger, working, kills, chance)
        print("killed", flush=True)
        wait_for_the_end(place)
    finally:
        for pid in working:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def kill_some(place, ledger, working, kills, chance):
    for kill in range(kills):
        time.sleep(chance.uniform(0.0, 0.08))
        pid = chance.choice(list(working))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        name = working.pop(pid) if kill % 2 else f"new{kill}"       # after a restart, or another machine's
        working.pop(pid, None)
        working[started(place, ledger, name)] = name


def wait_for_the_end(place):
    watching, until = store_at(place), time.monotonic() + 60
    while time.monotonic() < until:
        with suppress(Unavailable):
            if not watching.busy():
                return
        time.sleep(0.05)
    raise AssertionError("jobs are left")


if __name__ == "__main__":
    if len(sys.argv) == 4:
        executor(sys.argv[1], Ledger(sys.argv[2]), sys.argv[3])
    else:
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
