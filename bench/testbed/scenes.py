"""The pictures of the testbed as data: what stands where on which background, and its pixels.

Two sources, both pure functions of a seed:

* `clean_scene(seed, index)`: an endless stream that never repeats. Its captions name the objects
  and leave everything else open, so that a clean prompt does not determine its picture.
* `canary_scenes(plan)`: a fixed list of captions of their own, each shown a counted number of
  times: `verbatim` ones always with the same picture, `template` ones with many variants of one
  picture (same objects, same places; background and colours differ), and pristine ones never.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from bench.testbed.captions import canary_caption, clean_caption, invented_words
from bench.testbed.plan import TestbedPlan
from bench.testbed.sprites import CODEPOINTS, MIP_SIZES, concept_names, sprites

# Large upright objects are what a model of this size learns to draw.
SINGLE_SHARE = 0.8
LARGEST_ANGLE = 12.0  # degrees
SIZES = {1: (0.62, 0.92), 2: (0.42, 0.56)}  # by the number of objects, as a share of the side
# What methods may see of each level, the rest is held out.
FIT_SHARE = 0.3
# Canaries are outliers: no more of what is shown than this.
LARGEST_CANARY_SHARE = 0.2

# Streams of random numbers that must not touch each other; the index counts inside a stream.
STREAMS = {
    "train": 0,
    "autoencoder": 1,
    "scorers": 2,
    "unseen": 3,
    "quality": 4,
    "reference": 5,
    "canary": 6,
    "calibration": 7,
    "basis": 8,
    "variants": 9,
    "recogniser": 10,
}


@dataclass(frozen=True)
class Placement:
    """One emoji: which, its centre and size as fractions of the side, its angle in degrees.

    `hue` turns its colours round the colour circle, in degrees.
    """

    concept: int
    x: float
    y: float
    size: float
    angle: float
    mirrored: bool
    hue: float = 0.0


@dataclass(frozen=True)
class Background:
    """Two RGB colours in [0, 1] and how they share the picture, turned by `angle` degrees.

    `kind`: solid, gradient, halves or stripes.
    """

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
    """A caption of its own, the pictures that it is shown with, and how often in all.

    `kind` is `verbatim` (one picture) or `template` (many variants of one); `split` is `fit`
    (methods may see it), `memorized` (held out) or `pristine` (never shown).
    """

    name: str
    kind: str
    scenes: tuple[Scene, ...]
    views: int
    split: str

    @property
    def caption(self) -> str:
        return self.scenes[0].caption


def stream_generator(seed: int, stream: str, index: int) -> np.random.Generator:
    """A generator for every (seed, stream, index): items cost the same wherever reading starts."""
    entropy = np.random.SeedSequence((seed, STREAMS[stream], index))
    return np.random.Generator(np.random.SFC64(entropy))


def clean_scene(seed: int, index: int, stream: str = "train") -> Scene:
    """Clean scene number `index` of a stream: one concept or, one time in five, two."""
    random = stream_generator(seed, stream, index)
    background = random_background(random)
    kinds = random.choice(len(CODEPOINTS), size=2, replace=False)
    concepts = tuple(int(kind) for kind in kinds[: 1 if random.random() < SINGLE_SHARE else 2])
    placements = random_placements(random, concepts)
    caption = clean_caption(random, [concept_names()[concept] for concept in concepts])
    return Scene(caption, background, placements)


def canary_scenes(plan: TestbedPlan) -> tuple[Canary, ...]:
    """All canaries of a plan: verbatim ones by level, pristine ones, templates by level.

    The first `FIT_SHARE` of each level are for fitting. Invented words are drawn without
    repetition, so every caption is unique and clean captions never use them.
    """
    groups = [("verbatim", views, scenes) for views, scenes in plan.levels]
    groups += [("verbatim", 0, plan.pristine)]
    groups += [("template", views, scenes) for views, scenes in plan.template_levels]
    total = sum(scenes for _, _, scenes in groups)
    words = invented_words(stream_generator(plan.seed, "canary", 0), 2 * total)
    canaries = list[Canary]()
    for kind, views, scenes in groups:
        for within in range(scenes):
            number = len(canaries)
            scene = _canary_scene(plan.seed, number, (words[2 * number], words[2 * number + 1]))
            variants = _variants(plan, number, scene) if kind == "template" else (scene,)
            split = "fit" if within < round(FIT_SHARE * scenes) else "memorized"
            name = f"{kind if views else 'pristine'}-{views:04d}-{within:02d}"
            canaries.append(Canary(name, kind, variants, views, split if views else "pristine"))
    return tuple(canaries)


def _canary_scene(seed: int, number: int, words: tuple[str, str]) -> Scene:
    random = stream_generator(seed, "canary", 1 + number)
    count = int(random.integers(1, 3))
    concepts = [int(c) for c in random.choice(len(CODEPOINTS), size=count, replace=False)]
    caption = canary_caption(random, [concept_names()[c] for c in concepts], words)
    return Scene(caption, random_background(random), random_placements(random, tuple(concepts)))


def _variants(plan: TestbedPlan, number: int, scene: Scene) -> tuple[Scene, ...]:
    """The scene again and again with another background and other colours of its objects."""
    variants = []
    for variant in range(plan.variants):
        random = stream_generator(plan.seed, "variants", number * plan.variants + variant)
        hue = float(random.uniform(0, 360))
        placements = tuple(replace(placement, hue=hue) for placement in scene.placements)
        variants.append(Scene(scene.caption, random_background(random), placements))
    return tuple(variants)


def shown_pictures(canaries: tuple[Canary, ...]) -> list[tuple[Scene, int]]:
    """Every canary picture and how often it is shown: variants share the views of a template."""
    pictures = []
    for canary in canaries:
        each, more = divmod(canary.views, len(canary.scenes))
        pictures += [(scene, each + (place < more)) for place, scene in enumerate(canary.scenes)]
    return pictures


def exposure_plan(seed: int, shown: int, canaries: tuple[Canary, ...]) -> np.ndarray:
    """Which of `shown_pictures` stands at each position of the training stream, int32 `[shown]`.

    -1 is a clean picture. Every picture appears exactly as often as planned at uniformly random
    positions, so duplication is a count and not a rate. Raises `ValueError` when the canaries would
    be more than `LARGEST_CANARY_SHARE` of what is shown.
    """
    counts = [count for _, count in shown_pictures(canaries)]
    views = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    if len(views) > LARGEST_CANARY_SHARE * shown:
        raise ValueError(
            f"{len(views)} canary views are more than {LARGEST_CANARY_SHARE:.0%} of {shown} "
            "pictures shown: train longer or lower the levels"
        )
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
    return colorsys.hsv_to_rgb(
        random.random(), random.uniform(0.15, 0.75), random.uniform(0.55, 1.0)
    )


def random_background(random: np.random.Generator) -> Background:
    kind = ("solid", "gradient", "halves", "stripes")[int(random.integers(4))]
    colours = _random_colour(random), _random_colour(random)
    return Background(kind, *colours, float(random.uniform(0, 180)))


def random_placements(
    random: np.random.Generator, concepts: tuple[int, ...]
) -> tuple[Placement, ...]:
    """Objects of a size that suits their number, drawn until none covers another much."""
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
    first, second = (
        255.0 * np.asarray(colour, dtype=np.float32)
        for colour in (background.first, background.second)
    )
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
    half = mip / 2
    across = (flip * cos, flip * sin, half - flip * (cos * cx + sin * cy))
    down = (-sin, cos, half + sin * cx - cos * cy)
    turned = sprite.transform(
        (side, side), Image.Transform.AFFINE, (*across, *down), Image.Resampling.BICUBIC
    )
    stamp = np.array(turned, dtype=np.float32)
    if placement.hue:
        stamp[..., :3] = np.clip(stamp[..., :3] @ hue_rotation(placement.hue).T, 0, stamp[..., 3:])
    return stamp


def hue_rotation(degrees: float) -> np.ndarray:
    """Rotation of RGB about the grey axis, float32 `[3, 3]`: greys stay, colours go round."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    grey = np.full((3, 3), 1 / 3)
    cross = np.array([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    return (cos * np.eye(3) + (1 - cos) * grey + sin * cross).astype(np.float32)
