"""The one training loop behind every part of the testbed: seeded, resumable, with a progress bar.

Every step draws its randomness from (seed, step) and its data from the step's number, so a run that
was killed and repeated ends where an undisturbed run ends.
"""

from __future__ import annotations

import copy
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
from torch.utils.data import DataLoader, Dataset

CHECKPOINT_SECONDS = 120.0
AVERAGE_EVERY = 4  # steps


@dataclass(frozen=True)
class Job:
    """What to train and for how long.

    `loss(module, batch, generator)` returns the scalar to minimise.
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
    schedule: int = 0  # steps the learning rate is laid out for, when training stops earlier


def train(job: Job, folder: Path, device: torch.device) -> tuple[torch.nn.Module, dict[str, Any]]:
    """Train until `job.steps`, going on from the newest checkpoint in `folder`; returns the EMA
    module in eval mode and the facts.

    Raises `FloatingPointError` when a loss is not finite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{job.name}.checkpoint.pt"
    module = job.module.to(device).to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(module).eval().requires_grad_(False)
    trained = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=job.learning_rate, betas=(0.9, 0.99), weight_decay=job.weight_decay, fused=True
    )
    start, seconds, losses = 0, 0.0, list[list[float]]()
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        module.load_state_dict(saved["module"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        start, seconds, losses = saved["step"], saved["seconds"], saved["losses"]

    def save(step: int) -> None:
        state = {
            "module": module.state_dict(),
            "average": average.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "seconds": seconds + time.perf_counter() - began,
            "losses": losses,
        }
        temporary = checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, checkpoint)
        (folder / f"{job.name}.losses.json").write_text(json.dumps(losses))

    began = saved_at = time.perf_counter()
    recent = list[float]()
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
            for group in optimizer.param_groups:
                group["lr"] = job.learning_rate * one_cycle(step / (job.schedule or job.steps))
            generator = torch.Generator(device).manual_seed((job.seed << 32) + step)
            loss = job.loss(module, batch, generator)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            if (step + 1) % AVERAGE_EVERY == 0 or step + 1 == job.steps:
                update_average(
                    average, module, min(job.ema**AVERAGE_EVERY, (1 + step) / (10 + step))
                )
            recent.append(loss.item())
            if not math.isfinite(recent[-1]):
                raise FloatingPointError(
                    f"training {job.name}: the loss is {recent[-1]} at step {step}; delete"
                    f" {checkpoint} and lower the learning rate"
                )
            if (step + 1) % 50 == 0 or step + 1 == job.steps:
                losses.append([step + 1, sum(recent) / len(recent)])
                progress.update(bar, completed=step + 1, loss=losses[-1][1])
                recent.clear()
            if time.perf_counter() - saved_at > CHECKPOINT_SECONDS or step + 1 == job.steps:
                save(step + 1)
                saved_at = time.perf_counter()
    total = seconds + (time.perf_counter() - began if start < job.steps else 0.0)
    facts = {
        "steps": job.steps,
        "batch_size": job.batch_size,
        "learning_rate": job.learning_rate,
        "seconds": round(total, 1),
        "final_loss": losses[-1][1],
    }
    return average, facts


def one_cycle(progress: float, warmup: float = 0.05) -> float:
    """Learning rate as a share of its peak: linear warm-up, then a half cosine to zero.

    `progress` in [0, 1].
    """
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


@torch.no_grad()
def update_average(average: torch.nn.Module, module: torch.nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
    for kept, new in zip(average.buffers(), module.buffers(), strict=True):
        kept.copy_(new)


def _batches(job: Job, start: int, device: torch.device) -> Iterator[Any]:
    positions = [
        [step * job.batch_size + i for i in range(job.batch_size)]
        for step in range(start, job.steps)
    ]
    # Items are cheap to make; on few cores a loader process would only take turns with the
    # training.
    for batch in DataLoader(job.items, batch_sampler=positions):
        yield tuple(part.to(device, non_blocking=True) for part in batch)


def to_unit(pixels: np.ndarray) -> torch.Tensor:
    """uint8 `[H, W, 3]` to float32 `[3, H, W]` in [-1, 1], the range of the autoencoder."""
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 127.5 - 1.0
