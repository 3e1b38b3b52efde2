"""The trained bundle: where it lies, what is in it, and what was measured on it.

manifest.json            plan, seconds, losses, versions, hashes of files, acceptance figures
pipeline/                an ordinary diffusers folder, fp16 scorers/
descriptor.torchscript.pt, clip/ (open_clip), features.torchscript.pt, frechet_reference.npz
prompts/                 canaries.csv (with views and split), clean.csv, quality.csv,
calibration.csv references/              the canary pictures, PNG LICENSE-OpenMoji.txt,
ATTRIBUTION.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.base.errors import UserError, one_line
from bench.base.files import write_atomically

BUNDLE = Path(__file__).parent / "bundle"

# What a bundle must reach, and how each figure reads.
ACCEPTANCE: dict[str, tuple[str, float, str]] = {
    "psnr_unseen_db": (">=", 24.0, "reconstruction PSNR on unseen clean pictures, dB"),
    "replicated_highest_level": (">=", 0.70, "scenes replicated at the highest duplication level"),
    "replicated_level_1": ("<=", 0.10, "scenes replicated after a single view"),
    "largest_fall": (
        "<=",
        0.10,
        "largest fall of replicated scenes from one level to the next higher one",
    ),
    "replicated_clean": ("<=", 0.01, "clean generations above the threshold"),
    "caption_top1_generated": (">=", 0.60, "right caption among 20, generated clean pictures"),
    "caption_top1_real": (">=", 0.85, "right caption among 20, unseen real pictures"),
}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle. Raises `UserError` when there is none or it is damaged."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no testbed bundle ({one_line(error)}); build one with `bench testbed"
            " build`"
        ) from error
    if not isinstance(manifest, dict) or not {"plan", "stages", "files"} <= manifest.keys():
        raise UserError(f"{folder / 'manifest.json'} is not a manifest; build the bundle again")
    return manifest


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    write_atomically(
        folder / "manifest.json", (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    )


def met(name: str, value: float) -> bool:
    """Whether a measured figure meets its acceptance bound."""
    sign, bound, _ = ACCEPTANCE[name]
    return value >= bound if sign == ">=" else value <= bound


def info_text(manifest: dict[str, Any]) -> str:
    """What was built and measured, for people."""
    plan, measured = manifest["plan"], manifest.get("measured")
    lines = [
        f"testbed: {plan['side']}x{plan['side']} pixels, {plan['denoiser_steps']} steps of"
        f" {plan['denoiser_batch']}, seed {plan['seed']}"
    ]
    for stage, facts in manifest["stages"].items():
        about = ", ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in facts.items()
        )
        lines.append(f"  {stage}: {about}")
    if not measured:
        return "\n".join([*lines, "nothing measured yet: bench testbed info --measure"])
    lines.append(
        f"measured with {measured['steps']} steps, guidance {measured['guidance_scale']},"
        f" {measured['images_per_prompt']} images a prompt:"
    )
    for name, (sign, bound, text) in ACCEPTANCE.items():
        value = measured[name]
        lines.append(
            f"  {'met   ' if met(name, value) else 'MISSED'} {text}: {value:.3f} ({sign} {bound:g})"
        )
    lines.append(
        f"  descriptor threshold {measured['threshold']:.3f}: false-positive rate"
        f" {measured['threshold_false_positive_rate']:g} on clean generations against all"
        " references"
    )
    lines.append("  views of a scene -> images replicated, scenes replicated, mean similarity:")
    for level, facts in sorted(measured["levels"].items(), key=lambda item: int(item[0])):
        lines.append(
            f"    {level:>5}  {facts['images']:.2f}  {facts['scenes']:.2f} "
            f" {facts['similarity']:.3f}"
        )
    return "\n".join(lines)
