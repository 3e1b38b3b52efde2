"""The one loop that trains: a module, its optimizer and its average, in steps between which it can
be interrupted, saved and continued.

Every step takes its data and its randomness from the seed and its own number, so a training that
was killed and goes on from a checkpoint ends where an undisturbed one ends, bit for bit.
"""

from __future__ import annotations

import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from bench.base.errors import UserError, one_line

# Files of a checkpoint; all that was trained so far are UNets.
WEIGHTS, AVERAGE, STATE = "unet.safetensors", "average.safetensors", "optimizer.pt"
LOGGED = 50  # steps whose mean loss is one entry of the log
Watch = Callable[[int, float], None]  # (steps done, loss)
# (the module in training, number of the batch, its generator on the CPU) -> a scalar, or several
# where a `Mix` makes one gradient of theirs. It must take its data and its randomness from these
# alone.
Loss = Callable[[torch.nn.Module, int, torch.Generator], torch.Tensor | Sequence[torch.Tensor]]
Gradients = Sequence[torch.Tensor]  # of every trained parameter, in the module's order
# The gradients of each of several losses, means over the batches of a step -> those to step with.
Mix = Callable[[Sequence[Gradients]], Gradients]


@dataclass(frozen=True)
class Course:
    """How a module is trained. The optimizer is AdamW; with a `weight_decay` of 0 it is Adam.

    Defaults are those of diffusers' example. The learning rate is constant after `warmup` steps in
    which it rises linearly. `ema` is the decay of the average that is given in place of the last
    weights; 0: none. Gradients longer than `largest_gradient` are shortened to it; 0: they are not.
    """

    steps: int
    learning_rate: float
    warmup: int = 0
    accumulate: int = 1  # batches a step
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    largest_gradient: float = 1.0
    ema: float = 0.0
    precision: Literal["no", "fp16", "bf16"] = "no"
    seed: int = 0
    checkpoint_every: int = 500


