"""What a mitigation is: one class, typed fields as hyper-parameters, four optional doors into
sampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from torch import Tensor

    from bench.diffusion.denoiser import Denoiser
    from bench.diffusion.request import Request, Step

Where = Literal[
    "nothing", "prompt", "embedding", "noise", "guidance", "attention", "activations", "weights"
]
Need = Literal["fit_prompts", "clean_prompts", "training_images"]
Swept = tuple[str, tuple[float, ...]]  # a parameter, and values of it
State = dict[str, Any]  # names to tensors: what `fit` learned, saved as safetensors


@dataclass(frozen=True)
class FitData:
    """What a method may learn from.

    Only what it declares in `needs` is filled; held-out prompts never come here.
    """

    fit_prompts: tuple[str, ...] = ()
    clean_prompts: tuple[str, ...] = ()
    training_images: dict[str, tuple[Path, ...]] = field(default_factory=dict)  # by fit prompt


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
