"""What a run would do, before anything is loaded: images, evaluations, disk, hours, and exactly
what is missing for it.

A plan needs no asset: a list that is not here yet counts as many prompts as the suite expects of
it.
"""

from __future__ import annotations

import math
import statistics
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.assets.catalogue import PREFIX, HubEntry, Lacking
from bench.base.errors import UserError, one_line, visible
from bench.base.pictures import PNG_BYTES_PER_PIXEL
from bench.base.text import duration_text, size_text
from bench.contracts.picture_attack import PictureAttack
from bench.records.parts import REFERENCE
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.images import Images
from bench.running.kept_pictures import droppable_by_name
from bench.running.run import record_file
from bench.running.timing import timings
from bench.store.store import SampleKey
from bench.suite.needs import missing_assets
from bench.suite.suite import Suite

# 10^12 operations a second that sampling sustains on an A100 in half precision: 1.26 s for 100 rows
# of 0.803 (Stable Diffusion 1.4, Jain et al. 2025).
SUSTAINED = 64.0


def plan(experiment: Experiment, engine: Engine, images: Images, records: Path) -> dict[str, Any]:
    """What a run would make, in numbers, and what is missing for it.

    Images, row evaluations of the UNet, disk; and time, where an earlier measurement in this store
    or the size of the model allows an estimate.
    """
    suite, settings = experiment.suite, experiment.suite.settings.model
    asked, refused = _asked_by_attacks(experiment)
    problems = list(dict.fromkeys([*experiment.problems, *refused]))
    lacking = missing_assets(suite)
    of_attacks = [key for keys in asked.values() for key in keys]
    of_roles = {role: experiment.keys(role) for role in experiment.roles}
    # Where files are missing, so are the images: the key of their store is not known yet.
    known = not lacking and not problems
    if known:
        to_make = {*images.missing(), *images.lacking(of_attacks, frozenset(of_attacks))}
    else:
        to_make = {*of_attacks, *(key for keys in of_roles.values() for key in keys)}
    kept = to_make - _dropped(experiment, images, of_attacks, known)
    rows = len(to_make) * settings.steps * 2
    seconds = _seconds_an_image(engine, images) if known else None
    searched = searches_planned(experiment)
    rows += sum(one["row_evaluations"] for one in searched.values())
    return {
        "suite": suite.name,
        "fingerprint": suite.fingerprint if known else None,
        "method": experiment.method_name,
        "parameters": experiment.method.model_dump(mode="json"),
        "seeds": experiment.seeds,
        "images": (
            {role: len(keys) for role, keys in of_roles.items()}
            | {name: len(keys) for name, keys in asked.items() if keys}
        ),
        "pictures_attacked": searched,
        "images_missing": len(to_make),
        "row_evaluations": rows,
        "disk_mib": round(len(kept) * math.prod(settings.sides) * PNG_BYTES_PER_PIXEL / 2**20, 1),
        "seconds_estimated": None if seconds is None else round(len(to_make) * seconds, 1),
        "gpu_hours": gpu_hours(suite, rows),
        "missing": [_as_json(asset) for asset in lacking],
        "problems": problems,
        "remarks": list(experiment.remarks),
        "record": str(record_file(experiment, records)) if known else None,
    }


def _asked_by_attacks(experiment: Experiment) -> tuple[dict[str, list[SampleKey]], list[str]]:
    """By attack, the images that it will ask for; and why some cannot say."""
    asked: dict[str, list[SampleKey]] = {}
    problems = []
    for name, attack in experiment.attacks.items():
        try:
            keys = [key for part in experiment.keys_of_attack(attack) for key in part]
        except UserError as error:
            problems.append(one_line(error))
            continue
        asked[f"attack {name}"] = keys
    return asked, problems


def searches_planned(experiment: Experiment) -> dict[str, dict[str, int]]:
    """By attack with a model in its hands, how many pictures it works on, controls among them, and
    the row evaluations that they take when nothing is stored yet: of an attack on known pictures on
    the mitigated model, and of memorized pictures on the base model too.
    """
    found = {}
    for name, attack in experiment.attacks.items():
        with suppress(UserError):  # which the plan names as a problem
            if not isinstance(attack, PictureAttack):
                pictures, rows = attack.searched(experiment.suite)
                if rows:
                    rows *= experiment.seeds
                    found[name] = {"pictures": pictures, "row_evaluations": rows}
            else:
                pictures = attack.planned(experiment.suite)
                models = 2 if experiment.method_name == REFERENCE else 3
                each = attack.effort(experiment.suite)
                found[name] = {
                    "pictures": 2 * pictures,
                    "row_evaluations": experiment.seeds * pictures * models * each,
                }
    return found


def _dropped(
    experiment: Experiment, images: Images, of_attacks: list[SampleKey], known: bool
) -> frozenset[SampleKey]:
    """The images whose pictures will not stay."""
    if images.keep == "all":
        return frozenset()
    if known:
        return images.keeping.droppable
    return frozenset(droppable_by_name(experiment, images.keep, of_attacks))


def _as_json(asset: Lacking) -> dict[str, Any]:
    return {"name": asset.name, "what": asset.what, "bytes": asset.bytes, "by_hand": asset.by_hand}


def _seconds_an_image(engine: Engine, images: Images) -> float | None:
    measured = timings(images.store, engine.device, engine.execution)
    if not measured:
        return None
    rounds = len(measured[0].method_seconds)
    return statistics.median(measured[0].method_seconds) / (measured[0].images / rounds)


def gpu_hours(suite: Suite, rows: int) -> float | None:
    """About how long so many row evaluations take on an A100 in half precision; None for a model
    whose size is not known.
    """
    tflop = _tflop(suite)
    return None if tflop is None else round(rows * tflop / SUSTAINED / 3600, 1)


def _tflop(suite: Suite) -> float | None:
    """10^12 operations of one UNet row, where the suite's model is one whose size is known."""
    path = suite.settings.model.path
    entry = suite.assets.entry(path) if path.startswith(PREFIX) else None
    return entry.tflop if isinstance(entry, HubEntry) else None


def plan_text(plan: dict[str, Any], suite: Suite) -> str:
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
    lines += [
        f"  attack {name}: works on {one['pictures']} pictures, at most"
        f" {one['row_evaluations']:,} row evaluations of these"
        for name, one in plan["pictures_attacked"].items()
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
    lines += [f"  problem: {problem}" for problem in plan["problems"]]
    lines += [f"  remark: {remark}" for remark in plan["remarks"]]
    return "\n".join(map(visible, lines))
