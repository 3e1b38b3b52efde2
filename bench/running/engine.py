"""The model under test on one device, and how it is run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch

from bench.base.distribution import package_version
from bench.base.errors import UserError, one_line
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.execution import Execution, float32_products
from bench.diffusion.memory import peak_memory_mib
from bench.diffusion.model import denoiser_of, load_base, load_denoiser, stored_as
from bench.features.extractor import Extractor
from bench.records.environment import device_name
from bench.running.experiment import Experiment

AnyExtractor = TypeVar("AnyExtractor", bound=Extractor)


class Engine:
    """Loads the networks of one experiment when they are first needed, and keeps them.

    So a run whose images are all stored loads no model. How it is executed (`execution`) changes
    no picture beyond rounding, and is no part of ids and keys.
    """

    def __init__(
        self, experiment: Experiment, device: torch.device, execution: Execution | None = None
    ) -> None:
        """Raises `UserError` where another batch size would change what the method does."""
        self.device = device
        self.execution = execution or Execution()
        self._suite = experiment.suite
        self._mixes_images = experiment.method.mixes_images()
        self._gradients = experiment.method.where in ("embedding", "noise")
        self._denoiser: Denoiser | None = None
        self._base: Denoiser | None = None
        self._extractors: dict[tuple[type, str], Extractor] = {}
        _refuse_other_batches(self.execution, experiment)

    @property
    def is_loaded(self) -> bool:
        """Whether the model was needed so far."""
        return self._denoiser is not None

    @property
    def denoiser(self) -> Denoiser:
        """The model, loaded at first use."""
        if self._denoiser is None:
            self._denoiser = load_denoiser(
                self._suite, self.device, self.execution, gradients=self._gradients
            )
        return self._denoiser

    @property
    def base(self) -> Denoiser:
        """What the model was fine-tuned from, loaded at first use.

        Raises `UserError` where the suite does not say what that is, or it does not fit the model.
        """
        if self._base is None:
            base = self._suite.needed_base("this run")
            self._base = load_base(base, self.denoiser, self.execution)
        return self._base

    def release(self) -> None:
        """Forget the loaded models; what is needed again is loaded again."""
        self._denoiser = self._base = None

    def adopt(self, other: Engine) -> None:
        """Take over the model that another engine has loaded, which then has none; where it has
        none, nothing happens. Their suites differ in the size of pictures alone.
        """
        if other._denoiser is None or self._denoiser is not None:
            return
        pipe = other._denoiser.pipe
        other._denoiser.close()
        other.release()
        self._denoiser = denoiser_of(pipe, self._suite, self.execution, gradients=self._gradients)

    def load(self) -> None:
        """Load the model now, so that what is wrong with it is said now."""
        _ = self.denoiser

    @property
    def batch_size(self) -> int:
        """Images sampled together. Found by trial where that was asked for, on the loaded model."""
        if self.execution.batch_size == "auto":
            return self.denoiser.batch_size
        return self.execution.batch_size or self._suite.settings.model.batch_size

    def halve_batch(self, error: torch.OutOfMemoryError) -> None:
        """After a batch did not fit the memory: half as many images from now on.

        Raises `UserError` where the batch size is not ours to choose, or is one already.
        """
        if self.execution.batch_size == "auto" and self.denoiser.batch_size > 1:
            self.denoiser.batch_size //= 2
            torch.cuda.empty_cache()
            return
        size = self.batch_size
        advice = (
            "--attention sliced or --vae-slicing"
            if size == 1 or self._mixes_images
            else f"--batch-size {size // 2}, or auto"
        )
        raise UserError(
            f"{size} images at once do not fit the device's memory ({one_line(error)[:80]}); repeat"
            f" the command with {advice}"
        ) from error

    def precision(self) -> AbstractContextManager[None]:
        """A block in which products of float32 are rounded as the execution says."""
        return float32_products(self.execution.tf32)

    def kept(self, extractor: AnyExtractor) -> AnyExtractor:
        """The same extractor, with its network if this engine has loaded it already."""
        key = (type(extractor), extractor.fingerprint)
        return cast(AnyExtractor, self._extractors.setdefault(key, extractor))

    @property
    def made_by(self) -> dict[str, Any]:
        """What makes images here, as far as it may decide a pixel: every shard carries it."""
        return self.known_of_makers | {
            "dtype": str(self.denoiser.dtype).removeprefix("torch."),
            "batch_size": self.batch_size,
        }

    @property
    def known_of_makers(self) -> dict[str, Any]:
        """The part of it that is known without loading the model."""
        return {
            "device": self.device.type,
            "device_name": device_name(self.device),
            "execution": self.execution.of_pixels,
            "bench": package_version(),
            "packages": {name: package_version(name) for name in ("torch", "diffusers")},
        }

    def described(self) -> dict[str, Any]:
        """How the model was run and the memory that it took, for a record's environment."""
        # Nothing is loaded only to be described.
        known = self.is_loaded or self.execution.batch_size != "auto"
        size = self.batch_size if known else None
        return {
            "execution": self.execution.described(size, stored_as(self._suite)),
            "peak_memory_mib": peak_memory_mib(self.device),
        }


def _refuse_other_batches(execution: Execution, experiment: Experiment) -> None:
    """Images of one batch influence each other under some methods."""
    wanted = experiment.suite.settings.model.batch_size
    if execution.batch_size not in (None, wanted) and experiment.method.mixes_images():
        raise UserError(
            f"method {experiment.method_name}: images of one batch influence each other, so the"
            f" batch size stays the suite's {wanted}; leave --batch-size out"
        )
