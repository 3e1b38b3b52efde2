"""What a detector is: one class that says how surely a prompt, or an image of it, is a copy.

A detector judges the model without any mitigation. What it reads decides what it costs: a text, or
what the ordinary run saw while it sampled (`Recorder`), or further evaluations of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from bench.base.digests import digest_of, seed_of
from bench.base.progress import Report, silent
from bench.diffusion.families import FAMILIES, Family

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from bench.diffusion.denoiser import Denoiser
    from bench.diffusion.request import Request
    from bench.suite.prompts import Prompt

# What a detector has to hold: the caption; pictures from an interface; what sampling passes
# through; a finished picture and the model; the model, to be evaluated as one likes.
Needs = Literal["text", "api", "trajectory", "picture", "model"]


@dataclass(frozen=True)
class Moment:
    """One step of sampling a batch of B images, after guidance.

    `signal` is the share of the model's input that is picture, a in `sqrt(a) x0 + sqrt(1 - a) e`;
    `scaled` that input, and `unconditional`, `conditional` and `guided` are noise as predicted
    (epsilon), `[B, C, h, w]` each.
    """

    index: int
    count: int
    timestep: int
    signal: float
    scaled: Tensor
    unconditional: Tensor
    conditional: Tensor
    guided: Tensor
    request: Request

    @property
    def is_last(self) -> bool:
        """Whether no step follows."""
        return self.index == self.count - 1

    @property
    def difference(self) -> Tensor:
        """What the prompt adds, conditional minus unconditional, float32 `[B, C, h, w]`."""
        return self.conditional.float() - self.unconditional.float()

    @property
    def clean(self) -> Tensor:
        """The picture that the guided noise implies, as latents, float32 `[B, C, h, w]`."""
        noise = (1 - self.signal) ** 0.5 * self.guided.float()
        return (self.scaled.float() - noise) / self.signal**0.5


class Recorder(BaseModel):
    """Watches batches being sampled and keeps one array of numbers for each image.

    It must not change what it sees. Two recorders of one class with equal fields are the same one,
    whichever detectors ask for them. `memory` is a dict that belongs to one batch, empty before
    the first step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    version: ClassVar[int] = 1
    # whether `attended` is to be called, which costs a little more time in every step
    reads_attention: ClassVar[bool] = False

    def begin(self, request: Request, memory: dict[str, Any]) -> None:
        """Called before the first step."""

    def attended(
        self, index: int, layer: int, probabilities: Tensor, memory: dict[str, Any]
    ) -> None:
        """Called at step `index` for cross-attention layer number `layer`, before `saw`.

        `probabilities`, `[B, heads, pixels, tokens]`, of the conditional rows; they sum to one over
        tokens, and are gone after the call.
        """

    def wants(self, index: int, count: int) -> bool:
        """Whether `attended` is to be called at step `index` of `count`."""
        return True

    def saw(self, moment: Moment, memory: dict[str, Any]) -> None:
        """Called after every step."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it keeps: define saw")

    def result(self, memory: dict[str, Any]) -> Tensor:
        """What is kept of the batch, float `[B, ...]`; called after the last step."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say what it keeps: define result"
        )

    def name(self, source: str | None = None) -> str:
        """The folder of its arrays in a store. `source` is the digest of code that is not built
        in, which nobody's version speaks for.
        """
        content = [type(self).__name__, self.version, self.model_dump(mode="json"), source]
        return f"{type(self).__name__.lower()}-{digest_of(content)[:12]}"


@dataclass(frozen=True)
class Observation:
    """What a detector may read of some prompts, with `images` seeds each: P rows, n columns.

    `calibration` holds clean captions, which may set constants and are judged by nobody.
    """

    prompts: tuple[Prompt, ...]
    images: int
    seeds: np.ndarray  # [P, n], int64
    calibration: tuple[str, ...]
    trace_: Callable[[Recorder], np.ndarray]
    pictures_: Callable[[int], list[np.ndarray]]
    denoiser_: Callable[[], Denoiser]
    base_seed: int = 0
    report: Report = silent

    def trace(self, recorder: Recorder) -> np.ndarray:
        """What a recorder kept, float32 `[P, n, ...]`. The detector must have named it."""
        return self.trace_(recorder)

    def pictures(self, row: int) -> list[np.ndarray]:
        """The n pictures of one prompt, uint8 `[H, W, 3]`."""
        return self.pictures_(row)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each prompt with those of its beginning and end, int64 `[P]`."""
        return np.asarray(self.denoiser.lengths([prompt.text for prompt in self.prompts]))

    @property
    def denoiser(self) -> Denoiser:
        """The model, which counts its evaluations; loaded when it is first asked for."""
        return self.denoiser_()

    def generator(self, row: int, column: int, purpose: str) -> torch.Generator:
        """A stream of random numbers on the CPU that depends on the suite's seed, the prompt, the
        image's seed and the purpose alone, and so on no batch.
        """
        import torch

        words = (self.base_seed, purpose, self.prompts[row].text, self.seeds[row, column])
        return torch.Generator().manual_seed(seed_of(*words))


class Detector(BaseModel):
    """Derive one class per file; typed fields are settings that a suite gives.

    Higher scores mean memorized. That is declared and never turned round afterwards: a detector
    that points the other way on some model has an area below one half there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    needs: ClassVar[Needs] = "trajectory"
    paper: ClassVar[str] = ""
    version: ClassVar[int] = 1
    # models that it was made for and tried on, where `works_on` assumes too little
    families: ClassVar[tuple[Family, ...]] = ()
    # whether it works where prompts are read in several chunks ([model] chunks): not where it takes
    # the places of an embedding for the tokens of one text
    in_chunks: ClassVar[bool] = True

    def works_on(self) -> tuple[Family, ...]:
        """The families of models that it works on: all of them where it evaluates no model itself,
        and Stable Diffusion 1 and 2 where it does, unless it declares others.
        """
        evaluates = self.needs in ("picture", "model")
        return self.families or (("sd",) if evaluates else FAMILIES)

    def recorders(self) -> Sequence[Recorder]:
        """What must be kept of the sampling of every image."""
        return ()

    def rows(self, steps: int) -> tuple[float, float]:
        """Row evaluations of the model for one image that is sampled in `steps` steps: if nothing
        else asks for that image, and on top of it where it is generated anyway. A backward pass
        counts as one more.
        """
        return 2.0 * steps, 0.0

    def score(self, seen: Observation) -> np.ndarray:
        """A number for each image, `[P, n]`, or for each prompt, `[P, 1]`; higher: memorized."""
        raise NotImplementedError(
            f"{type(self).__name__} does not say how it scores: define score(self, seen)"
        )

    def over_steps(self, seen: Observation) -> np.ndarray | None:
        """What it reads at every step of sampling, `[P, S]`, for a picture of it; None where it
        does not follow the steps.
        """
        return None

    def of_prompt(self, scores: np.ndarray) -> np.ndarray:
        """One number a prompt, `[P]`, of those of its first images, `[P, n]`: their mean."""
        return np.asarray(scores.mean(1))
