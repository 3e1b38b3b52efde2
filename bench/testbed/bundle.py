"""The trained bundle: where it lies, what is in it, and what was measured on it.

manifest.json     plan, seconds, losses, versions, hashes of files, acceptance figures
pipeline/         an ordinary diffusers folder, fp16
scorers/          descriptor.safetensors, clip/ (open_clip), features.safetensors,
                  frechet_reference.npz, recogniser.safetensors
prompts/          canaries.csv (with views, kind and split), clean.csv, quality.csv,
                  calibration.csv, labels.json (share of copies of each canary, once measured)
references/       the canary pictures, PNG; NAME.variants.png holds a template's variants in a row
LICENSE-OpenMoji.txt, ATTRIBUTION.md
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.base import limits
from bench.base.digests import path_digest
from bench.base.errors import UserError, one_line
from bench.base.files import is_there, read_regular_file, write_atomically

BUNDLE = Path(__file__).parent / "bundle"
UNFINISHED = ".unfinished"  # marks the folder of a bundle that is being made

# What a bundle must reach, and how each figure reads.
ACCEPTANCE: dict[str, tuple[str, float, str]] = {
    "recognised_generated": (">=", 0.90, "single-object clean prompts recognised"),
    "recognised_of_reconstructed": (">=", 0.93, "the same, as a share of reconstructions"),
    "caption_top1_generated": (">=", 0.85, "right caption of 64 by open_clip, generated pictures"),
    "copied_held_out": (">=", 60, "held-out prompts copied by half of their images or more"),
    "sometimes_held_out": (">=", 20, "held-out prompts copied sometimes"),
    "copied_fit": (">=", 24, "fit prompts copied"),
    "pristine": (">=", 30, "prompts of the same kind that were never shown"),
    "levels_between": (">=", 2, "levels of views with a share of copies between 0.1 and 0.9"),
    "replicated_level_1": ("<=", 0.02, "images replicated after a single view"),
    "replicated_pristine": ("<=", 0.02, "images of pristine prompts above the threshold"),
    "replicated_clean": ("<=", 0.005, "clean images above the threshold to any training picture"),
    "psnr_unseen_db": (">=", 28.0, "reconstruction of unseen clean pictures, PSNR in dB"),
    "mebibytes": ("<=", 30.0, "size of the bundle, MiB"),
    "quick_seconds": ("<=", 60.0, "`none` on the suite testbed-quick, seconds on two cores"),
    "same_objects_gap": (">=", 0.2, "similarity of a copy above one of the same objects elsewhere"),
    "rank_correlation_pixels": (">=", 0.85, "similarity against aligned pixels, within `none`"),
}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a bundle. Raises `UserError` when there is none or it is damaged."""
    try:
        manifest = json.loads(read_regular_file(folder / "manifest.json", limits.TABLE_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{folder} holds no testbed bundle ({one_line(error)}); "
            "build one with `bench testbed build`"
        ) from error
    if not isinstance(manifest, dict) or not {"plan", "stages", "files"} <= manifest.keys():
        raise UserError(f"{folder / 'manifest.json'} is not a manifest; build the bundle again")
    return manifest


def claim(folder: Path) -> None:
    """Mark a folder as that of a bundle to be made, before anything of it is replaced.

    Raises `UserError` where it holds anything and no bundle.
    """
    if is_there(folder / UNFINISHED):
        return
    if folder.is_dir() and any(folder.iterdir()):
        try:
            read_manifest(folder)
        except UserError as error:
            raise UserError(
                f"{folder} holds files and no bundle of the testbed, and folders in it would be"
                " replaced: give another folder with --out"
            ) from error
    write_atomically(folder / UNFINISHED, b"")


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    write_atomically(folder / "manifest.json", text.encode())


def hashed_files(folder: Path) -> dict[str, str]:
    """Every file of a bundle but its manifest and the mark of one under way, with its digest."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(folder)): path_digest(path)
        for path in files
        if path not in (folder / "manifest.json", folder / UNFINISHED)
    }


def met(name: str, value: float) -> bool:
    """Whether a measured figure meets its acceptance bound."""
    sign, bound, _ = ACCEPTANCE[name]
    return value >= bound if sign == ">=" else value <= bound


def figures(manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every acceptance figure: its value (None: not measured), its bound, whether it is met."""
    measured = manifest.get("measured") or {}
    return {
        name: {
            "value": measured.get(name),
            "bound": f"{sign} {bound:g}",
            "met": None if measured.get(name) is None else met(name, measured[name]),
            "meaning": meaning,
        }
        for name, (sign, bound, meaning) in ACCEPTANCE.items()
    }


def info_facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with the acceptance figures, those missed, and those not measured."""
    all_figures = figures(manifest)
    return manifest | {
        "figures": all_figures,
        "missed": [name for name, facts in all_figures.items() if facts["met"] is False],
        "not_measured": [name for name, facts in all_figures.items() if facts["met"] is None],
    }


def info_text(manifest: dict[str, Any]) -> str:
    """What was built and measured, for people."""
    plan, measured = manifest["plan"], manifest.get("measured")
    lines = [
        f"testbed: {plan['side']}x{plan['side']} pixels, {plan['denoiser_steps']} steps of "
        f"{plan['denoiser_batch']}, seed {plan['seed']}"
    ]
    for stage, facts in manifest["stages"].items():
        plain = {key: value for key, value in facts.items() if not isinstance(value, dict)}
        about = ", ".join(f"{key} {_short(value)}" for key, value in plain.items())
        lines.append(f"  {stage}: {about}")
    if not measured:
        return "\n".join([*lines, "nothing measured yet: bench testbed info --measure"])
    lines.append(
        f"measured with {measured['steps']} steps, guidance {measured['guidance_scale']}, "
        f"{measured['images_per_prompt']} images a prompt:"
    )
    words = {True: "met   ", False: "MISSED", None: "not measured"}
    for facts in figures(manifest).values():
        value = "" if facts["value"] is None else f": {facts['value']:.3f}".rstrip("0").rstrip(".")
        lines.append(f"  {words[facts['met']]} {facts['meaning']}{value} ({facts['bound']})")
    lines.append(
        f"  descriptor threshold {measured['threshold']:.3f}: "
        f"false-positive rate {measured['threshold_false_positive_rate']:g} "
        "on clean generations against all references"
    )
    lines.append("  views of a scene -> share of images copied, of scenes, mean similarity:")
    for level, facts in sorted(measured["levels"].items(), key=lambda item: int(item[0])):
        shares = f"{facts['images']:.2f}  {facts['scenes']:.2f}  {facts['similarity']:.3f}"
        lines.append(f"    {level:>5}  {shares}")
    if templates := measured.get("template_levels"):
        lines.append("  views of a template -> similarity to the nearest variant, to the layout:")
        for level, facts in sorted(templates.items(), key=lambda item: int(item[0])):
            lines.append(f"    {level:>5}  {facts['variant']:.3f}  {facts['layout']:.3f}")
    return "\n".join(lines)


def info_markdown(manifest: dict[str, Any]) -> str:
    """The acceptance figures and the levels of a measured bundle as tables, for documents."""
    words = {True: "met", False: "**missed**", None: "not measured"}
    lines = ["| figure | measured | bound | | what it is |", "|---|---|---|---|---|"]
    for name, facts in figures(manifest).items():
        value = "" if facts["value"] is None else f"{facts['value']:.4g}"
        cells = (f"`{name}`", value, facts["bound"], words[facts["met"]], facts["meaning"])
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| views | scenes | images copied | scenes copied | mean similarity |"]
    lines.append("|---|---|---|---|---|")
    for level, facts in sorted(manifest["measured"]["levels"].items(), key=lambda i: int(i[0])):
        low, high = facts["images_interval"]
        cells = (
            level,
            str(facts["scenes_shown"]),
            f"{facts['images']:.2f} [{low:.2f}, {high:.2f}]",
            f"{facts['scenes']:.2f}",
            f"{facts['similarity']:.2f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    templates = manifest["measured"].get("template_levels", {})
    if templates:
        lines += [
            "",
            "| views of a template | scenes | nearest variant | layout | layout by chance |",
        ]
        lines.append("|---|---|---|---|---|")
    for level, facts in sorted(templates.items(), key=lambda item: int(item[0])):
        numbers = [f"{facts[name]:.2f}" for name in ("variant", "layout", "chance")]
        lines.append(f"| {' | '.join([level, str(facts['scenes_shown']), *numbers])} |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
