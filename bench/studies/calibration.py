"""`bench calibrate`: what an attack must know of the model without mitigation, measured once and
written beside the suite.
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
from bench.running.run import Run
from bench.store.folders import Root
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
    """Calibrate an attack with the suite's settings and `values` over them; returns the file
    written and its content.

    Generations are those of `none` and go through the store. Raises `UserError` for an attack that
    has nothing to calibrate.
    """
    entry = registry.find(
        "attack",
        str(suite.file.parent / name) if name.endswith(".py") and not Path(name).exists() else name,
    )
    given = suite.settings.attacks.get(name, {}) | values
    # the file to be made; whoever calibrates does not read it
    named = given.pop("calibration", None)
    attack = configure("attack", entry.name, entry.load(), given)
    if out is None and named and named.startswith(PREFIX):
        raise UserError(
            f"suite {suite.name} takes its calibration from {named}; say with --out where a new one"
            " goes"
        )
    path = out or suite.file.parent / (named or f"{suite.name}.{entry.name}.json")
    settings = suite.settings.model_copy(update={"metrics": {}, "attacks": {}})
    run = Run.resolve(
        replace(suite, settings=settings), "none", {}, path.parent, store, device, report
    )
    run.store.prepare()
    content = attack.calibrate(target_of(run, attack, {}))
    write_atomically(
        path, (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()
    )
    return path, content
