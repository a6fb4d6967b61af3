"""All counters of a server, in Prometheus' text format. They live in the serve process alone, which everybody tells.

Labels are bounded, whatever is asked: of keys and profiles the first so many are told apart and the rest is "other".
A key is named by its id, never by its secret. Only serve imports this: the library takes 2 MB.
"""

from __future__ import annotations

import os
import threading
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from services.wire import Charge, QueueSize, Report, RunnerState, Worked

disable_created_metrics()       # type: ignore[no-untyped-call]  # a second series for each, of when it began
MOST_PROFILES = 100
MOST_OUTCOMES = 50
OTHER = "other"
SKYNET = "Skynet_Summaries_"        # what names begin with that skynet's dashboards know
FIRST_TOKEN = (.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120)                 # seconds, all of them
PER_TOKEN = (.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5)
QUEUE = (.001, .01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300)
LENGTH = (50, 100, 500, 1000, 2000, 5000, 10000)        # characters
WORK = (1, 5, 25, 125)                                  # seconds; these two are skynet's
DURATION = (.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


@dataclass(frozen=True)
class _Figure:
    """A field of a runner's `Stats`, as it is told of all runners of one model together."""

    field: str
    help: str
    grows: bool = False     # a counter, since the runner's start

    @property
    def name(self) -> str:
        return f"parley_runner_{self.field}"


_FIGURES = (
    _Figure("running", "Requests in a slot"),
    _Figure("waiting", "Requests that wait for a slot"),
    _Figure("slots", "Sequences that can be held at once"),
    _Figure("slots_used", "Slots that hold any tokens"),
    _Figure("cached_tokens", "Tokens held in slots"),
    _Figure("tokens_per_second", "Tokens sampled a second, of late"),
    _Figure("max_batch", "Most sequences that shared one step since the start"),
    _Figure("threads", "Threads in use for decoding"),
    _Figure("memory_bytes", "Resident memory of the process"),
    _Figure("snapshots", "Suspended sessions whose state is kept"),
    _Figure("snapshot_memory_bytes", "Their size in memory"),
    _Figure("snapshot_disk_bytes", "Their size on disk"),
    _Figure("requests", "Requests ended", True),
    _Figure("prompt_tokens", "Prompt tokens processed for requests", True),
    _Figure("completion_tokens", "Tokens sampled", True),
    _Figure("reused_tokens", "Prompt tokens whose state was there already", True),
    _Figure("prepared_tokens", "Tokens processed ahead of their request", True),
    _Figure("restored_tokens", "Tokens brought back from suspended sessions", True),
    _Figure("drafted_tokens", "Tokens guessed from the text so far", True),
    _Figure("accepted_tokens", "Of them, those that the model chose too", True),
    _Figure("preempted", "Requests that gave their slot to another owner for a while", True),
)


class Capped:
    """The first `most` names as they are, every later one as "other". Safe for threads."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, name: str) -> str:
        with self._lock:
            if name not in self._names and len(self._names) < self._most:
                self._names.add(name)
            return name if name in self._names else OTHER


class _Runners(Collector):
    """What the runners say of themselves at this moment, summed over those of one model."""

    def __init__(self, runners: Iterable[RunnerState]) -> None:
        self._by_model: dict[str, list[RunnerState]] = {}
        for runner in runners:
            self._by_model.setdefault(os.path.basename(runner.spec.model), []).append(runner)

    def collect(self) -> Iterator[Metric]:
        states = GaugeMetricFamily("parley_runners", "Runners", labels=["model", "state"])
        leases = GaugeMetricFamily("parley_runner_leases", "Requests that hold a runner", labels=["model"])
        stalled = GaugeMetricFamily("parley_runner_stalled_seconds", "Longest time that one with work has been without "
                                    "progress, or without a word", labels=["model"])
        restarts = CounterMetricFamily("parley_runner_restarts", "Loads after a death", labels=["model"])
        for model, runners in self._by_model.items():
            for state, count in Tally(runner.state for runner in runners).items():
                states.add_metric([model, state], count)
            leases.add_metric([model], sum(runner.leases for runner in runners))
            stalled.add_metric([model], max(runner.stalled_seconds for runner in runners))
            restarts.add_metric([model], sum(runner.restarts for runner in runners))
        yield from (states, leases, stalled, restarts)
        yield from map(self._family, _FIGURES)

    def _family(self, figure: _Figure) -> Metric:
        kind = CounterMetricFamily if figure.grows else GaugeMetricFamily
        family = kind(figure.name, figure.help, labels=["model"])
        for model, runners in self._by_model.items():
            told = [getattr(runner.stats, figure.field) for runner in runners if runner.stats]
            if told:
                family.add_metric([model], sum(told))
        return family


class _Summaries(Collector):
    """skynet's names of what is so at this moment, and of HTTP requests (S1.44)."""

    def __init__(self, queue: QueueSize, served: dict[tuple[str, str, str], tuple[int, float]]) -> None:
        self._queue, self._served = queue, served

    def collect(self) -> Iterator[Metric]:
        queue, local = self._queue, ["LOCAL"]
        if queue.redis is not None:
            yield GaugeMetricFamily(f"{SKYNET}redis_connection_status", "Whether Redis answers", float(queue.redis))
        yield GaugeMetricFamily(f"{SKYNET}summary_queue_size", "Jobs that wait", queue.pending)
        for name, value in (("queue_size", queue.pending), ("current_tasks", queue.running)):
            family = GaugeMetricFamily(f"{SKYNET}summary_{name}_by_processor", "The same, or of those that run",
                                       labels=["processor"])
            family.add_metric(local, value)
            yield family
        requests = CounterMetricFamily(f"{SKYNET}http_requests", "HTTP requests of /summaries",
                                       labels=["handler", "method", "status"])
        seconds = SummaryMetricFamily(f"{SKYNET}http_request_duration_seconds", "That they took",
                                      labels=["handler", "method", "status"])
        for labels, (count, total) in self._served.items():
            requests.add_metric(labels, count)
            seconds.add_metric(labels, count, total)
        yield from (requests, seconds)


class Figures:
    """Counts from the start of the server. Safe for threads. At most `most_keys` keys are told apart."""

    def __init__(self, most_keys: int) -> None:
        self._key, self._profile, self._outcome = Capped(most_keys), Capped(MOST_PROFILES), Capped(MOST_OUTCOMES)
        self._registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests for text, by how they ended", "profile", "outcome")
        self._prompt = self._counter("prompt_tokens", "Prompt tokens of answers: cached or processed; unknown which of "
                                     "those that broke off", "profile", "kind")
        self._completion = self._counter("completion_tokens", "Tokens of answers", "profile")
        self._key_requests = self._counter("key_requests", "Requests for text, by key id", "key")
        self._key_tokens = self._counter("key_tokens", "Tokens of prompts and answers, by key id", "key", "kind")
        self._served = self._counter("http_requests", "HTTP requests that were answered", "route", "method", "status")
        self._bound = self._counter("binding_messages", "Messages of bound chat platforms, by how they ended",
                                    "platform", "outcome")
        self._first = self._histogram("time_to_first_token", "From a question's arrival to its first text", FIRST_TOKEN)
        self._between = self._histogram("time_per_token", "Between two tokens: the average of an answer", PER_TOKEN)
        self._queue = self._histogram("queue", "Waiting for a slot", QUEUE)
        self._duration = self._histogram("request_duration", "From a question's arrival to its end", DURATION)
        self._lock = threading.Lock()           # owns the next one: (route, method, status) -> requests, seconds
        self._skynets: dict[tuple[str, str, str], tuple[int, float]] = {}
        self._lengths = self._of_jobs("input_length", "Characters of texts", LENGTH)
        self._work = self._of_jobs("duration_seconds", "Of jobs that were done", WORK)
        self._waits = self._of_jobs("queue_time_seconds", "That jobs waited", WORK)
        self._whole = self._of_jobs("full_duration_seconds", "Of jobs that were done, with what they waited", WORK)
        self._errors = Counter(f"{SKYNET}summary_errors", "Attempts at jobs that failed", registry=self._registry)
        self._forced = Counter(f"{SKYNET}forced_exit", "Executors that ended because a job hung",
                               registry=self._registry)
        self._chunked = Counter(f"{SKYNET}map_reduce_chunking", "Texts that were cut in parts", ["job_type"],
                                registry=self._registry)

    def answered(self, charge: Charge) -> None:
        """Count one request for text."""
        key = self._key(charge.key)
        self._key_tokens.labels(key, "prompt").inc(charge.prompt_tokens)
        self._key_tokens.labels(key, "completion").inc(charge.completion_tokens)
        if not charge.outcome:
            return
        profile = self._profile(charge.profile or "none")
        self._requests.labels(profile, self._outcome(charge.outcome)).inc()
        self._key_requests.labels(key).inc()
        unknown = max(0, charge.prompt_tokens - charge.cached_tokens - charge.processed_tokens)
        for kind, tokens in (("cached", charge.cached_tokens), ("processed", charge.processed_tokens),
                             ("unknown", unknown)):
            self._prompt.labels(profile, kind).inc(tokens)
        self._completion.labels(profile).inc(charge.completion_tokens)
        self._duration.labels(profile).observe(charge.seconds)
        for histogram, seconds in ((self._first, charge.first_seconds), (self._between, charge.token_seconds),
                                   (self._queue, charge.queue_seconds)):
            if seconds is not None:
                histogram.labels(profile).observe(seconds)

    def served(self, report: Report) -> None:
        """Count HTTP requests, and messages of platforms. Routes and platforms are the application's: without a cap."""
        for group in report.served:
            labels = (group.route, group.method, str(group.status))
            self._served.labels(*labels).inc(group.count)
            if group.route.startswith("/summaries/"):
                with self._lock:
                    count, seconds = self._skynets.get(labels, (0, 0.0))
                    self._skynets[labels] = (count + group.count, seconds + group.seconds)
        for message in report.bound:
            self._bound.labels(message.platform, self._outcome(message.outcome)).inc(message.count)
        for job in report.worked:
            self._worked(job)

    def _worked(self, job: Worked) -> None:
        self._lengths.observe(job.length)
        self._waits.observe(job.queue_seconds)
        if job.outcome != "success":
            self._errors.inc()
            return
        self._work.observe(job.seconds)
        self._whole.observe(job.full_seconds)
        if job.chunks > 1:
            self._chunked.labels(job.type).inc()

    def forced_exit(self) -> None:
        """Count an executor that ended because a job of it hung (S1.30)."""
        self._forced.inc()

    def text(self, runners: Iterable[RunnerState], queue: QueueSize = QueueSize()) -> str:
        """Everything counted, and how `runners` and the `queue` are now."""
        now = CollectorRegistry()
        now.register(_Runners(runners))
        with self._lock:
            now.register(_Summaries(queue, dict(self._skynets)))
        return (generate_latest(self._registry) + generate_latest(now)).decode()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"parley_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"parley_{name}_seconds", text, ["profile"], registry=self._registry, buckets=buckets)

    def _of_jobs(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"{SKYNET}summary_{name}", text, registry=self._registry, buckets=buckets)
