"""What a record keeps besides numbers: pictures to look at, digests of the images that were
measured, and whom the mitigation meets.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Literal

import torch

from bench.base.pictures import small_png
from bench.base.spread import evenly
from bench.records.parts import REFERENCE
from bench.records.record import RecordedSamples, Thumbnail
from bench.running.demand import PROMPTS, THUMBNAILS
from bench.store.store import decode_png, read_picture

if TYPE_CHECKING:
    from bench.contracts.method import State
    from bench.running.run import Run
    from bench.suite.settings import Role


def thumbnails(run: Run) -> list[Thumbnail]:
    """The first image of memorized prompts, evenly spread where there are very many, so that a
    reader can look instead of believing.

    Of those whose picture was dropped there is none.
    """
    samples = run.samples("memorized")
    there = [
        row
        for row in evenly(len(samples.prompts), THUMBNAILS)
        if samples.keys[row * samples.images] not in run.store.dropped
    ]
    prompts = [samples.prompts[row] for row in there]
    keys = [samples.keys[row * samples.images] for row in there]
    shared = run.suite.settings.share_references
    return [
        Thumbnail(
            prompt_id=prompt.id,
            prompt=prompt.text,
            group=prompt.group,
            seed=key.seed,
            png=small_png(decode_png(png)),
            reference=(
                small_png(read_picture(prompt.references[0]))
                if shared and prompt.references
                else None
            ),
        )
        for prompt, key, png in zip(prompts, keys, run.store.png(keys), strict=True)
    ]


def recorded_samples(run: Run) -> dict[str, RecordedSamples]:
    """How many images each role has, and the digests of those of some prompts: whoever makes them
    again can tell that they are the same.
    """
    return {role: _samples_of(run, role) for role in run.roles}


def _samples_of(run: Run, role: Role) -> RecordedSamples:
    sets = [run.samples(role, generation) for generation in range(run.seeds)]
    prompts, images = sets[0].prompts, sets[0].images
    rows = evenly(len(prompts), PROMPTS)
    digests = run.store.pixel_digests(
        [
            key
            for row in rows
            for samples in sets
            for key in samples.keys[row * images : (row + 1) * images]
        ]
    )
    each = images * run.seeds
    of_prompt = {
        prompts[row].id: digests[number * each : (number + 1) * each]
        for number, row in enumerate(rows)
    }
    return RecordedSamples(prompts=len(prompts), images=each, sha256=of_prompt)


def holds_against(run: Run, state: State) -> list[Literal["api", "weights"]]:
    """Which attackers meet the mitigation.

    Measured: one who holds the weights meets it only when the method changed them.

    Kept in the store, so that a run whose images are there opens no model.
    """
    if run.method_name == REFERENCE:
        return []
    files, name = run.store.files, "weights.json"
    if not files.exists(name):
        pipe = run.denoiser.pipe
        before = _weights_digest(pipe)
        with run.method.attach(pipe, state):
            changed = _weights_digest(pipe) != before
        files.write(name, json.dumps({"changed": changed}).encode())
    return ["api", "weights"] if json.loads(files.read(name))["changed"] else ["api"]


def _weights_digest(pipe: object) -> str:
    """sha256 over every parameter and buffer of the pipeline's networks, one tensor at a time."""
    digest = hashlib.sha256()
    for part in ("unet", "text_encoder", "vae"):
        network: torch.nn.Module | None = getattr(pipe, part)
        for name, tensor in sorted(network.state_dict().items()) if network is not None else ():
            digest.update(name.encode())
            digest.update(
                tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().tobytes()
            )
    return digest.hexdigest()