class Learner:
    """A module while it learns, with its optimizer, average and step, all of which stand in
    checkpoints. Only its parameters with `requires_grad` are trained.

    It continues from the newest checkpoint in `folder`; without a folder nothing is kept. `advice`
    ends the errors that a lower learning rate may cure. With `mix` a loss gives several scalars,
    whose gradients are made apart and become one by it; the first of them is logged. `count` says
    how much was spent so far, in any unit; `counted` is what all steps took, those before an
    interruption among them. Raises `UserError` when the checkpoint is damaged, or beyond the steps
    that are asked for.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        course: Course,
        loss: Loss,
        device: torch.device,
        folder: Path | None = None,
        advice: str = "lower the learning rate",
        mix: Mix | None = None,
        count: Callable[[], int] = lambda: 0,
    ) -> None:
        from accelerate import Accelerator

        if mix and course.precision != "no":
            raise ValueError("gradients of several losses are mixed in full precision alone")
        self.mix, self.count, self.counted = mix, count, 0
        self.course, self.loss, self.device = course, loss, device
        self.folder, self.advice = folder, advice
        if device.type == "cuda":
            torch.cuda.set_device(device)  # accelerate takes the current one
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=course.precision,
            gradient_accumulation_steps=course.accumulate,
        )
        self.average = _average_of(module, course.ema) if course.ema else None
        optimizer = torch.optim.AdamW(
            [parameter for parameter in module.parameters() if parameter.requires_grad],
            lr=course.learning_rate,
            betas=course.betas,
            weight_decay=course.weight_decay,
        )
        self.module, self.optimizer = self.accelerator.prepare(module, optimizer)
        self.step, self.seconds, self.losses = 0, 0.0, list[list[float]]()
        self.recent = list[float]()  # losses since the last one logged
        self._resume()

    @property
    def result(self) -> torch.nn.Module:
        """The module that the training gives: the average where there is one, else the last one."""
        return (
            self.accelerator.unwrap_model(self.module)
            if self.average is None
            else self.average.module
        )

    def learn(self, watch: Watch) -> dict[str, Any]:
        """Train to the end; return the number of steps, the seconds and the logged losses.

        `watch` is called after every step. Raises `UserError` when a loss or a weight is not
        finite, and `KeyboardInterrupt` after Ctrl-C or SIGTERM, once the step under way is saved.
        """
        course, recent = self.course, self.recent
        began, before = time.perf_counter(), self.seconds
        spent, counted = self.count(), self.counted
        with _finishing_the_step() as stopped, torch.random.fork_rng():
            while self.step < course.steps:
                loss = self._advance()
                recent.append(loss)
                if self.step % LOGGED == 0 or self.step == course.steps:
                    self.losses.append([self.step, round(sum(recent) / len(recent), 6)])
                    recent.clear()
                self.seconds = before + time.perf_counter() - began
                self.counted = counted + self.count() - spent
                watch(self.step, loss)
                # Asked once: a signal that comes during the checkpoint waits for the next step.
                stop = stopped()
                if stop or self.step % course.checkpoint_every == 0 or self.step == course.steps:
                    self._save()
                if stop:
                    raise KeyboardInterrupt
        return {"steps": course.steps, "seconds": round(self.seconds, 1), "losses": self.losses}

    def _advance(self) -> float:
        """One step of the optimizer; the mean loss of its batches."""
        course = self.course
        for group in self.optimizer.param_groups:
            group["lr"] = course.learning_rate * min(1.0, (self.step + 1) / max(1, course.warmup))
        total = self._plain_step() if self.mix is None else self._mixed_step(self.mix)
        if self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.module))
        self.step += 1
        return total

    def _plain_step(self) -> float:
        course, total = self.course, 0.0
        for part in range(course.accumulate):
            with self.accelerator.accumulate(self.module):
                loss = self._loss(self.step * course.accumulate + part)
                if not isinstance(loss, torch.Tensor):
                    raise ValueError("a loss that gives several scalars needs a `mix`")
                value = self._finite(loss)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and course.largest_gradient:
                    self.accelerator.clip_grad_norm_(
                        self.module.parameters(), course.largest_gradient
                    )
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                total += value / course.accumulate
        return total

    def _mixed_step(self, mix: Mix) -> float:
        """A step whose loss gives several scalars."""
        course, total = self.course, 0.0
        trained = [value for value in self.module.parameters() if value.requires_grad]
        sums: list[list[torch.Tensor]] = []
        for part in range(course.accumulate):
            losses = self._loss(self.step * course.accumulate + part)
            values = [self._finite(loss) for loss in losses]
            total += values[0] / course.accumulate
            for number, loss in enumerate(losses):
                given = torch.autograd.grad(
                    loss / course.accumulate,
                    trained,
                    retain_graph=number < len(losses) - 1,
                    allow_unused=True,
                )
                found = [
                    torch.zeros_like(value) if gradient is None else gradient
                    for value, gradient in zip(trained, given, strict=True)
                ]
                if number == len(sums):
                    sums.append(found)
                else:
                    for whole, more in zip(sums[number], found, strict=True):
                        whole += more
        for value, gradient in zip(trained, mix(sums), strict=True):
            value.grad = gradient
        if course.largest_gradient:
            torch.nn.utils.clip_grad_norm_(trained, course.largest_gradient)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return total

    def _finite(self, loss: torch.Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise UserError(
                f"the loss is {value} at step {self.step + 1}; {self._last_good()}; {self.advice}"
            )
        return value

    def _loss(self, batch: int) -> torch.Tensor | Sequence[torch.Tensor]:
        """The loss of batch number `batch`."""
        seed = (self.course.seed << 32) + batch
        torch.manual_seed(seed)  # for dropout, where a module has it
        # On the CPU, so that the same training sees the same noise on every device.
        return self.loss(self.module, batch, torch.Generator().manual_seed(seed))

    def _checkpoints(self) -> list[Path]:
        if self.folder is None:
            return []
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def _last_good(self) -> str:
        """Which checkpoint is kept, as a part of an error's text."""
        kept = self._checkpoints()
        return f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"

    def _save(self) -> None:
        """Write a checkpoint under a temporary name, rename it when it is whole, and delete older
        ones; without a folder, only look at the weights.

        Raises `UserError` for weights that are not finite, and where it cannot be written.
        """
        parts = {WEIGHTS: self.accelerator.unwrap_model(self.module)} | (
            {AVERAGE: self.average.module} if self.average is not None else {}
        )
        if not all(
            bool(torch.isfinite(value).all())
            for part in parts.values()
            for value in part.parameters()
        ):
            raise UserError(
                f"a weight is not finite after step {self.step}; {self._last_good()}; {self.advice}"
            )
        if self.folder is None:
            return
        older = self._checkpoints()
        try:
            self._write(self.folder, parts)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"the checkpoint of step {self.step} cannot be written: {one_line(error)};"
                f" {self._last_good()}"
            ) from error
        for folder in older:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, folder: Path, parts: Mapping[str, torch.nn.Module]) -> None:
        """Write the weights of the parts and the state of the training as one folder."""
        temporary = folder / ".step.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        scaler = self.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "step": self.step,
            "seconds": self.seconds,
            "counted": self.counted,
            "losses": self.losses,
            "recent": self.recent,
        }
        try:
            temporary.mkdir(parents=True)
            for name, part in parts.items():
                weights = {
                    key: value.detach().cpu().contiguous()
                    for key, value in part.state_dict().items()
                }
                save_file(weights, temporary / name)
            torch.save(state, temporary / STATE)
            _flush(temporary)
            os.replace(temporary, folder / f"step-{self.step:08d}")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _resume(self) -> None:
        """Continue from the newest checkpoint, where there is one."""
        kept = self._checkpoints()
        if not kept:
            return
        try:
            self.accelerator.unwrap_model(self.module).load_state_dict(
                load_file(kept[-1] / WEIGHTS)
            )
            if self.average is not None:
                self.average.module.load_state_dict(load_file(kept[-1] / AVERAGE))
            state = torch.load(kept[-1] / STATE, map_location=self.device, weights_only=True)
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # torch, pickle and safetensors each raise their own
            raise UserError(
                f"checkpoint {kept[-1]} is damaged: {one_line(error)[:160]}; delete it to begin"
                " again"
            ) from error
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.losses, self.recent = (
            state["step"],
            state["seconds"],
            state["losses"],
            state["recent"],
        )
        self.counted = state.get("counted", 0)  # checkpoints of before have none
        if self.average is not None:
            self.average.n_averaged.fill_(1 + self.step)  # the first weights count as one
        if self.step > self.course.steps:
            raise UserError(
                f"{kept[-1]} is beyond the {self.course.steps} steps asked for; ask for more,"
                " or give another folder"
            )


