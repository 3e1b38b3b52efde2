"""`bench analyze subsets` as a study: masks and models of many subsets of the fit prompts, and the
folder of tables and plots that it leaves (Chavhan et al., arXiv 2406.18566, figures 1 to 4).

    <folder>/subsets.csv        the prompts of every subset
             masks.csv          by size, layer and UNet call: density, and IoU of pairs of subsets
             mask_pairs.csv     by size, layer and pair of subsets: IoU of masks united over calls
             models.csv         one row a model: copies, SSCD and CLIP score outside its subset
             sizes.csv          the same by size: mean and spread over subsets, differences to none
             agreement.csv      how alike pictures of different models are at the same seed
             *.png              the same as plots, and some of the pictures
             summary.json       what all of it comes to, in words too, and how it was made
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.base.errors import UserError
from bench.base.progress import Report, silent
from bench.base.spread import evenly
from bench.running.engine import Engine
from bench.running.fitting import is_fitted
from bench.running.images import Images
from bench.running.plan import gpu_hours
from bench.store.folders import Root
from bench.studies import subset_plots as plots
from bench.studies.analysis_folder import claim
from bench.studies.mask_study import masked_method
from bench.studies.masks import ALL, UNION, Row
from bench.studies.subset_masks import (
    Subsets,
    call_rows,
    default_sizes,
    draw_by_size,
    pair_rows,
    shared_prompts,
    size_facts,
)
from bench.studies.subset_models import (
    NONE,
    QUALITY,
    RANDOM,
    Asked,
    Model,
    judged_models,
    models_of,
)
from bench.studies.subset_tables import JUDGED, agreement_rows, model_rows, size_rows
from bench.studies.subset_words import conclusions
from bench.studies.tables import csv_table, written
from bench.suite.design import design_of
from bench.suite.needs import missing_assets
from bench.suite.suite import Suite

SHOWN_PROMPTS, SHOWN_MODELS = 6, 6  # of the picture of pictures


@dataclass(frozen=True)
class SubsetStudy:
    """What is asked: subsets of the fit prompts of a suite, a method with its parameters, what its
    models are judged on, and whether random masks are judged beside it.

    Without `sizes` they follow from the number of fit prompts. `seed` is that of drawing subsets
    and random masks.
    """

    suite: Suite
    method: str
    values: Mapping[str, Any]
    sizes: Sequence[int] = ()
    count: int = 10
    seed: int = 0
    asked: Asked = field(default_factory=Asked)
    control: bool = True

    def subsets(self) -> dict[int, list[tuple[int, ...]]]:
        """The subsets by size. Raises `UserError` where the fit prompts do not allow them."""
        available = len(self.suite.prompts("fit"))
        if not available:
            raise UserError(f"suite {self.suite.name} has no fit prompts to make masks from")
        return draw_by_size(
            available, self.sizes or default_sizes(available), self.count, self.seed
        )

    def models(self, subsets: Subsets) -> tuple[list[Model], list[str]]:
        """All models, and what is left out and why."""
        masked_method(self.method, dict(self.values))
        models, left_out = models_of(
            self.suite, self.method, self.values, subsets, self.asked, self.control, self.seed
        )
        if self.asked.fid and QUALITY not in self.suite.settings.metrics:
            left_out.append(f"FID is left out: suite {self.suite.name} has no [metrics.{QUALITY}]")
        if not self.asked.fid:
            left_out.append("FID was not asked for (--fid)")
        return models, left_out

    def run(
        self, store: Root, folder: Path, device: torch.device, report: Report = silent
    ) -> dict[str, Any]:
        """Analyze the masks, judge every model, write the folder; the facts of `summary.json`.

        Interrupted, the same call goes on where it stopped. Raises `UserError` for what cannot
        work before any model is loaded.
        """
        start, subsets = time.perf_counter(), self.subsets()
        models, left_out = self.models(subsets)
        prompts = self.suite.prompts("fit")
        # First, so that a folder that cannot be written is noticed before the model runs.
        claim(folder, "bench analyze subsets")
        listed = [
            {
                "size": size,
                "subset": number,
                "prompt_id": prompts[place].id,
                "prompt": prompts[place].text,
            }
            for size, drawn in subsets.items()
            for number, subset in enumerate(drawn)
            for place in subset
        ]
        files = [written(folder / "subsets.csv", csv_table(listed))]
        engine = Engine(_first_pruned(models).experiment, device)
        calls, pairs, mask_rows = self._masks(subsets, engine, report)
        found = judged_models(models, engine, store, device, report)
        tables = {"masks": calls, "mask_pairs": pairs, "models": model_rows(found)}
        designs = {role: design_of(self.suite, role) for role in JUDGED}
        tables |= {"sizes": size_rows(found, designs), "agreement": agreement_rows(found, designs)}
        left_out += dict.fromkeys(
            f"FID is left out: {model.fid_reason}" for model in found if model.fid_reason
        )
        files += [
            written(folder / f"{name}.csv", csv_table(rows))
            for name, rows in tables.items()
            if rows
        ]
        for name, content in self._plots(tables, subsets, models, engine, store).items():
            files.append(written(folder / f"{name}.png", content))
        facts = {
            "suite": self.suite.name,
            # Of what is asked here: without FID the suite need not be here as a whole.
            "fingerprint": models[0].experiment.suite.fingerprint,
            "method": self.method,
            "version": models[-1].experiment.method.version,
            "parameters": dict(self.values),
            "seed": self.seed,
            "judged": asdict(self.asked) | {"held_out": len(found[0].held_out)},
            "fit_prompts": len(prompts),
            "subsets": [
                {"size": size, "count": len(drawn), "mean_shared_prompts": shared_prompts(drawn)}
                for size, drawn in subsets.items()
            ],
            "masks": [row for row in calls if row["layer"] == ALL and row["call"] == UNION],
            "sizes": tables["sizes"],
            "agreement": tables["agreement"],
            "left_out": left_out,
            "conclusions": conclusions(calls, tables["sizes"], tables["agreement"]),
            "row_evaluations": {
                "masks": mask_rows,
                "learning": sum(model.fit_rows for model in found),
                "images": round(sum(model.image_rows for model in found)),
            },
            "seconds": round(time.perf_counter() - start, 2),
            "device": device.type,
        }
        summary = folder / "summary.json"
        facts["files"] = [*map(str, files), str(summary)]
        written(summary, f"{json.dumps(facts, indent=1, allow_nan=False)}\n".encode())
        return facts

    def _masks(
        self, subsets: Subsets, engine: Engine, report: Report
    ) -> tuple[list[Row], list[Row], int]:
        """The tables of calls and pairs, and the evaluations that they took: each fit prompt is
        observed once, for all subsets.
        """
        method: Any = masked_method(self.method, dict(self.values))
        denoiser = engine.denoiser
        before = denoiser.rows
        prompts = [prompt.text for prompt in self.suite.prompts("fit")]
        with engine.precision():
            functions = method.mask_functions(denoiser, prompts, report)
            spent = denoiser.rows - before
            facts = size_facts(functions, subsets, report)
        by_size = next(iter(facts.values()))
        timesteps = denoiser.new_scheduler().timesteps[: len(by_size[ALL].overlaps) - 1]
        rows = call_rows(facts, [int(timestep) for timestep in timesteps])
        return rows, pair_rows(facts, subsets), spent

    def _plots(
        self,
        tables: Mapping[str, list[Row]],
        subsets: Subsets,
        models: Sequence[Model],
        engine: Engine,
        store: Root,
    ) -> dict[str, bytes]:
        title = " ".join([self.method, *(f"{k}={v}" for k, v in self.values.items())])
        title += f" on {self.suite.name}, up to {max(map(len, subsets.values()))} subsets a size"
        held_out = len(models[0].held_out)
        return {
            "density": plots.calls_picture(
                tables["masks"],
                "density_mean",
                "masked weights, share of the layer",
                f"How dense masks are, mean of subsets\n{title}",
            ),
            "iou_calls": plots.calls_picture(
                tables["masks"],
                "iou_mean",
                "intersection over union of masks",
                f"Do other prompts give the same mask? Mean of pairs of subsets\n{title}",
            ),
            "iou_sizes": plots.iou_picture(
                tables["masks"], f"Do more prompts give the same mask?\n{title}"
            ),
            "held_out": plots.scores_picture(
                tables["models"],
                tables["sizes"],
                f"Does pruning on a subset help on other prompts?\n{title}; {held_out} held-out"
                " prompts",
            ),
            "agreement": plots.agreement_picture(
                tables["agreement"],
                f"Do models of other subsets give the same picture?\n{title}; {held_out} held-out"
                " prompts",
            ),
            "pictures": plots.pictures_picture(
                *_pictures(models, engine, store, title, max(subsets))
            ),
        }

    def plan(self, store: Root, device: torch.device) -> dict[str, Any]:
        """What `run` would evaluate, without doing it; a lenient suite will do.

        Where files are missing, so are all images: the keys of their stores are not known yet.
        """
        subsets = self.subsets()
        models, left_out = self.models(subsets)
        lacking = missing_assets(models[0].experiment.suite)
        steps, model = self.suite.settings.model.steps, _first_pruned(models)
        calls = min(getattr(model.experiment.method, "calls", steps), steps)
        images = to_make = learning = 0
        for each in models:
            asked = each.experiment
            keys = {key for role in asked.roles for key in asked.keys(role)}
            images += len(keys)
            missing, fitted = len(keys), False
            if not lacking:
                stored = Images(asked, Engine(asked, device), store)
                missing, fitted = len(stored.missing()), is_fitted(asked, stored.store)
            to_make += missing
            if each.size is not None and not fitted:
                learning += 2 * calls * (each.size + 1)
        rows = 2 * steps * to_make
        observing = 2 * calls * (len(self.suite.prompts("fit")) + 1)
        return {
            "suite": self.suite.name,
            "method": self.method,
            "parameters": dict(self.values),
            "subsets": {size: len(drawn) for size, drawn in subsets.items()},
            "models": len(models),
            "images": images,
            "images_missing": to_make,
            "row_evaluations": {"images": rows, "learning": learning, "masks": observing},
            "gpu_hours": gpu_hours(self.suite, rows + learning + observing),
            "missing": [asset.name for asset in lacking],
            "left_out": left_out,
        }


def _first_pruned(models: Sequence[Model]) -> Model:
    return next(model for model in models if model.size is not None)


def _pictures(
    models: Sequence[Model], engine: Engine, store: Root, title: str, size: int
) -> tuple[dict[str, list[np.ndarray]], str]:
    """The first pictures of some held-out prompts, by `none` and by models of the largest size that
    has two of them; and their title.
    """
    own = [model for model in models if model.size is not None and model.kind != RANDOM]
    counts = [model.size for model in own]
    size = max((s for s in counts if s is not None and counts.count(s) > 1), default=size)
    chosen = [next(model for model in models if model.kind == NONE)]
    chosen += [model for model in own if model.size == size][:SHOWN_MODELS]
    rows = evenly(len(chosen[0].held_out), SHOWN_PROMPTS)
    columns = {}
    for model in chosen:
        samples = Images(model.experiment, engine, store).samples("memorized")
        name = model.kind if model.number is None else f"subset {model.number}"
        keys = [samples.keys[row * samples.images] for row in rows]
        columns[name] = samples.store.pictures(keys)
    return columns, f"The same prompts and seeds, models of subsets of {size} prompts\n{title}"


def text(facts: dict[str, Any]) -> str:
    """The summary for people: one line for each kind and size, then what follows from it."""
    lines = [
        f"{'':<14}{'prompts':>8}{'copies':>18}{'SSCD':>8}{'CLIP clean':>12}{'FID':>8}"
        f"{'alike: models':>15}{'seeds':>8}{'none':>8}"
    ]
    for row, alike in zip(facts["sizes"], facts["agreement"], strict=True):
        spread = "" if row["copies_std"] is None else f" ± {row['copies_std']:.3f}"
        lines.append(
            f"{row['kind']:<14}{row['size'] or '':>8}{_number(row['copies']) + spread:>18}"
            f"{_number(row['sscd']):>8}{_number(row['clip_clean']):>12}{_number(row['fid'], 2):>8}"
            f"{_number(alike['models']):>15}{_number(alike['seeds']):>8}{_number(alike['none']):>8}"
        )
    lines += ["", *facts["conclusions"], "", *facts["left_out"]]
    spent = sum(facts["row_evaluations"].values())
    lines.append(
        f"{spent:,} row evaluations (stored images counted too), {facts['seconds']:.1f} s on"
        f" {facts['device']}"
    )
    return "\n".join([*lines, *facts["files"]])


def plan_text(found: dict[str, Any]) -> str:
    """The plan for people."""
    counts = ", ".join(f"{count} of {size} prompts" for size, count in found["subsets"].items())
    rows, hours = found["row_evaluations"], found["gpu_hours"]
    about = "" if hours is None else f", about {hours:,} GPU-hours (A100, half precision)"
    lines = [
        f"{found['method']} on {found['suite']}: random subsets of the fit prompts: {counts};"
        f" {found['models']} models",
        f"{found['images']:,} images, {found['images_missing']:,} to make",
        f"{sum(rows.values()):,} row evaluations: {rows['images']:,} for images,"
        f" {rows['learning']:,} for learning, {rows['masks']:,} for masks{about}; without what a"
        " method evaluates while it samples",
    ]
    if found["missing"]:
        lines.append(
            f"missing: {', '.join(found['missing'])}; get them with: bench fetch --suite"
            f" {found['suite']}"
        )
    return "\n".join([*lines, *found["left_out"]])


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
