"""Callbacks: a job's end, told to a receiver on the loopback that stands for a public host."""

import base64
import hashlib
import hmac
import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from services.errors import BadRequest, FetchFailed, Forbidden, NotFound, Unavailable
from services.jobs.callbacks import DELAYS, Callbacks, secret_of
from services.jobs.executor import Executor, Later, Rules
from services.jobs.shown import shown
from services.knowledge.fetch import Fetcher
from services.settings import Settings
from services.store.jobs import CALLBACK, ERROR, SUCCESS, Job
from services.store.jobs_sqlite import SqliteJobs

PUBLIC = "93.184.216.34"


class Receiver(ThreadingHTTPServer):
    """Answers with `statuses` in turn, the last one for ever. `got`: (path, headers, body)."""

    def __init__(self):
        self.statuses, self.got, self.dialled = [200], [], []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((self.path, {key.lower(): value for key, value in self.headers.items()}, body))
                status = receiver.statuses.pop(0) if len(receiver.statuses) > 1 else receiver.statuses[0]
                self.send_response(status)
                self.send_header("Location", "http://hook.test/elsewhere")
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def dial(self, address, port, seconds):
        self.dialled.append((address, port))
        return socket.create_connection(self.server_address, seconds)

    def fetcher(self, **settings):
        return Fetcher(Settings(**settings), resolve=lambda host, seconds: [PUBLIC], dial=self.dial)


@pytest.fixture
def receiver():
    receiver = Receiver()
    yield receiver
    receiver.shutdown()
    receiver.server_close()


@pytest.fixture
def store(tmp_path):
    store = SqliteJobs(tmp_path)
    yield store
    store.close()


def ended(store, url, id="a", state=SUCCESS):
    """The callback's job of one that has just ended."""
    store.put(Job(owner="k1", type="summary", payload={"text": "long"}, id=id, callback={"url": url}))
    result = {"text": "short"} if state == SUCCESS else "why"
    store.finish(store.take("w", ["summary"], 30.0), state, result, None if state == SUCCESS else "bad_text")
    return store.take("w", [CALLBACK], 30.0)


def tell(*_):
    pass


