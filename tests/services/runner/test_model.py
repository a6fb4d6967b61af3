"""The real llama.cpp on tiny models: loading, and greedy text that is the same with every kind of reuse."""

import logging
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from services.engine.gguf import inspect
from services.runner import llama
from services.runner.batch import Chunk
from services.runner.llama import LoadFailed, lib
from services.runner.model import Model
from services.runner.sampler import Chain
from services.runner.scheduler import Scheduler
from services.runner.sequence import Drafter, Sequence, Silent
from services.runner.slots import Slots
from services.runner.snapshots import Snapshots
from services.runner.text import Text
from services.wire import Done, Piece, Queued, RunnerLimits, Sampling
from tests.tiny_gguf import write_tiny

Alone = Callable[[list[int]], list[int]]     # what follows a prompt when nothing is reused and nothing runs beside it
ARCHITECTURES = ["llama", "mamba", "gemma2"]
HEAD = "the world and hello there, " * 4


@pytest.fixture(scope="module", params=ARCHITECTURES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf", request.param)


@pytest.fixture(scope="module")
def model(path: Path) -> Iterator[Model]:
    model = Model(str(path), n_ctx=300, n_slots=3, n_threads=1)
    yield model
    model.close()


@pytest.fixture(scope="module")
def alone(path: Path) -> Iterator[Alone]:
    model = Model(str(path), n_ctx=300, n_slots=1, n_threads=1)
    yield lambda prompt: Talk(model).ask(prompt)[0][0]
    model.close()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    model = Model(str(write_tiny(tmp_path_factory.mktemp("models") / "tiny.gguf")), n_ctx=300, n_slots=2, n_threads=1)
    yield model
    model.close()


class Talk:
    """A scheduler on a real model, run to the end for each batch of prompts."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.shelf = Snapshots(RunnerLimits(kv_memory_bytes=1 << 26), "", model.rewindable)
        slots = Slots(model.n_slots, model, model.rewindable, self.shelf)
        self.scheduler = Scheduler(model, slots, RunnerLimits(max_queue=64))

    def ask(self, *prompts: list[int], owner: str = "o", count: int = 24,
            drafter: Drafter | None = None) -> list[tuple[list[int], Done]]:
        """Completion tokens and end of each prompt, all asked at once, greedily."""
        asked = []
        for prompt in prompts:
            sequence = Sequence(id="", owner=owner, prompt=prompt, max_tokens=count, text=Text(), drafter=drafter,
                                sampler=Chain(self.model, Sampling(temperature=0), prompt))
            assert not self.scheduler.add(sequence)
            asked.append(sequence)
        ends: dict[int, Done] = {}
        while self.scheduler.runnable:
            for sequence, message in self.scheduler.step():
                assert isinstance(message, (Piece, Done, Queued))
                if isinstance(message, Done):
                    ends[id(sequence)] = message
            self.check()
        return [(sequence.tokens[len(sequence.prompt):], ends[id(sequence)]) for sequence in asked]

    def check(self) -> None:
        self.scheduler.check_integrity()
        for slot in self.scheduler.slots.slots:
            assert not slot.length or self.model.held(slot.index) == slot.length


def test_text_is_the_same_beside_others_and_with_every_kind_of_reuse(model: Model, alone: Alone) -> None:
    prompts = [model.tokenize([HEAD + name]) for name in ("one", "two", "three", "four", "five")]
    expected = [alone(prompt) for prompt in prompts]
    talk = Talk(model)
    for _ in range(2):      # the second time everything is in some slot, or was pushed out of it
        assert [tokens for tokens, _ in talk.ask(*prompts)] == expected
    for prompt, tokens in zip(prompts, expected, strict=True):
        longer = [*prompt, *tokens[:-1], *model.tokenize([" and then"])]
        again, end = talk.ask(longer)[0]
        assert again == alone(longer)
        assert end.cached_tokens + end.processed_tokens == len(longer)
        assert talk.ask(prompt[:-5])[0][0] == alone(prompt[:-5])


def logits(model: Model, prompt: list[int], chunk: int) -> np.ndarray:
    """Of the token after the prompt, which comes in by so many tokens at a time."""
    lib.llama_memory_clear(lib.llama_get_memory(model.context), True)
    sequence = Sequence(id="", owner="", prompt=prompt, max_tokens=1, sampler=Silent(), text=Text())
    sequence.slot = 0
    while sequence.pending:
        row = model.decode([Chunk(sequence, min(chunk, sequence.pending))])[0]
        sequence.past += min(chunk, sequence.pending)
    return np.array(lib.llama_get_logits_ith(model.context, row)[:model.n_vocab])


def test_the_size_of_a_batch_moves_logits_by_less_than_their_gaps(path: Path, alone: Alone) -> None:
    """Kernels round differently by batch size: texts may be compared as long as the likeliest token is clear of it."""
    model = Model(str(path), n_ctx=300, n_slots=1, n_threads=1)
    prompt = model.tokenize([HEAD + "one"])
    tokens = [*prompt, *alone(prompt)]
    moved, gap = 0.0, math.inf
    for length in range(len(prompt), len(tokens)):
        variants = [logits(model, tokens[:length], chunk) for chunk in (1, 7, 300)]
        moved = max(moved, *(float(np.abs(variants[0] - other).max()) for other in variants[1:]))
        best, second = np.sort(variants[0])[-2:][::-1]
        gap = min(gap, float(best - second))
    model.close()
    assert moved < gap / 2, f"logits move by {moved:.1e}; the nearest two are {gap:.1e} apart"


class Copier:
    """Guesses that the text goes on as it is told: rightly or wrongly, by turns."""

    def __init__(self, text: list[int]) -> None:
        self.text, self.said = text, [0, 0]

    def draft(self, tokens: list[int], most: int) -> list[int]:
        wrong = [(token + 1) % 200 for token in self.text[len(tokens):][:most]]
        right = self.text[len(tokens):][:most]
        return [*right[:len(tokens) % 4], *wrong[len(tokens) % 4:]]

    def told(self, drafted: int, accepted: int) -> None:
        self.said[0] += drafted
        self.said[1] += accepted


def test_guesses_change_nothing_but_the_number_of_steps(plain: Model) -> None:
    prompt = plain.tokenize([HEAD + "one"])
    expected = Talk(plain).ask(prompt)[0][0]
    copier = Copier([*prompt, *expected])
    tokens, end = Talk(plain).ask(prompt, drafter=copier)[0]
    assert tokens == expected and [end.drafted_tokens, end.accepted_tokens] == copier.said
    assert end.drafted_tokens > end.accepted_tokens > 5


def test_a_saved_state_is_the_state(model: Model) -> None:
    """Into another slot, and into a context that was opened anew."""
    prompt = model.tokenize([HEAD + "one"])
    whole = logits(model, prompt, 300)
    state = model.save(0)
    other = Model(model.path, n_ctx=300, n_slots=3, n_threads=1)
    for target in (model, other):
        assert target.cut(1, 0) and target.load(1, state, len(prompt)) and target.held(1) == len(prompt)
        assert not target.load(2, state[:-1], len(prompt)) or target.cut(2, 0)
        assert target.cut(1, 0) and target.cut(0, 0)
    assert other.load(0, state, len(prompt))
    assert other.save(0) == state
    other.close()
    assert np.isfinite(whole).all()


def test_a_copy_is_taken_at_once(model: Model) -> None:
    """What is asked of the copy, or becomes of its source, before the next decode makes no difference."""
    prompts, states, expected = [model.tokenize([text, HEAD]) for text in ("one, ", "two, ")], [], []
    for prompt in prompts:
        logits(model, prompt, 300)
        states.append(model.save(0))
        expected.append(goes_on(model, prompt, 0))
        assert model.cut(0, 0)
    assert model.load(0, states[1], len(prompts[1])) and model.copy(0, 1)
    copied = model.save(1)
    assert model.cut(0, 0) and model.load(0, states[0], len(prompts[0])) and model.load(2, copied, len(prompts[1]))
    for slot, number in enumerate((0, 1, 1)):
        np.testing.assert_allclose(goes_on(model, prompts[number], slot), expected[number], atol=1e-4)


def goes_on(model: Model, prompt: list[int], slot: int) -> np.ndarray:
    """Logits behind one more token than the slot holds."""
    sequence = Sequence(id="", owner="", prompt=[*prompt, 7], max_tokens=1, sampler=Silent(), text=Text(), slot=slot,
                        past=len(prompt))
    return np.array(lib.llama_get_logits_ith(model.context, model.decode([Chunk(sequence, 1)])[0])[:model.n_vocab])


def test_a_conversation_that_only_grows_is_reused_whole(model: Model, alone: Alone) -> None:
    talk = Talk(model)
    prompt = model.tokenize([HEAD])
    held = 0
    for _ in range(4):
        answer, end = talk.ask(prompt)[0]
        assert answer == alone(prompt)
        assert end.cached_tokens == held
        held = len(prompt) + len(answer) - 1
        prompt = [*prompt, *answer, *model.tokenize([" go on"])]


def test_only_plain_attention_is_cut_back(model: Model) -> None:
    assert model.rewindable is (model.architecture == "llama")
    talk = Talk(model)
    prompt = model.tokenize([HEAD + "one"])
    talk.ask(prompt)
    _, end = talk.ask(prompt)[0]
    assert end.cached_tokens == (len(prompt) - 1 if model.rewindable else 0)


def test_no_owner_gets_what_another_left(model: Model, alone: Alone) -> None:
    prompt = model.tokenize([HEAD])
    expected = alone(prompt)
    talk = Talk(model)
    for owner in ("a", "b", "c", "d", "e"):
        tokens, end = talk.ask(prompt, owner=owner)[0]
        assert tokens == expected and end.cached_tokens == 0


def test_the_context_can_be_filled_to_its_last_token(model: Model) -> None:
    prompt = model.tokenize(["x" * 290])
    assert len(prompt) == 290
    tokens, end = Talk(model).ask(prompt, count=10)[0]
    assert len(tokens) == 10 or end.finish_reason == "stop"


@pytest.mark.parametrize("n_ctx", [100, 300, 3000, 40_000])
def test_flash_attention_is_left_out_where_there_is_room_for_scores(path: Path, model: Model, n_ctx: int,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """What llama.cpp reports to have set aside is within what the memory check expects."""
    said: list[bytes] = []
    ours = llama._log.callback
    callback = llama.lib.llama_log_callback(lambda _level, text, _data: said.append(text))
    monkeypatch.setattr(llama._log, "callback", callback)
    try:
        large = Model(str(path), n_ctx=n_ctx, n_slots=2, n_threads=1)
        assert large.flash is (n_ctx == 40_000 and model.architecture != "mamba")
        large.close()
    finally:
        llama.lib.llama_log_set(ours, None)
    report = re.findall(rb"compute buffer size = *([0-9.]+) MiB", b"".join(said))
    assert 0 < sum(map(float, report)) * 2**20 <= inspect(path).compute_bytes(n_ctx, 2)


def test_penalties_know_the_prompt(plain: Model) -> None:
    prompt = plain.tokenize(["hello world"])
    free = Talk(plain).ask(prompt)[0][0][0]
    sampling = Sampling(temperature=0, repeat_penalty=1000, repeat_last_n=64)
    talk = Talk(plain)
    sequence = Sequence(id="", owner="o", prompt=[free, *prompt], max_tokens=1, text=Text(),
                        sampler=Chain(plain, sampling, [free, *prompt]))
    talk.scheduler.add(sequence)
    while talk.scheduler.runnable:
        talk.scheduler.step()
    assert sequence.tokens[-1] not in sequence.prompt


def test_a_seed_repeats_an_answer(plain: Model) -> None:
    prompt = plain.tokenize(["hello"])
    texts = []
    for seed in (1, 1, 2):
        talk = Talk(plain)
        sequence = Sequence(id="", owner="o", prompt=prompt, max_tokens=20, text=Text(),
                            sampler=Chain(plain, Sampling(temperature=2, top_k=0, seed=seed), prompt))
        talk.scheduler.add(sequence)
        while talk.scheduler.runnable:
            talk.scheduler.step()
        texts.append(sequence.tokens)
    assert texts[0] == texts[1] != texts[2]


def damaged(path: Path, keep: float) -> Path:
    data = write_tiny(path).read_bytes()
    path.write_bytes(data[:int(len(data) * keep)])
    return path


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.01, 0.5, 0.99])
def test_a_damaged_file_is_a_load_that_fails(tmp_path: Path, keep: float, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "parley.runner"), pytest.raises(LoadFailed, match=r"cut\.gguf"):
        Model(str(damaged(tmp_path / "cut.gguf", keep)), n_ctx=64, n_slots=1, n_threads=1)


def test_a_file_that_is_no_model_is_a_load_that_fails(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("these are notes")
    for name in ("notes.gguf", "missing.gguf"):
        with pytest.raises(LoadFailed, match=name):
            Model(str(tmp_path / name), n_ctx=64, n_slots=1)
