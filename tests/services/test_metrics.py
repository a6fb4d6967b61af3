"""The figures themselves: true sums, bounded labels, and a text that Prometheus reads."""

from __future__ import annotations

import threading

from prometheus_client.parser import text_string_to_metric_families

from services.metrics import Capped, Figures
from services.wire import Charge, QueueSize, Report, RunnerSpec, RunnerState, Served, Stats, Worked


def read(text: str) -> dict[tuple[str, ...], float]:
    """(name, label values in order of the labels' names) -> value."""
    return {(sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text) for sample in family.samples}


def charge(key: str = "k1", **fields) -> Charge:
    return Charge(**{"key": key, "outcome": "stop", "profile": "one", "prompt_tokens": 10, "cached_tokens": 4,
                     "processed_tokens": 6, "completion_tokens": 3, "queue_seconds": 0.02, "first_seconds": 0.2,
                     "token_seconds": 0.04, "seconds": 1.5, **fields})


def runner(model: str = "m.gguf", state: str = "ready", **fields) -> RunnerState:
    stats = Stats(running=1, waiting=2, slots=4, slots_used=3, cached_tokens=50, prompt_tokens=60, requests=5,
                  completion_tokens=70, max_batch=2, tokens_per_second=8.5, idle_seconds=0, memory_bytes=1 << 30)
    return RunnerState(**{"spec": RunnerSpec(model=f"/models/{model}", n_ctx=8), "state": state, "selected": True,
                          "stats": stats, "leases": 3, "restarts": 1, **fields})


def test_answers_add_up():
    figures = Figures(10)
    for _ in range(3):
        figures.answered(charge())
    figures.answered(charge("k2", outcome="runner_crashed", prompt_tokens=9, cached_tokens=0, processed_tokens=0,
                            completion_tokens=1, queue_seconds=None, token_seconds=None))
    told = read(figures.text([]))
    assert told["parley_requests_total", "stop", "one"] == 3
    assert told["parley_requests_total", "runner_crashed", "one"] == 1
    assert told["parley_prompt_tokens_total", "cached", "one"] == 12
    assert told["parley_prompt_tokens_total", "processed", "one"] == 18
    assert told["parley_prompt_tokens_total", "unknown", "one"] == 9
    assert told["parley_completion_tokens_total", "one"] == 10
    assert told["parley_key_requests_total", "k1"] == 3 and told["parley_key_requests_total", "k2"] == 1
    assert told["parley_key_tokens_total", "k1", "prompt"] == 30
    assert told["parley_key_tokens_total", "k2", "completion"] == 1
    assert told["parley_time_to_first_token_seconds_bucket", "0.25", "one"] == 4
    assert told["parley_time_per_token_seconds_bucket", "0.05", "one"] == 3
    assert told["parley_queue_seconds_count", "one"] == 3 and told["parley_queue_seconds_bucket", "0.01", "one"] == 0
    assert told["parley_request_duration_seconds_sum", "one"] == 6


def test_a_charge_without_an_outcome_is_only_tokens():
    figures = Figures(10)
    figures.answered(Charge(key="k1", prompt_tokens=5))
    told = read(figures.text([]))
    assert told["parley_key_tokens_total", "k1", "prompt"] == 5
    assert not any(name.startswith(("parley_requests", "parley_key_requests")) for name, *_ in told)


def test_requests_over_http_add_up():
    figures = Figures(10)
    for count in (2, 3):
        figures.served(Report(served=[Served(route="/answer", method="POST", status=200, count=count)]))
    assert read(figures.text([]))["parley_http_requests_total", "POST", "/answer", "200"] == 5


def test_labels_are_bounded():
    figures = Figures(2)
    for number in range(1000):
        figures.answered(charge(f"k{number}", profile=f"p{number}", outcome=f"o{number}"))
    text = figures.text([])
    told = read(text)
    assert told["parley_key_requests_total", "k0"] == told["parley_key_requests_total", "k1"] == 1
    assert told["parley_key_requests_total", "other"] == 998
    assert text.count("\n") < 20_000
    assert sum(value for (name, *_), value in told.items() if name == "parley_requests_total") == 1000


def test_no_key_may_be_told_apart():
    figures = Figures(0)
    figures.answered(charge("k1"))
    assert read(figures.text([]))["parley_key_requests_total", "other"] == 1


