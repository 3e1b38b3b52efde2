"""What a method learned: from the store where it was learned before, else learned and stored.

A method that trains gets a folder for checkpoints where the store lies on this machine, so that an
interrupted fit goes on. It belongs to exactly this experiment, as the store's folder does, and goes
away once what was learned is stored.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from bench.base.errors import UserError, one_line
from bench.base.progress import Report, silent
from bench.contracts.method import CopyJudge, Method, State
from bench.features.networks import CopyDescriptor
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.process_state import process_kept
from bench.running.timing import wait_for
from bench.store.notes import read_note, write_note
from bench.store.store import SampleStore

TENSORS, FACTS = "fit.safetensors", "fit.json"
CHECKPOINTS = ".fit"  # no listing of files shows it


@dataclass
class Fitted:
    """Tensors by name, and the seconds and row evaluations that learning them took."""

    state: State
    seconds: float = 0.0
    rows: int = 0


def learns(method: Method) -> bool:
    """Whether a method learns anything before it is used."""
    return type(method).fit is not Method.fit


def is_fitted(experiment: Experiment, store: SampleStore) -> bool:
    """Whether the store has what the method learned, or it learns nothing."""
    return not learns(experiment.method) or read_note(store.files, FACTS) is not None


def fitted(
    experiment: Experiment, engine: Engine, store: SampleStore, report: Report = silent
) -> Fitted:
    """What the method learned. A stored state that is damaged is named and learned again."""
    with engine.precision():
        if not learns(experiment.method):
            return Fitted({})
        if stored := _stored(store, engine.device):
            return stored
        report(f"fit {experiment.method_name}", 0, 1)
        with _checkpoints(store) as folder:
            # Whoever waited for another process finds what that one learned.
            if stored := _stored(store, engine.device, told=True):
                return stored
            found = _learned(experiment, engine, folder, report)
            with store.files.alone():
                # Another machine may have been faster: what all sample with is what the store has.
                if stored := _stored(store, engine.device, told=True):
                    return stored
                _keep(found, store)
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
    report(f"fit {experiment.method_name}", 1, 1)
    return found


@contextmanager
def _checkpoints(store: SampleStore) -> Iterator[Path | None]:
    """The folder of checkpoints, which one process has at a time; None where the store's folder is
    behind a URL.
    """
    folder = store.files.local(CHECKPOINTS)
    if folder is None:
        yield None
        return
    with store.files.at(CHECKPOINTS).alone():
        yield folder


def _learned(experiment: Experiment, engine: Engine, folder: Path | None, report: Report) -> Fitted:
    denoiser = engine.denoiser
    base = engine.base if "base" in experiment.method.needed() else None
    models = [denoiser, base] if base else [denoiser]
    before, start = sum(model.evaluations for model in models), time.perf_counter()
    earlier = Fitted({})

    def credit(seconds: float, rows: int) -> None:
        earlier.seconds += seconds
        earlier.rows += rows

    data = replace(
        experiment.fit_data,
        judge=_judge(experiment, engine),
        base=base,
        folder=folder,
        report=report,
        credit=credit,
    )
    with process_kept(f"method {experiment.method_name}: fit"):
        state = experiment.method.fit(denoiser, data)
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise UserError(
            f"method {experiment.method_name}: fit must return a dict of tensors by name, not"
            f" {type(state).__name__}"
        )
    wait_for(engine.device)
    return Fitted(
        state,
        earlier.seconds + time.perf_counter() - start,
        earlier.rows + sum(model.evaluations for model in models) - before,
    )


def _judge(experiment: Experiment, engine: Engine) -> CopyJudge | None:
    """What the suite takes for a copy, where the method asks for it: its metric sscd."""
    if "copy_judge" not in experiment.method.needed():
        return None
    suite = experiment.suite
    given = suite.settings.metrics["sscd"]
    descriptor = engine.kept(
        CopyDescriptor(suite.path(given["weights"]), given.get("profile", "nemo"), engine.device)
    )
    return CopyJudge(
        lambda pictures: descriptor(list(pictures)), float(given.get("threshold", 0.7))
    )


def _keep(found: Fitted, store: SampleStore) -> None:
    """The tensors first: where the facts are, both are there."""
    digest = ""
    if found.state:
        tensors = {name: value.detach().cpu().contiguous() for name, value in found.state.items()}
        content = save(tensors)
        store.files.write(TENSORS, content)
        digest = hashlib.sha256(content).hexdigest()
    write_note(
        store.files, FACTS, {"seconds": found.seconds, "rows": found.rows, "tensors": digest}
    )


def _stored(store: SampleStore, device: torch.device, told: bool = False) -> Fitted | None:
    """What the store has; None where nothing was learned yet, or it is damaged, which is said where
    it was not `told` before.
    """
    known = read_note(store.files, FACTS)
    if known is None:
        return None
    if not known["tensors"]:
        return Fitted({}, known["seconds"], known["rows"])
    try:
        content = store.files.read(TENSORS)
        # a count of tensors, in stores of before
        if known["tensors"] not in (hashlib.sha256(content).hexdigest(), len(load(content))):
            raise UserError("its content does not match its sha256")
        state = {name: value.to(device) for name, value in load(content).items()}
    except (UserError, SafetensorError) as error:
        if not told:
            what = f"{store.files}/{TENSORS} is damaged and is learned again"
            print(f"bench: {what}: {one_line(error)}", file=sys.stderr)
        return None
    return Fitted(state, known["seconds"], known["rows"])
