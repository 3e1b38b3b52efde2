"""What a method learned: from the store where it was learned before, else learned and stored."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save

from bench.base.errors import UserError, one_line
from bench.base.progress import Report, silent
from bench.contracts.method import Method, State
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.timing import wait_for
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
    return not learns(experiment.method) or store.files.exists(FACTS)


def fitted(
    experiment: Experiment, engine: Engine, store: SampleStore, report: Report = silent
) -> Fitted:
    """What the method learned. Raises `UserError` for a stored state that is damaged."""
    with engine.precision():
        if store.files.exists(FACTS):
            return _stored(store, engine.device)
        if not learns(experiment.method):
            return Fitted({})
        report(f"fit {experiment.method_name}", 0, 1)
        found = _learned(experiment, engine)
        # Another process may have been faster: what all of them sample with is what the store has.
        if store.files.exists(FACTS):
            return _stored(store, engine.device)
        _keep(found, store)
    report(f"fit {experiment.method_name}", 1, 1)
    return found


def _learned(experiment: Experiment, engine: Engine) -> Fitted:
    denoiser = engine.denoiser
    before, start = denoiser.evaluations, time.perf_counter()
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
    if found.state:
        tensors = {name: value.detach().cpu().contiguous() for name, value in found.state.items()}
        store.files.write(TENSORS, save(tensors))
    facts = {"seconds": found.seconds, "rows": found.rows, "tensors": len(found.state)}
    store.files.write(FACTS, json.dumps(facts).encode())


def _stored(store: SampleStore, device: torch.device) -> Fitted:
    files = store.files
    known = json.loads(files.read(FACTS))
    try:
        state = _read_state(store, device) if known["tensors"] else {}
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"fitted state {files}/{TENSORS} is damaged: {one_line(error)}; delete {files}/{FACTS}"
            " and repeat the command"
        ) from error
    return Fitted(state, known["seconds"], known["rows"])


def _read_state(store: SampleStore, device: torch.device) -> State:
    if path := store.files.local(TENSORS):
        return load_file(path, device=str(device))
    return {name: value.to(device) for name, value in load(store.files.read(TENSORS)).items()}
