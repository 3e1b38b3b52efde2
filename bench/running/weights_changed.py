"""Whether a method edits weights: measured, never declared."""

from __future__ import annotations

import hashlib

import torch

from bench.contracts.method import State
from bench.diffusion.families import parts_of
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.images import Images
from bench.store.notes import read_note, write_note


def weights_changed(experiment: Experiment, engine: Engine, images: Images, state: State) -> bool:
    """Whether an attached method leaves other weights than the model has without it.

    The answer is kept in the store, so that a run whose images are there opens no model.
    """
    files, name = images.store.files, "weights.json"
    known = read_note(files, name)
    if known is None:
        pipe = engine.denoiser.pipe
        before = _weights_digest(pipe)
        with experiment.method.attach(pipe, state):
            known = {"changed": _weights_digest(pipe) != before}
        write_note(files, name, known)
    return bool(known["changed"])


def _weights_digest(pipe: object) -> str:
    """sha256 over every parameter and buffer of the pipeline's networks, one tensor at a time."""
    digest = hashlib.sha256()
    for network in parts_of(pipe).values():
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(
                tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes()
            )
    return digest.hexdigest()