def test_any_profile_s_name_is_readable_text():
    figures = Figures(1)
    for name in ('a"b', "a\\b", "a\nb", "é 🙂", "{}", ""):
        figures.answered(charge(profile=name))
    told = {labels for name, *labels in map(list, read(figures.text([]))) if name == "parley_completion_tokens_total"
            for labels in labels}
    assert told == {'a"b', "a\\b", "a\nb", "é 🙂", "{}", "none"}


def test_runners_of_one_model_are_one_line():
    told = read(Figures(1).text([runner(), runner(stalled_seconds=20.0), runner(state="loading", stats=None),
                                 runner("other.gguf")]))
    assert told["parley_runners", "m.gguf", "ready"] == 2 and told["parley_runners", "m.gguf", "loading"] == 1
    assert told["parley_runner_slots", "m.gguf"] == 8 and told["parley_runner_slots", "other.gguf"] == 4
    assert told["parley_runner_leases", "m.gguf"] == 9 and told["parley_runner_restarts_total", "m.gguf"] == 3
    assert told["parley_runner_completion_tokens_total", "m.gguf"] == 140
    assert told["parley_runner_stalled_seconds", "m.gguf"] == 20


def test_a_runner_without_figures_has_no_zeros():
    told = read(Figures(1).text([runner(state="loading", stats=None)]))
    assert ("parley_runner_slots", "m.gguf") not in told and told["parley_runners", "m.gguf", "loading"] == 1


def test_many_hands_lose_nothing():
    figures = Figures(5)

    def work() -> None:
        for number in range(200):
            figures.answered(charge(f"k{number % 10}"))
            if number % 50 == 0:
                read(figures.text([runner()]))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = read(figures.text([]))
    assert told["parley_requests_total", "stop", "one"] == 1600
    assert sum(value for (name, *_), value in told.items() if name == "parley_key_requests_total") == 1600


def test_a_cap_keeps_the_first_names():
    cap = Capped(2)
    assert [cap(name) for name in ("a", "b", "c", "a", "d", "b")] == ["a", "b", "other", "a", "other", "b"]


def test_jobs_of_summaries_are_told_under_skynets_names():
    figures = Figures(10)
    ends = (("summary", "success", 3), ("summary", "empty_result", 1), ("action_items", "success", 1))
    for type, outcome, chunks in ends:
        figures.served(Report(worked=[Worked(type=type, outcome=outcome, length=800, chunks=chunks, queue_seconds=2,
                                             seconds=4, full_seconds=6)]))
    for _ in range(2):
        figures.served(Report(served=[
            Served(route="/summaries/v1/summary", method="POST", status=200, count=2, seconds=0.5),
            Served(route="/answer", method="POST", status=200, count=1, seconds=9)]))
    figures.forced_exit()
    told = read(figures.text([], QueueSize(pending=4, running=2, redis=True)))
    name = "Skynet_Summaries_"
    assert told[name + "summary_input_length_count",] == 3 and told[name + "summary_input_length_bucket", "500.0"] == 0
    assert told[name + "summary_input_length_bucket", "1000.0"] == 3
    assert told[name + "summary_duration_seconds_bucket", "1.0"] == 0
    assert told[name + "summary_duration_seconds_bucket", "5.0"] == told[name + "summary_duration_seconds_count",] == 2
    assert told[name + "summary_queue_time_seconds_sum",] == 6 and told[name + "summary_errors_total",] == 1
    assert told[name + "summary_full_duration_seconds_sum",] == 12 and told[name + "forced_exit_total",] == 1
    assert told[name + "map_reduce_chunking_total", "summary"] == 1
    assert told[name + "summary_queue_size",] == told[name + "summary_queue_size_by_processor", "LOCAL"] == 4
    assert told[name + "summary_current_tasks_by_processor", "LOCAL"] == 2
    assert told[name + "redis_connection_status",] == 1
    assert told[name + "http_requests_total", "/summaries/v1/summary", "POST", "200"] == 4
    assert told[name + "http_request_duration_seconds_sum", "/summaries/v1/summary", "POST", "200"] == 1
    assert not any("/answer" in labels for first, *labels in told if first.startswith(name))
    assert "redis" not in figures.text([])
