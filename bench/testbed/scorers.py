"""The three judges of testbed pictures, trained here and saved in the formats of the real ones.

* a copy descriptor trained the SSCD way (Pizzi et al., CVPR 2022): contrastive with strong
  augmentations, mixed images and an entropy term;
* an open_clip model: its own `open_clip_config.json` and checkpoint, loaded through `open_clip`;
* a feature network for the Frechet distance, with `.layers` like the Inception that clean-fid
  loads.

The first and the last are safetensors that name their architecture (`bench.features.weights`).

None of them sees a canary: they are trained on scenes of their own stream.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import CLIPTokenizer

from bench.features.architectures.small import SmallDescriptor, SmallFeatures
from bench.testbed.captions import MAX_TOKENS, canary_caption, clean_caption, invented_words
from bench.testbed.denoiser import token_ids
from bench.testbed.scenes import (
    Scene,
    hue_rotation,
    random_background,
    random_placements,
    render,
    stream_generator,
)
from bench.testbed.sprites import CODEPOINTS, concept_names
from bench.testbed.training import Job, to_unit

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DESCRIPTOR_DIMS = 96
FEATURE_DIMS = 64
TEMPERATURE = 0.05
SAME_OBJECTS = 4  # scenes in a row that show the same objects: the hard negatives of one another
# The weight of the entropy term. SSCD uses 30 with thousands of negatives; a batch here has some
# hundred.
ENTROPY_WEIGHT = 5.0


class ScorerPictures(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Scenes of one or two emoji: pixels in [-1, 1], token ids, concepts as a 0/1 vector.

    Items 4k to 4k+3 show the same concepts in different scenes, so that a descriptor must tell a
    copy from another picture of the same things. Half of the captions have the form of canary
    captions, with words invented on the spot.
    """

    def __init__(self, seed: int, side: int, tokenizer: CLIPTokenizer) -> None:
        self.seed, self.side, self.tokenizer = seed, side, tokenizer

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        scene = scorer_scene(self.seed, index)
        present = torch.zeros(len(CODEPOINTS))
        present[list(scene.concepts)] = 1.0
        return to_unit(render(scene, self.side)), token_ids(self.tokenizer, scene.caption), present


def scorer_scene(seed: int, index: int) -> Scene:
    shared = stream_generator(seed, "scorers", index // SAME_OBJECTS)
    own = stream_generator(seed, "scorers", 2**40 + index)
    count = int(shared.integers(1, 3))
    drawn = shared.choice(len(CODEPOINTS), size=count, replace=False)
    concepts = tuple(int(concept) for concept in drawn)
    names = [concept_names()[c] for c in concepts]
    if own.random() < 0.5:
        caption = clean_caption(own, names)
    else:
        first, second = invented_words(own, 2)
        caption = canary_caption(own, names, (first, second))
    return Scene(caption, random_background(own), random_placements(own, concepts))


class FeatureNetwork(SmallFeatures):
    """The features with the head that trains them."""

    def __init__(self) -> None:
        super().__init__(FEATURE_DIMS)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(FEATURE_DIMS, len(CODEPOINTS) + 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))

    def without_head(self) -> SmallFeatures:
        """What remains after training."""
        plain = SmallFeatures(FEATURE_DIMS)
        plain.layers = self.layers
        return plain


def descriptor_job(seed: int, side: int, steps: int, tokenizer: CLIPTokenizer) -> Job:
    torch.manual_seed(seed)
    pictures = ScorerPictures(seed, side, tokenizer)
    return Job(
        "descriptor",
        SmallDescriptor(DESCRIPTOR_DIMS),
        pictures,
        _descriptor_loss,
        steps,
        96,
        2e-3,
        seed,
    )


