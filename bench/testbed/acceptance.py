"""Is the bundle a good testbed? Measured on it, never assumed.

Recognisable pictures (by the recogniser and by the open_clip model), replication by level of
views, hard negatives, and how far the copy descriptor can be trusted. The threshold of the
descriptor is set here: the similarity that one in a thousand clean generations exceeds, taken
against all training pictures of canaries. It is the threshold of the testbed suites; the share of
clean generations above it is then measured on other clean prompts.

The labels say how often each canary is copied: `LABEL_IMAGES` images a prompt, from seeds that no
suite uses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from bench.base.files import write_atomically
from bench.base.pictures import read_picture
from bench.diffusion.model import load_denoiser
from bench.statistics.intervals import proportion_interval, threshold_at
from bench.suite.load import load_suite
from bench.testbed.autoencoder import reconstruction_psnr
from bench.testbed.bundle import BUNDLE, hashed_files, read_manifest, write_manifest
from bench.testbed.opened import OpenedBundle, Report, suite_on
from bench.testbed.quick import quick_seconds
from bench.testbed.scenes import (
    Placement,
    Scene,
    clean_scene,
    random_background,
    random_placements,
    render,
    stream_generator,
)
from bench.testbed.sheets import level_title, write_blocks, write_curve
from bench.testbed.sprites import concept_names
from bench.testbed.training import to_unit

FALSE_POSITIVE_RATE = 0.001
LABEL_IMAGES = 16
COPIED_SHARE = 0.5  # a prompt counts as copied when this share of its images is
CALIBRATION_IMAGES, CLEAN_IMAGES, REAL_IMAGES = 1000, 400, 400
RECOGNISED_SEEDS = 3  # images of each object
SHIFTS = range(-2, 3)  # pixels that a picture may be moved before its error is taken


def measure_bundle(folder: Path, sheets: Path | None, report: Report) -> dict[str, Any]:
    """Measure every figure, write them into the manifest, and the labels; returns the manifest.

    With `sheets`, contact sheets are written there.
    """
    manifest = read_manifest(folder)
    suite = suite_on(load_suite("testbed"), folder, manifest["plan"])
    bundle = OpenedBundle(folder, suite, load_denoiser(suite, torch.device("cpu")), report)
    canaries = bundle.prompts("canaries")
    pictures = [_variants(folder, row["id"]) for row in canaries]
    described = [bundle.describe(variants) for variants in pictures]
    calibration = bundle.generate(_repeated(bundle, "quality", CALIBRATION_IMAGES), "calibration")
    clean = bundle.generate(_repeated(bundle, "clean", CLEAN_IMAGES), "clean")

    everything = np.concatenate(
        [own for own, row in zip(described, canaries, strict=True) if row["split"] != "pristine"]
    )
    threshold = threshold_at(_nearest(bundle, calibration, everything), FALSE_POSITIVE_RATE)
    captions = [row["prompt"] for row in canaries for _ in range(LABEL_IMAGES)]
    copies = bundle.generate(captions, "labels")
    features = bundle.describe(copies).reshape(len(canaries), LABEL_IMAGES, -1)
    pairs = zip(features, described, strict=True)
    similarity = np.stack([(images @ own.T).max(1) for images, own in pairs])
    settings = suite.settings.model
    measured: dict[str, Any] = {
        "threshold": round(threshold, 4),
        "threshold_false_positive_rate": FALSE_POSITIVE_RATE,
        "calibration_images": len(calibration),
        "clean_images": len(clean),
        "images_per_prompt": LABEL_IMAGES,
        "steps": settings.steps,
        "guidance_scale": settings.guidance_scale,
        "replicated_clean": float((_nearest(bundle, clean, everything) > threshold).mean()),
        "mean_similarity_clean": float(_nearest(bundle, clean, everything).mean()),
    }
    measured |= replication(canaries, similarity, threshold)
    measured |= _recognition(bundle, manifest["plan"])
    measured |= _descriptor_facts(bundle, canaries, pictures, copies, similarity, threshold)
    measured |= _template_levels(bundle, canaries, pictures, copies, similarity)
    shares = (similarity > threshold).mean(1)
    _write_labels(folder, canaries, shares, bundle.descriptor.fingerprint, threshold)
    manifest["files"] = hashed_files(folder)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    measured["mebibytes"] = round(size / 2**20, 2)
    manifest["measured"] = measured
    write_manifest(folder, manifest)
    if folder.resolve() == BUNDLE.resolve():  # what the suites of this installation read
        measured["quick_seconds"] = quick_seconds()
        write_manifest(folder, manifest)
    if sheets:
        _write_sheets(sheets, bundle, canaries, pictures, copies, similarity)
        write_curve(sheets / "curve.png", measured["levels"], measured["replicated_pristine"])
    return manifest


def replication(
    canaries: list[dict[str, str]], similarity: np.ndarray, threshold: float
) -> dict[str, Any]:
    """The figures about copies. `similarity` `[prompts, images]`: to the nearest own picture."""
    shares = (similarity > threshold).mean(1)
    kinds = np.array([row["kind"] for row in canaries])
    splits = np.array([row["split"] for row in canaries])
    groups = np.array([row["group"] for row in canaries])
    verbatim, copied = kinds == "verbatim", shares >= COPIED_SHARE
    held_out, pristine = splits == "memorized", splits == "pristine"
    levels: dict[str, dict[str, Any]] = {}
    for group in sorted(set(groups[verbatim & ~pristine]), key=int):
        there = verbatim & ~pristine & (groups == group)
        levels[str(group)] = {
            "scenes_shown": int(there.sum()),
            "images": float(shares[there].mean()),
            "images_interval": proportion_interval((similarity[there] > threshold).astype(float)),
            "scenes": float(copied[there].mean()),
            "similarity": float(similarity[there].mean()),
        }
    between = [facts for facts in levels.values() if 0.1 < facts["images"] < 0.9]
    once = levels.get("1", next(iter(levels.values())))
    sometimes = (shares > 0) & ~copied
    return {
        "levels": levels,
        "copied_held_out": int((verbatim & held_out & copied).sum()),
        "sometimes_held_out": int((verbatim & held_out & sometimes).sum()),
        "never_held_out": int((verbatim & held_out & (shares == 0)).sum()),
        "copied_fit": int((verbatim & (splits == "fit") & copied).sum()),
        "pristine": int(pristine.sum()),
        "levels_between": len(between),
        "replicated_level_1": once["images"],
        "replicated_pristine": float(shares[pristine].mean()) if pristine.any() else None,
        "template_held_out": int(((kinds == "template") & held_out).sum()),
    }


def _recognition(bundle: OpenedBundle, plan: dict[str, Any]) -> dict[str, Any]:
    """What the recogniser and the open_clip model make of real, coded and generated pictures."""
    side, seed = plan["side"], plan["seed"]
    names = concept_names()
    unseen = (clean_scene(seed, index, "unseen") for index in range(2 * REAL_IMAGES))
    scenes = [scene for scene in unseen if len(scene.placements) == 1][:REAL_IMAGES]
    shown = [scene.placements[0].concept for scene in scenes]
    real = [render(scene, side) for scene in scenes]
    asked, generated = _objects(bundle)
    pixels = torch.stack([to_unit(picture) for picture in real])
    coded = bundle.reconstructed(pixels)
    texts = [f"a picture of {name}" for name in names]
    measured: dict[str, Any] = {
        "psnr_unseen_db": reconstruction_psnr(bundle.denoiser.pipe.vae, pixels),
        "recognised_images": len(generated),
        "caption_top1_real": bundle.right_object(real, texts, shown),
        "caption_top1_generated": bundle.right_object(generated, texts, asked),
    }
    of = {"real": (real, shown), "reconstructed": (coded, shown), "generated": (generated, asked)}
    for name, (pictures, concepts) in of.items():
        right = bundle.recogniser.shows(pictures, concepts)
        measured[f"recognised_{name}"] = float(right.mean())
    ceiling = measured["recognised_reconstructed"]
    measured["recognised_of_reconstructed"] = measured["recognised_generated"] / max(ceiling, 1e-9)
    return measured


def _objects(bundle: OpenedBundle) -> tuple[list[int], list[np.ndarray]]:
    """Every concept, `RECOGNISED_SEEDS` times in a row, and what its plain caption gives."""
    names = concept_names()
    asked = [concept for concept in range(len(names)) for _ in range(RECOGNISED_SEEDS)]
    return asked, bundle.generate([f"a picture of {names[c]}" for c in asked], "objects")


def _descriptor_facts(
    bundle: OpenedBundle,
    canaries: list[dict[str, str]],
    pictures: list[list[np.ndarray]],
    copies: list[np.ndarray],
    similarity: np.ndarray,
    threshold: float,
) -> dict[str, Any]:
    """Does the descriptor rank copies as independent judges do?

    Over held-out verbatim prompts, every image against its own training picture: Spearman's rank
    correlation with the squared error of aligned pixels, and with the recogniser's features; and
    how far copies lie above other pictures of the same objects.
    """
    chosen = [
        number
        for number, row in enumerate(canaries)
        if row["kind"] == "verbatim" and row["split"] == "memorized"
    ]
    images = [copies[number * LABEL_IMAGES + i] for number in chosen for i in range(LABEL_IMAGES)]
    originals = [pictures[number][0] for number in chosen for _ in range(LABEL_IMAGES)]
    judged = similarity[chosen].ravel()
    pairs = list(zip(images, originals, strict=True))
    errors = [aligned_error(image, original) for image, original in pairs]
    facts: dict[str, Any] = {"rank_correlation_pixels": float(-spearmanr(judged, errors)[0])}
    looks = bundle.recogniser.looks
    near = np.einsum("nd,nd->n", looks(images), looks(originals))
    facts["rank_correlation_recogniser"] = float(spearmanr(judged, near)[0])
    elsewhere = [
        same_objects_elsewhere(
            bundle.recogniser.named(canaries[number]["prompt"])[:2],
            number,
            pictures[number][0].shape[0],
        )
        for number in chosen
    ]
    own = bundle.describe([pictures[number][0] for number in chosen])
    other = np.einsum("nd,nd->n", own, bundle.describe(elsewhere))
    copied = judged[judged > threshold]
    facts |= {
        "similarity_of_copies": float(copied.mean()) if len(copied) else None,
        "similarity_same_objects": float(other.mean()),
        "same_objects_gap": float(copied.mean() - other.mean()) if len(copied) else None,
    }
    return facts


def same_objects_elsewhere(concepts: tuple[int, ...], number: int, side: int) -> np.ndarray:
    """A picture of these objects (one or two), placed anew on another background."""
    random = stream_generator(0, "unseen", 2**40 + number)
    placements: tuple[Placement, ...] = random_placements(random, concepts)
    return render(Scene("", random_background(random), placements), side)


def aligned_error(image: np.ndarray, original: np.ndarray) -> float:
    """Mean squared error in [0, 1] units, at the shift of up to two pixels that makes it least."""
    first, second = image.astype(np.float32) / 255, original.astype(np.float32) / 255
    edge = max(SHIFTS)
    height, width = first.shape[:2]
    inner = second[edge : height - edge, edge : width - edge]
    return min(
        float(
            np.square(first[edge + y :, edge + x :][: len(inner), : inner.shape[1]] - inner).mean()
        )
        for y in SHIFTS
        for x in SHIFTS
    )


def _template_levels(
    bundle: OpenedBundle,
    canaries: list[dict[str, str]],
    pictures: list[list[np.ndarray]],
    copies: list[np.ndarray],
    similarity: np.ndarray,
) -> dict[str, Any]:
    """By views of a template: similarity to the nearest variant, and to the layout.

    The layout is where the variants agree: pixels whose brightness varies least over them, compared
    by correlation of brightness. For comparison, the same of pristine images against the layout.
    """
    levels: dict[str, dict[str, list[float]]] = {}
    for number, row in enumerate(canaries):
        if row["kind"] != "template":
            continue
        own = copies[number * LABEL_IMAGES : (number + 1) * LABEL_IMAGES]
        pristine = [i for i, other in enumerate(canaries) if other["split"] == "pristine"]
        others = [copies[i * LABEL_IMAGES] for i in pristine]
        facts = levels.setdefault(row["group"], {"variant": [], "layout": [], "chance": []})
        facts["variant"].append(float(similarity[number].mean()))
        facts["layout"].append(layout_similarity(own, pictures[number]))
        facts["chance"].append(layout_similarity(others, pictures[number]) if others else 0.0)
    means = {
        group: {name: float(np.mean(values)) for name, values in facts.items()}
        | {"scenes_shown": len(facts["variant"])}
        for group, facts in levels.items()
    }
    return {"template_levels": means} if means else {}


def layout_similarity(images: list[np.ndarray], variants: list[np.ndarray]) -> float:
    """Mean correlation of edges with the mean edges of the variants: colours do not count."""
    own = np.mean([edges(variant) for variant in variants], axis=0).ravel()
    return float(np.mean([np.corrcoef(edges(image).ravel(), own)[0, 1] for image in images]))


def edges(picture: np.ndarray) -> np.ndarray:
    """How dark each pixel is against its surroundings, `[H, W]`: the drawings' outlines."""
    grey = torch.from_numpy(picture.astype(np.float32)).mean(2)[None, None] / 255
    around = torch.nn.functional.avg_pool2d(
        torch.nn.functional.pad(grey, (3, 3, 3, 3), mode="replicate"), 7, 1
    )
    return np.asarray((around - grey).clamp(min=0)[0, 0])


