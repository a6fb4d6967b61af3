"""No acknowledged turn is lost or doubled: 50 random kill -9 under load, checked against the clients' own ledger."""

import json
import os
import random
import signal
import threading
import time

import pytest
import requests

from tests.conftest import Server

KILLS = int(os.environ.get("LEDGER_KILLS", "50"))
CLIENTS = 4


class Client(threading.Thread):
    """Posts numbered prompts into a session of its own and writes down, durably, what the server acknowledged."""

    def __init__(self, server, session, key, folder):
        super().__init__(daemon=True)
        self.server, self.session, self.key = server, session, key
        self.ledger = (folder / f"ledger-{session}").open("a")
        self.sent, self.acked, self.strange = [], [], []
        self.stop = threading.Event()

    def run(self):
        number = 0
        while not self.stop.is_set():
            number += 1
            prompt = f"client {self.session} turn {number}"
            self.sent.append(prompt)
            try:
                self.post(prompt, stream=number % 2 == 0)
            except (requests.RequestException, json.JSONDecodeError):
                time.sleep(0.05)            # the server is being killed; go on with the next prompt

    def post(self, prompt, stream):
        url = self.server.url
        body = {"prompt": f"{prompt} !tokens 3 !sleep 0.01", "session_id": self.session, "stream": stream}
        with requests.post(url + "/answer", json=body, headers={"Authorization": self.key}, stream=True,
                           timeout=(2, 30)) as response:
            if response.status_code != 200:
                if response.status_code not in (409, 503):
                    self.strange.append(response.text)
                time.sleep(0.05)
                return
            if not stream:
                self.acknowledge(prompt)
                return
            for line in response.iter_lines():
                if line.startswith(b"data: ") and json.loads(line[6:]).get("done"):
                    self.acknowledge(prompt)

    def acknowledge(self, prompt):
        self.acked.append(prompt)
        self.ledger.write(prompt + "\n")
        self.ledger.flush()
        os.fsync(self.ledger.fileno())


def kill_something(server, chance):
    """SIGKILL a random process of the server; True when it was the parent of all."""
    victims = {"parent": [server.process.pid], "web": server.children("main.py web"),
               "runner": server.children("fake-runner")}
    kind = chance.choice([name for name, pids in victims.items() if pids])
    try:
        os.kill(chance.choice(victims[kind]), signal.SIGKILL)
    except ProcessLookupError:
        pass
    return kind == "parent"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_acknowledged_turn_is_lost_or_doubled(home, tmp_path):
    seed = int(os.environ.get("LEDGER_SEED", random.SystemRandom().randrange(10**6)))
    print(f"LEDGER_SEED={seed}")
    chance = random.Random(seed)
    server = Server(home).start().ready()
    clients = [Client(server, n, server.make_key(), tmp_path) for n in range(CLIENTS)]
    try:
        for client in clients:
            client.start()
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.1, 1.2))
            if kill_something(server, chance):
                server.process.wait(10)
                server.start()
        time.sleep(2)
        for client in clients:
            client.stop.set()
        for client in clients:
            client.join(60)
        check(server, clients)
    finally:
        if server.process.poll() is None:
            server.stop()


def check(server, clients):
    server.ready()
    assert sum(len(client.acked) for client in clients) >= KILLS, "too little was acknowledged to show anything"
    for client in clients:
        assert not client.strange, client.strange[:3]
        assert (client.ledger.close() or True)
        turns = server.call("GET", f"/answer/{client.session}", client.key).json()["turns"]
        prompts = [turn["content"].split(" !")[0] for turn in turns if turn["role"] == "user"]
        assert len(prompts) == len(set(prompts)), "a turn is there twice"
        assert prompts == sorted(prompts, key=client.sent.index), "turns are out of order"
        answered = {turns[i]["content"].split(" !")[0] for i in range(len(turns) - 1)
                    if turns[i]["role"] == "user" and turns[i + 1]["role"] == "assistant"
                    and not turns[i + 1].get("interrupted") and turns[i + 1]["content"] == "w1 w2 w3"}
        assert set(client.acked) <= answered, "an acknowledged turn is lost"
        assert set(prompts) <= set(client.sent), "a turn that nobody sent"
    reply = server.answer("one more", "after")
    assert reply.status_code == 200
