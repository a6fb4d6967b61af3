"""Sessions in Redis, plain and encrypted; two gateways over one Redis; and what happens when it is away."""

import os
import signal
import threading
import time

import pytest

from services.errors import BadRequest, ConfigError, Conflict, Gone, SessionBusy, StorageFull, Unavailable
from services.settings import Settings
from services.store import redis_client, redis_link, redis_sessions
from services.store.crypto import SharedCipher
from services.store.redis_link import Link, linked
from services.store.redis_sessions import ROOM, STEPS, RedisStore
from tests.redis_server import free_port, needs_redis, running
from tests.services.store.contract import HEAD, StoreContract, add, contents, said

pytestmark = needs_redis
DATA_KEY = "0123456789abcdef0123456789abcdef-data-key"


@pytest.fixture(scope="module")
def server():
    with running() as server:
        yield server


def client_of(server):
    return redis_client.connect(Settings(redis_url=server.url))


def store_of(server, cipher=None, namespace="test", **settings):
    return RedisStore(linked(Settings(redis_url=server.url, redis_namespace=namespace, **settings), ROOM, STEPS),
                      cipher)


class Redis(StoreContract):
    cipher = None

    @pytest.fixture
    def store(self, server):
        client_of(server).flushall()
        return store_of(server, self.cipher)

    def test_gateways_see_one_set(self, store, server):
        other = store_of(server, self.cipher)
        add(store, "0", "1", "one")
        add(other, "0", "1", "two")
        assert contents(store, "0", "1") == ["one", "two"] and other.index("0") == store.index("0")
        with store.open("0", "1", 1) as log:
            with pytest.raises(SessionBusy):
                other.open("0", "1", 0.01).__enter__()
            other.delete("0", "1")
            assert log.gone()
        assert store.owners() == []

    def test_nothing_is_left_behind(self, store, server):
        for sid in "ab":
            add(store, "0", sid, "x")
            store.delete("0", sid)
        with store.open("0", "c", 1, HEAD):
            pass
        assert client_of(server).keys("*") == []

    def test_a_call_that_is_sent_twice_has_the_effect_of_one(self, store, monkeypatch):
        run = Link.run

        def twice(link, step, *values):
            if step != "DELETE":
                run(link, step, *values)
            return run(link, step, *values)
        monkeypatch.setattr(Link, "run", twice)
        self.test_records_come_back_numbered_in_order(store)
        store.delete("0", "1")
        self.test_create(store)
        with store.open("0", "empty", 1, HEAD):
            pass
        assert set(store.index("0")) == {"5"}

    def test_who_lost_the_lock_adds_nothing(self, store, server):
        other = store_of(server, self.cipher)
        with store.open("0", "1", 1, HEAD) as log:
            log.append(said("x"))
            client_of(server).delete("{test}:sessions:lock:0/1")        # as after LEASE seconds of silence
            log.append(said("nobody has it"))
            client_of(server).delete("{test}:sessions:lock:0/1")
            add(other, "0", "1", "y")
            with pytest.raises(Conflict) as caught:
                log.append(said("late"))
            assert caught.value.code == "session_moved"
            with other.open("0", "1", 1), pytest.raises(Conflict):
                log.append(said("late"))
        assert contents(store, "0", "1") == ["x", "nobody has it", "y"]

    def test_a_lock_lasts_as_long_as_it_is_held(self, store, server, monkeypatch):
        monkeypatch.setattr(redis_link, "RENEWED", 0.01)
        with store.open("0", "1", 1, HEAD) as log:
            log.append(said("x"))
            client = client_of(server)
            client.pexpire("{test}:sessions:lock:0/1", 5000)
            deadline = time.monotonic() + 30
            while client.pttl("{test}:sessions:lock:0/1") <= 5000:
                assert time.monotonic() < deadline
        assert not client.exists("{test}:sessions:lock:0/1")

    def test_damage_is_one_sessions_own(self, store, server):
        add(store, "0", "1", "x")
        add(store, "0", "2", "y")
        client = client_of(server)
        client.lset("{test}:sessions:log:0/1", 1, "garbage \N{BLACK HEART SUIT}")
        for act in (lambda: store.read("0", "1"), lambda: store.open("0", "1", 1).__enter__()):
            with pytest.raises(Gone) as caught:
                act()
            assert caught.value.code == "session_damaged"
        client.hset("{test}:sessions:of:0", "2", "0" * 32 + " [1]")
        assert store.index("0")["2"].problem and contents(store, "0", "2") == ["y"]
        store.delete("0", "1")


class TestPlain(Redis):
    pass


class TestSealed(Redis):
    cipher = SharedCipher(DATA_KEY)

    def test_nothing_is_in_the_clear(self, store, server):
        add(store, "0", "1", "secrettext")
        client = client_of(server)
        values = [*client.hvals("{test}:sessions:of:0"), *client.lrange("{test}:sessions:log:0/1", 0, -1)]
        assert len(values) == 3 and not [value for value in values if "secret" in value]

    def test_a_line_belongs_to_its_place(self, store, server):
        add(store, "0", "1", "x", "y")
        add(store, "k1", "1", "z", "z")
        client = client_of(server)
        client.lset("{test}:sessions:log:0/1", 1, client.lindex("{test}:sessions:log:k1/1", 1))
        with pytest.raises(Gone):
            store.read("0", "1")


