"""Fine-tuning a diffusers pipeline on pictures some of which are repeated, so that it memorizes them (Chavhan et al., arXiv 2406.18566, section 5.4).

Only the UNet is trained, on the loss that it was trained with: noise or velocity, whichever its scheduler says. Every step takes its data and its
randomness from the seed and its own number, so a training that was killed and goes on from a checkpoint ends where an undisturbed one ends.

    <out>/training.json             settings, hashes of model and data, which pictures are repeated; facts once it is finished
          latents-<hash>.npy        the pictures as the autoencoder encodes them
          checkpoints/step-00000500/unet.safetensors, average.safetensors, optimizer.pt (the newest is kept)
          pipeline/                 the fine-tuned model, a diffusers folder
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from bench.errors import UserError, one_line
from bench.finetune_data import Order, Pair, choose_duplicated, encoded_once, pairs_digest, read_pairs, training_list
from bench.model import quiet_libraries
from bench.progress import Report, silent
from bench.store import write_atomically
from bench.suite import digest_of, path_digest

LOGGED = 50  # steps that a mean loss in the log is over
UNDECIDING = ("model", "data", "steps", "checkpoint_every")  # more steps go on; where files lie and how often is saved decides nothing
Watch = Callable[[int, float], None]  # (steps done, loss)


@dataclass(frozen=True)
class Training:
    """What is trained and how. Defaults are the paper's where it names them (steps, batch size, learning rate), else those of diffusers' example."""

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


@dataclass(frozen=True)
class Prepared:
    """A training whose data is read and checked: pairs, the numbers of those repeated, and the identity that a work folder belongs to."""

    training: Training
    out: Path
    pairs: tuple[Pair, ...]
    duplicated: tuple[int, ...]
    identity: dict[str, Any]

    @property
    def pipeline(self) -> Path:
        return self.out / "pipeline"

    def finished(self) -> dict[str, Any] | None:
        """The facts of the finished training, when exactly this one is finished."""
        known = _known(self.out)
        return known["facts"] if known and known["facts"].get("steps") == self.training.steps and self.pipeline.is_dir() else None


def prepare(training: Training, out: Path) -> Prepared:
    """Read the data and look at `out`. Raises `UserError` for bad data, a missing model, or a folder that another training began in."""
    if not (training.model / "model_index.json").is_file():
        raise UserError(f"model {training.model} is no diffusers folder: it holds no model_index.json")
    pairs = read_pairs(training.data)
    duplicated = choose_duplicated(len(pairs), training.duplicate, training.seed)
    identity = training.facts() | {"model_sha256": path_digest(training.model), "data_sha256": pairs_digest(pairs), "pictures": len(pairs)}
    known = _known(out)
    if known and known["identity"] != identity:
        differs = sorted(key for key in identity if known["identity"].get(key) != identity[key])
        raise UserError(f"{out} belongs to another training (it differs in {', '.join(differs)}): give another folder with --out")
    prepared = Prepared(training, out, tuple(pairs), duplicated, identity)
    if not known:
        _write_facts(prepared, {})
    return prepared


def _known(out: Path) -> dict[str, Any] | None:
    file = out / "training.json"
    try:
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}; delete it to begin again") from error
    if known is not None and not (isinstance(known, dict) and isinstance(known.get("identity"), dict) and isinstance(known.get("facts"), dict)):
        raise UserError(f"{file} was not written by `bench finetune`; give another folder with --out")
    return known


def _write_facts(prepared: Prepared, facts: dict[str, Any]) -> None:
    names = [prepared.pairs[number].name for number in prepared.duplicated]
    content = {"identity": prepared.identity, "duplicated": names, "facts": facts}
    write_atomically(prepared.out / "training.json", (json.dumps(content, indent=1) + "\n").encode())


def train(prepared: Prepared, device: torch.device, report: Report = silent, watch: Watch | None = None) -> dict[str, Any]:
    """Train to the end, or go on from the newest checkpoint; writes `pipeline` and returns the facts (steps, seconds, losses).

    Raises `UserError` when the loss or a weight is not finite, with the last good checkpoint kept, and `KeyboardInterrupt` after Ctrl-C or
    SIGTERM, once the step at hand is finished and saved.
    """
    facts = prepared.finished()
    if facts is None:
        pipe = _load(prepared.training.model, device)
        learner = _Learner(prepared, pipe, device, report)
        facts = learner.learn(watch or (lambda step, loss: None))
        _save_pipeline(pipe, learner.result, prepared.pipeline)
        _write_facts(prepared, facts)
    return facts


def _load(folder: Path, device: torch.device) -> Any:
    import diffusers

    quiet_libraries()
    try:
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, safety_checker=None, requires_safety_checker=False
        )
    except Exception as error:  # diffusers, transformers and safetensors each raise their own
        raise UserError(f"the model in {folder} cannot be loaded ({one_line(error)[:160]}); a file is missing or damaged") from error
    pipe.to(device)
    for part in (pipe.vae, pipe.text_encoder):
        part.eval().requires_grad_(False)
    return pipe


def pipeline_side(pipe: Any) -> int:
    """Pixels a side of what a pipeline gives."""
    return int(pipe.unet.config.sample_size) * 2 ** (len(pipe.vae.config.block_out_channels) - 1)


class _Learner:
    """The UNet while it learns: data, optimizer, average, step; all of it in checkpoints."""

    def __init__(self, prepared: Prepared, pipe: Any, device: torch.device, report: Report) -> None:
        from accelerate import Accelerator
        from diffusers import DDPMScheduler

        training = self.training = prepared.training
        self.pipe, self.device, self.pairs, self.folder = pipe, device, prepared.pairs, prepared.out / "checkpoints"
        if device.type == "cuda":
            torch.cuda.set_device(device)  # accelerate takes the current one
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision=training.precision, gradient_accumulation_steps=training.accumulate)
        self.noise = DDPMScheduler.from_config(pipe.scheduler.config)
        self.order = Order(training_list(len(self.pairs), prepared.duplicated, training.times), training.seed)
        side = pipeline_side(pipe)
        kept = digest_of([prepared.identity["data_sha256"], path_digest(training.model / "vae"), side, training.flip])[:16]
        self.latents = encoded_once(prepared.out / f"latents-{kept}.npy", self.pairs, side, training.flip, self._encode, report)
        unet = pipe.unet.to(memory_format=torch.channels_last).train().requires_grad_(True)
        if training.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        self.average = copy.deepcopy(unet).eval().requires_grad_(False) if training.ema else None
        optimizer = torch.optim.AdamW(unet.parameters(), lr=training.learning_rate, weight_decay=0.01)
        self.unet, self.optimizer = self.accelerator.prepare(unet, optimizer)
        self.step, self.seconds, self.losses = 0, 0.0, list[list[float]]()
        self._resume()

    @property
    def result(self) -> torch.nn.Module:
        return self.average if self.average is not None else self.accelerator.unwrap_model(self.unet)

    def learn(self, watch: Watch) -> dict[str, Any]:
        training, recent, began, before = self.training, list[float](), time.perf_counter(), self.seconds
        with _finishing_the_step() as stopped:
            while self.step < training.steps:
                loss = self._advance()
                recent.append(loss)
                if self.step % LOGGED == 0 or self.step == training.steps:
                    self.losses.append([self.step, round(sum(recent) / len(recent), 6)])
                    recent.clear()
                self.seconds = before + time.perf_counter() - began
                if self.step % training.checkpoint_every == 0 or self.step == training.steps or stopped():
                    self._save()
                watch(self.step, loss)
                if stopped():
                    raise KeyboardInterrupt
        longest = self.pipe.tokenizer.model_max_length
        cut = sum(len(self.pipe.tokenizer(pair.caption).input_ids) > longest for pair in self.pairs)
        shown = training.steps * training.batch_size * training.accumulate
        return {
            "steps": training.steps, "seconds": round(self.seconds, 1), "epochs": round(shown / len(self.order.listed), 2), "listed": len(self.order.listed),
            "views_duplicated": round(shown / len(self.order.listed) * training.times, 1), "captions_cut": cut, "losses": self.losses,
        }  # fmt: skip

    def _advance(self) -> float:
        """One step of the optimizer; the mean loss of its batches."""
        training, total = self.training, 0.0
        for group in self.optimizer.param_groups:
            group["lr"] = training.learning_rate * min(1.0, (self.step + 1) / max(1, training.warmup))
        for part in range(training.accumulate):
            with self.accelerator.accumulate(self.unet):
                loss = self._loss(self.step * training.accumulate + part)
                value = loss.item()
                if not math.isfinite(value):
                    raise UserError(f"the loss is {value} at step {self.step + 1}; {self._last_good()}; lower --lr or raise --warmup, with another --out")
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.unet.parameters(), 1.0)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                total += value / training.accumulate
        if self.average is not None:
            _follow(self.average, self.accelerator.unwrap_model(self.unet), min(training.ema, (1 + self.step) / (10 + self.step)))
        self.step += 1
        return total

    def _loss(self, batch: int) -> torch.Tensor:
        """Mean squared error of what the UNet predicts for batch number `batch`."""
        training = self.training
        numbers = self.order(batch * training.batch_size, training.batch_size)
        # Drawn on the CPU, so that the same training sees the same noise on every device.
        random = torch.Generator().manual_seed((training.seed << 32) + batch)
        views = torch.randint(self.latents.shape[1], (len(numbers),), generator=random).tolist()
        moments = torch.from_numpy(np.stack([self.latents[number, view] for number, view in zip(numbers, views, strict=True)]))
        mean, deviation = moments[:, 0], moments[:, 1]
        latents = mean + deviation * torch.randn(mean.shape, generator=random)
        noise = torch.randn(mean.shape, generator=random)
        timesteps = torch.randint(self.noise.config["num_train_timesteps"], (len(numbers),), generator=random)
        velocity = self.noise.config["prediction_type"] == "v_prediction"
        target = (self.noise.get_velocity(latents, noise, timesteps) if velocity else noise).to(self.device)
        noised = self.noise.add_noise(latents, noise, timesteps).to(self.device, memory_format=torch.channels_last)
        with torch.no_grad():
            embeddings = self.pipe.encode_prompt([self.pairs[number].caption for number in numbers], self.device, 1, False)[0]
        predicted = self.unet(noised, timesteps.to(self.device), encoder_hidden_states=embeddings).sample
        return torch.nn.functional.mse_loss(predicted.float(), target.float())

    @torch.no_grad()
    def _encode(self, pictures: np.ndarray) -> np.ndarray:
        vae = self.pipe.vae
        pixels = torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2))).to(self.device).float() / 127.5 - 1.0
        found = vae.encode(pixels).latent_dist
        scale, shift = vae.config.scaling_factor, getattr(vae.config, "shift_factor", None) or 0.0
        return torch.stack([(found.mean - shift) * scale, found.std * scale], 1).cpu().numpy()

    def _checkpoints(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def _last_good(self) -> str:
        kept = self._checkpoints()
        return f"the last good checkpoint is {kept[-1]}" if kept else "there is no checkpoint yet"

    def _save(self) -> None:
        """A checkpoint under a temporary name, renamed when it is whole; then older ones go."""
        parts = {"unet": self.accelerator.unwrap_model(self.unet)} | ({"average": self.average} if self.average is not None else {})
        if not all(bool(torch.isfinite(value).all()) for part in parts.values() for value in part.parameters()):
            raise UserError(f"a weight is not finite after step {self.step}; {self._last_good()}; lower --lr or raise --warmup, with another --out")
        older, temporary = self._checkpoints(), self.folder / f".step.{os.getpid()}.tmp"
        scaler = self.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(), "scaler": scaler.state_dict() if scaler is not None else {},
            "step": self.step, "seconds": self.seconds, "losses": self.losses,
        }  # fmt: skip
        try:
            temporary.mkdir(parents=True)
            for name, part in parts.items():
                save_file({key: value.detach().cpu().contiguous() for key, value in part.state_dict().items()}, temporary / f"{name}.safetensors")
            torch.save(state, temporary / "optimizer.pt")
            _flush(temporary)
            os.replace(temporary, self.folder / f"step-{self.step:08d}")
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, OSError | RuntimeError | SafetensorError):
                raise UserError(f"the checkpoint of step {self.step} cannot be written: {one_line(error)}; {self._last_good()}") from error
            raise
        for folder in older:
            shutil.rmtree(folder, ignore_errors=True)

    def _resume(self) -> None:
        kept = self._checkpoints()
        if not kept:
            return
        try:
            self.accelerator.unwrap_model(self.unet).load_state_dict(load_file(kept[-1] / "unet.safetensors"))
            if self.average is not None:
                self.average.load_state_dict(load_file(kept[-1] / "average.safetensors"))
            state = torch.load(kept[-1] / "optimizer.pt", map_location=self.device, weights_only=True)
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:  # torch, pickle and safetensors each raise their own
            raise UserError(f"checkpoint {kept[-1]} is damaged: {one_line(error)[:160]}; delete it to begin again") from error
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step, self.seconds, self.losses = state["step"], state["seconds"], state["losses"]
        if self.step > self.training.steps:
            raise UserError(f"{kept[-1]} is beyond the {self.training.steps} steps asked for; raise --steps or give another folder with --out")


@torch.no_grad()
def _follow(average: torch.nn.Module, module: torch.nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)


def _flush(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


@contextmanager
def _finishing_the_step() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM are heard between steps, so that what is saved is a whole step; a second one ends at once."""
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in signals}

    def hear(number: int, frame: Any) -> None:
        heard.append(number)
        for one in signals:
            signal.signal(one, before[one])

    for number in signals:
        signal.signal(number, hear)
    try:
        yield lambda: bool(heard)
    finally:
        for number in signals:
            signal.signal(number, before[number])


def _save_pipeline(pipe: Any, unet: torch.nn.Module, folder: Path) -> None:
    """The pipeline with the trained UNet as a diffusers folder, written beside and renamed."""
    pipe.unet = unet.eval().to(memory_format=torch.contiguous_format)
    for part in (pipe.unet, pipe.vae):
        part.register_to_config(_name_or_path="")  # or the folder of the model would be part of what was trained
    temporary, old = folder.with_name(f".{folder.name}.{os.getpid()}.tmp"), folder.with_name(f".{folder.name}.old")
    try:
        pipe.save_pretrained(temporary, safe_serialization=True)
        with suppress(FileNotFoundError):
            shutil.rmtree(old)
        if folder.exists():
            folder.rename(old)
        temporary.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the fine-tuned model cannot be written to {folder}: {one_line(error)}; the checkpoint is kept, repeat the command") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def duplicated_pairs(prepared: Prepared) -> tuple[Sequence[Pair], Sequence[Pair]]:
    """The pairs that are repeated, and the others."""
    chosen = set(prepared.duplicated)
    return [prepared.pairs[number] for number in prepared.duplicated], [pair for number, pair in enumerate(prepared.pairs) if number not in chosen]
