"""A process that takes turns in sessions until it is killed, and notes each promise it makes in a ledger of its own.

`python -m tests.services.store.writer DATA LEDGER [DATA_KEY]`; each line on standard input, `<failpoint spec> <run>
<turns>` or `after=<seconds> <run> <turns>`, forks one such process and answers with its exit status once it has ended.
"""

import contextlib
import os
import signal
import sys
import threading
import traceback
from pathlib import Path

from services.chat.sessions import Sessions
from services.errors import ParleyError
from services.store.crypto import Cipher
from services.store.files import FileStore

SESSIONS = ("1", "2", "chat")


def note(ledger, *words):
    """The client's own durable note."""
    os.write(ledger, ("\t".join(words) + "\n").encode())
    os.fsync(ledger)


def write(data, ledger_path, data_key, run, turns):
    ledger = os.open(ledger_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    sessions = Sessions(FileStore(data, Cipher.open(data, data_key) if data_key else None))
    for number in range(turns):
        sid = SESSIONS[number % len(SESSIONS)]
        text = f"{run}.{number}"
        note(ledger, "try", sid, text)
        with contextlib.suppress(ParleyError, OSError), sessions.turn("0", sid, 30) as turn:
            turn.prompt("prompt " + text)
            note(ledger, "saved", sid, "prompt " + text)
            turn.answer("answer " + text, finish_reason="stop")
            note(ledger, "acked", sid, "answer " + text)


def serve():
    data, ledger, *key = sys.argv[1:]
    for line in sys.stdin:
        spec, run, turns = line.split()
        pid = os.fork()
        if pid == 0:
            if not spec.startswith("after="):
                os.environ["FAILPOINT"] = spec
            try:
                write(Path(data), ledger, key[0] if key else None, run, int(turns))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        if spec.startswith("after="):
            timer = threading.Event()
            timer.wait(float(spec[6:]))
            os.kill(pid, signal.SIGKILL)
        print(os.waitpid(pid, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
