"""For methods that train weights: the UNet while it learns, as it was afterwards, and the changed
parameters as what `fit` returns.

The UNet is trained where it stands, so that every evaluation counts. A fit that is interrupted goes
on in the folder that `FitData` names, and gives the same bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.base.errors import UserError
from bench.contracts.method import FitData, State
from bench.diffusion.denoiser import Denoiser
from bench.training.loop import Course, Learner, Loss, Mix


def fine_tuned(
    denoiser: Denoiser,
    data: FitData,
    names: Collection[str],
    course: Course,
    loss: Loss,
    mix: Mix | None = None,
) -> State:
    """Train the UNet's parameters of these names in float32 and return those that changed, in the
    model's own number type; afterwards the UNet is as before, bit for bit.

    Without steps nothing changes. Raises `UserError` as the loop does, and `KeyboardInterrupt`
    after Ctrl-C, once the step under way is saved.
    """
    if not course.steps:
        return {}
    unet = denoiser.pipe.unet

    def watch(step: int, value: float) -> None:
        data.report("train", step, course.steps)

    with _in_training(unet, names) as before, torch.enable_grad():
        learner = Learner(
            unet,
            course,
            loss,
            denoiser.device,
            data.folder / "training" if data.folder else None,
            "lower the learning rate with -p learning_rate=",
            mix,
            lambda: denoiser.evaluations,
        )
        data.credit(learner.seconds, learner.counted)
        learner.learn(watch)
        after = {
            name: value.detach().to(before[name].dtype, copy=True)
            for name, value in learner.result.named_parameters()
            if name in before
        }
    return {name: value for name, value in after.items() if not torch.equal(value, before[name])}


@contextmanager
def _in_training(unet: torch.nn.Module, names: Collection[str]) -> Iterator[dict[str, Tensor]]:
    """The UNet in float32 with gradients for these parameters alone. Yields copies of them as they
    were.
    """
    attributes = set(vars(unet))
    parameters = dict(unet.named_parameters())
    if unknown := sorted(set(names) - parameters.keys()):
        raise UserError(f"the model has no parameter {unknown[0]} to train")
    asked = {name: value.requires_grad for name, value in parameters.items()}
    stored = {name: value.data for name, value in parameters.items()}
    before = {name: parameters[name].detach().clone() for name in parameters if name in names}
    try:
        for name, value in parameters.items():
            value.data = value.data.float()  # the same numbers where they are in float32 already
            value.requires_grad_(name in before)
        yield before
    finally:
        for name in set(vars(unet)) - attributes:  # accelerate marks what it prepared
            delattr(unet, name)
        with torch.no_grad():
            for name, value in parameters.items():
                value.data = stored[name]
                value.grad = None
                value.requires_grad_(asked[name])
                if name in before:
                    value.copy_(before[name])


@contextmanager
def swapped(module: torch.nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """The module with these values of its parameters; the originals return bit for bit.

    Raises `UserError` for a parameter that it does not have.
    """
    parameters = dict(module.named_parameters())
    if unknown := sorted(state.keys() - parameters.keys()):
        raise UserError(f"what was learned names {unknown[0]}, and the model has none")
    originals = {name: parameters[name].detach().clone() for name in state}
    try:
        with torch.no_grad():
            for name, value in state.items():
                parameters[name].copy_(value)
        yield
    finally:
        with torch.no_grad():
            for name, original in originals.items():
                parameters[name].copy_(original)


def made_once(
    denoiser: Denoiser, data: FitData, name: str, make: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Tensors by name that `make` gives, kept in the folder of `data`: a fit that goes on after an
    interruption finds them there, with what they took.
    """
    file = data.folder / f"{name}.safetensors" if data.folder else None
    if file and (kept := _kept(file)):
        tensors, seconds, rows = kept
        data.credit(seconds, rows)
        return {key: value.to(denoiser.device) for key, value in tensors.items()}
    start, before = time.perf_counter(), denoiser.evaluations
    # Of one layout however they come: another layout is multiplied in another order.
    made = {key: value.detach().contiguous() for key, value in make().items()}
    if file:
        spent = [repr(time.perf_counter() - start), str(denoiser.evaluations - before)]
        _keep(file, made, dict(zip(("seconds", "rows"), spent, strict=True)))
    return made


def _kept(file: Path) -> tuple[dict[str, Tensor], float, int] | None:
    try:
        with safe_open(file, "pt") as opened:
            said = opened.metadata()
        return load_file(file), float(said["seconds"]), int(said["rows"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None  # not there, or cut short: it is made again


def _keep(file: Path, made: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write under a temporary name and rename."""
    temporary = file.with_name(f".{file.name}.tmp")
    tensors = {key: value.cpu() for key, value in made.items()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata)
        temporary.replace(file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)
