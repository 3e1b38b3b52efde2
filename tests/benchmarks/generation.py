"""Generation on the embedded model, side by side: diffusers' own pipeline as people call it, a bare
batched loop, and the harness.

    PYTHONPATH=. OMP_NUM_THREADS=1 python tests/benchmarks/generation.py
    PYTHONPATH=. OMP_NUM_THREADS=1 python tests/benchmarks/generation.py --images 64 --rounds 1

All take turns in one process on one thread. What counts is its time on the processor, since other
programs lengthen that least; the figure of each is its fastest round, and ratios are of those. All
make the same pictures from the same noise, which is checked to 1 of 256 levels.

- `diffusers, one a call`: a loop over prompts, as most scripts have it;
- `diffusers, four a call`: four pictures of one prompt a call, as most papers' scripts have it;
- `diffusers, batched`: lists of prompts and generators, as many a call as the harness's batch;
- `bare loop`: text encoder, UNet, scheduler and decoder in the harness's batch, nothing else;
- `harness, sampling`: what `bench run` does until it has pictures;
- `harness, stored`: and their keys, PNG files and checksums in a store;
- `bare loop and features`: and the features that the suite's metrics read;
- `harness, whole`: what `bench run` does with every image: all of the above.

The share of the peak holds the operations of UNet, encoder and decoder, counted, against a product
of two matrices on the same threads.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.running.generating import generate, make_batch
from bench.running.prepare import Prepared, prepare
from bench.store.store import SampleKey
from bench.suite.load import load_suite
from bench.suite.suite import Suite

Pictures = list[np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--suite", default="testbed")
    parser.add_argument("--images", type=int, default=128, help="a multiple of four")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    suite = load_suite(arguments.suite)
    contest = Contest(suite, arguments.images)
    seconds: dict[str, list[float]] = {}
    pictures: dict[str, Pictures] = {}
    for _ in range(arguments.rounds):
        for name, make in contest.ways.items():
            begun = time.process_time()
            pictures[name] = make()
            seconds.setdefault(name, []).append(time.process_time() - begun)
            print(
                f"{name:>22}: {1000 * seconds[name][-1] / arguments.images:7.1f} ms an image  "
                f" (load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores)",
                flush=True,
            )
    farthest = max(
        int(np.abs(one.astype(int) - other.astype(int)).max())
        for made in pictures.values()
        for one, other in zip(made, pictures["bare loop"], strict=True)
    )
    best = {name: min(found) / arguments.images for name, found in seconds.items()}
    print(f"\nbest of {arguments.rounds} rounds, one thread, {arguments.images} images")
    for name, one in best.items():
        print(f"{name:>22}: {1000 * one:7.1f} ms an image")
    sampling, bare = best["harness, sampling"], best["bare loop"]
    for name in list(best)[:3]:
        print(f"{name} / harness, sampling: {best[name] / sampling:.2f}")
    print(f"harness, sampling / bare loop: {sampling / bare:.3f}")
    print(f"harness, stored / bare loop: {best['harness, stored'] / bare:.3f}")
    whole, features = best["harness, whole"], best["bare loop and features"]
    print(f"harness, whole / bare loop and features: {whole / features:.3f}")
    peak, operations = peak_of_products(), contest.operations()
    print(
        f"operations an image: {operations / 1e9:.2f} x 10^9; peak of products:"
        f" {peak / 1e9:.0f} x 10^9 a second; share in sampling: {operations / sampling / peak:.2f}"
    )
    print(f"farthest pixel of any two ways: {farthest} of 256 levels")


class Contest:
    """The ways of making the same images of clean prompts, each a function to pictures."""

    def __init__(self, suite: Suite, images: int) -> None:
        self._bare = _prepared(Suite(suite.settings.model_copy(update=NOTHING), suite.file))
        self._whole = _prepared(suite)
        prompts = suite.prompts("clean")[: images // 4]
        self._keys = self._bare.images.sample_set(prompts, 4).keys
        self._whole.images.sample_set(prompts, 4)
        self._denoiser = self._bare.engine.denoiser
        self._whole.engine._denoiser = self._denoiser  # one model for all
        self._extractors = list(self._whole.images.keeping.by_fingerprint.values())
        self._batch = self._bare.engine.batch_size
        for extractor in self._extractors:  # load the networks
            extractor([np.zeros((32, 32, 3), np.uint8)])
        self.ways: dict[str, Callable[[], Pictures]] = {
            "diffusers, one a call": lambda: self._piped(1),
            "diffusers, four a call": lambda: self._piped(4),
            "diffusers, batched": lambda: self._piped(self._batch),
            "bare loop": self._looped,
            "harness, sampling": self._sampled,
            "harness, stored": lambda: self._stored(self._bare),
            "bare loop and features": self._looped_with_features,
            "harness, whole": lambda: self._stored(self._whole),
        }

    def _batches(self, size: int) -> list[Sequence[SampleKey]]:
        return [self._keys[start : start + size] for start in range(0, len(self._keys), size)]

    def _piped(self, size: int) -> Pictures:
        made: Pictures = []
        pipe, denoiser = self._denoiser.pipe, self._denoiser
        pipe.set_progress_bar_config(disable=True)
        for keys in self._batches(size):
            prompts = [key.prompt for key in keys]
            same = len(set(prompts)) == 1
            made += list(
                pipe(
                    prompts[0] if same else prompts,
                    num_images_per_prompt=len(keys) if same else 1,
                    generator=[torch.Generator().manual_seed(key.seed) for key in keys],
                    num_inference_steps=denoiser.steps,
                    guidance_scale=denoiser.guidance_scale,
                    output_type="np",
                ).images
            )
        return [(picture * 255).round().astype(np.uint8) for picture in made]

    def _looped(self) -> Pictures:
        made: Pictures = []
        pipe, denoiser = self._denoiser.pipe, self._denoiser
        channels, side = pipe.unet.config.in_channels, pipe.unet.config.sample_size
        for keys in self._batches(self._batch):
            with torch.no_grad():
                texts = list(dict.fromkeys(["", *(key.prompt for key in keys)]))
                ids = pipe.tokenizer(
                    texts,
                    padding="max_length",
                    max_length=pipe.tokenizer.model_max_length,
                    truncation=True,
                    return_tensors="pt",
                ).input_ids
                rows = dict(zip(texts, pipe.text_encoder(ids)[0], strict=True))
                text = torch.stack([rows[""]] * len(keys) + [rows[key.prompt] for key in keys])
                latents = torch.stack(
                    [
                        torch.randn(
                            channels, side, side, generator=torch.Generator().manual_seed(key.seed)
                        )
                        for key in keys
                    ]
                )
                scheduler = denoiser.new_scheduler()
                latents = latents * scheduler.init_noise_sigma
                for timestep in scheduler.timesteps:
                    both = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
                    noise = pipe.unet(
                        both, timestep, encoder_hidden_states=text, return_dict=False
                    )[0]
                    null, told = noise.chunk(2)
                    guided = null + denoiser.guidance_scale * (told - null)
                    latents = scheduler.step(guided, timestep, latents, return_dict=False)[0]
                decoded = pipe.vae.decode(
                    latents / pipe.vae.config.scaling_factor, return_dict=False
                )[0]
                unit = (decoded / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
            made += list((unit * 255).round().astype(np.uint8))
        return made

    def _looped_with_features(self) -> Pictures:
        made = self._looped()
        for extractor in self._extractors:
            extractor(made)
        return made

    def _sampled(self) -> Pictures:
        experiment = self._bare.experiment
        made: Pictures = []
        for keys in self._batches(self._batch):
            made += make_batch(self._denoiser, keys, experiment.method, {}).pictures
        return made

    def _stored(self, prepared: Prepared) -> Pictures:
        with tempfile.TemporaryDirectory() as folder:
            images = replace(prepared.images, root=Path(folder))
            images.store.prepare()
            units = images.units.of(self._keys)
            generate(prepared.experiment, prepared.engine, images, {}, units)
            return images.store.pictures(self._keys)

    def operations(self) -> float:
        """Operations of the bare loop for an image, as torch counts them."""
        with FlopCounterMode(display=False) as counter:
            self._looped()
        return counter.get_total_flops() / len(self._keys)


NOTHING: dict[str, Any] = {"metrics": {}, "attacks": {}}


def _prepared(suite: Suite) -> Prepared:
    return prepare(suite, "none", {}, Path("unused"), torch.device("cpu"))


def peak_of_products(side: int = 2048) -> float:
    """Operations a second of a product of two float32 matrices: the best of ten."""
    left, right = torch.randn(side, side), torch.randn(side, side)
    times = []
    for _ in range(10):
        begun = time.process_time()
        left @ right
        times.append(time.process_time() - begun)
    return 2 * side**3 / min(times)


if __name__ == "__main__":
    main()
