"""What an auditor asks: model, LoRA files, pictures, and how much is to be tried."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.base.errors import UserError, visible
from bench.base.parameters import parse_assignments
from bench.diffusion.lora.merge import Strength

WEIGHTS = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.2)  # of the curve, beside 0 and 1
QUICK_WEIGHTS = (0.5, 0.8)
IMAGES, QUICK_IMAGES = 8, 4
LIMIT = 200
SHARED = "testbed"  # the suite whose sampler and judges are taken where no model is named
OTHERS = "sd14-mem500"  # where one is


@dataclass(frozen=True)
class Lora:
    """A LoRA file with its strengths in the UNet and in the text encoder."""

    file: Path
    strength: Strength = field(default_factory=lambda: Strength(1.0, 1.0))


@dataclass(frozen=True)
class Remedy:
    """A method to try, with its parameters by name."""

    method: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """One audit.

    `like` is the suite whose sampler, copy descriptor and threshold are used; the model is that
    suite's where none is named. `base` is what a fully fine-tuned model began as; with LoRAs it is
    the model without them. Both are diffusers folders or checkpoints in one file, whose tokenizer,
    scheduler and configurations are those in the folder `config`. `epochs` are earlier saves of the
    first LoRA, `embeddings` textual inversions, which the base has not. `out` is the work folder:
    suite, lists, views, images, records, page. `calibrate` says whether the threshold is set on
    images of the base; None: where that of the suite would be borrowed.
    """

    data: Path
    out: Path
    model: Path | None = None
    base: Path | None = None
    config: Path | None = None
    loras: tuple[Lora, ...] = ()
    epochs: tuple[Path, ...] = ()
    embeddings: tuple[Path, ...] = ()
    holdout: Path | None = None
    holdout_random: bool = False
    trigger: str = ""
    caption_column: str = "text"
    instance_prompt: str | None = None
    novel: Path | None = None
    like: str = ""
    images: int = 0
    limit: int = LIMIT
    quick: bool = False
    weights: tuple[float, ...] | None = None
    remedies: tuple[Remedy, ...] | None = None
    attack: bool = True
    flips: bool = True
    random_crops: bool = False
    buckets: bool | None = None  # whether pictures are asked for in their buckets; None: the header
    sscd: Path | None = None
    profile: str = ""
    threshold: float | None = None
    calibrate: bool | None = None
    steps: int | None = None
    guidance: float | None = None
    dtype: str = ""
    batch_size: int | None = None
    clip_skip: int | None = None
    chunks: int | None = None
    seed: int = 0
    store: str = ""

    @property
    def suite_like(self) -> str:
        """The name of the suite whose sampler and judges are used."""
        return self.like or (SHARED if self.model is None else OTHERS)

    @property
    def has_base(self) -> bool:
        """Whether it is known what the model was made from."""
        return bool(self.loras or self.base or self.embeddings)

    @property
    def attacks(self) -> bool:
        """Whether the attacker who knows what the model was made from is tried."""
        return self.attack and not self.quick and bool(self.loras or self.base)

    @property
    def images_each(self) -> int:
        """Images of each caption."""
        return self.images or (QUICK_IMAGES if self.quick else IMAGES)

    @property
    def curve(self) -> tuple[float, ...]:
        """The weights of the strength curve, without 0 and 1, which are base and model."""
        chosen = self.weights or (QUICK_WEIGHTS if self.quick else WEIGHTS)
        return tuple(sorted({weight for weight in chosen if weight not in (0.0, 1.0)}))


def parse_lora(text: str, option: str = "--lora") -> Lora:
    """`FILE`, `FILE:W` or `FILE:W,W_TE` as `--lora` takes it: after the last colon only numbers are
    weights. `option` is what errors call it.

    Raises `UserError` for a weight that is no finite number.
    """
    name, colon, weights = text.rpartition(":")
    # A file may have a colon in its name, and one that is there is meant.
    if not colon or Path(text).expanduser().exists():
        return Lora(Path(text).expanduser())
    numbers = []
    for part in weights.split(","):
        try:
            numbers.append(float(part))
        except ValueError:
            numbers.append(math.nan)
    if not 1 <= len(numbers) <= 2 or not all(map(math.isfinite, numbers)):
        raise UserError(
            f"{option} {visible(text)}: '{visible(weights)}' is no weight: give FILE:W or"
            " FILE:W,W_TE with numbers, such as style.safetensors:0.8"
        )
    return Lora(Path(name).expanduser(), Strength(numbers[0], numbers[-1]))


def parse_weights(text: str) -> tuple[float, ...] | None:
    """`0.5,0.8` as numbers; None where nothing is given.

    Raises `UserError` for what is no finite number.
    """
    if not text.strip():
        return None
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise UserError(f"--weights {visible(text)}: give numbers with commas, such as 0.5,0.8")
    return found


def parse_remedies(given: list[str] | None) -> tuple[Remedy, ...] | None:
    """`METHOD` or `METHOD:name=value,name=value` of each; `none` alone for no remedy; None where
    nothing is given.

    Raises `UserError` for parameters that are no assignments.
    """
    if not given:
        return None
    if given == ["none"]:
        return ()
    found = []
    for text in given:
        if text == "none":
            raise UserError("--remedy none stands alone: leave it or the others out")
        # A method of one's own is a path, which may have a colon.
        method, _, assignments = text.rpartition(":") if "=" in text else (text, "", "")
        parts = [part for part in assignments.split(",") if part]
        found.append(Remedy(method, parse_assignments(parts)))
    return tuple(found)
