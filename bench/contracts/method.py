"""What a mitigation is: one class, typed fields as hyper-parameters, four optional doors into
sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from bench.base.progress import Report, silent

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from bench.diffusion.denoiser import Denoiser
    from bench.diffusion.families import Family
    from bench.diffusion.request import Request, Step

Where = Literal[
    "nothing", "prompt", "embedding", "noise", "guidance", "attention", "activations", "weights"
]
# anchors: clean captions of the same objects, by fit prompt, where the suite's list has them;
# copy_judge: what the suite takes for a copy; base: what the model was fine-tuned from
Need = Literal["fit_prompts", "clean_prompts", "training_images", "anchors", "copy_judge", "base"]
Swept = tuple[str, tuple[float, ...]]  # a parameter, and values of it
State = dict[str, Any]  # names to tensors: what `fit` learned, saved as safetensors


@dataclass(frozen=True)
class CopyJudge:
    """What the suite takes for a copy. `describe` turns pictures, uint8 `[H, W, 3]`, into rows of
    unit length, float32 `[n, d]`; two pictures are copies where the product of their rows is above
    `threshold`.
    """

    describe: Callable[[Sequence[np.ndarray]], np.ndarray]
    threshold: float

    def similarity(self, pictures: Sequence[np.ndarray], references: Sequence[Path]) -> np.ndarray:
        """Of each picture to the nearest of some training pictures, float32 `[n]` in [-1, 1]."""
        from bench.base.pictures import read_picture

        known = self.describe([read_picture(path) for path in references])
        nearest: np.ndarray = (self.describe(pictures) @ known.T).max(1)
        return nearest


def _ignored(seconds: float, rows: int) -> None:
    """A credit that nobody asks for."""


@dataclass(frozen=True)
class FitData:
    """What a method may learn from.

    Only what it declares in `needs` is filled; held-out prompts never come here. `anchors` has no
    entry for prompts whose list names none. `base` has parameters of the same names and shapes, and
    is not to be changed. `folder` is where a method that trains keeps
    checkpoints, or None where nothing can be kept; it goes away once what was learned is stored.
    """

    fit_prompts: tuple[str, ...] = ()
    clean_prompts: tuple[str, ...] = ()
    training_images: dict[str, tuple[Path, ...]] = field(default_factory=dict)  # by fit prompt
    anchors: dict[str, str] = field(default_factory=dict)  # by fit prompt
    judge: CopyJudge | None = None
    base: Denoiser | None = None  # what the model was fine-tuned from
    folder: Path | None = None
    report: Report = silent
    # told what a fit that goes on took before it was interrupted: seconds, row evaluations
    credit: Callable[[float, int], None] = _ignored


class Method(BaseModel):
    """Derive one class per file.

    Every door has a working default: a class without doors is `none`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    where: ClassVar[Where] = "nothing"
    needs: ClassVar[tuple[Need, ...]] = ()
    paper: ClassVar[str] = ""
    version: ClassVar[int] = 1
    # parameters under which it does nothing; `bench check` holds it to that
    neutral: ClassVar[dict[str, Any] | None] = None
    # the parameter that says how much it does, and the values that `bench sweep` takes, from least
    # to most
    swept: ClassVar[Swept | None] = None
    # models that it was made for and tried on: sd is Stable Diffusion 1 and 2, sdxl is XL; others
    # are refused before anything is generated
    families: ClassVar[tuple[Family, ...]] = ("sd",)
    # whether it works where prompts are read in several chunks ([model] chunks): not where it takes
    # the places of an embedding for the tokens of one text
    in_chunks: ClassVar[bool] = True
    # parameters with which `bench check` tries it, where its defaults take long
    trial: ClassVar[Mapping[str, Any]] = {}

    def needed(self) -> tuple[Need, ...]:
        """What these parameters need of `needs`."""
        return self.needs

    def mixes_images(self) -> bool:
        """Whether, under these parameters, images of one batch influence each other; then the batch
        size is part of what they are.
        """
        return False

    def fit(self, denoiser: Denoiser, data: FitData) -> State:
        """Offline work, once per suite; timed, counted and cached. Returns tensors by name."""
        return {}

    @contextmanager
    def attach(self, pipe: Any, state: State) -> Iterator[None]:
        """Edit weights, attention or activations of `pipe` while samples are drawn; undo
        bit-exactly on exit.
        """
        yield

    def adjust(self, denoiser: Denoiser, request: Request, state: State) -> Request:
        """Change prompts, prompt embeddings or initial latents of one batch before sampling."""
        return request

    def guide(self, step: Step, state: State) -> Tensor:
        """Combine both predictions of a step, epsilon `[B, C, h, w]`; the default is
        classifier-free guidance.
        """
        return step.guided(step.guidance_scale)
