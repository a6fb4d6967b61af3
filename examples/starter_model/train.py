"""Train the starter model on the CPU, saving as it goes.

python train.py --out build --minutes 90            a run of that wall-clock time, on all cores
python train.py --out build --minutes 90 --resume   go on from the last save
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
import torch.nn.functional as F
from batches import Batches, train_tokenizer
from model import Config, Model
from torch import Tensor
from torch.utils.data import DataLoader

WARM_UP = 100
"""Steps of rising learning rate."""
HOLD = 0.35
"""Share of the run after which the learning rate falls in a straight line to nothing."""


def orthogonal(g: Tensor) -> Tensor:
    """g (n, rows, cols) with all its singular values near 1: five Newton-Schulz steps in bfloat16."""
    x = g.bfloat16()
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, for the matrices inside the network; those of one shape are worked on together."""

    def __init__(self, params: list[Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """One update; a matrix taller than wide gets a larger one, as its outputs are more."""
        group = self.param_groups[0]
        shapes: dict[tuple[int, ...], list[Tensor]] = {}
        for p in group["params"]:
            shapes.setdefault(tuple(sorted(p.shape)), []).append(p)
        for alike in shapes.values():
            flat = [p.shape[0] > p.shape[1] for p in alike]
            grads = [self.smoothed(p, group["momentum"]) for p in alike]
            updates = orthogonal(torch.stack([g.T if tall else g for g, tall in zip(grads, flat, strict=True)]))
            for p, update, tall in zip(alike, updates, flat, strict=True):
                scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                p.add_(update.T if tall else update, alpha=-group["lr"] * scale)

    def smoothed(self, p: Tensor, momentum: float) -> Tensor:
        """The gradient with Nesterov momentum."""
        state = self.state[p]
        if "m" not in state:
            state["m"] = torch.zeros_like(p)
        state["m"].lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(state["m"], momentum)


def rate(step: int, progress: float) -> float:
    """The learning rate as a share of its peak; progress is the share of the run's time that is over."""
    return min((step + 1) / WARM_UP, 1.0) * min((1.0 - progress) / (1.0 - HOLD), 1.0)


def loss_of(model: Model, ids: Tensor, targets: Tensor, weights: Tensor, owner: Tensor) -> Tensor:
    """The mean loss in nats a token, weighted; no token looks at another dialogue in its row."""
    mask = (owner[:, None, :, None] == owner[:, None, None, :]).tril()
    logits = model(ids, mask, torch.bfloat16)
    each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    return (each * weights.flatten()).sum() / weights.sum()


class Run:
    """A training run: the network, its optimisers, and where it stands."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.model = Model(Config())
        inner = [p for p in self.model.blocks.parameters() if p.ndim == 2]
        rest = [p for p in self.model.parameters() if not any(p is q for q in inner)]
        self.optimisers = [
            Muon(inner, options.rate),
            torch.optim.AdamW(rest, 0.3 * options.rate, (0.9, 0.98), weight_decay=0.0),
        ]
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self.file = options.out / "checkpoint.pt"
        if options.resume and self.file.exists():
            self.load()

    def load(self) -> None:
        """Go back to where the last save was."""
        state = torch.load(self.file)
        self.model.load_state_dict(state["model"])
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]

    def save(self) -> None:
        """Write the state, the old one staying until the new one is whole."""
        state = {
            "config": asdict(self.model.c),
            "model": self.model.state_dict(),
            "step": self.step,
            "tokens": self.tokens,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "seconds": self.seconds,
        }
        part = self.file.with_suffix(".part")
        torch.save(state, part)
        part.replace(self.file)

    def train(self) -> None:
        """Steps until the time is over, with a save every two minutes."""
        data = Batches(self.options.out / "tokenizer.json", self.options.seed + 1_000_003 * self.step)
        loss_fn = torch.compile(loss_of, dynamic=False)
        limit, saved, mean = 60.0 * self.options.minutes, self.seconds, 0.0
        last = time.monotonic()
        for batch in DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=8):
            loss = self.update(loss_fn, batch, rate(self.step, self.seconds / limit))
            self.step, self.tokens = self.step + 1, self.tokens + batch[0].numel()
            now = time.monotonic()
            self.seconds, last = self.seconds + now - last, now
            mean = loss if not mean else 0.98 * mean + 0.02 * loss
            over = self.seconds >= limit
            if self.step % 50 == 0 or over:
                print(
                    f"step {self.step} tokens {self.tokens} loss {mean:.4f} minutes {self.seconds / 60:.1f}", flush=True
                )
            if over or self.seconds - saved >= 120:
                saved = self.seconds
                self.save()
            if over:
                break

    def update(self, loss_fn: torch.nn.Module, batch: tuple[Tensor, ...], share: float) -> float:
        """One step at that share of the peak learning rate; the loss before it."""
        loss = loss_fn(self.model, *batch)
        loss.backward()
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = optimiser.defaults["lr"] * max(share, 0.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        return loss.item()


def main() -> None:
    """Make the tokenizer when there is none, then train."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build"), help="where the tokenizer and the saves go")
    parser.add_argument(
        "--minutes", type=float, default=90, help="length of the run; the learning rate falls to 0 at its end"
    )
    parser.add_argument("--rate", type=float, default=0.015, help="peak learning rate of the inner matrices")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--resume", action="store_true", help="go on from the last save")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    if not (options.out / "tokenizer.json").exists():
        train_tokenizer(options.out / "tokenizer.json", Config.vocab)
    Run(options).train()


if __name__ == "__main__":
    main()
