"""The schedule of texts, without a model: turns, bounds, cancels, and errors that meet only those they concern."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.errors import BadModel, BadRequest, ContextOverflow
from services.runner.embedding import EmbedFailed, EmbedScheduler, Job, count, prepare
from services.wire import Count, Embed, Failed, Generate, Message, RunnerLimits, Vectors

BAD = "ÿ"


class Letters:
    """A model whose tokens are letters, with one before and one behind each text; its vectors say what it saw."""

    name, n_ctx, n_around, n_batch, n_shared, n_slots, n_embd = "letters.gguf", 40, 2, 40, 20, 5, 1
    ranks, n_vocab = False, 500

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.broken = False

    def read(self, text: str) -> list[int]:
        return [1, *(ord(letter) for letter in text if not letter.isspace()), 2]

    def around(self, tokens: list[int]) -> list[int]:
        return [1, *tokens, 2]

    def pair(self, query: str, text: str) -> list[int]:
        raise AssertionError("it does not rank")

    def embed(self, texts: Sequence[Sequence[int]]) -> list[bytes]:
        if self.broken:
            raise EmbedFailed("out of luck")
        assert len(texts) <= self.n_slots
        assert len(texts) == 1 or sum(map(len, texts)) <= self.n_shared
        assert all(len(text) <= self.n_ctx for text in texts)
        read = ["".join(map(chr, text[1:-1])) for text in texts]
        self.batches.append(read)
        return [b"" if BAD in text else text.encode() for text in read]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        self.now += 0.5
        return self.now


class Bench:
    def __init__(self, **limits: int) -> None:
        self.model = Letters()
        self.scheduler = EmbedScheduler(self.model, RunnerLimits(**limits), Clock())
        self.ends: dict[Job, Message] = {}

    def add(self, *texts: str, owner: str = "o", weight: float = 1.0) -> Job:
        job = prepare(self.model, Embed(id="i", owner=owner, texts=list(texts), weight=weight))
        self.take(self.scheduler.add(job))
        return job

    def take(self, events: list[tuple[Job, Message]]) -> None:
        for job, message in events:
            assert job not in self.ends and job.ended
            self.ends[job] = message

    def run(self, steps: float = math.inf) -> Bench:
        while self.scheduler.runnable and steps > 0:
            self.take(self.scheduler.step())
            steps -= 1
        return self

    def failed(self, job: Job) -> Failed:
        end = self.ends[job]
        assert isinstance(end, Failed)
        return end


def test_a_job_gets_its_vectors_in_order_with_their_tokens() -> None:
    bench = Bench()
    job = bench.add("one", "three", "a b", "x" * 38)
    assert bench.run().ends[job] == Vectors(id="i", dimensions=1, vectors=[b"one", b"three", b"ab", b"x" * 38],
                                            tokens=[5, 7, 4, 40])
    assert bench.model.batches == [["one", "three", "ab"], ["x" * 38]]
    stats = bench.scheduler.stats()
    assert (stats.prompt_tokens, stats.requests, stats.max_batch, stats.waiting) == (56, 1, 3, 0)
    assert stats.tokens_per_second > 0


def test_jobs_of_several_owners_share_a_batch() -> None:
    bench = Bench()
    jobs = [bench.add("ab", owner=owner) for owner in "xyz"]
    bench.run()
    assert bench.model.batches == [["ab"] * 3] and set(bench.ends) == set(jobs)


def test_who_comes_late_with_little_does_not_wait_for_who_has_much() -> None:
    bench = Bench()
    much = bench.add(*["12345678"] * 100, owner="much")
    bench.run(steps=3)
    little = bench.add("hi", owner="little")
    bench.run(steps=1)
    assert little in bench.ends and much not in bench.ends
    assert much in bench.run().ends


def test_owners_get_tokens_by_their_weights() -> None:
    bench = Bench()
    bench.add(*["a" * 3] * 200, owner="a", weight=3.0)
    bench.add(*["b" * 3] * 200, owner="b")
    bench.run(steps=25)
    done = [text[0] for batch in bench.model.batches for text in batch]
    assert done.count("a") / done.count("b") == pytest.approx(3, rel=0.1)


def test_a_text_that_goes_alone_is_not_passed_by_for_ever() -> None:
    bench = Bench()
    long = bench.add("l" * 38, owner="long")
    for _ in range(3):
        bench.add(*["s"] * 20, owner="short")
    bench.run(steps=3)
    assert long in bench.ends


def test_a_cancel_comes_before_the_next_batch() -> None:
    bench = Bench()
    job, other = bench.add(*["12345678"] * 10), bench.add("other")
    bench.run(steps=1)
    bench.take(bench.scheduler.cancel(job))
    assert bench.failed(job).code == "cancelled" and not bench.scheduler.cancel(job)
    bench.run()
    assert bench.model.batches[1:] == [["other"]] and isinstance(bench.ends[other], Vectors)


def test_the_queue_is_bounded_for_each_and_for_all() -> None:
    bench = Bench(max_queue=4, max_queue_per_owner=2)
    jobs = [bench.add("x", owner=owner) for owner in "aaabbc"]
    told = [bench.failed(job).code if job in bench.ends else None for job in jobs]
    assert told == [None, None, "rate_limited", None, None, "unavailable"]
    assert all(bench.failed(jobs[n]).retry_after for n in (2, 5))
    bench.run()
    assert bench.add("x") not in bench.ends


def test_numbers_that_are_not_finite_fail_only_their_job() -> None:
    bench = Bench()
    bad, good = bench.add("ok", BAD, "ok"), bench.add("fine", owner="p")
    bench.run()
    assert bench.failed(bad).code == "internal_error" and "not finite" in bench.failed(bad).message
    assert isinstance(bench.ends[good], Vectors)


def test_a_batch_that_fails_ends_those_in_it_and_the_next_goes_on() -> None:
    bench = Bench()
    jobs = [bench.add("a", "b"), bench.add("c", owner="p")]
    bench.model.broken = True
    bench.run(steps=1)
    assert all("out of luck" in bench.failed(job).message for job in jobs) and not bench.scheduler.runnable
    bench.model.broken = False
    job = bench.add("d")
    assert isinstance(bench.run().ends[job], Vectors)


def test_tokens_are_taken_as_they_are_or_refused_with_their_number() -> None:
    model = Letters()
    job = prepare(model, Embed(id="i", owner="o", texts=["ab", [97, 98]]))
    assert job.texts[0] == job.texts[1]
    for texts, error, told in ((["a", [97, 500]], BadRequest, "500 is no token"),
                               (["a", [-1]], BadRequest, "0 to 499"), (["a", []], BadRequest, "empty"),
                               (["a", [97] * 39], ContextOverflow, "41 tokens")):
        with pytest.raises(error, match=told) as refused:
            prepare(model, Embed(id="i", owner="o", texts=texts))
        assert refused.value.details["text"] == 1


def test_what_cannot_be_embedded_is_refused_with_its_number() -> None:
    model = Letters()

    def ask(*texts: str) -> None:
        prepare(model, Embed(id="i", owner="o", texts=list(texts)))

    with pytest.raises(BadRequest, match="no text"):
        ask()
    for empty in ("", "  \n"):
        with pytest.raises(BadRequest, match="empty") as refused:
            ask("fine", empty)
        assert refused.value.details == {"text": 1}
    for long, tokens in (("x" * 39, 41), ("x" * 4000, 125)):
        with pytest.raises(ContextOverflow, match="at most 40") as refused:
            ask("fine", "too", long)
        assert refused.value.details == {"text": 2, "prompt_tokens": tokens, "limit": 40, "n_ctx": 40}
    with pytest.raises(BadModel, match="makes embeddings"):
        prepare(model, Generate(id="i", owner="o", prompt=["hello"], max_tokens=1))
    assert count(model, Count(prompts=[["a", "bc"], ["d"]])).tokens == [5, 3]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(1, 38), min_size=1, max_size=8),
                          st.booleans()), min_size=1, max_size=12))
def test_every_job_ends_once_with_what_is_its_own(wishes: list[tuple[str, list[int], bool]]) -> None:
    bench, jobs = Bench(), []
    for number, (owner, sizes, give_up) in enumerate(wishes):
        texts = [chr(65 + number) * size for size in sizes]
        jobs.append((bench.add(*texts, owner=owner), texts, give_up))
        if number % 2:
            bench.run(steps=1)
    for job, _, give_up in jobs:
        if give_up:
            bench.take(bench.scheduler.cancel(job))
    bench.run()
    assert not len(bench.scheduler.queue) and not bench.scheduler.queue.owners
    for job, texts, give_up in jobs:
        end = bench.ends[job]
        if isinstance(end, Vectors):
            assert end.vectors == [text.encode() for text in texts]
        else:
            assert give_up
