"""Figures of the published procedures on the embedded model, from literal transcriptions of their
code: what `test_golden.py` holds the methods against.

    PYTHONPATH=.:tests:tests/methods python tests/golden/make.py                  # a minute or two
    PYTHONPATH=.:tests:tests/methods python tests/golden/make.py --only guard     # one of them

The transcriptions stand beside the tests of each method and are slow and plain; these figures were
computed once and are kept, so that a change of a method is seen even where its own oracle changes
with it. Numbers only. Make them again when the bundle is another model.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path

import mitigations
import numpy as np
import torch
from PIL import Image
from published_nemo import Published, collected_activations
from safetensors.torch import load_file
from test_wanda import collected_inputs, norms
from torch.nn import functional as F

from bench.base.digests import path_digest
from bench.diffusion.denoiser import Denoiser
from bench.diffusion.model import load_denoiser
from bench.suite.load import load_suite
from bench.testbed.bundle import BUNDLE
from methods._nemo_layers import value_layers
from methods.nemo import Nemo
from methods.prss import Paraphrases
from methods.wanda import feed_forward_outputs

FIGURES = Path(__file__).parent / "figures.json"
SOURCES = {
    "wanda": "Chavhan et al. 2024, concept-prune at 72927d9",
    "nemo": "Hintersdorf et al. 2024, localizing_memorization_in_diffusion_models at f952ede",
    "wen": "Wen et al. 2024, diffusion_memorization at c8fe471",
    "sscd": "Pizzi et al. 2022: ImageNet normalisation, unit vectors, inner product",
    "clip_pad": "Kim and No 2026, sd-clip-mem at 54b95bf",
    "prss": "Chen et al. 2025, arXiv:2504.18032",
    "sail": "Jeon et al. 2025, arXiv:2412.04140, with the direction of the present noise",
    "guard": "Zhao et al. 2026, GUARD at 3a49daf",
}
CALLS, SPARSITY, ROWS = 3, 0.05, 4  # of wanda; rows of each mask that are kept whole
SEEDS, SEED = 4, 1  # of NeMo's noises
UPDATES, RATE = 3, 0.05  # of Wen's descent


def chosen_prompts(count: int) -> list[str]:
    """The first fit captions of the largest numbers of views."""
    with (BUNDLE / "prompts/canaries.csv").open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row["split"] == "fit"]
    rows = [row for row in rows if row["kind"] == "verbatim"]
    rows.sort(key=lambda row: (-int(row["views"]), row["id"]))
    return [row["prompt"] for row in rows[:count]]


def calibration_prompts(count: int) -> list[str]:
    with (BUNDLE / "prompts/calibration.csv").open(newline="", encoding="utf-8") as stream:
        return [row["prompt"] for row in csv.DictReader(stream)][:count]


def wanda(denoiser: Denoiser, branch: str, token_norm: str) -> dict[str, dict[str, object]]:
    """By layer: how many weights a mask has, and its first rows as hexadecimal bits."""
    prompts = chosen_prompts(2)
    active = collected_inputs(denoiser, prompts, CALLS)
    empty = collected_inputs(denoiser, [""] * len(prompts), CALLS)
    found: dict[str, dict[str, object]] = {}
    for name, layer in feed_forward_outputs(denoiser.pipe.unet).items():
        rows, columns = layer.weight.shape
        mask = torch.zeros(rows, columns, dtype=torch.bool)
        for call in range(CALLS):
            score = layer.weight.abs() * norms(active[call][name], branch, token_norm)
            baseline = layer.weight.abs() * norms(empty[call][name], branch, token_norm)
            for i in range(rows):
                order = torch.argsort(-score[i], stable=True)[: int(SPARSITY * columns)]
                mask[i, order] |= score[i, order] > baseline[i, order]
        found[name] = {"pruned": int(mask.sum()), "rows": as_bits(mask[:ROWS])}
    return found


def as_bits(mask: torch.Tensor) -> str:
    return np.packbits(mask.numpy().astype(bool)).tobytes().hex()


def nemo(denoiser: Denoiser) -> dict[str, object]:
    """Statistics of clean prompts, each seed's best similarity, and neurons by two criteria."""
    layers = value_layers(denoiser.pipe.unet)
    method = Nemo(seeds=SEEDS, seed=SEED)
    state: dict[str, torch.Tensor] = {"threshold": torch.tensor(0.5)}
    for name in layers:
        state[f"mean.{name}"] = state[f"std.{name}"] = torch.zeros(1)
    published = Published(denoiser, method, state)
    clean = collected_activations(
        denoiser, calibration_prompts(8), published.noise(1).to(denoiser.dtype), 901
    )
    published.mean = [rows.mean(0) for rows in clean]
    published.std = [rows.std(0) for rows in clean]
    prompts = {}
    for prompt in chosen_prompts(2):
        whole = published.noise_difference(prompt, [[]] * len(layers))
        prompts[prompt] = {
            "best": [round(value, 6) for value in published.best_of_each_seed(whole)],
            "neurons": [sorted(set(ids)) for ids in published.candidates(prompt, 3.0, 2)],
        }
    return {
        "mean": [round(float(rows.mean()), 6) for rows in published.mean],
        "std": [round(float(rows.mean()), 6) for rows in published.std],
        "prompts": prompts,
    }


