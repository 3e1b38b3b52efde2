"""The one training loop behind every part of the testbed: seeded, resumable, with a progress bar.

Every step draws its randomness from (seed, step) and its data from the step's number, so a run that
was killed and repeated ends where an undisturbed run ends.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from bench.base.files import write_atomically

CHECKPOINT_SECONDS = 120.0
CHECKPOINT_STEPS = 500
LOSS_STEPS = 50  # a point of the loss curve is the mean of so many steps


@dataclass(frozen=True)
class Job:
    """What to train and for how long. `loss(module, batch, generator)` is the scalar to minimise.

    With `muon_rate`, the convolutions between hidden layers are trained by Muon at that learning
    rate (Jordan et al. 2024), everything else by AdamW.
    """

    name: str
    module: torch.nn.Module
    items: Dataset[Any]  # items[i] is what stands at position i of the stream
    loss: Callable[[torch.nn.Module, Any, torch.Generator], torch.Tensor]
    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    ema: float = 0.999
    weight_decay: float = 0.01
    muon_rate: float = 0.0
    memory_format: torch.memory_format = torch.channels_last


Watch = Callable[[int, torch.nn.Module], None]


def train(
    job: Job,
    folder: Path,
    device: torch.device,
    watch: Watch | None = None,
    watch_every: int = 2000,
) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Train until `job.steps`, going on from the checkpoint in `folder` if there is one.

    Returns the averaged module in eval mode and the facts. `watch(step, averaged)` is called every
    `watch_every` steps. Raises `FloatingPointError` when a loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{job.name}.checkpoint.pt"
    module = job.module.to(device).to(memory_format=job.memory_format).train()
    average = AveragedModel(module, multi_avg_fn=average_with_warm_up(job.ema))
    average.eval().requires_grad_(False)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizers = _Optimizers(job, trained)
    start, seconds, losses = 0, 0.0, list[list[float]]()
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        module.load_state_dict(saved["module"])
        average.load_state_dict(saved["average"])
        optimizers.load_state_dict(saved["optimizers"])
        start, seconds, losses = saved["step"], saved["seconds"], saved["losses"]
    # The points of the loss curve belong to the steps, not to the sittings.
    recent: list[float] = saved["recent"] if start else []

    def save(step: int) -> None:
        state = {
            "module": module.state_dict(),
            "average": average.state_dict(),
            "optimizers": optimizers.state_dict(),
            "step": step,
            "seconds": seconds + time.perf_counter() - began,
            "losses": losses,
            "recent": recent,
        }
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, checkpoint)
        write_atomically(folder / f"{job.name}.losses.json", json.dumps(losses).encode())

    began = saved_at = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        bar = progress.add_task(
            job.name, total=job.steps, completed=start, loss=losses[-1][1] if losses else math.nan
        )
        for step, batch in enumerate(_batches(job, start, device), start):
            optimizers.set_rates(one_cycle(step / job.steps))
            generator = torch.Generator(device).manual_seed((job.seed << 32) + step)
            loss = job.loss(module, batch, generator)
            optimizers.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizers.step()
            average.update_parameters(module)
            recent.append(loss.item())
            if not math.isfinite(recent[-1]):
                raise FloatingPointError(
                    f"training {job.name}: the loss is {recent[-1]} at step {step}; "
                    f"delete {checkpoint} and lower the learning rate"
                )
            done, last = step + 1, step + 1 == job.steps
            if done % LOSS_STEPS == 0 or last:
                losses.append([done, sum(recent) / len(recent)])
                progress.update(bar, completed=done, loss=losses[-1][1])
                recent.clear()
            due = time.perf_counter() - saved_at > CHECKPOINT_SECONDS
            if due or done % CHECKPOINT_STEPS == 0 or last:
                save(done)
                saved_at = time.perf_counter()
                if not progress.console.is_terminal:
                    _say(job, done, done - start, time.perf_counter() - began, losses)
            if watch and (done % watch_every == 0 or last):
                watch(done, average.module)
    total = seconds + (time.perf_counter() - began if start < job.steps else 0.0)
    facts = {
        "steps": job.steps,
        "batch_size": job.batch_size,
        "learning_rate": job.learning_rate,
        "seconds": round(total, 1),
        "final_loss": losses[-1][1],
    }
    return average.module, facts


def _say(job: Job, done: int, here: int, seconds: float, losses: list[list[float]]) -> None:
    """A line where no bar can be seen, as in a log file."""
    loss = f"loss {losses[-1][1]:.4f}, " if losses else ""
    left = (job.steps - done) * seconds / here / 60
    print(f"{job.name}: step {done} of {job.steps}, {loss}{left:.0f} minutes left", flush=True)


def one_cycle(progress: float, warmup: float = 0.05) -> float:
    """Learning rate as a share of its peak: linear warm-up, then a half cosine to zero.

    `progress` in [0, 1].
    """
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


Tensors = tuple[torch.Tensor, ...] | list[torch.Tensor]


def average_with_warm_up(decay: float) -> Callable[[Tensors, Tensors, torch.Tensor | int], None]:
    """An exponential average for `AveragedModel` that early on reaches back a third of the way."""

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, updates: torch.Tensor | int) -> None:
        count = int(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (4 + count)))

    return update


class _Optimizers:
    """AdamW, and Muon for hidden convolutions where the job asks for it, as one."""

    def __init__(self, job: Job, parameters: list[torch.nn.Parameter]) -> None:
        hidden = [p for p in parameters if job.muon_rate and p.ndim == 4 and min(p.shape[:2]) > 3]
        chosen = {id(p) for p in hidden}
        adamw = torch.optim.AdamW(
            [p for p in parameters if id(p) not in chosen],
            lr=job.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=job.weight_decay,
            fused=True,
        )
        self.members: list[torch.optim.Optimizer] = [adamw]
        # Muon takes matrices: each shares the memory of its convolution.
        self.pairs = [(p, torch.nn.Parameter(_as_matrix(p.detach()))) for p in hidden]
        if hidden:
            matrices = [matrix for _, matrix in self.pairs]
            self.members.append(
                torch.optim.Muon(matrices, lr=job.muon_rate, weight_decay=job.weight_decay)
            )
        self.rates = [job.learning_rate, job.muon_rate]

    def set_rates(self, share: float) -> None:
        for optimizer, rate in zip(self.members, self.rates, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * share

    def zero_grad(self) -> None:
        for optimizer in self.members:
            optimizer.zero_grad(set_to_none=True)
        for parameter, _ in self.pairs:
            parameter.grad = None

    def step(self) -> None:
        for parameter, matrix in self.pairs:
            matrix.grad = _as_matrix(parameter.grad) if parameter.grad is not None else None
        for optimizer in self.members:
            optimizer.step()

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.members]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.members, states, strict=True):
            optimizer.load_state_dict(state)


def _as_matrix(weight: torch.Tensor) -> torch.Tensor:
    """`[out, in, h, w]` in channels-last memory as `[out, h * w * in]`, without a copy."""
    return weight.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1)


def _batches(job: Job, start: int, device: torch.device) -> Iterator[Any]:
    positions = (
        range(step * job.batch_size, (step + 1) * job.batch_size)
        for step in range(start, job.steps)
    )
    # Items are cheap to make; on few cores a loader process would only take turns with the
    # training.
    for batch in DataLoader(job.items, batch_sampler=[list(part) for part in positions]):
        yield tuple(part.to(device, non_blocking=True) for part in batch)


def to_unit(pixels: np.ndarray) -> torch.Tensor:
    """uint8 `[H, W, 3]` to float32 `[3, H, W]` in [-1, 1], the range of the autoencoder."""
    channels_first = np.ascontiguousarray(pixels.transpose(2, 0, 1))
    return torch.from_numpy(channels_first).float() / 127.5 - 1.0
