"""Jobs in Redis, plain and encrypted; and what happens when Redis is away."""

import socket
import threading

import pytest

from services.errors import StorageFull, Unavailable
from services.settings import Settings
from services.store import redis_client
from services.store.crypto import SharedCipher
from services.store.jobs import CALLBACK, ERROR, SUCCESS, JobLost, Limits
from services.store.jobs_redis import RedisJobs
from tests import redis_server
from tests.redis_server import needs_redis
from tests.services.store.jobs_contract import LEASE, JobsContract, job, take

pytestmark = needs_redis
DATA_KEY = "0123456789abcdef0123456789abcdef-data-key"


@pytest.fixture(scope="module")
def server():
    with redis_server.running() as server:
        yield server


def client_of(server, **more):
    return redis_client.connect(Settings(redis_url=server.url, **more))


def empty(server):
    client_of(server).flushall()


class Redis(JobsContract):
    cipher = None

    @pytest.fixture
    def another(self, server):
        empty(server)
        opened = []

        def open(limits=Limits()):
            opened.append(RedisJobs(client_of(server), "test", self.cipher, limits))
            return opened[-1]

        yield open
        for store in opened:
            store.close()

    @pytest.fixture
    def store(self, another):
        return another()


class TestPlain(Redis):
    pass


class TestSealed(Redis):
    cipher = SharedCipher(DATA_KEY)

    def test_nothing_is_in_the_clear(self, store, server):
        store.put(job("a", payload={"text": "secrettext"}, callback={"url": "https://secrethost/"}))
        done = store.finish(take(store), SUCCESS, "secretresult")
        store.tell_callback(done, {"url": "https://secrethost/", "state": "delivered"})
        take(store, types=(CALLBACK,))
        client = client_of(server)
        values = [value for key in client.scan_iter(_type="hash") for value in client.hvals(key)]
        assert values and not [value for value in values if "secret" in value]


def test_namespaces_are_apart(server):
    empty(server)
    one, two = (RedisJobs(client_of(server), name) for name in ("one", "two"))
    one.put(job("a"))
    assert take(two) is None and two.all(None) == [] and take(one).id == "a"


def test_nothing_of_a_job_is_left_behind(server):
    empty(server)
    store = RedisJobs(client_of(server))
    store.secret()
    for n in range(5):
        store.put(job(f"j{n}", owner=f"k{n % 2}", callback={"url": "https://a/"}))
    for state in (SUCCESS, ERROR, SUCCESS):
        store.finish(take(store), state)
    store.cancel("k1", "j3")
    store.release(take(store), 60.0)
    store.cancel("k0", "j4")
    while (found := take(store, types=(CALLBACK,))) is not None:
        store.finish(found, SUCCESS)
    assert store.sweep(1e11) == 8
    left = {key.split(":jobs:")[1] for key in client_of(server).scan_iter()}
    assert left <= {"number", "takes", "bell", "secret", "turns:high", "turns:normal", "turns:callback"}


def test_a_reply_that_was_lost_loses_no_job(server):
    """What redis-py sends again after a connection broke has the effect of one call."""
    empty(server)
    store = RedisJobs(client_of(server))
    sent = []
    for name, script in store._scripts.items():
        def twice(keys, args, script=script):
            sent.append(script(keys=keys, args=args))
            return script(keys=keys, args=args)
        store._scripts[name] = twice
    store.put(job("a"))
    store.put(job("b"))
    found = take(store)
    assert (found.id, found.attempts, found.fence) == ("a", 1, 1)
    assert store.finish(found, SUCCESS, "x").state == SUCCESS
    failed = take(store)
    store.finish(failed, ERROR, "why")
    assert failed.id == "b" and store.retry("k1", "b").fence == 1
    assert take(store).fence == 2 and take(store) is None


