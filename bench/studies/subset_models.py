"""The models of `bench analyze subsets`: one for each subset of the fit prompts, with the method's
masks and with random ones; what is asked of each, and what is measured.

Every model is an ordinary experiment under a suite that is narrowed to the subset and to the
prompts that are judged. So its images go through the ordinary sampler, are kept in the ordinary
store under a key of their own, and are found again when the command is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from bench.base.digests import path_digest
from bench.base.errors import Unmeasurable, UserError, one_line
from bench.base.files import is_regular_file
from bench.base.parameters import configure
from bench.base.progress import Report, silent
from bench.base.spread import spread
from bench.contracts.metric import Metric, PerImage, PerSet
from bench.registry import registry
from bench.running.engine import Engine
from bench.running.experiment import Experiment
from bench.running.fitting import Fitted, fitted
from bench.running.generating import generate
from bench.running.images import Images
from bench.running.judging import evaluation_of
from bench.store.folders import Root
from bench.studies.random_masks import with_random_masks
from bench.studies.subset_masks import Subset, Subsets
from bench.suite.leaks import refuse_leaks
from bench.suite.narrowed import NarrowedSuite
from bench.suite.prompts import Prompt
from bench.suite.schema import Role
from bench.suite.suite import Suite

NONE, BESIDE = "none", "wen"  # methods that learn from no fit prompt, for comparison
RANDOM = "random masks"
COPIES, ALIGNMENT, QUALITY = "sscd", "clip_score", "fid"  # metrics, as suites name them


@dataclass(frozen=True)
class Asked:
    """How many prompts each model is judged on: memorized ones that are held out, fit prompts
    outside its subset, and clean ones; images of a memorized prompt, and whether FID is measured
    once for each size.
    """

    held_out: int = 24
    left_out: int = 0
    images: int = 2
    clean: int = 32
    fid: bool = False

    def __post_init__(self) -> None:
        least = {"held_out": 1, "left_out": 0, "images": 1, "clean": 0}
        for name, at_least in least.items():
            if (value := getattr(self, name)) < at_least:
                option = name.replace("_", "-")
                raise UserError(f"--{option} must be at least {at_least}, not {value}")


@dataclass(frozen=True)
class Model:
    """One model to judge. `kind` is a method's name or `RANDOM`; `size` and `number` say which
    subset it learned from, None for `none` and what stands beside it.
    """

    kind: str
    size: int | None
    number: int | None
    experiment: Experiment
    held_out: tuple[Prompt, ...]
    left_out: tuple[Prompt, ...]

    @property
    def label(self) -> str:
        of = "" if self.size is None else f", {self.size} prompts, subset {self.number}"
        return f"{self.kind}{of}"


@dataclass(frozen=True)
class Measured:
    """What one model came to, with the fields of its `Model`.

    By memorized prompt that has a training picture, similarity to it and whether that is a copy,
    `[images]` both. Descriptors of the held-out prompts' pictures `[prompts, images, d]`, of length
    one. CLIP score by clean prompt, `[images]`. Evaluations of the model for learning and for the
    images, as the store has them.
    """

    kind: str
    size: int | None
    number: int | None
    held_out: tuple[Prompt, ...]
    left_out: tuple[Prompt, ...]
    similarity: Mapping[Prompt, np.ndarray]
    copies: Mapping[Prompt, np.ndarray]
    descriptors: np.ndarray
    clip_clean: Mapping[Prompt, np.ndarray] | None
    fid: float | None
    fid_reason: str
    fit_rows: int
    image_rows: float


def models_of(
    suite: Suite,
    name: str,
    values: Mapping[str, Any],
    subsets: Subsets,
    asked: Asked,
    control: bool,
    seed: int,
) -> tuple[list[Model], list[str]]:
    """All models in the order in which they are judged, `none` first; and why some that should
    stand beside them are left out. Nothing is loaded.

    Raises `UserError` for what is missing or does not fit together.
    """
    if COPIES not in suite.settings.metrics:
        raise UserError(f"suite {suite.name} has no [metrics.{COPIES}] to judge copies with")
    refuse_leaks(suite, ["fit"])
    fit = suite.prompts("fit")
    held_out = tuple(spread(suite.prompts("memorized"), asked.held_out))
    own = [
        model
        for size, drawn in subsets.items()
        for model in _of_size(suite, name, values, size, drawn, asked, held_out)
    ]
    left_out = tuple(p for p in fit if any(p in model.left_out for model in own))
    found, reasons = [], []
    for kind in (NONE, BESIDE):
        narrowed = _narrowed(suite, asked, (), (*held_out, *left_out), asked.fid)
        try:
            experiment = Experiment.resolve(narrowed, kind, {})
        except UserError as error:
            if kind == NONE:
                raise
            reasons.append(f"{kind} is left out: {one_line(error)}")
            continue
        found.append(Model(kind, None, None, experiment, held_out, left_out))
    found += own
    if control:
        found += [_control(model, seed) for model in own]
    return found, reasons


def _of_size(
    suite: Suite,
    name: str,
    values: Mapping[str, Any],
    size: int,
    drawn: Sequence[Subset],
    asked: Asked,
    held_out: tuple[Prompt, ...],
) -> Iterator[Model]:
    fit, entry = suite.prompts("fit"), registry.find("method", name)
    parameters = of_whole_subsets(entry.name, entry.load(), values, size)
    for number, subset in enumerate(drawn):
        chosen = tuple(fit[place] for place in subset)
        left_out = tuple(spread(outside(fit, chosen), asked.left_out))
        # One subset is enough for FID, the same one in whatever order they come.
        fid = asked.fid and subset == min(drawn)
        narrowed = _narrowed(suite, asked, chosen, (*held_out, *left_out), fid)
        experiment = Experiment.resolve(narrowed, entry, parameters)
        yield Model(entry.name, size, number, experiment, held_out, left_out)


def of_whole_subsets(
    name: str, method: type[Any], values: Mapping[str, Any], size: int
) -> dict[str, Any]:
    """Parameters under which a method learns from all prompts of a subset: those given, and where
    these would use fewer, as many `prompts` as there are.

    Raises `UserError` where it would still use fewer.
    """
    for given in (dict(values), {"prompts": size} | dict(values)):
        if "prompts" in given and "prompts" not in method.model_fields:
            break
        if configure("method", name, method, given).fitted_on(size) == list(range(size)):
            return given
    raise UserError(
        f"method {name} would not learn from all {size} prompts of a subset under these parameters"
        + (": leave -p prompts out" if "prompts" in values else "")
    )


def outside(fit: Sequence[Prompt], subset: Sequence[Prompt]) -> list[Prompt]:
    """The fit prompts that share neither text nor training picture with any prompt of a subset."""
    texts = {prompt.text for prompt in subset}
    pictures = {digest for prompt in subset for digest in _pictures(prompt)}
    return [
        prompt
        for prompt in fit
        if prompt.text not in texts and pictures.isdisjoint(_pictures(prompt))
    ]


def _pictures(prompt: Prompt) -> list[str]:
    return [path_digest(path) for path in prompt.references if is_regular_file(path)]


def _narrowed(
    suite: Suite, asked: Asked, subset: tuple[Prompt, ...], judged: tuple[Prompt, ...], fid: bool
) -> NarrowedSuite:
    settings = suite.settings
    names = (COPIES, ALIGNMENT, *([QUALITY] if fid else []))
    # Without FID its captions and pictures, which are large, need not be here.
    prompts = {r: found for r, found in settings.prompts.items() if fid or r != "quality"}
    images: dict[Role, int] = {"memorized": asked.images, "clean": 1}
    for role, count in images.items():
        if role in prompts:
            prompts[role] = prompts[role].model_copy(update={"images_per_prompt": count})
    changed = settings.model_copy(
        update={
            "prompts": prompts,
            "metrics": {n: settings.metrics[n] for n in names if n in settings.metrics},
            "attacks": {},
        }
    )
    clean = spread(suite.prompts("clean"), asked.clean)
    return NarrowedSuite.of(
        suite, changed, {"fit": subset, "memorized": judged, "clean": tuple(clean)}
    )


def _control(model: Model, seed: int) -> Model:
    """The same model with random masks."""
    method = with_random_masks(model.experiment.method, seed)
    return replace(model, kind=RANDOM, experiment=replace(model.experiment, method=method))


def measured(model: Model, engine: Engine, store: Root, report: Report = silent) -> Measured:
    """Fit, make the images that the store lacks, and measure them."""
    experiment = model.experiment
    images = Images(experiment, engine, store)
    if images.missing():
        images.keeping.try_networks(experiment.suite.settings.model.sides)
    learned = _learned(images, report)
    units = images.units.planned(experiment, ahead=False)
    generate(experiment, engine, images, learned.state, units, report=report)
    with engine.precision():
        scores, reason = _scores(experiment, engine, images, learned, report)
        metric = experiment.metrics[COPIES]
        descriptor = metric.extractors(experiment.suite, engine.device)["memorized"][0]
        descriptors = images.samples("memorized").features(engine.kept(descriptor))
    clip, fid = scores.get("clip_score_clean"), scores.get("fid", scores.get("fid_matched"))
    return Measured(
        model.kind,
        model.size,
        model.number,
        model.held_out,
        model.left_out,
        _by_prompt(scores["sscd"]),
        _by_prompt(scores["memorized_ratio"]),
        descriptors[: len(model.held_out)],
        _by_prompt(clip) if isinstance(clip, PerImage) else None,
        fid.value if isinstance(fid, PerSet) else None,
        reason,
        learned.rows,
        sum(float(images.samples(role).evaluations().sum()) for role in experiment.roles),
    )


def _learned(images: Images, report: Report) -> Fitted:
    images.store.prepare()
    return fitted(images.experiment, images.engine, images.store, report)


def _scores(
    experiment: Experiment, engine: Engine, images: Images, learned: Fitted, report: Report
) -> tuple[dict[str, PerImage | PerSet], str]:
    """All scores by name; and why there is no FID, where it was asked for.

    Raises `Unmeasurable` where there is no similarity to training pictures.
    """
    found: dict[str, PerImage | PerSet] = {}
    reasons = []
    for name, metric in experiment.metrics.items():
        if name == ALIGNMENT and not experiment.suite.prompts("clean"):
            continue
        try:
            given = _measure(experiment, engine, images, metric, learned, report)
        except Unmeasurable as why:
            if name == COPIES:
                raise
            given = {name: why}
        for score, value in given.items():
            if isinstance(value, Unmeasurable):
                reasons.append(one_line(value))
            else:
                found[score] = value
    return found, "; ".join(reasons)


def _measure(
    experiment: Experiment,
    engine: Engine,
    images: Images,
    metric: Metric,
    learned: Fitted,
    report: Report,
) -> Mapping[str, PerImage | PerSet | Unmeasurable]:
    return metric.measure(evaluation_of(experiment, engine, images, metric, learned, report=report))


def _by_prompt(score: PerImage | PerSet) -> dict[Prompt, np.ndarray]:
    assert isinstance(score, PerImage)
    return dict(zip(score.prompts, score.table, strict=True))


def judged_models(
    models: Sequence[Model], engine: Engine, store: Root, device: torch.device, report: Report
) -> list[Measured]:
    """Every model measured. `engine` is that of the pruned models, which share one loaded model.

    Raises `UserError` before any image is made where there can be no random masks.
    """
    if control := next((model for model in models if model.kind == RANDOM), None):
        _learned(Images(control.experiment, engine, store), report)
    found = []
    for number, model in enumerate(models):
        report(f"models: {model.label}", number, len(models))
        own = engine if model.size is not None else Engine(model.experiment, device)
        found.append(measured(model, own, store, report))
    report("models: all", len(models), len(models))
    return found
