"""`bench analyze masks` as a study: which subsets of the fit prompts are drawn, the analysis of
their masks, and the folder of tables and plots that it leaves.

    <folder>/subsets.csv        the prompts of every subset
             density.csv        by layer and UNet call: candidates, masked weights, density
             iou_subsets.csv    by layer and pair of subsets: IoU of their masks
             iou_calls.csv      by layer and pair of consecutive calls, where there are several
             *.png              the same as plots
             summary.json       what all of it comes to, and how it was made
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.base.errors import UserError
from bench.base.parameters import configure
from bench.base.progress import Report, silent
from bench.contracts.masked import MaskedMethod
from bench.contracts.method import Method
from bench.diffusion.families import family_of_suite, refuse_family
from bench.diffusion.model import load_denoiser
from bench.registry import registry
from bench.studies import mask_plots as plots
from bench.studies.analysis_folder import claim
from bench.studies.masks import ALL, MaskAnalysis, analyze_masks, draw_subsets
from bench.studies.tables import csv_table, written
from bench.suite.prompts import Prompt
from bench.suite.suite import Suite

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SubsetDraw:
    """How many random subsets of the fit prompts are drawn, of how many prompts (None: half of
    them), with which seed.
    """

    count: int
    size: int | None
    seed: int

    def of(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """The subsets as sorted positions in `prompts`.

        Raises `UserError` where there are not so many different ones.
        """
        half = max(1, len(prompts) // 2)
        return draw_subsets(
            len(prompts), self.count, half if self.size is None else self.size, self.seed
        )


def masked_method(name: str, values: dict[str, Any]) -> Method:
    """The configured method called `name`, with these parameters.

    Raises `UserError` when it is not known or does not offer masks (`MaskedMethod`).
    """
    entry = registry.find("method", name)
    found = entry.load()
    offers_masks = issubclass(found, MaskedMethod)  # apart, or mypy takes `found` for no Method
    if not offers_masks:
        raise UserError(f"method {entry.name} has no masks to analyze")
    return configure("method", entry.name, found, values)


def study_masks(
    suite: Suite,
    name: str,
    method: Any,
    label: str,
    draw: SubsetDraw,
    folder: Path,
    device: torch.device,
    report: Report = silent,
) -> dict[str, Any]:
    """Analyze the masks of a method that `masked_method` gave, on the suite's fit prompts; write
    the folder, and return the facts of its `summary.json`.

    `name` is the method as the user wrote it, `label` the title of plots. Raises `UserError` for a
    suite without fit prompts, and for a folder that cannot be written or is somebody's own, before
    the model runs.
    """
    refuse_family(family_of_suite(suite), method.families, f"method {name}")
    prompts = suite.prompts("fit")
    if not prompts:
        raise UserError(f"suite {suite.name} has no fit prompts to make masks from")
    subsets = draw.of(prompts)
    # First, so that a folder that cannot be written is noticed before the model runs.
    claim(folder, "bench analyze masks")
    files = [written(folder / "subsets.csv", csv_table(_subset_rows(prompts, subsets)))]
    denoiser = load_denoiser(suite, device)
    start = time.perf_counter()
    found = analyze_masks(denoiser, method, [prompt.text for prompt in prompts], subsets, report)
    seconds = time.perf_counter() - start
    files += [
        written(folder / file, content)
        for file, content in _tables_and_plots(found, f"{label} on {suite.name}").items()
    ]
    facts = {
        "suite": suite.name,
        "fingerprint": suite.fingerprint,
        "method": name,
        "version": method.version,
        "parameters": method.model_dump(mode="json"),
        **found.summary,
        "seconds": round(seconds, 2),
        "device": device.type,
    }
    facts["subsets"]["seed"] = draw.seed
    summary = folder / "summary.json"
    facts["files"] = [*map(str, files), str(summary)]
    written(summary, f"{json.dumps(facts, indent=1, allow_nan=False)}\n".encode())
    return facts


def _subset_rows(
    prompts: Sequence[Prompt], subsets: Sequence[Sequence[int]]
) -> list[dict[str, Any]]:
    return [
        {"subset": number, "prompt_id": prompts[i].id, "prompt": prompts[i].text}
        for number, subset in enumerate(subsets)
        for i in subset
    ]


def text(facts: dict[str, Any], label: str) -> str:
    """The summary for people: one line a layer, then the cost and the files."""
    drawn, subsets, calls = (
        facts["subsets"],
        facts["iou_between_subsets"],
        facts["iou_between_consecutive_calls"],
    )
    width = max(map(len, facts["density"]))
    lines = [
        (
            f"{label} on {facts['suite']}: {facts['calls']} UNet calls, fitted on"
            f" {facts['fitted_on']} of {facts['fit_prompts']} fit prompts; {drawn['count']} subsets"
            f" of {drawn['size']} prompts (seed {drawn['seed']}), two share"
            f" {drawn['mean_shared_prompts']:.1f} on average"
        ),
        (
            f"{'layer':<{width}}  density  IoU of subsets (least to largest, random)    IoU of"
            " consecutive calls"
        ),
    ]
    for layer, density in facts["density"].items():
        pairs = subsets[layer]
        spread = (
            ""
            if pairs["mean"] is None
            else (
                f" ({_number(pairs['min'])} to {_number(pairs['max'])}, {_number(pairs['chance'])})"
            )
        )
        lines.append(
            f"{layer:<{width}}  {density:7.3%}  {_number(pairs['mean']) + spread:<43} "
            f" {_number(calls[layer]['mean'])}"
        )
    reasons = [row["reason"] for row in (*subsets.values(), *calls.values()) if "reason" in row]
    lines += [f"null: {reason}" for reason in dict.fromkeys(reasons)]
    lines.append(
        f"{facts['row_evaluations']:,} row evaluations, {facts['seconds']:.1f} s on"
        f" {facts['device']}"
    )
    return "\n".join([*lines, *facts["files"]])


def _number(value: float | None) -> str:
    return "null" if value is None else f"{value:.3f}"


def _tables_and_plots(found: MaskAnalysis, title: str) -> dict[str, bytes]:
    """Tables and plots by file name."""
    facts = found.summary
    subsets, calls = facts["iou_between_subsets"], facts["iou_between_consecutive_calls"]
    drawn = (
        f"{facts['subsets']['count']} subsets of {facts['subsets']['size']} of"
        f" {facts['fit_prompts']} fit prompts"
    )
    fitted = f"fitted on {facts['fitted_on']} of {facts['fit_prompts']} fit prompts"
    shared = f"two share {facts['subsets']['mean_shared_prompts']:.1f} prompts on average"
    mean = (
        f"mean IoU {_number(subsets[ALL]['mean'])}, of random masks"
        f" {_number(subsets[ALL]['chance'])}; {shared}"
    )
    files = {
        "density.csv": csv_table(found.density),
        "iou_subsets.csv": csv_table(found.subsets),
        "density.png": plots.density_picture(
            found.density, f"Where weights are masked\n{title}, {fitted}"
        ),
        "iou_subsets.png": plots.subsets_picture(
            found.subsets,
            facts["subsets"]["count"],
            f"Do other prompts give the same mask?\n{title}, {drawn}\n{mean}",
        ),
        "iou_layers.png": plots.layers_picture(
            subsets, calls, f"How far masks agree, by layer\n{title}, {drawn}"
        ),
    }
    if found.calls:
        files["iou_calls.csv"] = csv_table(found.calls)
        files["iou_calls.png"] = plots.calls_picture(
            found.calls, f"How masks change from call to call\n{title}, {fitted}"
        )
    return files
