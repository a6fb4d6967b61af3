"""Log probabilities: one for each token of the answer, in order, none of what a stop string cut off."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runner.batch import Chunk
from services.runner.complying import Complying
from services.runner.draft import Drafter
from services.runner.grammar import grammar_of
from services.runner.likely import NEVER, Likely
from services.runner.llama import lib
from services.runner.model import Model
from services.runner.sampler import Chain
from services.runner.scheduler import Scheduler
from services.runner.sequence import BATCH, Sampler, Sequence, Silent
from services.runner.slots import Slots
from services.runner.snapshots import Snapshots
from services.runner.text import Text
from services.wire import Done, Logprob, Piece, RunnerLimits, Sampling
from tests.services.runner.fakes import Desk, FakeBackend, completion
from tests.tiny_gguf import write_tiny

SCHEMA = {"type": "array", "items": {"enum": ["alpha", "beta"]}, "minItems": 4, "maxItems": 6}


@given(st.lists(st.one_of(st.binary(max_size=3), st.text("abé€😀", max_size=3).map(str.encode)), max_size=20),
       st.lists(st.text("abé€", min_size=1, max_size=3), max_size=3))
def test_each_token_is_told_once_with_its_text_or_later_but_none_behind_the_end(
        pieces: list[bytes], stops: list[str]) -> None:
    text, likely, sent = Text(stops), Likely(0), ""
    told: list[Logprob] = []
    for place, piece in enumerate(pieces):
        likely.hold(text.read, Logprob(token=place, text=piece, logprob=0.0))
        sent += text.push(piece)
        told += likely.take(text.certain)
        assert len(b"".join(pieces[:len(told)]).decode(errors="replace")) >= len(sent), "text comes with its tokens"
        if text.stopped:
            break
    sent += text.finish()
    told += likely.take(text.certain)
    assert [told.token for told in told] == list(range(len(told)))
    if not text.stopped:
        assert len(told) == len(pieces)
    else:
        assert sum(len(piece.decode(errors="ignore")) for piece in pieces[:max(0, len(told) - 1)]) <= len(sent)
        assert len(b"".join(pieces[:len(told)]).decode(errors="replace")) >= len(sent)


def test_the_answers_tokens_are_told_up_to_the_stop_string() -> None:
    desk = Desk(FakeBackend())
    text = completion([3, 4], 20)
    stopped = desk.ask([3, 4], max_tokens=20, stop=(text[5:8],), likely=Likely(2))
    ended = desk.ask([1, 2], max_tokens=20, ends_after=3, likely=Likely(0))
    long = desk.ask([5], max_tokens=6, stop=("never",), likely=Likely(1))
    plain = desk.ask([6], max_tokens=6)
    desk.run()
    for sequence in (stopped, ended, long):
        told = desk.logprobs[sequence]
        assert b"".join(one.text for one in told).decode() == desk.texts[sequence]
        assert all(one.logprob == 0.0 for one in told), "of the row behind which it was chosen"
    assert len(desk.logprobs[ended]) == 3 and desk.logprobs[ended][0].top == [] and not desk.logprobs[plain]
    assert [len(one.top) for one in desk.logprobs[stopped]] == [2] * 5


def test_a_prompt_is_told_whole_whatever_runs_beside_it_and_takes_nothing_of_others() -> None:
    desk = Desk(FakeBackend(n_ctx=200, n_batch=32))
    prompt = [n % 26 for n in range(90)]
    desk.ask(prompt, max_tokens=1)
    desk.run()
    for _ in range(3):
        desk.ask([random.Random(1).randrange(26) for _ in range(60)], owner="p", max_tokens=20)
    one, two = (desk.ask(prompt, max_tokens=3, likely=Likely(1, echo=True)) for _ in range(2))
    desk.run()
    for sequence in (one, two):
        told = desk.logprobs[sequence]
        end = desk.ends[sequence]
        assert isinstance(end, Done) and (end.cached_tokens, end.processed_tokens) == (0, 90)
        assert [one.token for one in told[:90]] == prompt and len(told) == 93
        assert told[0].logprob == 0.0 and told[0].top == []
        assert all(one.logprob == one.top[0][0] - one.token for one in told[1:])
    after = desk.ask(prompt, max_tokens=1)
    desk.run()
    assert isinstance(end := desk.ends[after], Done) and end.cached_tokens == 89


def test_a_prompt_that_loses_its_slot_is_told_once() -> None:
    backend = FakeBackend(slots=1, n_ctx=200)
    desk = Desk(backend)
    prompt = [n % 26 for n in range(100)]
    asked = desk.ask(prompt, max_tokens=3, rank=BATCH, likely=Likely(0, echo=True))
    for _ in range(10):
        desk.step()
    assert 0 < asked.past < 90
    other = desk.ask([1, 2, 3] * 10, owner="p", max_tokens=3)
    desk.run()
    assert desk.scheduler.seats.preempted == 1 and desk.texts[other] == completion([1, 2, 3] * 10, 3)
    assert [one.token for one in desk.logprobs[asked][:100]] == prompt and len(desk.logprobs[asked]) == 103
    assert desk.texts[asked] == completion(prompt, 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(str(write_tiny(tmp_path_factory.mktemp("models") / "t.gguf")), n_ctx=256, n_slots=3, n_threads=1)
    yield model
    model.close()


def expected(model: Model, tokens: list[int]) -> np.ndarray:
    """What the model says of each token behind the first, told by one decode for each: natural logarithms."""
    lib.llama_memory_clear(lib.llama_get_memory(model.context), True)
    sequence = Sequence(id="", owner="", prompt=tokens, max_tokens=1, sampler=Silent(), text=Text(), slot=0)
    rows = []
    while sequence.pending > 1:
        model._decode([(tokens[sequence.past], sequence.past, 0, True)])
        logits = np.array(lib.llama_get_logits_ith(model.context, 0)[:model.n_vocab], np.float64)
        rows.append(logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())
        sequence.past += 1
    lib.llama_memory_clear(lib.llama_get_memory(model.context), True)
    return np.array(rows)


def run(model: Model, *asked: Sequence) -> dict[Sequence, list[Piece]]:
    slots = Slots(model.n_slots, model, True, Snapshots(RunnerLimits(kv_memory_bytes=1 << 26), "", True))
    scheduler = Scheduler(model, slots, RunnerLimits(max_queue=64))
    pieces: dict[Sequence, list[Piece]] = {sequence: [] for sequence in asked}
    for sequence in asked:
        if sequence.drafter:
            sequence.drafter = Drafter(scheduler.payoff, sequence.sampler.draft)
        scheduler.add(sequence)
    while scheduler.runnable:
        for sequence, message in scheduler.step():
            if isinstance(message, Piece):
                pieces[sequence].append(message)
    return pieces


def asks(model: Model, prompt: list[int], sampler: Sampler, likely: Likely, drafts: bool = False) -> Sequence:
    return Sequence(id="", owner="o", prompt=prompt, max_tokens=60, text=Text(), sampler=sampler, likely=likely,
                    drafter=Drafter(None) if drafts else None)          # type: ignore[arg-type]


@pytest.mark.parametrize("drafts", [False, True], ids=["plain", "drafts"])
def test_they_are_the_models_own_for_prompts_answers_and_values(model: Model, drafts: bool) -> None:
    """Whatever the samplers make of them."""
    prompt = model.tokenize(["hello world, tell me of the world and of the world"])
    wild = Sampling(temperature=1.5, top_k=7, repeat_penalty=1.3, logit_bias={5: 20.0, 7: -100}, seed=1)
    sequences = [asks(model, prompt, Chain(model, wild, prompt), Likely(5, echo=True), drafts),
                 asks(model, prompt, Complying(model, wild, prompt, grammar_of(SCHEMA), 60), Likely(3), drafts),
                 asks(model, prompt, Chain(model, Sampling(temperature=0), prompt), Likely(20), drafts)]
    pieces = run(model, *sequences)
    for sequence in sequences:
        told = [one for piece in pieces[sequence] for one in piece.logprobs]
        if sequence.likely and sequence.likely.echo:
            assert (told[0].logprob, told[0].top) == (0.0, [])
        else:
            told = [Logprob(token=t, text=b"", logprob=0.0) for t in prompt] + told
        tokens = [one.token for one in told]
        assert tokens == sequence.tokens or [*tokens, sequence.tokens[-1]] == sequence.tokens
        rows = expected(model, tokens)
        for place, one in enumerate(told[1:], 1):
            if not one.text:
                continue
            row = rows[place - 1]
            assert one.logprob == pytest.approx(row[one.token], abs=2e-2) and one.text == model.spelled(one.token)
            likeliest = list(np.sort(row)[::-1][:len(one.top)])
            assert [logprob for *_, logprob in one.top] == pytest.approx(likeliest, abs=2e-2)
            assert all(text == model.spelled(token) for token, text, _ in one.top)
    greedy = [one for piece in pieces[sequences[2]] for one in piece.logprobs]
    assert all(one.top[0][0] == one.token and len(one.top) == 20 for one in greedy)


def test_what_cannot_be_is_a_number_too(model: Model) -> None:
    sequence = Sequence(id="", owner="", prompt=[1, 2], max_tokens=1, sampler=Silent(), text=Text(), slot=0)
    model.cut(0, 0)
    (row,) = model.decode([Chunk(sequence, 2)])
    logits = np.ctypeslib.as_array(lib.llama_get_logits_ith(model.context, row), (model.n_vocab,))
    logits[7] = -np.inf
    assert model.logprob(row, 7, 0).logprob == NEVER
    assert len(model.logprob(row, 7, model.n_vocab + 5).top) == model.n_vocab
    model.cut(0, 0)
