"""The contracts of metrics and attacks: scores that can be trusted, and a model and images that
stay as they were.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.base.digests import path_digest
from bench.base.errors import Unmeasurable
from bench.checks.contract import (
    Broken,
    Contract,
    NotApplicable,
    Subject,
    first_difference,
    random_state_untouched,
    snapshot,
)
from bench.contracts.attack import Scores, Target
from bench.contracts.metric import Evaluation, PerImage, PerSet
from bench.contracts.samples import SampleSet
from bench.running.judging import as_score, evaluation_of, target_of
from bench.running.run import Run
from bench.suite.load import load_suite
from bench.suite.suite import Suite


def _run(subject: Subject) -> Run:
    """A run of `none` on the tiny suite with its images made, in a store of its own."""
    suite = load_suite(str(subject.folder / "tiny.toml"))
    settings = suite.settings.model_copy(update={"metrics": {}, "attacks": {}})
    run = Run.resolve(
        Suite(settings, suite.file),
        "none",
        {},
        subject.folder / "records",
        Path(tempfile.mkdtemp(dir=subject.folder)),
        torch.device("cpu"),
    )
    roles = getattr(subject.configured, "roles", ())
    run.generate({}, [key for role in roles for key in run.samples(role).keys])
    return run


def _scores(subject: Subject, run: Run) -> Scores:
    if subject.entry.kind == "attack":
        subject.configured.fits(run.suite)
        return subject.configured.run(target_of(run, subject.configured, {}))
    return subject.configured.measure(evaluation_of(run, subject.configured, {}, 0.0, 0))


def declares_scores(subject: Subject) -> None:
    names = subject.cls.names
    if not names or len(set(names)) != len(names):
        raise Broken(f"names is {names!r}", "name every score that it gives, each once")
    if subject.entry.kind == "metric" and not subject.cls.roles:
        raise Broken(
            "roles is empty", "name the prompt roles that it reads: memorized, clean, quality"
        )


def gives_its_scores(subject: Subject) -> None:
    run = _run(subject)
    scores = _scores(subject, run)
    if set(scores) != set(subject.cls.names):
        raise Broken(
            f"it gave {', '.join(sorted(scores)) or 'nothing'} and names"
            f" {', '.join(subject.cls.names)}",
            "give every score that it names and no other",
        )
    for name, score in scores.items():
        if isinstance(score, Unmeasurable):
            continue
        if isinstance(score, PerImage) and (
            score.table.ndim != 2 or len(score.table) != len(score.prompts)
        ):
            raise Broken(
                f"the table of {name} has shape {score.table.shape} for {len(score.prompts)}"
                " prompts",
                "make it [prompts, images]",
            )
        values = score.table.ravel().tolist() if isinstance(score, PerImage) else [score.value]
        if not all(math.isfinite(value) for value in values):
            raise Broken(
                f"{name} holds NaN or infinity",
                "raise Unmeasurable with the reason when there is no number",
            )
        as_score(name, 1, score)


def repeats(subject: Subject) -> None:
    if getattr(subject.cls, "cost", False):
        raise NotApplicable("a cost is measured and not computed")
    run = _run(subject)
    one, other = _values(_scores(subject, run)), _values(_scores(subject, run))
    different = [name for name in one if not np.array_equal(one[name], other[name])]
    if different:
        raise Broken(
            f"{different[0]} is another number the second time",
            "seed what is random by a parameter",
        )


def follows_its_images(subject: Subject) -> None:
    if subject.cls.cost:
        raise NotApplicable("a cost is measured and not computed")
    run = _run(subject)
    evaluation = evaluation_of(run, subject.configured, {}, 0.0, 0)
    straight, reversed_ = (
        subject.configured.measure(evaluation),
        subject.configured.measure(_reversed(evaluation)),
    )
    for name, score in straight.items():
        if isinstance(score, Unmeasurable):
            continue
        one, other = _values({name: score})[name], _values({name: reversed_[name]})[name]
        if not np.allclose(one, other[::-1], rtol=1e-4, atol=1e-5):
            raise Broken(
                f"{name} changes when the prompts come in another order",
                "let row i of the table belong to prompt i, and sums not depend on order",
            )


def _reversed(evaluation: Evaluation) -> Evaluation:
    def samples(role: Any) -> SampleSet:
        given = evaluation.samples_of(role)
        rows = range(len(given.prompts) - 1, -1, -1)
        keys = tuple(
            given.keys[row * given.images + image] for row in rows for image in range(given.images)
        )
        return SampleSet(given.prompts[::-1], given.images, keys, given.store)

    changed = copy.copy(evaluation)
    object.__setattr__(changed, "samples_of", samples)
    return changed


def _values(scores: Scores) -> dict[str, Any]:
    def value(score: PerImage | PerSet | Unmeasurable) -> Any:
        return (
            score.table
            if isinstance(score, PerImage)
            else np.array([score.value if isinstance(score, PerSet) else str(score)])
        )

    return {name: value(score) for name, score in scores.items()}


def random_state(subject: Subject) -> None:
    run = _run(subject)
    with random_state_untouched("measuring"):
        _scores(subject, run)


def keeps_model_and_images(subject: Subject) -> None:
    run = _run(subject)
    model, shards = snapshot(run.denoiser.pipe), _shards(run)
    _scores(subject, run)
    difference = first_difference(model, snapshot(run.denoiser.pipe))
    if difference:
        raise Broken(f"afterwards {difference}", "undo in `finally` whatever is done to the model")
    gone = [name for name, digest in shards.items() if _shards(run).get(name) != digest]
    if gone:
        raise Broken(f"the stored images {gone[0]} changed", "read images through the samples only")


def _shards(run: Run) -> dict[str, str]:
    return {Path(shard).name: path_digest(shard) for shard in run.store.shards()}


def keeps_to_its_threat(subject: Subject) -> None:
    if subject.cls.threat not in ("api", "weights"):
        raise Broken(
            f"threat is {subject.cls.threat!r}",
            "choose api (may only generate) or weights (holds the edited weights)",
        )
    asked = False
    run = _run(subject)
    target = target_of(run, subject.configured, {})
    weights: Callable[[], Any] = target.weights_

    def noticed() -> Any:
        nonlocal asked
        asked = True
        return weights()

    subject.configured.run(
        Target(target.suite, target.device, target.threat, target.generate_, noticed)
    )
    if subject.cls.threat == "api" and asked:
        raise Broken(
            "it declares the threat model 'api' and took the weights", "declare threat = 'weights'"
        )
    if subject.cls.threat == "weights" and not asked:
        raise Broken(
            "it declares the threat model 'weights' and never asked for them",
            "declare threat = 'api', the weaker assumption",
        )


JUDGE_CONTRACTS: dict[str, Contract] = {
    "declares its scores": declares_scores,
    "gives the scores that it declares, finite": gives_its_scores,
    "gives the same numbers again": repeats,
    "leaves global random state alone": random_state,
    "leaves the model and stored images as they were": keeps_model_and_images,
}
METRIC_CONTRACTS = JUDGE_CONTRACTS | {"scores follow their images": follows_its_images}
ATTACK_CONTRACTS = JUDGE_CONTRACTS | {"keeps to its threat model": keeps_to_its_threat}
