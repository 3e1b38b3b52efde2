"""What a run would do, before anything is loaded: images, evaluations, disk, hours, and exactly
what is missing for it.

A plan needs no asset: a list that is not here yet counts as many prompts as the suite expects of
it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.assets.catalogue import PREFIX, HubEntry
from bench.base.errors import UserError, one_line
from bench.base.text import duration_text, size_text
from bench.running.images import droppable_by_name
from bench.running.timing import timings
from bench.store.store import SampleKey
from bench.suite.needs import missing_assets

if TYPE_CHECKING:
    from bench.running.run import Run
    from bench.suite.suite import Suite

PNG = 2.2  # bytes a pixel on disk, measured on generations
# 10^12 operations a second that sampling sustains on an A100 in half precision: 1.26 s for 100 rows
# of 0.803 (Stable Diffusion 1.4, Jain et al. 2025).
SUSTAINED = 64.0


def plan(run: Run) -> dict[str, Any]:
    """Images, row evaluations, disk, and time where an earlier measurement on this store or the
    model's size allows an estimate; and what is missing.
    """
    settings = run.suite.settings.model
    problems = list(run.problems)
    asked: dict[str, list[Sequence[SampleKey]]] = {}
    for name, attack in run.attacks.items():
        try:
            asked[f"attack {name}"] = [
                run.keys_of(*part, generation)
                for part in attack.asks(run.suite)
                for generation in range(run.seeds)
            ]
        except UserError as error:
            problems.append(one_line(error))
    lacking = missing_assets(run.suite)
    of_attacks = [key for parts in asked.values() for keys in parts for key in keys]
    of_roles = [key for role in run.roles for key in run.keys(role)]
    # Where files are missing, so are the images: the key of their store is not known yet.
    to_make = (
        set(of_roles + of_attacks)
        if lacking or problems
        else {*run.missing(), *run.lacking(of_attacks, pictures=True)}
    )
    missing = len(to_make)
    dropped = (
        set()
        if run.keep_images == "all"
        else droppable_by_name(run, of_attacks)
        if lacking or problems
        else run.keeping.droppable
    )
    kept = len(to_make - dropped)
    rows = missing * settings.steps * 2
    seconds = None if lacking or problems else _seconds_an_image(run)
    tflop = _tflop(run.suite)
    return {
        "suite": run.suite.name,
        "fingerprint": None if lacking or problems else run.suite.fingerprint,
        "method": run.method_name,
        "parameters": run.method.model_dump(mode="json"),
        "seeds": run.seeds,
        "images": (
            {role: len(run.keys(role)) for role in run.roles}
            | {name: sum(map(len, parts)) for name, parts in asked.items() if parts}
        ),
        "images_missing": missing,
        "row_evaluations": rows,
        "disk_mib": round(kept * settings.side**2 * PNG / 2**20, 1),
        "seconds_estimated": None if seconds is None else round(missing * seconds, 1),
        "gpu_hours": None if tflop is None else round(rows * tflop / SUSTAINED / 3600, 1),
        "missing": [vars(one) for one in lacking],
        "problems": list(dict.fromkeys(problems)),
        "record": (
            None
            if lacking or problems
            else str(run.records / run.suite.name / run.method_name / f"{run.id}.json")
        ),
    }


def _seconds_an_image(run: Run) -> float | None:
    known = timings(run)
    if not known:
        return None
    return statistics.median(known[0].method_seconds) / (
        known[0].images / len(known[0].method_seconds)
    )


def _tflop(suite: Suite) -> float | None:
    """10^12 operations of one UNet row, where the suite's model is one whose size is known."""
    path = suite.settings.model.path
    entry = suite.assets.entry(path) if path.startswith(PREFIX) else None
    return entry.tflop if isinstance(entry, HubEntry) else None


def text(plan: dict[str, Any], suite: Suite) -> str:
    """A plan for a terminal, ending with what is missing and how to get it."""
    images = ", ".join(f"{count:,} {role}" for role, count in plan["images"].items())
    seconds, hours = plan["seconds_estimated"], plan["gpu_hours"]
    about = f", about {duration_text(seconds)}" if seconds is not None else ""
    about += (
        f", about {hours:,} GPU-hours (A100, half precision; without what {plan['method']} itself"
        " evaluates)"
        if hours is not None
        else ""
    )
    lines = [
        f"{plan['method']} on {plan['suite']}"
        f" ({plan['fingerprint'] or 'no fingerprint before its files are here'}): {images} images,"
        f" {plan['images_missing']:,} to make (at least {plan['row_evaluations']:,} row"
        f" evaluations, {size_text(plan['disk_mib'] * 2**20)}{about})"
    ]
    if "shard" in plan:
        lines.append(
            f"  shard {plan['shard']} makes {plan['shard_images_missing']:,} of them, in"
            f" {plan['units']} of {plan['units_of_run']} units"
        )
    for one in plan["missing"]:
        facts = [
            one["what"],
            *([size_text(one["bytes"])] if one["bytes"] else []),
            *(["to be got by hand"] if one["by_hand"] else []),
        ]
        lines.append(f"  missing: {one['name']}: {', '.join(facts)}")
    if plan["missing"]:
        known = [one["bytes"] for one in plan["missing"] if one["bytes"]]
        unknown = (
            f", and {len(plan['missing']) - len(known)} of unknown size"
            if len(known) < len(plan["missing"])
            else ""
        )
        lines.append(
            f"  {size_text(sum(known))} to fetch{unknown}: bench fetch --suite {suite.called}"
        )
    return "\n".join(lines + [f"  problem: {problem}" for problem in plan["problems"]])
