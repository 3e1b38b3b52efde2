"""What a run costs at the size of Stable Diffusion: builds a model of its real configuration with
random weights, and runs methods on it.

    PYTHONPATH=tests python tests/benchmarks/sd_size.py /tmp/sd-size
    PYTHONPATH=tests python tests/benchmarks/sd_size.py /tmp/sd-size --side 256 \\
        --methods none wanda -- --vae-slicing --attention sliced

The first builds what is missing, then runs none, wanda, wen and nemo. Prints by method the seconds
of the whole command, seconds and evaluations per image, and peak memory. Weights are random, so
scores mean nothing; shapes, names, file formats and cost are those of the real files. Everything is
made here, nothing fetched.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.features.architectures.inception import Inception
from bench.features.architectures.sscd import SSCD
from bench.store.store import encode_png
from bench.testbed.tiny import tiny_tokenizer, write_csv

METHODS = ("none", "wanda", "wen", "nemo")
# Two steps on a processor: as few evaluations as still go through every door of a method.
SETTINGS = {
    "none": [],
    "wanda": ["prompts=1", "calls=2"],
    "wen": ["iterations=1", "quantile=0", "clean_prompts=1"],
    # every prompt counts as memorized, so there is a search
    "nemo": ["seeds=2", "threshold=-1", "theta_min=4.75"],
}
PROMPTS = ("a red apple", "a picture of a fox and a key")

SUITE = """
name = "sd-size"

[model]
path = "pipeline"
dtype = "float32"
steps = 2
guidance_scale = 7.5
side = {side}
batch_size = {batch}

[prompts.fit]
file = "fit.csv"

[prompts.calibration]
file = "calibration.csv"

[prompts.memorized]
file = "memorized.csv"

[prompts.quality]
file = "memorized.csv"

[metrics.sscd]
weights = "./sscd.torchscript.pt"
profile = "nemo"
threshold = 0.7

[metrics.clip_score]
model = "ViT-B-32"
weights = "./open_clip_ViT-B-32.pt"

[metrics.fid]
weights = "./inception.torchscript.pt"
statistics = "./real.npz"
images = 2

[metrics.walltime]
rounds = 1
images = 1
"""


def random_weights(make: Any, seed: int) -> Any:
    """A module in eval mode without its own slow initialisation: matrices uniform within 1/sqrt(fan
    in), norms 1, biases 0.
    """
    with torch.device("meta"):
        module = make()
    buffers = [
        name
        for name, _ in module.named_buffers()
        if not name.endswith(("num_batches_tracked", "mean", "var"))
    ]
    assert not buffers, f"buffers that nothing would fill: {buffers}"
    module.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.ndim > 1:
                bound = 1 / math.sqrt(tensor[0].numel())
                tensor.uniform_(-bound, bound, generator=generator)
            else:
                tensor.fill_(1 if name.endswith(("weight", "var")) else 0)
    return module.eval().requires_grad_(False)


def sd1_unet(side: int = 512) -> Any:
    from diffusers import UNet2DConditionModel

    return random_weights(
        lambda: UNet2DConditionModel(
            sample_size=side // 8, cross_attention_dim=768, attention_head_dim=8
        ),
        0,
    )


def sd2_unet(side: int = 768) -> Any:
    """The UNet of Stable Diffusion 2.x: linear projections, heads of 64 channels, text of 1024."""
    from diffusers import UNet2DConditionModel

    heads = (5, 10, 20, 20)
    settings: dict[str, Any] = {
        "use_linear_projection": True,
        "cross_attention_dim": 1024,
        "attention_head_dim": heads,
        "upcast_attention": True,
    }
    return random_weights(lambda: UNet2DConditionModel(sample_size=side // 8, **settings), 0)


def sd_vae() -> Any:
    from diffusers import AutoencoderKL

    parts: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return random_weights(
        lambda: AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
            scaling_factor=0.18215,
            **parts,
        ),
        1,
    )


def text_encoder(tokenizer: Any, version: int = 1) -> Any:
    """CLIP ViT-L/14's text model, or of version 2 OpenCLIP ViT-H's: 23 of its 24 layers."""
    from transformers import CLIPTextConfig, CLIPTextModel

    shape: dict[str, Any] = {
        1: {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
            "hidden_act": "quick_gelu",
        },
        2: {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 23,
            "num_attention_heads": 16,
            "projection_dim": 512,
            "hidden_act": "gelu",
        },
    }[version]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        ids = {"bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1}
        return CLIPTextModel(
            CLIPTextConfig(vocab_size=49408, max_position_embeddings=77, **shape, **ids)
        ).eval()


def build_pipeline(folder: Path, side: int = 512, version: int = 1) -> None:
    """Stable Diffusion 1.x (or 2.x with v-prediction) as a diffusers folder of fp16 variant files,
    as the hub stores it.
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 77
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="epsilon" if version == 1 else "v_prediction",
    )
    unet = sd1_unet(side) if version == 1 else sd2_unet(side)
    parts = {
        "vae": sd_vae(),
        "text_encoder": text_encoder(tokenizer, version),
        "tokenizer": tokenizer,
        "unet": unet,
        "scheduler": scheduler,
    }
    pipe = StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipe.to(torch.float16)
    pipe.save_pretrained(folder, safe_serialization=True, variant="fp16")


