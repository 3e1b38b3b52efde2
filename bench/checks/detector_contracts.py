"""The contracts of detectors: scores of every prompt by itself, repeatable, and a model, pictures
and random numbers that stay as they were.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from bench.base.errors import Unmeasurable
from bench.checks.contract import Broken, Contract, NotApplicable, Subject
from bench.checks.guards import random_state_untouched
from bench.checks.snapshots import first_difference, snapshot
from bench.contracts.detector import Observation
from bench.contracts.method import Method
from bench.running.recording import Recording
from bench.running.sampling import sample
from bench.studies.detection import Study, scored
from bench.suite.load import load_suite

RELATIVE, ABSOLUTE = 1e-4, 1e-6  # what sums of another order may change
KIND = "clean"


def _study(subject: Subject) -> Study:
    """With a model of its own, and with images that are sampled once for all contracts."""
    suite = load_suite(str(subject.folder / "tiny.toml"))
    configured, source = subject.configured, subject.entry.source
    study = Study.of(suite, configured, source, subject.store, torch.device("cpu"))
    study.make()
    return study


def _scores(subject: Subject, seen: Observation) -> np.ndarray:
    return scored(subject.entry.name, subject.configured, seen)


def scores_every_prompt(subject: Subject) -> None:
    study = _study(subject)
    for kind in study.judged.kinds:
        table = _scores(subject, study.observe(kind))
        one = subject.configured.of_prompt(table)
        if one.shape != (len(table),) or not bool(np.isfinite(one).all()):
            raise Broken(
                f"of_prompt gives {one.shape} numbers for {len(table)} prompts",
                "give one finite number a prompt",
            )


def repeats(subject: Subject) -> None:
    study = _study(subject)
    with random_state_untouched("scoring"):
        first, second = (_scores(subject, study.observe(KIND)) for _ in range(2))
    if not np.array_equal(first, second):
        raise Broken(
            "the scores are others the second time", "draw what is random from seen.generator"
        )


def prompts_alone(subject: Subject) -> None:
    study = _study(subject)
    whole = study.observe(KIND)
    together = _scores(subject, whole)
    alone = _scores(subject, _first_of(whole))
    if not np.allclose(together[:1], alone, rtol=RELATIVE, atol=ABSOLUTE):
        raise Broken(
            f"the first prompt scores {together[0].tolist()} among others and"
            f" {alone[0].tolist()} alone",
            "let a score depend on its own prompt; constants come from seen.calibration",
        )


def _first_of(seen: Observation) -> Observation:
    return replace(
        seen,
        prompts=seen.prompts[:1],
        seeds=seen.seeds[:1],
        trace_=lambda recorder: seen.trace(recorder)[:1],
    )


def leaves_the_model(subject: Subject) -> None:
    study = _study(subject)
    denoiser = study.run.engine.denoiser
    before = snapshot(denoiser.pipe)
    _scores(subject, study.observe(KIND))
    if found := first_difference(before, snapshot(denoiser.pipe)):
        raise Broken(f"the model is changed: {found}", "undo whatever is set while scoring")
    if any(weight.grad is not None for weight in denoiser.pipe.unet.parameters()):
        raise Broken("weights have gradients", "ask torch.autograd.grad for those of inputs alone")


def only_watches(subject: Subject) -> None:
    recorders = list(subject.configured.recorders())
    if not recorders:
        raise NotApplicable("it records nothing")
    denoiser = _study(subject).run.engine.denoiser
    request = denoiser.request(["a red apple", "a drawing of a bus"], [1, 2])
    plain = sample(denoiser, request, Method(), {})
    recording = Recording(denoiser, request, recorders)
    watched = sample(denoiser, request, Method(), {}, recording)
    if not torch.equal(plain, watched):
        raise Broken("sampling is changed by recording it", "do not write into what a moment holds")
    together = recording.results()
    for row in range(2):
        one = request.rows([row])
        alone = Recording(denoiser, one, recorders)
        sample(denoiser, one, Method(), {}, alone)
        for recorder, kept in alone.results().items():
            if not torch.allclose(kept[0], together[recorder][row], rtol=1e-3, atol=1e-4):
                raise Broken(
                    f"what {type(recorder).__name__} keeps of an image depends on its batch",
                    "compute every row from that row alone",
                )


def counts_its_rows(subject: Subject) -> None:
    study = _study(subject)
    steps = study.run.experiment.suite.settings.model.steps
    alone, on_top = subject.configured.rows(steps)
    if not (0 <= on_top <= alone) and subject.configured.needs != "picture":
        raise Broken(f"rows gives {alone:g} alone and {on_top:g} on top", "on top is part of alone")
    denoiser = study.run.engine.denoiser
    before = denoiser.evaluations
    try:
        _scores(subject, study.observe(KIND))
    except Unmeasurable as reason:
        raise NotApplicable(str(reason)) from reason
    images = len(study.keys[KIND])
    spent = (denoiser.evaluations - before) / images
    if spent > on_top + ABSOLUTE:
        raise Broken(
            f"it took {spent:g} row evaluations an image and declares {on_top:g}",
            "say in rows() what scoring costs on top of sampling",
        )


DETECTOR_CONTRACTS: dict[str, Contract] = {
    "gives every prompt finite scores": scores_every_prompt,
    "gives the same scores again, without global random numbers": repeats,
    "scores a prompt by itself": prompts_alone,
    "leaves the model as it was": leaves_the_model,
    "only watches while images are sampled": only_watches,
    "takes no more evaluations than it declares": counts_its_rows,
}
