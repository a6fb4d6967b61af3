"""`/metrics`: the figures of the whole server. The serve process has them; each worker tells it what it answered.

A request only adds to a count in its own process; a thread takes the counts to the serve process about once a second,
so that a slow or absent one delays nobody.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter

from flask import Flask, Response, g, request

from services import wire
from services.engine.client import asked, supervisor
from services.errors import ParleyError
from services.web import replies
from services.web.frame import Trace, json_response
from services.web.routes import Endpoint, op

PAUSE = 1.0             # seconds in which counts are gathered before they are told
OTHER = "other"         # the route and the method of what no route answers
log = logging.getLogger("parley.web")


class Metrics(Endpoint):
    @op("The server's figures, in Prometheus' text format", scope="admin", media="text/plain")
    def get(self) -> Response:
        text = self.parts.tally.figures(self._queue())
        return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    def _queue(self) -> wire.QueueSize:
        """How the queue is, also when it is away: the other figures are all the more wanted then."""
        settings = self.room.settings
        on_redis = bool(settings.redis_url or settings.redis_host)
        try:
            sizes = self.room.jobs.sizes()
        except ParleyError as error:
            log.warning("the queue's figures are not known: %s", error.message)
            return wire.QueueSize(redis=False if on_redis else None)
        return wire.QueueSize(pending=sizes.pending, running=sizes.running, redis=True if on_redis else None)


class Autoscaler(Endpoint):
    @op("Jobs that wait, for whoever starts more executors", scope="admin", reply=replies.QueueLength)
    def get(self) -> Response:
        return json_response({"queueSize": self.room.jobs.sizes().pending})


class Tally:
    """This worker's HTTP requests by route, method and status, and messages of chat platforms by platform and outcome.
    Safe for threads; `start` after the fork."""

    def __init__(self, control_address: str, authkey: bytes) -> None:
        self._address = control_address
        self._authkey = authkey
        self._lock = threading.Lock()           # owns the counts
        self._counts: Counter[tuple[str, str, int]] = Counter()
        self._seconds: dict[tuple[str, str, int], float] = {}
        self._bound: Counter[tuple[str, str]] = Counter()
        self._news = threading.Event()

    def start(self) -> None:
        threading.Thread(target=self._tell_now_and_then, name="tally", daemon=True).start()

    def count(self, route: str, method: str, status: int, seconds: float = 0.0) -> None:
        with self._lock:
            self._counts[route, method, status] += 1
            self._seconds[route, method, status] = self._seconds.get((route, method, status), 0.0) + seconds
        self._news.set()

    def count_message(self, platform: str, outcome: str) -> None:
        with self._lock:
            self._bound[platform, outcome] += 1
        self._news.set()

    def figures(self, queue: wire.QueueSize) -> str:
        """What the serve process has counted and knows of the runners, this worker's last requests included, and how
        the `queue` is."""
        with supervisor(self._address, self._authkey) as channel:
            self._tell(channel)
            answer = asked(channel, wire.GetMetrics(queue=queue))
        assert isinstance(answer, wire.Metrics)
        return answer.text

    def _tell_now_and_then(self) -> None:
        while self._news.wait():
            time.sleep(PAUSE)
            try:
                with wire.connect(self._address, self._authkey) as channel:
                    self._tell(channel)
            except wire.WireError as error:
                log.debug("requests are told later: %s", error)

    def _tell(self, channel: wire.Channel) -> None:
        """What could not be told is told with what comes next."""
        self._news.clear()
        with self._lock:
            counts, self._counts = self._counts, Counter()
            seconds, self._seconds = self._seconds, {}
            bound, self._bound = self._bound, Counter()
        try:
            if counts or bound:
                channel.send(wire.Report(
                    served=[wire.Served(route=route, method=method, status=status, count=count,
                                        seconds=seconds[route, method, status])
                            for (route, method, status), count in counts.items()],
                    bound=[wire.Bound(platform=platform, outcome=outcome, count=count)
                           for (platform, outcome), count in bound.items()]))
        except wire.WireError:
            with self._lock:
                self._counts.update(counts)
                self._seconds = {one: self._seconds.get(one, 0.0) + seconds.get(one, 0.0) for one in self._counts}
                self._bound.update(bound)
            raise


def install(app: Flask, tally: Tally) -> None:
    """Count every request of `app` when its response is closed."""
    @app.after_request
    def _count(response: Response) -> Response:
        trace: Trace = g.trace
        rule = request.url_rule
        route, method = (rule.rule, request.method) if rule else (OTHER, OTHER)
        response.call_on_close(lambda: tally.count(route, method, trace.status, time.monotonic() - trace.started))
        return response
