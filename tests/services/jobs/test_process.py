"""The executor's own process: how it ends."""

import json
import os
import subprocess
import sys

from services.jobs.executor import STUCK
from tests.conftest import ROOT

HANGING = """
import threading
from concurrent.futures import ThreadPoolExecutor
from services.jobs import process

class Executor:
    def run(self):
        self.pool = ThreadPoolExecutor(1)
        self.pool.submit(threading.Event().wait)
        return False
    def stop(self, drain):
        pass

process.build = lambda *_: Executor()
raise SystemExit(process.work(None))
"""


def test_a_process_whose_job_hangs_in_a_pool_ends(tmp_path):
    line = json.dumps({"control": "", "authkey": "", "worker": "w"}).encode() + b"\n"
    with subprocess.Popen([sys.executable, "-c", HANGING], stdin=subprocess.PIPE, cwd=ROOT,
                          env={**os.environ, "DATA_DIR": str(tmp_path)}) as process:
        try:
            process.stdin.write(line)
            process.stdin.flush()
            assert process.wait(20) == STUCK
        finally:
            process.kill()
