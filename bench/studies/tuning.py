"""Choosing a method's parameters on `fit` prompts only, by one stated rule, with everything that
was tried on record.

Every setting of a grid runs through the ordinary runner on a suite derived from the given one, in
which fit prompts play the memorized ones and other clean prompts the clean ones; held-out prompts
never appear. A method that learns from fit prompts is scored on those it did not learn from, in two
folds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.base.digests import digest_of
from bench.base.errors import UserError, one_line
from bench.base.files import write_atomically
from bench.base.parameters import configure, parse_assignments, validation_line
from bench.base.progress import Report, silent
from bench.records.environment import environment
from bench.registry import registry
from bench.running.run import NEEDED_ROLE, Run
from bench.suite.settings import PromptSettings, Role
from bench.suite.suite import Suite

REPLICATION, ALIGNMENT, CLEAN_ALIGNMENT = SCORES = ("sscd", "clip_score", "clip_score_clean")
# A copy of the training picture shows all that its caption names, so giving copies up must cost
# alignment there.
RULE = (
    "lowest SSCD on fit prompts among settings whose CLIP score falls at most {clean} on clean and"
    " {fit} on fit prompts below none's"
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Setting(_Strict):
    """One setting of the grid and its means over fit prompts (SSCD, CLIP) and clean prompts
    (CLIP).
    """

    parameters: dict[str, Any]
    scores: dict[str, float] = Field(default_factory=dict)
    error: str = Field(default="", description="why there are no scores")


class Tuning(_Strict):
    """A file of `leaderboards/tuning/<suite>/<method>.json`: what was tried, what it gave, what was
    chosen and why.
    """

    schema_version: Literal[1] = 1
    suite: str
    generation: str = Field(description="hash of the model and how it is sampled")
    chosen_on: str = Field(description="hash of the fit and calibration prompts")
    method: str
    method_version: int
    source: str | None
    rule: str
    tolerance: dict[str, float]
    folds: int
    prompts: dict[str, int]
    none: dict[str, float]
    settings: list[Setting]
    kept: int = Field(
        description=(
            "settings within the tolerance; where there is none, the one that exceeds it least was"
            " chosen"
        )
    )
    chosen: dict[str, Any]
    environment: dict[str, Any]

    def save(self, path: Path) -> None:
        write_atomically(
            path,
            (
                json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False)
                + "\n"
            ).encode(),
        )


def load_tuning(path: Path) -> tuple[Tuning, str]:
    """A tuning file and its sha256.

    Raises `UserError` when it is missing, damaged or of another form.
    """
    try:
        content = path.read_bytes()
        return Tuning.model_validate_json(content), hashlib.sha256(content).hexdigest()
    except OSError as error:
        raise UserError(
            f"tuning file {path} cannot be read ({one_line(error)}); make one with `bench tune`"
        ) from error
    except ValidationError as error:
        raise UserError(f"tuning file {path}: {validation_line(error)}") from error


def parse_grid(assignments: Iterable[str]) -> list[dict[str, Any]]:
    """`["rounds=1,2", "gamma=0.7"]` to every combination, in the order given.

    Raises `UserError` for an empty list.
    """
    axes: list[list[dict[str, Any]]] = []
    for assignment in assignments:
        name, equals, values = assignment.partition("=")
        if not equals:
            raise UserError(f"grid '{assignment}' is not of the form name=value,value")
        if name in (key for axis in axes for key in axis[0]):
            raise UserError(
                f"grid parameter '{name}' is given twice; list its values after one --grid {name}="
            )
        axes.append([parse_assignments([f"{name}={value.strip()}"]) for value in values.split(",")])
    if not axes:
        raise UserError("nothing to choose from: give at least one --grid name=value,value")
    return [
        {key: value for part in combination for key, value in part.items()}
        for combination in product(*axes)
    ]


def tuning_suites(suite: Suite, folds: int, clean: int, images: int) -> list[Suite]:
    """The derived suites, one a fold.

    In fold i of two, every second fit prompt is learned from and the others are scored.

    Calibration prompts are halved for good: methods are calibrated on one half, and `clean` of the
    other are scored.
    """
    settings = suite.settings
    if "fit" not in settings.prompts or "calibration" not in settings.prompts:
        raise UserError(
            f"suite {suite.name} has no [prompts.fit] and [prompts.calibration] to choose"
            " parameters on"
        )
    fit, calibration = settings.prompts["fit"], settings.prompts["calibration"]
    metrics = {
        name: settings.metrics[name] for name in ("sscd", "clip_score") if name in settings.metrics
    }

    def part(of: PromptSettings, which: int, count: int, **changes: Any) -> PromptSettings:
        # what the suite itself took a part of stays within that part
        start, step = of.part or (0, 1)
        return of.model_copy(
            update={"part": (start + which * step, count * step), "expected": None, **changes}
        )

    derived = []
    for fold in range(folds):
        prompts = {
            "fit": part(fit, fold, folds),
            "memorized": (
                part(fit, 1 - fold, folds, images_per_prompt=images)
                if folds > 1
                else fit.model_copy(update={"images_per_prompt": images})
            ),
            "calibration": part(calibration, 0, 2),
            "clean": part(calibration, 1, 2, limit=clean, images_per_prompt=1),
        }
        name = f"{suite.name}.tuning" if folds == 1 else f"{suite.name}.tuning-{fold}"
        derived.append(
            replace(
                suite,
                settings=settings.model_copy(
                    update={"name": name, "prompts": prompts, "metrics": metrics, "attacks": {}}
                ),
            )
        )
    leaked = []
    for roles, out in (
        (("fit", "memorized"), ("memorized",)),
        (("calibration", "clean"), ("clean", "quality")),
    ):
        held_out = {prompt.text for role in out for prompt in suite.prompts(cast(Role, role))}
        leaked += [
            prompt.text
            for one in derived
            for role in roles
            for prompt in one.prompts(cast(Role, role))
            if prompt.text in held_out
        ]
    if leaked:
        raise UserError(
            f"suite {suite.name}: '{leaked[0]}' is to be learned from and is held out too; keep fit"
            " and calibration prompts apart from the others"
        )
    return derived


def tune(
    suite: Suite,
    name: str,
    grid: list[dict[str, Any]],
    work: Path,
    device: torch.device,
    tolerance: dict[str, float],
    clean: int = 48,
    images: int = 4,
    report: Report = silent,
) -> Tuning:
    """Run the grid and `none`, and choose by the rule.

    Finished settings are found again in `work` when the command is repeated.
    """
    entry = registry.find("method", name)
    methods = [configure("method", entry.name, entry.load(), values) for values in grid]
    learns = any(NEEDED_ROLE[need] == "fit" for method in methods for need in method.needed())
    suites = tuning_suites(suite, 2 if learns else 1, clean, images)
    if learns and any(
        not derived.prompts("memorized") or not derived.prompts("fit") for derived in suites
    ):
        raise UserError(f"suite {suite.name} has too few fit prompts for two folds")

    def measured(method: str, values: dict[str, Any], label: str) -> dict[str, float]:
        per_prompt: dict[str, list[float]] = {}
        for derived in suites:
            run = Run.resolve(
                derived,
                method,
                values,
                work / "records",
                work / "store",
                device,
                lambda what, done, of: report(f"{label}: {what}", done, of),
            )
            record = run.finished() or run.execute()
            for score in SCORES:
                per_prompt.setdefault(score, []).extend(record.per_prompt.get(score, {}).values())
        missing = [score for score, values in per_prompt.items() if not values]
        if missing:
            raise UserError(
                f"suite {suite.name} does not measure {missing[0]}, which parameters are chosen by"
            )
        return {score: round(sum(values) / len(values), 6) for score, values in per_prompt.items()}

    none = measured("none", {}, "none")
    settings = []
    for number, values in enumerate(grid):
        try:
            settings.append(
                Setting(
                    parameters=values,
                    scores=measured(name, values, f"setting {number + 1} of {len(grid)}"),
                )
            )
        except Exception as error:  # one setting that breaks must not cost the others their numbers
            settings.append(
                Setting(parameters=values, error=f"{type(error).__name__}: {one_line(error)}")
            )
    if not any(setting.scores for setting in settings):
        raise UserError(f"no setting of the grid could be measured; the first: {settings[0].error}")
    return Tuning(
        suite=suite.name,
        generation=_generation(suite),
        chosen_on=_prompts(suite),
        method=entry.name,
        method_version=methods[0].version,
        source=entry.source,
        rule=RULE.format(clean=tolerance[CLEAN_ALIGNMENT], fit=tolerance[ALIGNMENT]),
        tolerance=tolerance,
        folds=len(suites),
        prompts={
            role: len({prompt.text for derived in suites for prompt in derived.prompts(role)})
            for role in ("memorized", "clean")
        },
        none=none,
        settings=settings,
        kept=len(within(none, settings, tolerance)),
        chosen=choose(none, settings, tolerance),
        environment=environment(device),
    )


def choose(
    none: dict[str, float], settings: list[Setting], tolerance: dict[str, float]
) -> dict[str, Any]:
    """The rule; where no setting keeps alignment, the one that exceeds its tolerance least.

    Of equals, the first of the grid.
    """

    kept = within(none, settings, tolerance)
    measured = [setting for setting in settings if setting.scores]
    best = (
        min(kept, key=lambda setting: setting.scores[REPLICATION])
        if kept
        else min(measured, key=lambda setting: _excess(none, setting, tolerance))
    )
    return best.parameters


def within(
    none: dict[str, float], settings: list[Setting], tolerance: dict[str, float]
) -> list[Setting]:
    """The settings that keep alignment."""
    return [
        setting for setting in settings if setting.scores and _excess(none, setting, tolerance) <= 0
    ]


def _excess(none: dict[str, float], setting: Setting, tolerance: dict[str, float]) -> float:
    return max(
        none[score] - setting.scores[score] - allowed for score, allowed in tolerance.items()
    )


def tuned_parameters(
    path: Path, suite: Suite, method: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The chosen parameters of a tuning file, and what a record says about them.

    Raises `UserError` when the file is about something else.
    """
    tuning, digest = load_tuning(path)
    entry = registry.find("method", method)
    found = (
        tuning.method,
        tuning.method_version,
        tuning.source,
        tuning.generation,
        tuning.chosen_on,
    )
    if found != (
        entry.name,
        entry.load().version,
        entry.source,
        _generation(suite),
        _prompts(suite),
    ):
        raise UserError(
            f"tuning file {path} was made for another method, version, model or fit prompts than"
            f" {method} on {suite.name}; make it again with `bench tune`"
        )
    about = {
        "sha256": digest,
        "rule": tuning.rule,
        "settings": len(tuning.settings),
        "kept": tuning.kept,
        "prompts": tuning.prompts,
        "folds": tuning.folds,
    }
    return tuning.chosen, about


