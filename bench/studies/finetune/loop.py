"""The training loop of `bench finetune`: a UNet, its optimizer and its average, in steps between
which it can be interrupted, saved and continued.

Every step takes its data and its randomness from the seed and its own number, so a training that
was killed and goes on from a checkpoint ends where an undisturbed one ends.
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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel

from bench.base.errors import UserError, one_line
from bench.studies.finetune.data import Order, Pair

LOGGED = 50  # steps whose mean loss is one entry of the log
WEIGHT_DECAY, LARGEST_GRADIENT = 0.01, 1.0  # those of diffusers' example; the norm is clipped
# Settings that are no part of a training's identity: more steps continue it, and where files lie
# and how often they are saved does not change the result.
UNDECIDING = ("model", "data", "steps", "checkpoint_every")
Watch = Callable[[int, float], None]  # (steps done, loss)


@dataclass(frozen=True)
class Training:
    """What is trained and how.

    Defaults are the paper's where it names them (steps, batch size, learning rate), else those of
    diffusers' example.
    """

    model: Path
    data: Path
    duplicate: int  # pictures that are repeated
    times: int  # how often each of these stands in an epoch
    steps: int = 15_000
    batch_size: int = 4
    learning_rate: float = 1e-5
    warmup: int = 500
    accumulate: int = 1  # batches a step
    ema: float = 0.0  # decay of the average that is saved in place of the last weights; 0: none
    flip: bool = False  # mirror half of the pictures
    precision: Literal["no", "fp16", "bf16"] = "no"
    gradient_checkpointing: bool = False
    seed: int = 0
    checkpoint_every: int = 500

    def facts(self) -> dict[str, Any]:
        """What decides the result besides the contents of model and data."""
        return {key: value for key, value in asdict(self).items() if key not in UNDECIDING}


class Learner:
    """The UNet while it learns, with its data, optimizer, average and step, all of which stand in
    checkpoints.

    `listed` holds the picture numbers of one epoch. `latents` is float32 `[n, views, 2, C, h, w]`:
    mean and deviation of what the autoencoder makes of each view of each picture. It continues from
    the newest checkpoint in `folder`. Raises `UserError` when that is damaged, or beyond the steps
    that are asked for.
    """

    def __init__(
        self,
        training: Training,
        pairs: Sequence[Pair],
        listed: np.ndarray,
        latents: np.ndarray,
        pipe: Any,
        device: torch.device,
        folder: Path,
    ) -> None:
        from accelerate import Accelerator
        from diffusers import DDPMScheduler

        self.training, self.pairs, self.latents = training, pairs, latents
        self.pipe, self.device, self.folder = pipe, device, folder
        if device.type == "cuda":
            torch.cuda.set_device(device)  # accelerate takes the current one
        self.accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision=training.precision,
            gradient_accumulation_steps=training.accumulate,
        )
        self.noise = DDPMScheduler.from_config(pipe.scheduler.config)
        self.order = Order(listed, training.seed)
        unet = pipe.unet.to(memory_format=torch.channels_last).train().requires_grad_(True)
        if training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.average = _average_of(unet, training.ema) if training.ema else None
        optimizer = torch.optim.AdamW(
            unet.parameters(), lr=training.learning_rate, weight_decay=WEIGHT_DECAY
        )
        self.unet, self.optimizer = self.accelerator.prepare(unet, optimizer)
        self.step, self.seconds, self.losses = 0, 0.0, list[list[float]]()
        self.recent = list[float]()  # losses since the last one logged
        self._resume()

    @property
    def result(self) -> torch.nn.Module:
        """The UNet that the training gives: the average where there is one, else the last one."""
        return (
            self.accelerator.unwrap_model(self.unet)
            if self.average is None
            else self.average.module
        )

    def learn(self, watch: Watch) -> dict[str, Any]:
        """Train to the end; return the number of steps, the seconds and the logged losses.

        `watch` is called after every step. Raises `UserError` when a loss or a weight is not
        finite, and `KeyboardInterrupt` after Ctrl-C or SIGTERM, once the step under way is saved.
        """
        training, recent = self.training, self.recent
        began, before = time.perf_counter(), self.seconds
        with _finishing_the_step() as stopped, torch.random.fork_rng():
            while self.step < training.steps:
                loss = self._advance()
                recent.append(loss)
                if self.step % LOGGED == 0 or self.step == training.steps:
                    self.losses.append([self.step, round(sum(recent) / len(recent), 6)])
                    recent.clear()
                self.seconds = before + time.perf_counter() - began
                watch(self.step, loss)
                # Asked once: a signal that comes during the checkpoint waits for the next step.
                stop = stopped()
                if (
                    stop
                    or self.step % training.checkpoint_every == 0
                    or self.step == training.steps
                ):
                    self._save()
                if stop:
                    raise KeyboardInterrupt
        return {"steps": training.steps, "seconds": round(self.seconds, 1), "losses": self.losses}

    def _advance(self) -> float:
        """One step of the optimizer; the mean loss of its batches."""
        training, total = self.training, 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = training.learning_rate * min(
                1.0, (self.step + 1) / max(1, training.warmup)
            )
        for part in range(training.accumulate):
            with self.accelerator.accumulate(self.unet):
                loss = self._loss(self.step * training.accumulate + part)
                value = loss.item()
                if not math.isfinite(value):
                    raise UserError(
                        f"the loss is {value} at step {self.step + 1}; {self._last_good()}; lower"
                        " --lr or raise --warmup, with another --out"
                    )
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.unet.parameters(), LARGEST_GRADIENT)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                total += value / training.accumulate
        if self.average is not None:
            self.average.update_parameters(self.accelerator.unwrap_model(self.unet))
        self.step += 1
        return total

    def _loss(self, batch: int) -> torch.Tensor:
        """Mean squared error of what the UNet predicts for batch number `batch`."""
        training = self.training
        numbers = self.order(batch * training.batch_size, training.batch_size)
        # Drawn on the CPU, so that the same training sees the same noise on every device.
        random = torch.Generator().manual_seed((training.seed << 32) + batch)
        torch.manual_seed((training.seed << 32) + batch)  # for dropout, where a model has it
        views = torch.randint(self.latents.shape[1], (len(numbers),), generator=random).tolist()
        moments = torch.from_numpy(
            np.stack(
                [self.latents[number, view] for number, view in zip(numbers, views, strict=True)]
            )
        )
        mean, deviation = moments[:, 0], moments[:, 1]
        latents = mean + deviation * torch.randn(mean.shape, generator=random)
        noise = torch.randn(mean.shape, generator=random)
        timesteps = torch.randint(
            self.noise.config["num_train_timesteps"], (len(numbers),), generator=random
        )
        velocity = self.noise.config["prediction_type"] == "v_prediction"
        target = (self.noise.get_velocity(latents, noise, timesteps) if velocity else noise).to(
            self.device
        )
        noised = self.noise.add_noise(latents, noise, timesteps).to(
            self.device, memory_format=torch.channels_last
        )
        with torch.no_grad():
            embeddings = self.pipe.encode_prompt(
                [self.pairs[number].caption for number in numbers], self.device, 1, False
            )[0]
        predicted = self.unet(
            noised, timesteps.to(self.device), encoder_hidden_states=embeddings
        ).sample
        return torch.nn.functional.mse_loss(predicted.float(), target.float())

    def _checkpoints(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def _last_good(self) -> str:
        """Which checkpoint is kept, as a part of an error's text."""
        kept = self._checkpoints()
        return f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"

    def _save(self) -> None:
        """Write a checkpoint under a temporary name, rename it when it is whole, and delete older
        ones.

        Raises `UserError` for weights that are not finite, and where it cannot be written.
        """
        parts = {"unet": self.accelerator.unwrap_model(self.unet)} | (
            {"average": self.average.module} if self.average is not None else {}
        )
        if not all(
            bool(torch.isfinite(value).all())
            for part in parts.values()
            for value in part.parameters()
        ):
            raise UserError(
                f"a weight is not finite after step {self.step}; {self._last_good()}; lower --lr or"
                " raise --warmup, with another --out"
            )
        older = self._checkpoints()
        try:
            self._write(parts)
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(
                f"the checkpoint of step {self.step} cannot be written: {one_line(error)};"
                f" {self._last_good()}"
            ) from error
        for folder in older:
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, parts: Mapping[str, torch.nn.Module]) -> None:
        """Write the weights of the parts and the state of the training as one folder."""
        temporary = self.folder / ".step.tmp"
        shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
        scaler = self.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "step": self.step,
            "seconds": self.seconds,
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
                save_file(weights, temporary / f"{name}.safetensors")
            torch.save(state, temporary / "optimizer.pt")
            _flush(temporary)
            os.replace(temporary, self.folder / f"step-{self.step:08d}")
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _resume(self) -> None:
        """Continue from the newest checkpoint, where there is one."""
        kept = self._checkpoints()
        if not kept:
            return
        try:
            self.accelerator.unwrap_model(self.unet).load_state_dict(
                load_file(kept[-1] / "unet.safetensors")
            )
            if self.average is not None:
                self.average.module.load_state_dict(load_file(kept[-1] / "average.safetensors"))
            state = torch.load(
                kept[-1] / "optimizer.pt", map_location=self.device, weights_only=True
            )
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
        if self.average is not None:
            self.average.n_averaged.fill_(1 + self.step)  # the first weights count as one
        if self.step > self.training.steps:
            raise UserError(
                f"{kept[-1]} is beyond the {self.training.steps} steps asked for; raise --steps or"
                " give another folder with --out"
            )


def _average_of(unet: torch.nn.Module, most: float) -> AveragedModel:
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

    model = AveragedModel(unet, multi_avg_fn=follow)
    model.update_parameters(unet)
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
