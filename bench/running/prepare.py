"""The three parts of a run, made ready together by whoever starts one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from bench.diffusion.execution import Execution
from bench.registry.registry import Entry
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.images import Images
from bench.running.kept_pictures import KeepImages
from bench.store.folders import Root
from bench.suite.suite import Suite


class Prepared(NamedTuple):
    """What is asked, what makes images, and the images: the first arguments of `bench.run`."""

    experiment: Experiment
    engine: Engine
    images: Images


def prepare(
    suite: Suite,
    method: str | Entry,
    parameters: Mapping[str, Any],
    store: Root,
    device: torch.device,
    *,
    seeds: int = 1,
    execution: Execution | None = None,
    keep: KeepImages = "all",
) -> Prepared:
    """Resolve every name and make the parts of a run ready. No model is loaded.

    Raises `UserError` for everything that is unknown, missing or does not fit together.
    """
    experiment = Experiment.resolve(suite, method, parameters, seeds)
    engine = Engine(experiment, device, execution)
    return Prepared(experiment, engine, Images(experiment, engine, store, keep))