def _nearest(
    bundle: OpenedBundle, pictures: list[np.ndarray], references: np.ndarray
) -> np.ndarray:
    return (bundle.describe(pictures) @ references.T).max(1)


def _repeated(bundle: OpenedBundle, name: str, count: int) -> list[str]:
    """So many prompts of a list, from its beginning again when it is shorter."""
    taken = {row["prompt"] for row in bundle.prompts("quality")} if name != "quality" else set()
    prompts = [row["prompt"] for row in bundle.prompts(name) if row["prompt"] not in taken]
    return [prompts[i % len(prompts)] for i in range(count)]


def _variants(folder: Path, name: str) -> list[np.ndarray]:
    """The training pictures of a canary: all variants of a template, else the one."""
    strip = folder / "references" / f"{name}.variants.png"
    if not strip.exists():
        return [read_picture(folder / "references" / f"{name}.png")]
    row = read_picture(strip)
    return np.split(row, row.shape[1] // row.shape[0], axis=1)


def _write_labels(
    folder: Path,
    canaries: list[dict[str, str]],
    shares: np.ndarray,
    descriptor: str,
    threshold: float,
) -> None:
    named = {row["id"]: float(share) for row, share in zip(canaries, shares, strict=True)}
    labels = {
        "images_per_prompt": LABEL_IMAGES,
        "descriptor": descriptor,
        "threshold": round(threshold, 4),
        "share_of_copies": named,
    }
    text = json.dumps(labels, indent=1) + "\n"
    write_atomically(folder / "prompts/labels.json", text.encode())


def _write_sheets(
    folder: Path,
    bundle: OpenedBundle,
    canaries: list[dict[str, str]],
    pictures: list[list[np.ndarray]],
    copies: list[np.ndarray],
    similarity: np.ndarray,
) -> None:
    """`canaries.png`: by kind and level, held-out training pictures beside three generations;
    `clean.png`: every object three times; `steps.png`: the surest copy and a clean prompt over the
    steps of sampling.
    """
    groups: dict[tuple[bool, int], list[int]] = {}
    for number, row in enumerate(canaries):
        groups.setdefault((row["kind"] == "template", int(row["group"])), []).append(number)
    blocks = []
    for (template, views), members in sorted(groups.items()):
        kind = "template" if template else "verbatim"
        rows = [
            [pictures[n][0], *copies[n * LABEL_IMAGES : n * LABEL_IMAGES + 3]] for n in members[-4:]
        ]
        mean = float(similarity[members].mean())
        blocks.append((f"{level_title(kind, views)}: similarity {mean:.2f}", rows))
    write_blocks(folder / "canaries.png", blocks)

    _, drawn = _objects(bundle)
    each = [drawn[i : i + RECOGNISED_SEEDS] for i in range(0, len(drawn), RECOGNISED_SEEDS)]
    named = [(name, [row]) for name, row in zip(concept_names(), each, strict=True)]
    write_blocks(folder / "clean.png", named, across=8, originals=False)

    most = int(similarity.mean(1).argmax())
    prompts = [canaries[most]["prompt"], bundle.prompts("clean")[0]["prompt"]]
    strips = [(prompt, [bundle.over_steps(prompt)]) for prompt in prompts]
    write_blocks(folder / "steps.png", strips, across=1, originals=False)