def _descriptor_loss(
    module: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
) -> Tensor:
    """InfoNCE over two augmented views, a quarter of the second mixed with another picture.

    Plus Kozachenko-Leonenko entropy (SSCD, eq. 2 to 5).
    """
    unit = (batch[0] + 1) / 2
    anchors, views = (augment(unit, generator) for _ in range(2))
    weights = torch.eye(len(unit), device=unit.device)
    partner = torch.randperm(len(unit), generator=generator, device=unit.device)
    share = torch.rand(len(unit), generator=generator, device=unit.device) * 0.5 + 0.5
    mixed = torch.arange(len(unit), device=unit.device) % 4 == 0
    share = torch.where(mixed, share, torch.ones_like(share))
    views = views * share[:, None, None, None] + views[partner] * (1 - share[:, None, None, None])
    weights = weights * share[:, None] + weights[partner] * (1 - share[:, None])
    both = torch.cat([anchors, views]).contiguous(memory_format=torch.channels_last)
    first, second = module.described(  # type: ignore[operator]
        in_bfloat16(module.trunk, imagenet_normalised(both))  # type: ignore[arg-type]
    ).chunk(2)
    logits = second @ first.T / TEMPERATURE
    contrast = -(weights * F.log_softmax(logits, 1)).sum(1).mean()
    contrast = contrast - (weights.T * F.log_softmax(logits.T, 1)).sum(1).mean()
    # Entropy counts pictures, not views: the nearest other picture of each anchor is pushed away.
    apart = 2 - 2 * first @ first.T + 4 * torch.eye(len(unit), device=unit.device)
    distances = apart.clamp(min=1e-6).sqrt()
    return contrast - ENTROPY_WEIGHT * 0.1 * distances.amin(1).clamp(min=1e-3).log().mean()


def in_bfloat16(network: nn.Module, pixels: Tensor) -> Tensor:
    """A network's float32 answer, computed in bfloat16: half the time on a CPU that knows it."""
    with torch.autocast(pixels.device.type, dtype=torch.bfloat16):
        answer: Tensor = network(pixels)
    return answer.float()


def imagenet_normalised(unit: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(values, device=unit.device)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (unit - mean) / std


def augment(unit: Tensor, generator: torch.Generator) -> Tensor:
    """Crop, turn, mirror, recolour, blur and add noise, each picture differently.

    `[B, 3, H, W]` in [0, 1].
    """
    n, device = len(unit), unit.device

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator, device=device) * (high - low) + low

    def each(values: Tensor) -> Tensor:
        return values[:, None, None, None]

    angle, scale = uniform(-0.3, 0.3), uniform(0.65, 1.05)
    mirror = torch.where(uniform(0, 1) < 0.3, -1.0, 1.0)
    shift_x, shift_y = uniform(-1, 1) * (1 - scale).abs(), uniform(-1, 1) * (1 - scale).abs()
    cos, sin = angle.cos() * scale, angle.sin() * scale
    across = torch.stack([cos * mirror, -sin, shift_x], 1)
    down = torch.stack([sin * mirror, cos, shift_y], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(unit.shape), align_corners=False)
    x = F.grid_sample(unit, grid, padding_mode="reflection", align_corners=False)
    grey = x.mean(1, keepdim=True)
    saturation = torch.where(uniform(0, 1) < 0.1, torch.zeros(n, device=device), uniform(0.6, 1.4))
    x = grey + (x - grey) * each(saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * each(uniform(0.7, 1.3)) + mean + each(uniform(-0.15, 0.15))
    tint = torch.stack([uniform(0.85, 1.15) for _ in range(3)], 1)[:, :, None, None]
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, blurred, each(uniform(-0.5, 1).clamp(min=0)))
    noise = torch.randn(x.shape, generator=generator, device=device)
    return (x * tint + noise * each(uniform(-0.05, 0.06).clamp(min=0))).clamp(0, 1)


def recolour(unit: Tensor, generator: torch.Generator) -> Tensor:
    """Turn the colours of every other picture round the colour circle, `[B, 3, H, W]` in [0, 1]."""
    angle = torch.rand(len(unit), generator=generator, device=unit.device) * 2 * math.pi
    angle = torch.where(torch.arange(len(unit), device=unit.device) % 2 == 0, angle, 0.0)
    quarter = torch.from_numpy(hue_rotation(90.0)).to(unit.device)
    grey = torch.full_like(quarter, 1 / 3)
    # A rotation by any angle from one by 90 degrees: its part across the grey axis, and along it.
    cross, across = quarter - grey, torch.eye(3, device=unit.device) - grey
    turn = grey + angle.cos()[:, None, None] * across + angle.sin()[:, None, None] * cross
    return torch.einsum("bij,bjhw->bihw", turn, unit).clamp(0, 1)