def test_the_end_of_a_job_is_told_and_signed(store, receiver):
    job = ended(store, "http://hook.test/done?token=1")
    Callbacks(store, receiver.fetcher())(job, tell)
    (path, headers, body), = receiver.got
    event = json.loads(body)
    assert path == "/done?token=1" and headers["content-type"] == "application/json"
    assert event["type"] == "job.success" and event["data"] == {**shown(store.get("k1", "a")), "callback": None}
    assert event["data"]["result"] == "short" and event["data"]["status"] == "success"
    assert event["timestamp"] == event["data"]["ended"]
    secret = base64.b64decode(secret_of(store, "k1").removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(secret, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert headers["webhook-id"] == job.id and abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    assert store.get("k1", "a").callback == {"url": "http://hook.test/done?token=1", "state": "delivered"}


def test_openais_client_verifies_it(store, receiver):
    openai = pytest.importorskip("openai")
    Callbacks(store, receiver.fetcher())(ended(store, "http://hook.test/"), tell)
    _, headers, body = receiver.got[0]
    client = openai.OpenAI(api_key="x", webhook_secret=secret_of(store, "k1"))
    client.webhooks.verify_signature(body.decode(), headers)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.verify_signature(body.decode() + " ", headers)


def test_secrets_are_a_keys_own_and_stay(store, tmp_path):
    assert secret_of(store, "k1") == secret_of(SqliteJobs(tmp_path), "k1") != secret_of(store, "k2")


def test_a_failed_job_is_told_with_its_reason(store, receiver):
    Callbacks(store, receiver.fetcher())(ended(store, "http://hook.test/", state=ERROR), tell)
    event = json.loads(receiver.got[0][2])
    assert (event["type"], event["data"]["status"]) == ("job.error", "error")
    assert (event["data"]["result"], event["data"]["code"]) == ("why", "bad_text")


def test_of_a_job_that_is_tried_again_the_new_end_is_told_and_no_other(store, receiver):
    handle, early = Callbacks(store, receiver.fetcher()), ended(store, "http://hook.test/", state=ERROR)
    store.retry("k1", "a")
    handle(early, tell)                             # it waits for its next attempt
    store.release(early)
    store.finish(store.take("w", ["summary"], 30.0), SUCCESS, {"text": "at last"})
    for _ in range(2):
        handle(job := store.take("w", [CALLBACK], 30.0), tell)
        store.finish(job, SUCCESS)
    (_, _, body), = receiver.got
    assert json.loads(body)["data"]["result"] == "at last" and store.get("k1", "a").callback["state"] == "delivered"
    assert not store.busy()


@pytest.mark.parametrize("status", [500, 503, 404, 302, 429])
def test_a_receiver_that_does_not_take_it_is_told_again_later(store, receiver, status):
    receiver.statuses = [status, status, status, status, status]
    handle, job = Callbacks(store, receiver.fetcher()), ended(store, "http://hook.test/")
    for delay in DELAYS:
        with pytest.raises(Later) as later:
            handle(job, tell)
        assert later.value.delay == delay
        assert store.get("k1", "a").callback == {"url": "http://hook.test/", "state": "pending",
                                                 "error": f"HTTP {status}"}
        store.release(job, counted=True)
        job = store.take("w", [CALLBACK], 30.0)
    with pytest.raises(FetchFailed):
        handle(job, tell)
    assert store.get("k1", "a").callback["state"] == "failed" and len(receiver.got) == len(DELAYS) + 1
    assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 1
    assert {path for path, _, _ in receiver.got} == {"/"}           # a redirect is not followed


def test_a_receiver_that_wants_no_more_gets_no_more(store, receiver):
    receiver.statuses = [410]
    with pytest.raises(BadRequest):
        Callbacks(store, receiver.fetcher())(ended(store, "http://hook.test/"), tell)
    assert store.get("k1", "a").callback["state"] == "failed"


@pytest.mark.parametrize("url", ["http://127.0.0.1/x", "http://169.254.169.254/", "http://[::1]/",
                                 "http://hook.test:22/", "http://localhost/"])
def test_no_place_that_is_not_public_is_told(store, receiver, url):
    fetcher = Fetcher(Settings(), dial=receiver.dial)
    handle, job = Callbacks(store, fetcher), ended(store, url)
    with pytest.raises(BadRequest) as told:
        handle(job, tell)
    assert told.value.code == "url_blocked" and not receiver.dialled
    assert store.get("k1", "a").callback["state"] == "failed"


def test_nothing_is_told_where_nothing_is_fetched(store, receiver):
    with pytest.raises(Forbidden):
        Callbacks(store, receiver.fetcher(fetch=False))(ended(store, "http://hook.test/"), tell)
    assert not receiver.dialled


def test_a_job_that_is_gone_is_not_told(store, receiver):
    job = ended(store, "http://hook.test/")
    store.sweep(time.time() + 1e6)
    with pytest.raises(NotFound):
        Callbacks(store, receiver.fetcher())(job, tell)
    assert not receiver.got


def test_a_delivery_that_was_broken_off_is_made_again(store, receiver, monkeypatch):
    """By another executor, from what the queue holds."""
    monkeypatch.setattr("services.jobs.callbacks.DELAYS", (0.01, 0.01))
    receiver.statuses = [500, 200]
    store.put(Job(owner="k1", type="summary", payload={}, id="a", callback={"url": "http://hook.test/"}))
    store.finish(store.take("w", ["summary"], 30.0), SUCCESS, {"text": "short"})
    store.take("one", [CALLBACK], 30.0)                             # and dies
    executor = Executor(store, {CALLBACK: Callbacks(store, receiver.fetcher())}, "one", Rules(look=0.02))
    thread = threading.Thread(target=executor.run)
    thread.start()
    deadline = time.monotonic() + 20
    while store.get("k1", "a").callback["state"] != "delivered" and time.monotonic() < deadline:
        time.sleep(0.01)
    executor.stop(0.0)
    thread.join(20)
    assert store.get("k1", "a").callback["state"] == "delivered" and len(receiver.got) == 2 and not store.busy()


def test_a_store_that_is_away_is_not_the_receivers_fault(store, receiver, monkeypatch):
    job = ended(store, "http://hook.test/")

    def away(*_):
        raise Unavailable("away")

    monkeypatch.setattr(store, "get", away)
    with pytest.raises(Unavailable):
        Callbacks(store, receiver.fetcher())(job, tell)