def wen(denoiser: Denoiser) -> dict[str, object]:
    """The magnitude before every update of one image's embedding, and the norm of the gradient."""
    found = {}
    for number, prompt in enumerate(chosen_prompts(2)):
        request = denoiser.request([prompt], [number])
        scheduler = denoiser.new_scheduler()
        timestep = scheduler.timesteps[0]
        x = scheduler.scale_model_input(request.latents * scheduler.init_noise_sigma, timestep)
        y = request.embeddings.clone().requires_grad_()
        first = y.detach()[:, :1].clone()
        optimizer = torch.optim.AdamW([y], lr=RATE)
        magnitudes, gradients = [], []
        for _ in range(UPDATES + 1):
            both = torch.cat([request.null_embeddings, y])
            unconditional, conditional = denoiser.pipe.unet(
                torch.cat([x, x]), timestep, encoder_hidden_states=both
            ).sample.chunk(2)
            magnitude = torch.linalg.vector_norm(conditional - unconditional)
            magnitudes.append(round(magnitude.item(), 6))
            y.grad = torch.autograd.grad(magnitude, y)[0]
            y.grad[:, 0] = 0
            gradients.append(round(float(y.grad.norm()), 6))
            optimizer.step()
            y.data[:, :1] = first
        found[prompt] = {"magnitudes": magnitudes, "gradients": gradients}
    return found


def _described(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The network of the file, written out layer by layer."""

    def convolved(x: torch.Tensor, name: str, number: str, stride: int, padding: int = 1):
        x = F.conv2d(x, weights[f"{name}.weight"], stride=stride, padding=padding)
        norm = {
            part: weights[f"{number}.{part}"]
            for part in ("running_mean", "running_var", "weight", "bias")
        }
        return F.batch_norm(x, **norm)

    x = F.relu(convolved(x, "trunk.0", "trunk.1", 1))
    for block, stride in (("trunk.3", 2), ("trunk.4", 2), ("trunk.5", 1)):
        inner = F.relu(convolved(x, f"{block}.first.0", f"{block}.first.1", stride))
        inner = convolved(inner, f"{block}.second.0", f"{block}.second.1", 1)
        if f"{block}.shortcut.weight" in weights:
            x = F.conv2d(x, weights[f"{block}.shortcut.weight"], stride=stride)
        x = F.relu(inner + x)
    pooled = x.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)
    return F.linear(pooled, weights["embeddings.weight"], weights["embeddings.bias"])


def sscd() -> list[list[float]]:
    """Similarities of six training pictures, each with each."""
    weights = load_file(BUNDLE / "scorers/descriptor.safetensors")
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    rows = []
    for path in sorted((BUNDLE / "references").glob("verbatim-*-00.png"))[:6]:
        unit = torch.from_numpy(np.asarray(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255
        with torch.no_grad():
            row = _described(weights, ((unit - mean) / deviation)[None])[0]
        rows.append(row / row.norm())
    table = torch.stack(rows) @ torch.stack(rows).T
    return [[round(float(value), 5) for value in row] for row in table]


def prss(denoiser: Denoiser) -> dict[str, object]:
    """By prompt, with the clean prompts that share most of their words."""
    clean = Paraphrases(tuple(calibration_prompts(200)))
    return {
        prompt: mitigations.prss(denoiser, prompt, number, clean.nearest(prompt, 3))
        for number, prompt in enumerate(chosen_prompts(2))
    }


def each(denoiser: Denoiser, figures: Callable[[Denoiser, str, int], object]) -> dict[str, object]:
    """Of some prompts, each with a seed of its own."""
    return {
        prompt: figures(denoiser, prompt, number) for number, prompt in enumerate(chosen_prompts(2))
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=sorted(SOURCES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    denoiser = load_denoiser(load_suite("testbed-quick"), torch.device("cpu"), gradients=True)
    ways: dict[str, Callable[[], object]] = {
        "wanda": lambda: {
            f"{branch} {token_norm}": wanda(denoiser, branch, token_norm)
            for branch, token_norm in (("both", "l2"), ("cond", "none"))
        },
        "nemo": lambda: nemo(denoiser),
        "wen": lambda: wen(denoiser),
        "sscd": sscd,
        "clip_pad": lambda: mitigations.clip_pad(denoiser, chosen_prompts(2)),
        "prss": lambda: prss(denoiser),
        "sail": lambda: each(denoiser, mitigations.sail),
        "guard": lambda: each(denoiser, mitigations.guard),
    }
    figures = json.loads(FIGURES.read_text()) if arguments.only else {}
    figures |= {"model": path_digest(BUNDLE / "pipeline"), "sources": SOURCES}
    for name in arguments.only or ways:
        figures[name] = ways[name]()
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