def _average_of(module: torch.nn.Module, most: float) -> AveragedModel:
    """An exponential moving average that begins with the weights as they are.

    Its decay is (1 + n) / (10 + n) after n steps, and at most `most`, so that the first weights,
    which have learned nothing yet, are soon forgotten.
    """

    @torch.no_grad()
    def follow(
        average: tuple[torch.Tensor, ...] | list[torch.Tensor],
        weights: tuple[torch.Tensor, ...] | list[torch.Tensor],
        averaged: torch.Tensor | int,
    ) -> None:
        step = int(averaged) - 1  # the first weights count as one
        decay = min(most, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(average), list(weights), 1 - decay)

    model = AveragedModel(module, multi_avg_fn=follow)
    model.update_parameters(module)
    model.module.eval().requires_grad_(False)
    return model


def _flush(folder: Path) -> None:
    """Force the files of a folder to the disk."""
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


@contextmanager
def _finishing_the_step() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C and SIGTERM take effect between steps, so that a whole step is saved; a second
    signal ends at once.

    Yields a function that says whether a signal has come. Outside the main thread, where Python
    does not deliver signals, it always says no.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def hear(number: int, frame: Any) -> None:
        heard.append(number)
        for each in signals:
            signal.signal(each, before[each])

    for number in signals:
        signal.signal(number, hear)
    try:
        yield lambda: bool(heard)
    finally:
        for number in signals:
            signal.signal(number, before[number])