def build_scorers(folder: Path) -> None:
    """A ResNet-50 SSCD and an Inception v3 as TorchScript, and an open_clip checkpoint, with the
    statistics that FID asks for.
    """
    import open_clip
    import torchvision

    resnet = random_weights(
        lambda: SSCD(torchvision.models.resnet50(weights=None, num_classes=512)), 3
    )
    _trace(resnet, 288, folder / "sscd.torchscript.pt")
    _trace(random_weights(Inception, 5), 299, folder / "inception.torchscript.pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        torch.save(
            open_clip.create_model("ViT-B-32", pretrained=None).state_dict(),
            folder / "open_clip_ViT-B-32.pt",
        )
    np.savez(folder / "real.npz", mu=np.zeros(2048), sigma=np.eye(2048), n=30000)


def _trace(module: nn.Module, side: int, path: Path) -> None:
    with torch.no_grad():
        torch.jit.trace(module.eval(), torch.rand(2, 3, side, side)).save(str(path))


def build(folder: Path, side: int = 512, batch: int = 1) -> Path:
    """What is missing of model, scorers, prompts and suite below `folder`; returns the suite
    file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    suite = folder / "sd-size.toml"
    if not suite.exists():
        build_pipeline(folder / "pipeline", side)
        build_scorers(folder)
        random = np.random.default_rng(0)
        for name in ("fit", "memorized"):
            rows = [["id", "prompt", "reference"]]
            for number, prompt in enumerate(PROMPTS):
                (folder / f"{name}-{number}.png").write_bytes(
                    encode_png(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
                )
                rows.append(
                    [
                        f"{name}-{number}",
                        prompt if name == "memorized" else f"{prompt} of tin",
                        f"{name}-{number}.png",
                    ]
                )
            write_csv(folder / f"{name}.csv", rows)
        write_csv(
            folder / "calibration.csv",
            [
                ["prompt"],
                *(
                    [f"a {colour} {thing}"]
                    for colour in ("blue", "tall", "wet", "old")
                    for thing in ("bus", "owl", "tent")
                ),
            ],
        )
    suite.write_text(SUITE.format(side=side, batch=batch))
    return suite


def run_method(suite: Path, method: str, options: list[str], out: Path) -> dict[str, Any]:
    """`bench run` in a process of its own; its record, with the seconds that the command took under
    `command_seconds`.
    """
    settings = [word for setting in SETTINGS[method] for word in ("-p", setting)]
    command = [
        sys.executable,
        "-m",
        "bench",
        "run",
        "--method",
        method,
        "--suite",
        str(suite),
        "--device",
        "cpu",
        *settings,
        *options,
    ]
    command += ["--records", str(out / "records"), "--store", str(out / "store"), "--json"]
    start = time.perf_counter()
    done = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    if done.returncode:
        raise RuntimeError(
            f"bench run --method {method} ended with {done.returncode}: {done.stderr[-2000:]}"
        )
    return json.loads(done.stdout) | {"command_seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where model and runs go; 2.5 GiB")
    parser.add_argument(
        "--side", type=int, default=512, help="pixels; another side is another folder's"
    )
    parser.add_argument("--batch", type=int, default=1, help="batch size of the suite")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("options", nargs="*", help="further options of `bench run`, after --")
    arguments = parser.parse_args()
    start = time.perf_counter()
    suite = build(arguments.folder, arguments.side, arguments.batch)
    print(
        f"built in {time.perf_counter() - start:.0f} s\nmethod   command s   s/image   NFE/image  "
        " fit NFE   time x   host MiB",
        flush=True,
    )
    for method in arguments.methods:
        record = run_method(suite, method, arguments.options, arguments.folder / "runs")
        cost = {name: score["value"] for name, score in record["cost"].items()}
        peak = (record["environment"].get("peak_memory_mib") or {}).get("host")
        print(
            f"{method:8} {record['command_seconds']:9.0f} {cost['seconds_per_image']:9.1f}"
            f" {cost['nfe_per_image']:11.1f} {cost['fit_nfe']:9.0f} {cost['time_ratio']:8.2f}"
            f" {peak!s:>10}",
            flush=True,
        )


if __name__ == "__main__":
    main()
