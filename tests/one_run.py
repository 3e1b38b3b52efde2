"""A run as tests start it: its three parts, the folder of its records, and short ways to both."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench.base.progress import Report, silent
from bench.contracts.samples import SampleSet
from bench.diffusion.execution import Execution
from bench.records.record import RunRecord
from bench.running.engine import Engine
from bench.running.executors import Executor, Local
from bench.running.experiment import Experiment
from bench.running.fitting import Fitted, fitted
from bench.running.images import Images
from bench.running.plan import plan
from bench.running.prepare import prepare
from bench.running.run import run as run_experiment
from bench.running.shard import Shard, make_shard
from bench.store.store import SampleKey, SampleStore
from bench.suite.suite import Suite


class Run:
    """Unpacks into experiment, engine and images, which most functions take first."""

    def __init__(
        self,
        suite: Suite,
        method: str,
        parameters: Mapping[str, Any],
        records: Path,
        store: str | Path,
        device: torch.device,
        report: Report = silent,
        seeds: int = 1,
        execution: Execution | None = None,
        keep: Any = "all",
        executor: Executor | None = None,
        tuning: dict[str, Any] | None = None,
    ) -> None:
        self.experiment, self.engine, self.images = prepare(
            suite, method, parameters, store, device, seeds=seeds, execution=execution, keep=keep
        )
        self.records, self.report, self.tuning = records, report, tuning
        self.executor = executor or Local()

    def __iter__(self) -> Iterator[Experiment | Engine | Images]:
        return iter((self.experiment, self.engine, self.images))

    def replaced(self, **changes: Any) -> Run:
        """The same run with other fields of its experiment."""
        other = copy.copy(self)
        other.experiment = dataclasses.replace(self.experiment, **changes)
        other.engine = Engine(other.experiment, self.engine.device, self.engine.execution)
        other.images = Images(other.experiment, other.engine, self.images.root, self.images.keep)
        return other

    def plan(self) -> dict[str, Any]:
        return plan(self.experiment, self.engine, self.images, self.records)

    def execute(self) -> RunRecord:
        return run_experiment(
            self.experiment,
            self.engine,
            self.images,
            self.records,
            self.executor,
            self.report,
            self.tuning,
        )

    def make(
        self, state: dict[str, Any], units: Sequence[Any], read: frozenset[SampleKey] = frozenset()
    ) -> None:
        self.executor.make(
            self.experiment, self.engine, self.images, state, units, read, self.report
        )

    def generate(self, state: dict[str, Any], keys: Sequence[SampleKey]) -> None:
        self.make(state, self.images.units.of(keys))

    def shard(self, number: int, of: int) -> dict[str, Any]:
        return make_shard(
            self.experiment, self.engine, self.images, Shard(number, of), self.executor, self.report
        )

    def planned(self, ahead: bool = True) -> list[Any]:
        return self.images.units.planned(self.experiment, ahead)

    def fitted(self) -> Fitted:
        return fitted(self.experiment, self.engine, self.images.store)

    def samples(self, role: Any, generation: int = 0) -> SampleSet:
        return self.images.samples(role, generation)

    def keys(self, role: Any) -> list[SampleKey]:
        return self.experiment.keys(role)

    def missing(self) -> list[SampleKey]:
        return self.images.missing()

    def sample_set(self, prompts: Any, images: int, generation: int = 0) -> SampleSet:
        return self.images.sample_set(prompts, images, generation)

    @property
    def method(self) -> Any:
        return self.experiment.method

    @property
    def metrics(self) -> Any:
        return self.experiment.metrics

    @property
    def attacks(self) -> Any:
        return self.experiment.attacks

    @property
    def sources(self) -> Any:
        return self.experiment.sources

    @property
    def plugins(self) -> Any:
        return self.experiment.plugins

    @property
    def id(self) -> str:
        return self.experiment.id

    @property
    def suite(self) -> Suite:
        return self.experiment.suite

    @property
    def store(self) -> SampleStore:
        return self.images.store
