"""A bundle's model and scorers, opened as the suites use them; what is generated is kept."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.assets.asset import cache_folder
from bench.base.digests import digest_of, path_digest
from bench.base.files import write_atomically
from bench.contracts.method import Method
from bench.diffusion.denoiser import Denoiser
from bench.features.networks import CopyDescriptor, OpenClip
from bench.features.recogniser import ObjectRecogniser
from bench.running.sampling import sample
from bench.suite.suite import Suite

Report = Callable[[str, int, int], None]


def suite_on(suite: Suite, folder: Path, plan: dict[str, Any]) -> Suite:
    """The suite with the pipeline of another bundle, sampled as its plan says."""
    changed: dict[str, Any] = {"path": str(folder.resolve() / "pipeline"), "side": plan["side"]}
    if "guidance_scale" in plan:
        changed |= {"guidance_scale": plan["guidance_scale"], "steps": plan["sampling_steps"]}
    model = suite.settings.model.model_copy(update=changed)
    return Suite(suite.settings.model_copy(update={"model": model}), suite.file)


class OpenedBundle:
    """A bundle's model and scorers, as the suite uses them. `merged` holds the digests of the LoRA
    files that were merged into the denoiser.
    """

    def __init__(
        self,
        folder: Path,
        suite: Suite,
        denoiser: Denoiser,
        report: Report,
        merged: Sequence[str] = (),
    ) -> None:
        self.folder, self.suite, self.denoiser, self.report = folder, suite, denoiser, report
        cpu, scorers = torch.device("cpu"), folder / "scorers"
        model = path_digest(folder / "pipeline")
        self.model_digest = digest_of([model, *merged]) if merged else model
        self.descriptor = CopyDescriptor(scorers / "descriptor.safetensors", "testbed", cpu)
        self.clip = OpenClip("clip", scorers / "clip", None, cpu)
        self.recogniser = ObjectRecogniser(scorers / "recogniser.safetensors", cpu)

    def prompts(self, name: str) -> list[dict[str, str]]:
        path = self.folder / "prompts" / f"{name}.csv"
        with path.open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def describe(self, pictures: list[np.ndarray]) -> np.ndarray:
        return np.asarray(self.descriptor(pictures))

    def generate(self, prompts: list[str], what: str, batch: int = 32) -> list[np.ndarray]:
        """One image a prompt, from seeds of `what` alone: uint8 `[H, W, 3]` each.

        What was generated before is taken from the cache, so measuring may be interrupted.
        """
        seeds = [_seed(what, prompt, index) for index, prompt in enumerate(prompts)]
        key = digest_of([self.model_digest, self.suite.picture_settings, prompts, seeds])
        kept = cache_folder() / "testbed-measured" / f"{what}-{key[:16]}.npy"
        pictures = list(np.load(kept)) if kept.exists() else []
        for start in range(len(pictures), len(prompts), batch):
            part = slice(start, start + batch)
            request = self.denoiser.request(prompts[part], seeds[part])
            latents = sample(self.denoiser, request, Method(), {})
            pictures += list(self.denoiser.decode(latents))
            if len(pictures) % (8 * batch) == 0:
                _keep(kept, pictures)
            self.report(what, len(pictures), len(prompts))
        _keep(kept, pictures)
        return pictures

    def over_steps(self, prompt: str, shown: int = 13) -> list[np.ndarray]:
        """What the model takes the picture for at evenly spread steps of sampling.

        The clean latents predicted from the guided noise, decoded.
        """
        denoiser = self.denoiser
        request = denoiser.request([prompt], [_seed("steps", prompt, 0)])
        scheduler, latents = denoiser.new_scheduler(), request.latents
        latents = latents * scheduler.init_noise_sigma
        chosen = set(np.linspace(0, len(scheduler.timesteps) - 1, shown).round().astype(int))
        pictures: list[np.ndarray] = []
        with torch.no_grad():
            for index, timestep in enumerate(scheduler.timesteps):
                scaled = scheduler.scale_model_input(latents, timestep)
                without, with_prompt = denoiser.branches(scaled, timestep, request, index)
                guided = without + denoiser.guidance_scale * (with_prompt - without)
                predicted = denoiser.as_predicted(guided, scaled, index)
                taken = scheduler.step(predicted, timestep, latents)
                latents = taken.prev_sample
                if index in chosen:
                    pictures += list(denoiser.decode(taken.pred_original_sample))
        return pictures

    def reconstructed(self, pixels: torch.Tensor) -> list[np.ndarray]:
        """Pictures through the autoencoder and back, uint8. `pixels` in [-1, 1]."""
        vae = self.denoiser.pipe.vae
        pictures: list[np.ndarray] = []
        with torch.no_grad():
            for part in pixels.split(64):
                decoded = vae.decode(vae.encode(part).latent_dist.mean).sample.clamp(-1, 1)
                bytes_ = ((decoded + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1)
                pictures += list(bytes_.numpy())
        return pictures

    def right_object(
        self, pictures: list[np.ndarray], texts: list[str], concepts: list[int]
    ) -> float:
        """Share of pictures to which the open_clip model gives the caption of their object."""
        scores = np.asarray(self.clip(pictures)) @ np.asarray(self.clip.texts(texts)[0]).T
        return float((scores.argmax(1) == np.asarray(concepts)).mean())


def _keep(path: Path, pictures: list[np.ndarray]) -> None:
    content = io.BytesIO()
    np.save(content, np.stack(pictures))
    write_atomically(path, content.getvalue())


def _seed(what: str, prompt: str, index: int) -> int:
    """63 bits for every image of every measurement; no suite draws its seeds so."""
    digest = hashlib.sha256(f"testbed {what}\0{prompt}\0{index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
