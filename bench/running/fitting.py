"""What a method learned: from the store where it was learned before, else learned and stored."""

from __future__ import annotations

import hashlib
import sys
import time
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from bench.base.errors import UserError, one_line
from bench.base.progress import Report, silent
from bench.contracts.method import Method, State
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.process_state import process_kept
from bench.running.timing import wait_for
from bench.store.notes import read_note, write_note
from bench.store.store import SampleStore

TENSORS, FACTS = "fit.safetensors", "fit.json"


@dataclass(frozen=True)
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
        found = _learned(experiment, engine)
        with store.files.alone():
            # Another process may have been faster: what all sample with is what the store has.
            if stored := _stored(store, engine.device):
                return stored
            _keep(found, store)
    report(f"fit {experiment.method_name}", 1, 1)
    return found


def _learned(experiment: Experiment, engine: Engine) -> Fitted:
    denoiser = engine.denoiser
    before, start = denoiser.evaluations, time.perf_counter()
    with process_kept(f"method {experiment.method_name}: fit"):
        state = experiment.method.fit(denoiser, experiment.fit_data)
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise UserError(
            f"method {experiment.method_name}: fit must return a dict of tensors by name, not"
            f" {type(state).__name__}"
        )
    wait_for(engine.device)
    return Fitted(state, time.perf_counter() - start, denoiser.evaluations - before)


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


def _stored(store: SampleStore, device: torch.device) -> Fitted | None:
    """What the store has; None where nothing was learned yet, or it is damaged."""
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
        print(
            f"bench: {store.files}/{TENSORS} is damaged and is learned again: {one_line(error)}",
            file=sys.stderr,
        )
        return None
    return Fitted(state, known["seconds"], known["rows"])
