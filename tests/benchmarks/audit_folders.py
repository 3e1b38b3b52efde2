"""How long `bench audit --generations` takes to compare two folders, with a copy descriptor of
SSCD's size (a ResNet-50 at 320 pixels; its weights are drawn at random, which costs the same).

    python tests/benchmarks/audit_folders.py [--pictures 200] [--side 512]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import bench


def descriptor(file: Path) -> None:
    """A file of SSCD's form: a ResNet-50 that gives 512 numbers."""
    from torchvision.models import resnet50

    from bench.features.architectures.sscd import SSCD

    torch.manual_seed(0)
    network = SSCD(resnet50(num_classes=512))
    tensors = network.state_dict()
    save_file({name: value for name, value in tensors.items() if value.is_floating_point()}, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    given = parser.parse_args()
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("data", "generations"):
            (folder / name).mkdir()
            for number in range(given.pictures):
                small = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                picture = Image.fromarray(small).resize((given.side, given.side))
                picture.save(folder / name / f"{number:04d}.jpg")
                (folder / name / f"{number:04d}.txt").write_text(f"picture {number}")
        descriptor(folder / "sscd.safetensors")
        began = time.perf_counter()
        found = bench.audit(
            folder / "data",
            folder / "out",
            generations=folder / "generations",
            sscd=folder / "sscd.safetensors",
            profile="nemo",
            threshold=0.7,
        )
        seconds = time.perf_counter() - began
    print(
        f"{found.yours.total} pictures and their mirror images against {found.images} generations"
        f" of {given.side} pixels: {seconds:.1f} s with {torch.get_num_threads()} threads"
    )


if __name__ == "__main__":
    main()
