"""`bench calibrate`: measure once what an attack or a metric must know of the model without
mitigation, and write it beside the suite.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.assets.catalogue import PREFIX
from bench.base.distribution import ROOT, checkout
from bench.base.errors import UnknownName, UserError, visible
from bench.base.files import write_atomically
from bench.base.parameters import configure
from bench.base.progress import Report
from bench.contracts.attack import Attack
from bench.registry import registry
from bench.running.judging import target_of
from bench.running.prepare import prepare
from bench.store.folders import Root
from bench.suite.places import SUITE_PREFIX
from bench.suite.suite import Suite

# A generation of images that no run reaches: metrics are calibrated on others than they score.
UNSCORED = 10**6


def calibrate(
    suite: Suite,
    name: str,
    values: dict[str, Any],
    store: Root,
    device: torch.device,
    out: Path | None,
    report: Report,
) -> tuple[Path, dict[str, Any]]:
    """Calibrate the attack or metric `name` with the suite's settings and `values` over them.

    Returns the file that was written and its content. Generations are those of `none` and go
    through `store`; those of a metric are of seeds that no score uses. `out` is where the result
    goes; by default it is the file that the suite names for it (an attack's `calibration`), beside
    the suite. Raises `UserError` where there is nothing to calibrate, and without `out` for a suite
    that takes its calibration from the cache or lies in an installed package.
    """
    kind = "metric" if name in suite.settings.metrics else "attack"
    known = [*registry.entries("attack"), *suite.settings.metrics]
    if kind == "attack" and not name.endswith(".py") and not registry.knows("attack", name):
        raise UnknownName("attack, or metric of the suite,", name, known)
    beside_suite = name.endswith(".py") and not Path(name).exists()
    entry = registry.find(kind, suite.places.judge(name) if beside_suite else name)
    given = suite.settings.metrics if kind == "metric" else suite.settings.attacks
    settings, judge_class = given.get(name, {}) | values, entry.load()
    field_name = judge_class.calibrated
    target_file = settings.get(field_name, "")
    if not isinstance(target_file, str):
        raise UserError(
            f"suite {suite.name}: {field_name} of {visible(name)} must be a path, not"
            f" {visible(repr(target_file))[:60]}"
        )
    if kind == "attack":
        settings.pop(field_name, None)  # it is written here, and not read
    judge = configure(kind, entry.name, judge_class, settings)
    if out is None and target_file.startswith((PREFIX, SUITE_PREFIX)):
        raise UserError(
            f"suite {suite.name} takes its calibration from {target_file}; say with --out where a"
            f" new one goes, and name that under [{kind}s.{name}] {field_name}"
        )
    folder = suite.file.parent
    path = out or folder / (target_file or f"{suite.name}.{entry.name}.json")
    if out is None and not path.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"suite {suite.name} names {visible(str(path))[:200]} for its calibration, which lies"
            " outside its folder; say with --out where it goes"
        )
    if out is None and checkout() is None and path.resolve().is_relative_to(ROOT):
        raise UserError(
            f"suite {suite.name} lies in an installed package, which a calibration would change;"
            " say with --out where it goes"
        )
    unjudged = suite.settings.model_copy(update={"metrics": {}, "attacks": {}})
    run = prepare(replace(suite, settings=unjudged), "none", {}, store, device)
    run.images.store.prepare()
    if kind == "attack":
        target = target_of(*run, judge, {}, report=report)
    else:
        target = target_of(*run, Attack(), {}, UNSCORED, report=report)
    content = judge.calibrate(target)
    write_atomically(
        path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    )
    return path, content
