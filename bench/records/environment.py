"""The machine, packages and revision that a record was made with."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from bench.base.distribution import ROOT, package_version

PACKAGES = (
    "torch",
    "torchvision",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "clean-fid",
    "numpy",
    "scipy",
    "pandas",
)


def environment(device: Any) -> dict[str, Any]:
    """Where a record was made: package versions, Python, processor or GPU, threads, commit and
    whether the tree was dirty.
    """
    import torch

    return {
        "bench": package_version(),
        "python": platform.python_version(),
        "packages": {package: package_version(package) for package in PACKAGES},
        "device": device.type,
        "device_name": device_name(device),
        "threads": torch.get_num_threads(),
        **revision(),
    }


def device_name(device: Any) -> str:
    """The GPU's or the processor's name."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


@cache
def revision() -> dict[str, Any]:
    """The git commit this code is from and whether its folders differ from it, new files included;
    nulls outside its checkout.
    """

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() == ROOT:
            changes = git("status", "--porcelain", "--", "bench", "methods", "metrics", "attacks")
            return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        pass
    return {"commit": None, "dirty": None}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
