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

import torch

from bench.assets.catalogue import Entry
from bench.base.errors import UserError, one_line
from bench.diffusion.execution import Execution
from bench.features.weights import trust_as, trusted
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.fitting import fitted, is_fitted
from bench.running.generating import generate
from bench.running.images import Images
from bench.running.kept_pictures import KeepImages
from bench.running.pieces import Piece
from bench.running.prepare import Prepared, prepare
from bench.running.ray_task import FROM_FILE, Refusal
from bench.running.searching import find
from bench.running.units import Unit
from bench.store.folders import Root, open_folder
from bench.store.store import SampleKey
from bench.suite.reach import VARIABLE
from bench.suite.schema import SuiteSettings
from bench.suite.suite import Suite


@dataclass(frozen=True)
class Spec:
    """A run as another process can prepare it again.

    Paths are absolute. Those below `base`, the folder that the run was started in, may also lie
    below the worker's own folder.
    """

    base: str
    # Settings and not a file's text: a suite that code made may be one that no file could hold.
    settings: SuiteSettings
    suite_file: str
    limit: int | None
    entries: dict[str, Entry]  # assets of the suite's own
    method: str
    parameters: str  # JSON
    store: Root
    device: str
    seeds: int
    execution: Execution
    keep: KeepImages
    # The store's folder must be the same here and there, or other pictures would be made.
    folder: str
    trusted: dict[str, str]  # TorchScript files that may run
    allowed: str  # folders that a suite may read

    @classmethod
    def of(cls, experiment: Experiment, engine: Engine, images: Images) -> Spec:
        """What must be sent so that a worker makes the same images."""
        suite = experiment.suite
        local = open_folder(images.root).local("")
        return cls(
            str(Path.cwd()),
            suite.settings,
            str(suite.file.resolve()),
            suite.limit,
            dict(suite.entries or {}),
            _method_argument(experiment),
            json.dumps(experiment.method.model_dump(mode="json")),
            images.root if local is None else str(local.resolve()),
            # Without a number: a worker sees the GPU that it was given as the first.
            engine.device.type,
            experiment.seeds,
            engine.execution,
            images.keep,
            images.store.name,
            trusted(),
            os.environ.get(VARIABLE, ""),
        )

    def prepared(self) -> Prepared:
        """The run, on this machine.

        Raises `UserError` when its files are not here, or are others than those of the process
        that sent this.
        """
        trust_as(self.trusted)
        os.environ[VARIABLE] = self.allowed
        suite = Suite(self.settings, Path(self._here(self.suite_file)), self.limit, self.entries)
        found = prepare(
            suite,
            self._here(self.method),
            json.loads(self.parameters),
            self.store,
            torch.device(self.device),
            seeds=self.seeds,
            execution=self.execution,
            keep=self.keep,
        )
        if found.images.store.name != self.folder:
            raise UserError(
                f"worker on {os.uname().nodename}: suite {suite.name} and method"
                f" {found.experiment.method_name} are not those of the driver (the model's files,"
                " the method's code or the version of bench differ); give all machines the same"
            )
        return found

    def _here(self, name: str) -> str:
        path, base = Path(name), Path(self.base)
        if path.is_absolute() and not path.exists() and path.is_relative_to(base):
            return str(Path.cwd() / path.relative_to(base))
        return name


def _method_argument(experiment: Experiment) -> str:
    """What finds the method elsewhere: its file where a user named one, or its name."""
    module = type(experiment.method).__module__
    if module.startswith(FROM_FILE):
        return str(sys.modules[module].__file__)
    return experiment.method_name


class Worker:
    """Prepares the run of a spec once and makes units of it with `threads` threads of torch."""

    def __init__(self, spec: Spec, threads: int) -> None:
        torch.set_num_threads(threads)
        os.environ["HF_HUB_OFFLINE"] = "1"
        self._spec = spec

    def load(self) -> Refusal | None:
        """Load model and fitted state, so that errors in them are told before any unit is given."""
        try:
            self._prepared = self._spec.prepared()
            experiment, engine, images = self._prepared
            if not is_fitted(experiment, images.store):
                raise UserError(
                    f"worker on {os.uname().nodename}: no fitted state in {images.store.files};"
                    " give a --store that all machines share"
                )
            self._state = fitted(experiment, engine, images.store).state
            engine.load()
        except UserError as error:
            return Refusal(one_line(error))
        return None

    def make(self, unit: Unit, read: Set[SampleKey] = frozenset()) -> Refusal | None:
        """Store what is missing of a unit.

        Images in `read` will be read as pictures, so theirs may not have been dropped.
        """
        try:
            # A worker that was lost may have stored a part of the unit.
            self._prepared.images.store.refresh()
            generate(*self._prepared, self._state, [unit], read)
        except UserError as error:
            return Refusal(one_line(error))
        return None

    def search(self, piece: Piece) -> Refusal | None:
        """Store what is missing of what an attack finds about the pictures of a piece."""
        try:
            self._prepared.images.store.refresh()
            find(*self._prepared, self._state, piece)
        except UserError as error:
            return Refusal(one_line(error))
        return None
