"""`bench calibrate`: measure once what an attack must know of the model without mitigation, and
write it beside the suite.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.assets.catalogue import PREFIX
from bench.base.errors import UserError
from bench.base.files import write_atomically
from bench.base.parameters import configure
from bench.base.progress import Report
from bench.registry import registry
from bench.running.judging import target_of
from bench.running.prepare import prepare
from bench.store.folders import Root
from bench.suite.places import SUITE_PREFIX
from bench.suite.suite import Suite


def calibrate(
    suite: Suite,
    name: str,
    values: dict[str, Any],
    store: Root,
    device: torch.device,
    out: Path | None,
    report: Report,
) -> tuple[Path, dict[str, Any]]:
    """Calibrate the attack `name` with the suite's settings and `values` over them.

    Returns the file that was written and its content. Generations are those of `none` and go
    through `store`. `out` is where the result goes; by default it is the file that the suite names
    as the attack's `calibration`, beside the suite. Raises `UserError` for an attack that has
    nothing to calibrate, and without `out` for a suite that takes its calibration from the cache.
    """
    beside_suite = name.endswith(".py") and not Path(name).exists()
    entry = registry.find("attack", str(suite.file.parent / name) if beside_suite else name)
    settings = suite.settings.attacks.get(name, {}) | values
    target_file = settings.pop("calibration", None)  # it is written here, and not read
    attack = configure("attack", entry.name, entry.load(), settings)
    if out is None and target_file and target_file.startswith((PREFIX, SUITE_PREFIX)):
        raise UserError(
            f"suite {suite.name} takes its calibration from {target_file}; say with --out where a"
            f" new one goes, and name that under [attacks.{name}] calibration"
        )
    path = out or suite.file.parent / (target_file or f"{suite.name}.{entry.name}.json")
    unjudged = suite.settings.model_copy(update={"metrics": {}, "attacks": {}})
    run = prepare(replace(suite, settings=unjudged), "none", {}, store, device)
    run.images.store.prepare()
    content = attack.calibrate(target_of(*run, attack, {}, report=report))
    write_atomically(
        path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    )
    return path, content
