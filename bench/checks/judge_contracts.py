"""The contracts of metrics and attacks, together called judges: scores that can be trusted, and a
model and images that stay as they were.

Each contract stands as a function; the tables at the end say in words what each demands. Every one
tries the judge on images of `none` under the tiny suite.
"""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from bench.base.digests import path_digest
from bench.base.errors import Unmeasurable
from bench.checks.contract import Broken, Contract, NotApplicable, Subject
from bench.checks.guards import random_state_untouched
from bench.checks.snapshots import first_difference, snapshot
from bench.contracts.attack import Scores
from bench.contracts.metric import Evaluation, OfTables, PerImage, PerSet
from bench.contracts.samples import SampleSet
from bench.contracts.target import Threat
from bench.running.fitting import Fitted
from bench.running.generating import generate
from bench.running.judging import evaluation_of, target_of
from bench.running.prepare import Prepared, prepare
from bench.running.scoring import as_score
from bench.suite.load import load_suite
from bench.suite.schema import OF_REMOVAL, SuiteSettings
from bench.suite.suite import Suite

# What sums in another order may change of a score.
RELATIVE, ABSOLUTE = 1e-4, 1e-5


def _prepared(subject: Subject) -> Prepared:
    """A run of `none` on the tiny suite with its images made, in a store of its own: what a judge
    keeps there is not there for the next contract. The images are sampled once.
    """
    suite = load_suite(str(subject.folder / "tiny.toml"))
    # Attacks may judge copies as the suite's sscd does.
    kept = {"sscd": suite.settings.metrics["sscd"]} if subject.entry.kind == "attack" else {}
    settings = suite.settings.model_copy(update={"metrics": kept, "attacks": {}})
    if getattr(subject.cls, "needs_base", False):
        model = settings.model.model_copy(update={"base": "base"})
        settings = settings.model_copy(update={"model": model})
    roles = getattr(subject.configured, "roles", ())
    if set(roles) & set(OF_REMOVAL):
        settings = _of_removal(settings)
    used = Suite(settings, suite.file)
    first = prepare(used, "none", {}, subject.store, torch.device("cpu"))
    keys = [key for role in roles for key in first.images.samples(role).keys]
    generate(*first, {}, first.images.units.of(keys))
    store = Path(tempfile.mkdtemp(dir=subject.folder))
    shutil.copytree(subject.store, store, dirs_exist_ok=True)
    return prepare(used, "none", {}, store, torch.device("cpu"))


def _of_removal(settings: SuiteSettings) -> SuiteSettings:
    """The tiny suite in the track removal: prompts to learn from become those that no method is
    told of, clean prompts are neighbours too.
    """
    prompts = dict(settings.prompts)
    prompts["unnamed"], prompts["neighbours"] = prompts.pop("fit"), prompts["clean"]
    return settings.model_copy(update={"prompts": prompts, "track": "removal"})


def _scores(subject: Subject, run: Prepared) -> Scores:
    """What the metric or attack gives on the run's images."""
    if subject.entry.kind == "attack":
        subject.configured.fits(run.experiment.suite)
        return subject.configured.run(target_of(*run, subject.configured, {}))
    return subject.configured.measure(evaluation_of(*run, subject.configured, Fitted({})))


def declares_scores(subject: Subject) -> None:
    names = subject.cls.names
    if not names or len(set(names)) != len(names):
        raise Broken(f"names is {names!r}", "name every score that it gives, each once")
    if subject.entry.kind == "metric" and not subject.cls.roles:
        raise Broken(
            "roles is empty", "name the prompt roles that it reads: memorized, clean, quality"
        )


def gives_its_scores(subject: Subject) -> None:
    run = _prepared(subject)
    scores = _scores(subject, run)
    if set(scores) != set(subject.cls.names):
        raise Broken(
            f"it gave {', '.join(sorted(scores)) or 'nothing'} and names"
            f" {', '.join(subject.cls.names)}",
            "give every score that it names and no other",
        )
    for name, given in scores.items():
        score = given.alone() if isinstance(given, OfTables) else given
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
    run = _prepared(subject)
    first, second = _values(_scores(subject, run)), _values(_scores(subject, run))
    different = [name for name in first if not np.array_equal(first[name], second[name])]
    if different:
        raise Broken(
            f"{different[0]} is another number the second time",
            "seed what is random by a parameter",
        )


