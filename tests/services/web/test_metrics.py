"""The worker's side of `/metrics`: what it counts, and how it tells the serve process."""

from __future__ import annotations

import threading

import pytest

from services import wire
from services.errors import Unavailable
from services.web import metrics
from services.web.metrics import Tally
from tests.services.web.conftest import MASTER, wait_until

AUTHKEY = b"k" * 32


@pytest.fixture
def heard(tmp_path):
    """What a supervisor at `tmp_path/control.sock` is told. It answers GetMetrics with its number of reports."""
    reports = []

    def talk(channel):
        with channel:
            try:
                while message := channel.receive():
                    if isinstance(message, wire.GetMetrics):
                        channel.send(wire.Metrics(text=f"parley_reports {len(reports)}\n"))
                    else:
                        reports.append({(one.route, one.method, one.status): one.count for one in message.served})
            except wire.WireError:
                pass

    door = wire.Door(str(tmp_path / "control.sock"), AUTHKEY)
    thread = threading.Thread(target=door.serve, args=(talk,), daemon=True)
    thread.start()
    yield reports
    door.close()
    thread.join()


def test_every_request_is_counted_by_its_route(world, heard):
    world.call("POST", "/answer", json={"prompt": "x"})
    world.call("POST", "/answer", json={"prompt": "x", "stream": True})
    world.call("POST", "/answer", json={})
    world.call("GET", "/answer/7")
    world.call("GET", "/healthz", key=None)
    world.call("GET", "/answer", key="wrong")
    world.call("GET", "/nowhere/" + MASTER)
    world.call("PUT", "/answer")
    response = world.call("GET", "/metrics")
    assert response.text == "parley_reports 1\n" and response.mimetype == "text/plain"
    assert heard == [{("/answer", "POST", 200): 2, ("/answer", "POST", 400): 1,
                      ("/answer/<string:session_id>", "GET", 404): 1, ("/healthz", "GET", 200): 1,
                      ("/answer", "GET", 401): 1, ("other", "other", 404): 1, ("other", "other", 405): 1}]
    assert world.call("GET", "/metrics").text == "parley_reports 2\n", "the first look at them counts as well"


def test_figures_are_the_administrator_s(world, heard):
    assert world.call("GET", "/metrics", key=None).status_code == 401
    assert world.call("GET", "/metrics", key=world.make_key()).status_code == 403
    assert world.call("GET", "/metrics", key=world.make_key(scopes=["admin"])).status_code == 200


def test_the_queue_is_told_with_them_and_to_who_scales(world, monkeypatch):
    said = []
    monkeypatch.setattr(world.parts.tally, "figures", lambda queue: said.append(queue) or "")
    body = {"text": "A text that is long enough to be summarised. " * 3}
    for _ in range(3):
        assert world.call("POST", "/summaries/v1/summary", json=body).status_code == 200
    assert world.call("GET", "/metrics/autoscaler").json == {"queueSize": 3}
    assert world.call("GET", "/metrics/autoscaler", key=world.make_key()).status_code == 403
    jobs = world.app.extensions["parley"].jobs

    def away():
        raise Unavailable("Redis does not answer")
    for sizes in (jobs.sizes, away):
        monkeypatch.setattr(jobs, "sizes", sizes)
        assert world.call("GET", "/metrics").status_code == 200
    assert said == [wire.QueueSize(pending=3), wire.QueueSize()]
    assert world.call("GET", "/metrics/autoscaler").status_code == 503


def test_without_a_supervisor_requests_go_on_and_nothing_is_lost(tmp_path, request, world):
    assert world.call("GET", "/healthz").status_code == 200
    assert world.call("GET", "/metrics").status_code == 503
    heard = request.getfixturevalue("heard")
    assert world.call("GET", "/metrics").status_code == 200
    assert heard == [{("/healthz", "GET", 200): 1, ("/metrics", "GET", 503): 1}]


def test_counts_are_told_in_time_by_themselves(tmp_path, heard, monkeypatch):
    monkeypatch.setattr(metrics, "PAUSE", 0.01)
    tally = Tally(str(tmp_path / "control.sock"), AUTHKEY)
    tally.start()
    for _ in range(100):
        tally.count("/x", "GET", 200)
    wait_until(lambda: sum(report["/x", "GET", 200] for report in heard) == 100)
