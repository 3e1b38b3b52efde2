"""Is the bundle a good testbed? Measured on it, never assumed: reconstruction, replication by
level, recognisable pictures.

The threshold of the copy descriptor is set here: the similarity that one in a thousand clean
generations exceeds, taken against all training pictures of canaries. It is the threshold of the
testbed suites. The share of clean generations above it is then measured on other clean prompts.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.model import load_denoiser
from bench.features.networks import CopyDescriptor, OpenClip
from bench.running.sample import sample
from bench.store.store import read_picture
from bench.suite.load import load_suite
from bench.suite.suite import Suite
from bench.testbed.autoencoder import reconstruction_psnr
from bench.testbed.bundle import read_manifest, write_manifest
from bench.testbed.scenes import clean_scene, render
from bench.testbed.training import to_unit

FALSE_POSITIVE_RATE = 0.001
IMAGES_PER_PROMPT = 4
CALIBRATION_IMAGES, CLEAN_IMAGES, REAL_IMAGES = 1000, 192, 400
CHOICES = 20
Report = Callable[[str, int, int], None]


def measure_bundle(folder: Path, sheets: Path | None, report: Report) -> dict[str, Any]:
    """Measure every acceptance figure, write them into the manifest and, where asked, contact
    sheets; returns the manifest.
    """
    suite = load_suite("testbed")
    manifest = read_manifest(folder)
    bundle = _Bundle(
        folder, suite, load_denoiser(_suite_on(suite, folder), torch.device("cpu")), report
    )
    canaries = bundle.prompts("canaries")
    references = bundle.describe(
        [read_picture(folder / "references" / f"{row['id']}.png") for row in canaries]
    )
    copies = bundle.generate(
        [row["prompt"] for row in canaries for _ in range(IMAGES_PER_PROMPT)], "canaries"
    )
    quality = [row["prompt"] for row in bundle.prompts("quality")]
    calibration_prompts = [quality[i % len(quality)] for i in range(CALIBRATION_IMAGES)]
    calibration = bundle.generate(calibration_prompts, "calibration")
    clean_prompts = [row for row in bundle.prompts("clean") if row["prompt"] not in quality]
    clean = bundle.generate(
        [clean_prompts[i % len(clean_prompts)]["prompt"] for i in range(CLEAN_IMAGES)], "clean"
    )

    def nearest(pictures: list[np.ndarray]) -> np.ndarray:
        return (bundle.describe(pictures) @ references.T).max(1)

    threshold = threshold_at(nearest(calibration), FALSE_POSITIVE_RATE)
    similarity = np.einsum(
        "pid,pd->pi",
        bundle.describe(copies).reshape(len(canaries), IMAGES_PER_PROMPT, -1),
        references,
    )
    measured: dict[str, Any] = {
        "threshold": round(threshold, 4),
        "threshold_false_positive_rate": FALSE_POSITIVE_RATE,
        "calibration_images": len(calibration),
        "clean_images": len(clean),
        "images_per_prompt": IMAGES_PER_PROMPT,
        "steps": suite.settings.model.steps,
        "guidance_scale": suite.settings.model.guidance_scale,
        "levels": _levels(canaries, similarity, threshold),
        "replicated_clean": float((nearest(clean) > threshold).mean()),
    }
    shown = sorted(measured["levels"], key=int)
    shares = [measured["levels"][group]["scenes"] for group in shown]
    measured["largest_fall"] = max(0.0, *(lower - higher for lower, higher in pairwise(shares)))
    once = measured["levels"].get("1", measured["levels"][shown[0]])
    measured |= {
        "replicated_highest_level": measured["levels"][shown[-1]]["scenes"],
        "replicated_level_1": once["scenes"],
    }
    seed, side = manifest["plan"]["seed"], manifest["plan"]["side"]
    unseen = [clean_scene(seed, index, "unseen") for index in range(REAL_IMAGES)]
    pictures = [render(scene, side) for scene in unseen]
    measured["psnr_unseen_db"] = reconstruction_psnr(
        bundle.denoiser.pipe.vae, torch.stack([to_unit(picture) for picture in pictures])
    )
    measured["caption_top1_real"] = bundle.right_caption(
        pictures, [scene.caption for scene in unseen]
    )
    measured["caption_top1_generated"] = bundle.right_caption(calibration, calibration_prompts)
    manifest["measured"] = measured
    write_manifest(folder, manifest)
    if sheets:
        write_sheets(sheets, folder, canaries, copies, calibration)
    return manifest


def threshold_at(negatives: np.ndarray, rate: float) -> float:
    """The value that exactly `floor(rate * n)` of the negatives exceed; ties never push the rate
    over. Needs at least `1 / rate` of them.
    """
    allowed = int(rate * len(negatives) + 1e-9)
    if allowed < 1:
        raise ValueError(f"{len(negatives)} negatives cannot resolve a rate of {rate}")
    return float(np.sort(negatives)[-allowed - 1])


def _suite_on(suite: Suite, folder: Path) -> Suite:
    """The suite with the pipeline of another bundle."""
    side = read_manifest(folder)["plan"]["side"]
    model = suite.settings.model.model_copy(
        update={"path": str(folder.resolve() / "pipeline"), "side": side}
    )
    return Suite(suite.settings.model_copy(update={"model": model}), suite.file)


def _levels(
    canaries: list[dict[str, str]], similarity: np.ndarray, threshold: float
) -> dict[str, dict[str, float]]:
    """By number of views: share of images above the threshold, share of scenes with most images
    above it, mean similarity.
    """
    levels = {}
    for views in dict.fromkeys(row["group"] for row in canaries):
        rows = similarity[[row["group"] == views for row in canaries]]
        above = rows > threshold
        levels[views] = {
            "scenes_shown": len(rows),
            "images": float(above.mean()),
            "scenes": float((above.mean(1) >= 0.5).mean()),
            "similarity": float(rows.mean()),
        }
    return levels


class _Bundle:
    """A bundle's model and scorers, as the suite uses them."""

    def __init__(self, folder: Path, suite: Suite, denoiser: Denoiser, report: Report) -> None:
        self.folder, self.suite, self.denoiser, self.report = folder, suite, denoiser, report
        self.descriptor = CopyDescriptor(
            folder / "scorers/descriptor.torchscript.pt", "testbed", torch.device("cpu")
        )
        self.clip = OpenClip("clip", folder / "scorers/clip", None, torch.device("cpu"))

    def prompts(self, name: str) -> list[dict[str, str]]:
        import csv

        with (self.folder / "prompts" / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def describe(self, pictures: list[np.ndarray]) -> np.ndarray:
        return np.asarray(self.descriptor(pictures))

    def generate(self, prompts: list[str], what: str, batch: int = 32) -> list[np.ndarray]:
        pictures: list[np.ndarray] = []
        seeds = [self.suite.image_seed(prompt, index) for index, prompt in enumerate(prompts)]
        for start in range(0, len(prompts), batch):
            request = self.denoiser.request(
                prompts[start : start + batch], seeds[start : start + batch]
            )
            pictures += list(self.denoiser.decode(sample(self.denoiser, request, Method(), {})))
            self.report(what, len(pictures), len(prompts))
        return pictures

    def right_caption(self, pictures: list[np.ndarray], captions: list[str]) -> float:
        """Share of pictures whose own caption scores highest among `CHOICES` captions of other
        pictures of the same set.
        """
        images, texts = self.clip(pictures), self.clip.texts(captions)[0]
        right = 0
        for index in range(len(pictures)):
            random = np.random.default_rng([17, index])
            others = [
                int(i)
                for i in random.permutation(len(captions))
                if not _same_things(captions[int(i)], captions[index])
            ]
            choices = [index, *others[: CHOICES - 1]]
            right += int(np.argmax(images[index] @ texts[choices].T)) == 0
        return right / len(pictures)


def _same_things(first: str, second: str) -> bool:
    """Captions that name the same objects are the same answer, whatever their wording."""
    from bench.testbed.sprites import concept_names

    return {name for name in concept_names() if name in first} == {
        name for name in concept_names() if name in second
    }


def write_sheets(
    folder: Path,
    bundle: Path,
    canaries: list[dict[str, str]],
    copies: list[np.ndarray],
    originals: list[np.ndarray],
) -> None:
    """`canaries.png`: by level, training pictures beside three of their generations; `clean.png`:
    clean generations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scenes, shown, side, gap, title, across = 4, 3, 64, 12, 22, 4
    levels = sorted({row["group"] for row in canaries}, key=int)
    width, height = (1 + shown) * side + gap, scenes * side + title + gap
    sheet = Image.new(
        "RGB", (across * width - gap, -(-len(levels) // across) * height - gap), "white"
    )
    draw = ImageDraw.Draw(sheet)
    for block, level in enumerate(levels):
        left, top = block % across * width, block // across * height
        draw.text(
            (left, top + 5),
            f"shown {level} times: training picture | {shown} generations",
            fill="black",
        )
        for line, member in enumerate(
            [i for i, row in enumerate(canaries) if row["group"] == level][-scenes:]
        ):
            pictures = [read_picture(bundle / "references" / f"{canaries[member]['id']}.png")]
            pictures += [copies[member * IMAGES_PER_PROMPT + number] for number in range(shown)]
            for column, picture in enumerate(pictures):
                sheet.paste(
                    _enlarged(picture, side), (left + column * side, top + title + line * side)
                )
            draw.line(
                [
                    (left + side, top + title + line * side),
                    (left + side, top + title + (line + 1) * side),
                ],
                fill="white",
                width=3,
            )
    sheet.save(folder / "canaries.png", optimize=True)
    grid = Image.new("RGB", (16 * side, 4 * side))
    for index, picture in enumerate(originals[:64]):
        grid.paste(_enlarged(picture, side), (index % 16 * side, index // 16 * side))
    grid.save(folder / "clean.png", optimize=True)


def _enlarged(picture: np.ndarray, side: int) -> Image.Image:
    return Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST)
