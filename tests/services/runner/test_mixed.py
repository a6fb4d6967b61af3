"""Everything at once on real models: sessions of several owners, heads, drafts, what is prepared, cancelled, forgotten,
suspended and restored. Each greedy text is the one that the prompt gets alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from services.runner.batch import Chunk
from services.runner.draft import Drafter
from services.runner.llama import lib
from services.runner.model import Model
from services.runner.sampler import Chain
from services.runner.scheduler import Scheduler
from services.runner.sequence import BATCH, INTERACTIVE, PREPARE, Sequence, Silent
from services.runner.slots import Slots
from services.runner.snapshots import Snapshots
from services.runner.text import Text
from services.wire import RunnerLimits, Sampling
from tests.tiny_gguf import write_tiny

ROUNDS, ACTS = 12, 60
NEAR = 1e-3             # logits closer than this are a tie, which kernels break by the size of a batch


class World:
    """A model with four slots, and another context of the same file in which each prompt is asked alone."""

    def __init__(self, path: Path) -> None:
        self.model = Model(str(path), n_ctx=300, n_slots=4, n_threads=1)
        self.solo = Model(str(path), n_ctx=300, n_slots=1, n_threads=1)
        self.head = self.model.tokenize(["the world and hello there, " * 4])
        self.preempted = self.restored = self.compared = 0

    def sequence(self, model: Model, prompt: list[int], count: int, **more: object) -> Sequence:
        return Sequence(id="", prompt=prompt, max_tokens=count, text=Text(),
                        sampler=Chain(model, Sampling(temperature=0), prompt), **more)      # type: ignore[arg-type]

    def alone(self, prompt: list[int], count: int) -> list[int]:
        scheduler = Scheduler(self.solo, Slots(1, self.solo, False, Snapshots(RunnerLimits(), "", False)),
                              RunnerLimits())
        sequence = self.sequence(self.solo, prompt, count, owner="x")
        scheduler.add(sequence)
        while scheduler.runnable:
            scheduler.step()
        return sequence.tokens[len(prompt):]

    def gap(self, tokens: list[int], other: int) -> float:
        """How much likelier the likeliest token behind `tokens` is than `other`."""
        lib.llama_memory_clear(lib.llama_get_memory(self.solo.context), True)
        sequence = Sequence(id="", owner="", prompt=tokens, max_tokens=1, sampler=Silent(), text=Text(), slot=0)
        row = self.solo.decode([Chunk(sequence, sequence.pending)])[0]
        logits = np.array(lib.llama_get_logits_ith(self.solo.context, row)[:self.solo.n_vocab])
        return float(logits.max() - logits[other])

    def compare(self, sequence: Sequence) -> None:
        written = sequence.tokens[len(sequence.prompt):]
        expected = self.alone(sequence.prompt, sequence.max_tokens)[:len(written)]
        differs = next((i for i, (a, b) in enumerate(zip(written, expected, strict=True)) if a != b), None)
        if differs is not None:
            gap = self.gap([*sequence.prompt, *expected[:differs]], written[differs])
            assert gap < NEAR, f"token {differs} of {len(written)} is another one, by {gap:.1e}"
        self.compared += 1

    def play(self, dice: random.Random) -> None:
        """One round: a fresh scheduler, many acts, then every text is compared."""
        kept = RunnerLimits(kv_memory_bytes=dice.choice([0, 1 << 16, 1 << 20, 1 << 26]))
        slots = Slots(4, self.model, self.model.rewindable, Snapshots(kept, "", self.model.rewindable))
        scheduler = Scheduler(self.model, slots, RunnerLimits())
        for slot in range(4):
            self.model.cut(slot, 0)
        prompts: dict[tuple[str, str], list[int]] = {}
        asked: list[Sequence] = []
        for _ in range(ACTS):
            self.act(dice, scheduler, prompts, asked)
            if scheduler.runnable:
                scheduler.step()
            scheduler.check_integrity()
        while scheduler.runnable:
            scheduler.step()
        self.preempted += scheduler.seats.preempted
        self.restored += slots.restored
        for sequence in asked:
            self.compare(sequence)

    def act(self, dice: random.Random, scheduler: Scheduler, prompts: dict[tuple[str, str], list[int]],
            asked: list[Sequence]) -> None:
        fate, who = dice.random(), (dice.choice("abc"), dice.choice("12345"))
        if fate < 0.4 and all(s.ended or (s.owner, s.session) != who for s in asked):
            before = prompts.get(who) or [*self.head, *dice.choices(range(30, 120), k=dice.randrange(2, 30))]
            prompts[who] = [*before, *dice.choices(range(30, 120), k=dice.randrange(1, 12))][:200]
            sequence = self.sequence(self.model, prompts[who], dice.choice([1, 5, 20, 40]), owner=who[0],
                                     session=who[1], head=dice.choice([0, len(self.head)]),
                                     rank=dice.choice([INTERACTIVE, INTERACTIVE, BATCH]))
            if self.model.rewindable:
                sequence.drafter = Drafter(scheduler.payoff)
            scheduler.add(sequence)
            asked.append(sequence)
        elif fate < 0.5 and who in prompts:
            scheduler.prepare(Sequence(id="", owner=who[0], prompt=[*prompts[who], 50], max_tokens=0, text=Text(),
                                       sampler=Silent(), session=who[1], head=len(self.head), rank=PREPARE))
        elif fate < 0.55 and asked:
            scheduler.cancel(dice.choice(asked))
        elif fate < 0.58 and prompts:
            scheduler.forget(*dice.choice(list(prompts)))
        elif fate < 0.63:
            scheduler.slots.save_one()


@pytest.fixture(params=["llama", "mamba", "gemma2"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    world = World(write_tiny(tmp_path / "m.gguf", request.param))
    yield world
    world.model.close()
    world.solo.close()


@pytest.mark.model
def test_whatever_happens_around_it_a_text_is_what_its_prompt_gets_alone(world: World) -> None:
    dice = random.Random(3)
    for _ in range(ROUNDS):
        world.play(dice)
    assert world.compared > 100 and world.preempted and world.restored