def _generation(suite: Suite) -> str:
    return digest_of(suite.generation)[:16]


def _prompts(suite: Suite) -> str:
    return digest_of(
        [[prompt.text for prompt in suite.prompts(role)] for role in ("fit", "calibration")]
    )[:16]


def text(tuning: Tuning) -> str:
    """The settings as a table for people, the chosen one marked."""
    counts = ", ".join(f"{count} {role}" for role, count in tuning.prompts.items())
    lines = [
        f"{tuning.method} on {tuning.suite}: {tuning.rule}",
        f"    {'sscd':>8}{'clip':>8}{'clean':>8}   ({counts} prompts, {tuning.folds} fold(s))",
    ]
    for parameters, scores in [
        ({"none": ""}, tuning.none),
        *((setting.parameters, setting.scores) for setting in tuning.settings),
    ]:
        mark = "->" if parameters == tuning.chosen else "  "
        name = ", ".join(
            f"{key}={value}" if value != "" else key for key, value in parameters.items()
        )
        numbers = (
            "".join(f"{scores[score]:>8.3f}" for score in SCORES) if scores else f"{'failed':>24}"
        )
        lines.append(f" {mark} {numbers}   {name}")
    if not tuning.kept:
        lines.append(
            "no setting keeps alignment that far; the one that exceeds the tolerance least was"
            " chosen"
        )
    return "\n".join(lines)