def test_redis_may_be_killed_and_come_back(tmp_path):
    with redis_server.running(port=redis_server.free_port()) as server:
        store = RedisJobs(client_of(server))
        for id in ("a", "b"):
            store.put(job(id, callback={"url": "https://a/"}))
        running = take(store)
        server.kill()
        for act in (lambda: store.put(job("c")), lambda: store.get("k1", "a"), lambda: take(store), store.sizes,
                    lambda: store.all(None), lambda: store.renew(running, LEASE), lambda: store.wait(1.0),
                    lambda: store.finish(running, SUCCESS), store.busy, store.secret, store.sweep,
                    lambda: store.cancel(None, "a"), store.requeue_lost):
            with pytest.raises(Unavailable) as told:
                act()
            assert told.value.code == "redis_unavailable" and str(server.port) not in told.value.message
        server.start()
        assert store.finish(running, SUCCESS, "kept").state == SUCCESS
        assert store.get("k1", "a").result == "kept" and take(store).id == "b"
        assert take(store, types=(CALLBACK,)).payload == {"job": "a", "fence": 1}
        with pytest.raises(JobLost):
            store.renew(running, LEASE)


def test_a_redis_that_is_full_read_only_or_locked_is_told():
    with redis_server.running("--requirepass", "verysecret") as server:
        for wrong in (None, "other"):
            with pytest.raises(Unavailable) as told:
                RedisJobs(client_of(server, redis_password=wrong)).put(job("a"))
            assert "other" not in told.value.message
        client = redis_client.connect(Settings(redis_url=f"unix://:verysecret@{server.socket}"))
        store = RedisJobs(client)
        store.put(job("a"))
        client.config_set("maxmemory", 1)
        with pytest.raises(StorageFull):
            store.put(job("b"))
        client.config_set("maxmemory", 0)
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(Unavailable):
            store.put(job("b"))
        client.replicaof("no", "one")
        assert take(store).id == "a" and take(store) is None


def test_what_would_be_lost_is_said(server, caplog):
    client = client_of(server)
    redis_client.check_durable(client)
    assert not caplog.records
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("appendonly", "no")
    try:
        redis_client.check_durable(client)
        assert "appendonly no" in caplog.text and "noeviction" in caplog.text
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendonly", "yes")


class Cutter(threading.Thread):
    """Between a client and Redis: passes on so many bytes of replies, then cuts the connection (row X3)."""

    def __init__(self, target):
        super().__init__(daemon=True)
        self.target, self.left = target, 1 << 30
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def run(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket(socket.AF_UNIX)
            server.connect(self.target)
            threading.Thread(target=self.pass_on, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self.pass_on, args=(server, client, True), daemon=True).start()

    def pass_on(self, one, other, cut):
        try:
            while data := one.recv(4096):
                if cut:
                    data, self.left = data[:max(self.left, 0)], self.left - len(data)
                other.sendall(data)
                if cut and self.left < 0:
                    break
        except OSError:
            pass
        for end in (one, other):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            end.close()


def test_a_missing_password_is_named_in_the_log(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(redis_client, "_logged", float("-inf"))
    with redis_server.running("--requirepass", "secret") as server, pytest.raises(Unavailable):
        RedisJobs(client_of(server)).sizes()
    assert "check REDIS_USR and REDIS_PWD" in caplog.text


def test_replies_that_are_cut_short_never_reach_another_call(server):
    empty(server)
    cutter = Cutter(str(server.socket))
    cutter.start()
    plain = RedisJobs(client_of(server))
    for n in range(10):
        plain.put(job(f"j{n}", payload={"text": f"text of {n} " * 20}))
    store = RedisJobs(redis_client.connect(Settings(redis_url=f"redis://127.0.0.1:{cutter.port}/0")))
    cut = 0
    for n in range(1000):
        cutter.left = n * 7 % 700
        try:
            found = store.get("k1", f"j{n % 10}")
            assert found.payload == {"text": f"text of {n % 10} " * 20}
        except Unavailable:
            cut += 1
    cutter.listener.close()
    assert cut > 100
