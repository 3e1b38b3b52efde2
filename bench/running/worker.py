"""What runs in a worker process: a run made again from what can be sent, kept for all units that
the worker is given.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.assets.catalogue import Entry
from bench.base.errors import UserError, one_line
from bench.contracts.method import State
from bench.diffusion.execution import Execution
from bench.running.demand import Unit
from bench.running.generating import generate
from bench.running.images import KeepImages
from bench.running.ray_task import FROM_FILE, Refusal
from bench.store.folders import Root, open_folder
from bench.store.store import SampleKey
from bench.suite.settings import SuiteSettings
from bench.suite.suite import Suite

if TYPE_CHECKING:
    from bench.running.run import Run


@dataclass(frozen=True)
class Spec:
    """A run as another process can make it again.

    Paths are absolute; below `base`, the folder it was started in, also relative to the worker's.
    """

    base: str
    # as they are: a suite that code made may be one that no file could hold
    settings: SuiteSettings
    suite_file: str
    limit: int | None
    entries: dict[str, Entry]  # assets of the suite's own
    method: str
    parameters: str  # JSON
    records: Path
    store: Root
    device: str
    seeds: int
    execution: Execution
    keep_images: KeepImages
    # of the store: both must come to the same, or they would not make the same pictures
    folder: str

    @classmethod
    def of(cls, run: Run) -> Spec:
        # without a number: a worker sees the GPU that it was given as the first
        suite, device = run.suite, run.device.type
        local = open_folder(run.store_root).local("")
        root = run.store_root if local is None else str(local.resolve())
        return cls(
            str(Path.cwd()),
            suite.settings,
            str(suite.file.resolve()),
            suite.limit,
            dict(suite.entries or {}),
            _named(run),
            json.dumps(run.method.model_dump(mode="json")),
            run.records.resolve(),
            root,
            device,
            run.seeds,
            run.execution,
            run.keep_images,
            run.store.name,
        )

    def run(self) -> Run:
        """The run, on this machine.

        Raises `UserError` when its files are not here or are others than those of whoever sent
        this.
        """
        from bench.running.run import Run

        suite = Suite(self.settings, Path(self._here(self.suite_file)), self.limit, self.entries)
        parameters, device = json.loads(self.parameters), torch.device(self.device)
        run = Run.resolve(
            suite,
            self._here(self.method),
            parameters,
            self.records,
            self.store,
            device,
            seeds=self.seeds,
            execution=self.execution,
        )
        run.keep_images = self.keep_images
        if run.store.name != self.folder:
            raise UserError(
                f"worker on {os.uname().nodename}: suite {suite.name} and method {run.method_name}"
                " are not those of the driver (the model's files, the method's code or the version"
                " of bench differ); give all machines the same"
            )
        return run

    def _here(self, name: str) -> str:
        path, base = Path(name), Path(self.base)
        return (
            str(Path.cwd() / path.relative_to(base))
            if path.is_absolute() and not path.exists() and path.is_relative_to(base)
            else name
        )


def _named(run: Run) -> str:
    """What finds the run's method: its file where a user named one, or its name."""
    module = type(run.method).__module__
    return str(sys.modules[module].__file__) if module.startswith(FROM_FILE) else run.method_name


class Worker:
    """Loads the run of a spec once and makes units of it. `threads`: of torch in this process."""

    def __init__(self, spec: Spec, threads: int) -> None:
        torch.set_num_threads(threads)
        self._spec = spec
        self._run: Run | None = None
        self._state: State = {}

    def load(self) -> Refusal | None:
        """Model and fitted state, so that errors in them are told before any unit is given."""
        try:
            run = self._spec.run()
            if not run.is_fitted():
                raise UserError(
                    f"worker on {os.uname().nodename}: no fitted state in {run.store.files}; give a"
                    " --store that all machines share"
                )
            self._state, *_ = run.fitted()
            self._run = run if run.denoiser else None
        except UserError as error:
            return Refusal(one_line(error))
        return None

    def make(self, unit: Unit, pictures: Set[SampleKey] = frozenset()) -> Refusal | None:
        """Store what is missing of a unit.

        `pictures`: those that will be read, so that they may not have been dropped.
        """
        assert self._run is not None
        try:
            self._run.store.refresh()  # a worker that was lost may have stored a part of it
            generate(self._run, self._state, [unit], pictures)
        except UserError as error:
            return Refusal(one_line(error))
        return None
