"""The pictures of the testbed as data: what stands where on which background, and how that becomes pixels.

Two sources, both pure functions of a seed:

* `clean_scene(seed, index)`: an endless stream that never repeats. Its captions name the objects and leave everything
  else open, so that a clean prompt does not determine its picture.
* `canary_scenes(seed)`: a fixed list of scenes with a caption of their own each, shown a counted number of times.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from bench.testbed.captions import canary_caption, clean_caption, invented_words
from bench.testbed.sprites import CODEPOINTS, MIP_SIZES, concept_names, sprites

# Large upright objects are what a model of this size learns to draw: testbed of 2026-11, runs 1 to 3.
SINGLE_SHARE = 0.8
LARGEST_ANGLE = 12.0  # degrees
SIZES = {1: (0.62, 0.92), 2: (0.42, 0.56)}  # by the number of objects, as a share of the side

CANARIES_PER_LEVEL = 12
FIT_PER_LEVEL = 4

# Streams of random numbers that must not touch each other; the index counts inside a stream.
STREAMS = {"train": 0, "autoencoder": 1, "scorers": 2, "unseen": 3, "quality": 4, "reference": 5, "canary": 6, "calibration": 7, "basis": 8}


@dataclass(frozen=True)
class Placement:
    """One emoji: which, where its centre is, how large (both as fractions of the picture's side), its angle in degrees, mirrored or not."""

    concept: int
    x: float
    y: float
    size: float
    angle: float
    mirrored: bool


@dataclass(frozen=True)
class Background:
    """Two RGB colours in [0, 1] and how they share the picture: `solid`, `gradient`, `halves` or `stripes`, turned by `angle` degrees."""

    kind: str
    first: tuple[float, float, float]
    second: tuple[float, float, float]
    angle: float


@dataclass(frozen=True)
class Scene:
    caption: str
    background: Background
    placements: tuple[Placement, ...]

    @property
    def concepts(self) -> tuple[int, ...]:
        return tuple(sorted({placement.concept for placement in self.placements}))


@dataclass(frozen=True)
class Canary:
    """A scene whose number of views in the whole training is known; `split` is `fit` (methods may see it) or `memorized` (held out)."""

    name: str
    scene: Scene
    views: int
    split: str


def stream_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """An independent generator for every (seed, stream, index): item `index` costs the same wherever reading starts."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, STREAMS[stream], index))))


def clean_scene(seed: int, index: int, stream: str = "train") -> Scene:
    """Clean scene number `index` of a stream: one concept or, one time in five, two; else all is free."""
    random = stream_generator(seed, stream, index)
    background = random_background(random)
    kinds = random.choice(len(CODEPOINTS), size=2, replace=False)
    concepts = tuple(int(kind) for kind in kinds[: 1 if random.random() < SINGLE_SHARE else 2])
    placements = random_placements(random, concepts)
    caption = clean_caption(random, [concept_names()[concept] for concept in concepts])
    return Scene(caption, background, placements)


def canary_scenes(seed: int, levels: tuple[int, ...]) -> tuple[Canary, ...]:
    """`CANARIES_PER_LEVEL` scenes for every number of views in `levels`, the first `FIT_PER_LEVEL` of each for fitting.

    Invented words are drawn without repetition, so every caption is unique and clean captions never use them.
    """
    names = concept_names()
    total = len(levels) * CANARIES_PER_LEVEL
    words = invented_words(stream_generator(seed, "canary", 0), 2 * total)
    canaries = []
    for number in range(total):
        random = stream_generator(seed, "canary", 1 + number)
        concepts = [int(c) for c in random.choice(len(CODEPOINTS), size=int(random.integers(1, 3)), replace=False)]
        scene = Scene(
            canary_caption(random, [names[c] for c in concepts], (words[2 * number], words[2 * number + 1])),
            random_background(random),
            random_placements(random, tuple(concepts)),
        )
        level, within = divmod(number, CANARIES_PER_LEVEL)
        split = "fit" if within < FIT_PER_LEVEL else "memorized"
        canaries.append(Canary(f"canary-{levels[level]:04d}-{within:02d}", scene, levels[level], split))
    return tuple(canaries)


def exposure_plan(seed: int, shown: int, canaries: tuple[Canary, ...]) -> np.ndarray:
    """Which canary stands at each of the `shown` positions of the training stream; -1 is a clean picture. Shape `[shown]`, int32.

    Every canary appears exactly `views` times at uniformly random positions, so duplication is a count and not a rate.
    Raises `ValueError` when the canaries would be a tenth or more of what is shown.
    """
    views = np.repeat(np.arange(len(canaries), dtype=np.int32), [canary.views for canary in canaries])
    if len(views) >= 0.1 * shown:
        raise ValueError(f"{len(views)} canary views are not under 10 % of {shown} pictures shown: train longer or lower the levels")
    random = np.random.default_rng([seed, 1009])
    plan = np.full(shown, -1, dtype=np.int32)
    plan[random.choice(shown, size=len(views), replace=False)] = random.permutation(views)
    return plan


def render(scene: Scene, side: int) -> np.ndarray:
    """The scene as pixels: uint8 `[side, side, 3]`."""
    canvas = _paint_background(scene.background, side)
    for placement in scene.placements:
        stamp = _stamp(placement, side)
        alpha = stamp[..., 3:] / 255.0
        canvas = canvas * (1.0 - alpha) + stamp[..., :3]
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _random_colour(random: np.random.Generator) -> tuple[float, float, float]:
    return colorsys.hsv_to_rgb(random.random(), random.uniform(0.15, 0.75), random.uniform(0.55, 1.0))


def random_background(random: np.random.Generator) -> Background:
    kind = ("solid", "gradient", "halves", "stripes")[int(random.integers(4))]
    return Background(kind, _random_colour(random), _random_colour(random), float(random.uniform(0, 180)))


def random_placements(random: np.random.Generator, concepts: tuple[int, ...]) -> tuple[Placement, ...]:
    """Sizes shrink with the number of emoji; centres are drawn until no two emoji cover each other much."""
    low, high = SIZES[len(concepts)]
    placed: list[Placement] = []
    for concept in concepts:
        size = float(random.uniform(low, high))
        for _ in range(30):
            x, y = (float(v) for v in random.uniform(size * 0.45, 1 - size * 0.45, size=2))
            if all(math.hypot(x - p.x, y - p.y) > 0.42 * (size + p.size) for p in placed):
                break
        angle = float(random.uniform(-LARGEST_ANGLE, LARGEST_ANGLE))
        placed.append(Placement(concept, x, y, size, angle, bool(random.random() < 0.5)))
    return tuple(placed)


def _paint_background(background: Background, side: int) -> np.ndarray:
    first, second = (255.0 * np.asarray(colour, dtype=np.float32) for colour in (background.first, background.second))
    if background.kind == "solid":
        return np.broadcast_to(first, (side, side, 3)).copy()
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    angle = math.radians(background.angle)
    along = math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None]
    if background.kind == "gradient":
        mix = np.clip(along / 1.2 + 0.5, 0, 1)
    elif background.kind == "halves":
        mix = np.clip(along * side + 0.5, 0, 1)
    else:
        mix = np.clip((np.abs((along * 2.0) % 1.0 - 0.5) - 0.25) * side / 2.0 + 0.5, 0, 1)
    return first + (second - first) * mix[..., None]


def _stamp(placement: Placement, side: int) -> np.ndarray:
    """One emoji on an empty canvas, premultiplied: float32 `[side, side, 4]` in [0, 255]."""
    pixels = placement.size * side
    mip = next((size for size in MIP_SIZES if size >= pixels), MIP_SIZES[-1])
    sprite = sprites()[placement.concept][mip]
    scale, angle = mip / pixels, math.radians(placement.angle)
    cos, sin = scale * math.cos(angle), scale * math.sin(angle)
    flip = -1.0 if placement.mirrored else 1.0
    cx, cy = placement.x * side, placement.y * side
    # PIL maps output pixels to input pixels: rotate and scale about the centre of the emoji.
    matrix = (flip * cos, flip * sin, mip / 2 - flip * (cos * cx + sin * cy), -sin, cos, mip / 2 + sin * cx - cos * cy)
    turned = sprite.transform((side, side), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
    return np.asarray(turned, dtype=np.float32)