def follows_its_images(subject: Subject) -> None:
    if subject.cls.cost:
        raise NotApplicable("a cost is measured and not computed")
    run = _prepared(subject)
    evaluation = evaluation_of(*run, subject.configured, Fitted({}))
    straight, reversed_ = (
        subject.configured.measure(evaluation),
        subject.configured.measure(_reversed(evaluation)),
    )
    for name, score in straight.items():
        if isinstance(score, Unmeasurable):
            continue
        in_order, in_reverse = _values({name: score})[name], _values({name: reversed_[name]})[name]
        if not np.allclose(in_order, in_reverse[::-1], rtol=RELATIVE, atol=ABSOLUTE):
            raise Broken(
                f"{name} changes when the prompts come in another order",
                "let row i of the table belong to prompt i, and sums not depend on order",
            )


def _reversed(evaluation: Evaluation) -> Evaluation:
    """The same evaluation with its prompts, and their images, in the opposite order."""

    def samples(role: Any) -> SampleSet:
        original = evaluation.samples_of(role)
        rows = range(len(original.prompts) - 1, -1, -1)
        keys = tuple(
            original.keys[row * original.images + image]
            for row in rows
            for image in range(original.images)
        )
        return SampleSet(original.prompts[::-1], original.images, keys, original.store)

    changed = copy.copy(evaluation)
    object.__setattr__(changed, "samples_of", samples)
    return changed


def _values(scores: Scores) -> dict[str, Any]:
    """Scores as arrays: the table of a score by image, the number of one by set, or the reason why
    there is none.
    """

    def value(score: PerImage | PerSet | OfTables | Unmeasurable) -> Any:
        if isinstance(score, OfTables):
            score = score.alone()
        return (
            score.table
            if isinstance(score, PerImage)
            else np.array([score.value if isinstance(score, PerSet) else str(score)])
        )

    return {name: value(score) for name, score in scores.items()}


def random_state(subject: Subject) -> None:
    run = _prepared(subject)
    with random_state_untouched("measuring"):
        _scores(subject, run)


def keeps_model_and_images(subject: Subject) -> None:
    run = _prepared(subject)
    models = [run.engine.denoiser.pipe]
    models += [run.engine.base.pipe] if getattr(subject.cls, "needs_base", False) else []
    before, shards = [snapshot(model) for model in models], _shards(run)
    _scores(subject, run)
    after = [snapshot(model) for model in models]
    found = [first_difference(*pair) for pair in zip(before, after, strict=True)]
    difference = next((one for one in found if one), None)
    if difference:
        raise Broken(f"afterwards {difference}", "undo in `finally` whatever is done to the model")
    gone = [name for name, digest in shards.items() if _shards(run).get(name) != digest]
    if gone:
        raise Broken(f"the stored images {gone[0]} changed", "read images through the samples only")


def _shards(run: Prepared) -> dict[str, str]:
    """The digests of the files that hold the run's images, by name."""
    return {Path(shard).name: path_digest(shard) for shard in run.images.store.shards()}


def keeps_to_its_threat(subject: Subject) -> None:
    if subject.cls.threat not in get_args(Threat):
        raise Broken(
            f"threat is {subject.cls.threat!r}",
            "choose api (may only generate), weights (holds the edited weights) or inputs (feeds"
            " the served model too)",
        )
    asked_for_model = False
    run = _prepared(subject)
    target = target_of(*run, subject.configured, {})
    weights: Callable[[], Any] = target.weights_
    find: Callable[..., Any] = target.find_ or (lambda *_: [])

    def noticed_weights() -> Any:
        nonlocal asked_for_model
        asked_for_model = True
        return weights()

    def noticed_find(*given: Any) -> Any:
        nonlocal asked_for_model
        asked_for_model = True
        return find(*given)

    subject.configured.run(replace(target, weights_=noticed_weights, find_=noticed_find))
    if subject.cls.threat == "api" and asked_for_model:
        raise Broken(
            "it declares the threat model 'api' and took the weights", "declare threat = 'weights'"
        )
    if subject.cls.threat != "api" and not asked_for_model:
        raise Broken(
            f"it declares the threat model '{subject.cls.threat}' and never asked for the model",
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