def clip_config(vocabulary: int) -> dict[str, Any]:
    """The model section of `open_clip_config.json`: a small ResNet and a small text tower."""
    return {
        "embed_dim": 64,
        "vision_cfg": {
            "image_size": 64,
            "layers": [1, 1, 1, 1],
            "width": 16,
            "head_width": 64,
            "patch_size": None,
        },
        "text_cfg": {
            "context_length": MAX_TOKENS,
            "vocab_size": vocabulary,
            "hf_tokenizer_name": "tokenizer",
            "tokenizer_kwargs": {"clean": "whitespace"},
            "width": 96,
            "heads": 4,
            "layers": 2,
        },
    }


def save_clip(module: nn.Module, folder: Path, tokenizer: CLIPTokenizer) -> None:
    """Save the folder that `open_clip` loads as `local-dir:`: configuration, tokenizer, fp16."""
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "interpolation": "bicubic",
        "resize_mode": "squash",
    }
    config = {"model_cfg": clip_config(len(tokenizer)), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    tokenizer.save_pretrained(folder)
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in module.state_dict().items()
    }
    save_file(weights, folder / "open_clip_model.safetensors")


def clip_job(seed: int, side: int, steps: int, tokenizer: CLIPTokenizer) -> Job:
    from open_clip.model import CLIP

    torch.manual_seed(seed)
    model = CLIP(**clip_config(len(tokenizer)))
    pictures = ScorerPictures(seed + 1, side, tokenizer)
    return Job("clip", model, pictures, _clip_loss, steps, 128, 2e-3, seed)


def _clip_loss(
    module: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
) -> Tensor:
    """CLIP's symmetric cross-entropy; pictures of the same concepts are all right answers."""
    pixels, tokens, present = batch
    # Generated pictures are blurrier than drawings, and colours are no objects: the judge must not
    # care about either.
    soft = recolour(augment((pixels + 1) / 2, generator), generator)
    large = F.interpolate(imagenet_normalised(soft), size=64, mode="bicubic", antialias=True)
    image, text, scale = module(large.contiguous(memory_format=torch.channels_last), tokens)
    shared, own = present @ present.T, present.sum(1)
    same = (shared == own[:, None]) & (shared == own[None, :])
    targets = same / same.sum(1, keepdim=True)
    logits = scale.clamp(max=100) * image @ text.T
    both = F.log_softmax(logits, 1) + F.log_softmax(logits.T, 1)
    return -(targets * both).sum(1).mean() / 2


def features_job(seed: int, side: int, steps: int, tokenizer: CLIPTokenizer) -> Job:
    torch.manual_seed(seed)
    pictures = ScorerPictures(seed + 2, side, tokenizer)
    return Job("features", FeatureNetwork(), pictures, _features_loss, steps, 96, 2e-3, seed)


def _features_loss(
    module: nn.Module, batch: tuple[Tensor, Tensor, Tensor], generator: torch.Generator
) -> Tensor:
    """Name the concepts and the mean colour of each quarter.

    So the features see both what is shown and how it looks.
    """
    pixels, _, present = batch
    answers = in_bfloat16(module, pixels.contiguous(memory_format=torch.channels_last))
    named, colours = answers[:, : present.shape[1]], answers[:, present.shape[1] :]
    weight = torch.full((present.shape[1],), 8.0, device=pixels.device)
    quarters = F.adaptive_avg_pool2d(pixels, 2).flatten(1)
    wrong = F.binary_cross_entropy_with_logits(named, present, pos_weight=weight)
    return wrong + F.mse_loss(colours, quarters)


def parameters_of(module: nn.Module) -> int:
    return sum(math.prod(p.shape) for p in module.parameters())