def test_all_servers_have_one_key(server):
    client_of(server).flushall()
    store_of(server, SharedCipher(DATA_KEY)).check()
    store_of(server, SharedCipher(DATA_KEY)).check()
    for cipher in (None, SharedCipher(DATA_KEY[::-1])):
        with pytest.raises(ConfigError, match="DATA_KEY"):
            store_of(server, cipher).check()
    store_of(server, None, "plain").check()
    with pytest.raises(ConfigError, match="in the clear"):
        store_of(server, SharedCipher(DATA_KEY), "plain").check()


def test_namespaces_are_apart(server):
    add(store_of(server, namespace="one"), "0", "1", "x")
    assert store_of(server, namespace="two").index("0") == {}


def test_what_no_line_can_hold(server):
    store = store_of(server, namespace="unicode")
    with store.open("0", "1", 1, HEAD) as log:
        with pytest.raises(BadRequest):
            log.append(said("\ud800"))
        log.append(said("\N{GRINNING FACE}\0\n"))
    assert contents(store, "0", "1") == ["\N{GRINNING FACE}\0\n"]


def test_a_turn_waits_for_a_redis_that_is_started_again():
    with running(port=free_port()) as server:
        store = store_of(server)
        with store.open("0", "1", 1, HEAD) as log:
            server.kill()
            back = threading.Timer(0.2, server.start)
            back.start()
            log.append(said("x"))
            back.join()
        assert contents(store, "0", "1") == ["x"]


def test_a_killed_redis_loses_nothing_and_is_found_again(monkeypatch):
    monkeypatch.setattr(redis_sessions, "PATIENCE", 0)
    with running(port=free_port()) as server:
        store = store_of(server)
        with store.open("0", "1", 1, HEAD) as log:
            log.append(said("x"))
            server.kill()
            assert not log.gone()
            for act in (lambda: log.append(said("y")), lambda: store.read("0", "1"), lambda: store.index("0"),
                        store.owners, lambda: store.delete("0", "1"), lambda: store.open("0", "1", 1).__enter__(),
                        store.check, lambda: store.create("0", lambda used: "2", [HEAD])):
                with pytest.raises(Unavailable) as told:
                    act()
                assert told.value.code == "redis_unavailable" and told.value.retry_after
            assert "Redis" in store.problem()
            server.start()
            assert store.problem() is None
            log.append(said("y"))
            server.kill()
        server.start()
        assert contents(store, "0", "1") == ["x", "y"]


def test_no_acknowledged_line_is_lost_or_doubled_though_redis_is_killed():
    with running(port=free_port()) as server:
        stop, acknowledged = threading.Event(), {sid: [] for sid in "ab"}

        def write(name, sid):
            store, number = store_of(server), 0
            while not stop.is_set():
                number += 1
                try:
                    with store.open("0", sid, 5, HEAD) as log:
                        log.append(said(f"{name} {number}"))
                        acknowledged[sid].append(f"{name} {number}")
                except (Unavailable, SessionBusy):
                    continue
        threads = [threading.Thread(target=write, args=(name, sid)) for name in "xy" for sid in "ab"]
        for thread in threads:
            thread.start()
        for _ in range(5):
            told = sum(map(len, acknowledged.values()))
            deadline = time.monotonic() + 60
            while sum(map(len, acknowledged.values())) < told + 20:
                assert time.monotonic() < deadline
            server.kill()
            server.start()
        stop.set()
        for thread in threads:
            thread.join(60)
        for sid, lines in acknowledged.items():
            found = contents(store_of(server), "0", sid)
            assert len(set(found)) == len(found) and [line for line in found if line in set(lines)] == lines


def test_a_redis_that_hangs_holds_up_one_caller_at_a_time(monkeypatch):
    monkeypatch.setattr(redis_client, "ANSWER", 0.2)
    with running() as server:
        store = store_of(server)
        add(store, "0", "1", "x")
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable):
                store.read("0", "1")
            monkeypatch.setattr(store.link, "client", None)         # asked by nobody
            with pytest.raises(Unavailable, match="too slowly"):
                store.read("0", "1")
            monkeypatch.undo()
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        deadline = time.monotonic() + 30
        while store.link._late:
            assert time.monotonic() < deadline
        assert contents(store, "0", "1") == ["x"]


def test_a_full_redis_is_told():
    with running() as server:
        store = store_of(server)
        add(store, "0", "1", "x")
        with store.open("0", "1", 1) as log:
            client_of(server).config_set("maxmemory", 1)
            assert "no memory" in store.problem()
            with pytest.raises(StorageFull):
                log.append(said("y"))
        assert contents(store, "0", "1") == ["x"]
        store.delete("0", "1")
