"""`bench tune`: choose a method's parameters on `fit` prompts only, by one stated rule, with
everything that was tried on record.

Every setting of a grid is an ordinary run under a suite derived from the given one. In the derived
suite fit prompts stand in for the memorized ones and calibration prompts for the clean ones;
held-out prompts never appear. A method that learns from fit prompts is scored on those that it did
not learn from, in two folds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.base import limits
from bench.base.digests import digest_of
from bench.base.errors import UserError, one_line
from bench.base.files import read_regular_file, write_atomically
from bench.base.parameters import configure, parse_assignments, validation_line
from bench.base.progress import Report, silent
from bench.records.environment import environment
from bench.records.record import RunRecord
from bench.registry import registry
from bench.running.experiment import NEEDED_ROLE
from bench.running.fitting import fitted
from bench.running.prepare import Prepared, prepare
from bench.running.run import finished, run
from bench.suite.schema import PromptSettings, Role, SuiteSettings
from bench.suite.suite import Suite

REPLICATION, ALIGNMENT, CLEAN_ALIGNMENT = SCORES = ("sscd", "clip_score", "clip_score_clean")
# Roles that parameters are chosen on, and the held-out roles that may share no prompt with them.
HELD_OUT: tuple[tuple[tuple[Role, ...], tuple[Role, ...]], ...] = (
    (("fit", "memorized"), ("memorized",)),
    (("calibration", "clean"), ("clean", "quality")),
)
LARGEST_GRID = 10_000  # combinations: each is a run
# The tolerance on fit prompts is wider: a copy of the training picture shows all that its caption
# names, so giving copies up must cost alignment there.
RULE = (
    "lowest SSCD on fit prompts among settings whose CLIP score falls at most {clean} on clean and"
    " {fit} on fit prompts below none's"
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Setting(_Strict):
    """One setting of the grid with its scores.

    `scores` holds means over prompts: `sscd` and `clip_score` over fit prompts, `clip_score_clean`
    over clean ones. It is empty where the setting could not be measured, and `error` says why.
    """

    parameters: dict[str, Any]
    scores: dict[str, float] = Field(default_factory=dict)
    error: str = Field(default="", description="why there are no scores")


class Tuning(_Strict):
    """The content of `leaderboards/tuning/<suite>/<method>.json`: what was tried, what it gave,
    what was chosen and by which rule.
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
    evaluations: int | None = Field(
        default=None,
        ge=0,
        description=(
            "row evaluations behind the choice: learning and images of `none` and of every setting"
            " that could be measured, whether made now or found in the store; null: not known"
        ),
    )
    environment: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write the file, atomically."""
        write_atomically(
            path,
            (
                json.dumps(self.model_dump(mode="json"), indent=1, sort_keys=True, allow_nan=False)
                + "\n"
            ).encode(),
        )


def load_tuning(path: Path) -> tuple[Tuning, str]:
    """The content of a tuning file and its sha256.

    Raises `UserError` when the file is missing, damaged, too large or of another form.
    """
    try:
        content = read_regular_file(path, limits.TABLE_BYTES)
        return Tuning.model_validate_json(content), hashlib.sha256(content).hexdigest()
    except ValidationError as error:
        raise UserError(f"tuning file {path}: {validation_line(error)}") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"tuning file {path} cannot be read ({one_line(error)}); make one with `bench tune`"
        ) from error


def parse_grid(assignments: Iterable[str]) -> list[dict[str, Any]]:
    """`["rounds=1,2", "gamma=0.7"]` to every combination, in the order given.

    Each combination is a dict of parameters. Raises `UserError` for an empty list, for what is not
    of this form, and for more than `LARGEST_GRID` combinations.
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
    if (combinations := math.prod(map(len, axes))) > LARGEST_GRID:
        raise UserError(
            f"the grid has {combinations} combinations; at most {LARGEST_GRID} are tried"
        )
    return [
        {key: value for part in combination for key, value in part.items()}
        for combination in product(*axes)
    ]


def tuning_suites(suite: Suite, folds: int, clean: int, images: int) -> list[Suite]:
    """The suites derived from `suite`, one for each fold.

    With two folds, fold i learns from every second fit prompt and scores the others; with one fold
    all fit prompts are scored. Calibration prompts are halved for good: methods are calibrated on
    one half, and `clean` prompts of the other half are scored. `images` are made of each fit prompt
    and one of each clean prompt.

    Raises `UserError` where the suite has no fit or calibration prompts, or where one of them is
    also held out.
    """
    settings = suite.settings
    if "fit" not in settings.prompts or "calibration" not in settings.prompts:
        raise UserError(
            f"suite {suite.name} has no [prompts.fit] and [prompts.calibration] to choose"
            " parameters on"
        )
    metrics = {
        name: settings.metrics[name] for name in ("sscd", "clip_score") if name in settings.metrics
    }
    derived = []
    for fold in range(folds):
        name = f"{suite.name}.tuning" if folds == 1 else f"{suite.name}.tuning-{fold}"
        changes = {
            "name": name,
            "prompts": _prompts_of_fold(settings, fold, folds, clean, images),
            "metrics": metrics,
            "attacks": {},
        }
        derived.append(replace(suite, settings=settings.model_copy(update=changes)))
    _refuse_leaks(suite, derived)
    return derived


def _prompts_of_fold(
    settings: SuiteSettings, fold: int, folds: int, clean: int, images: int
) -> dict[Role, PromptSettings]:
    """Which part of the suite's fit and calibration prompts has which role in a fold."""
    fit, calibration = settings.prompts["fit"], settings.prompts["calibration"]
    scored = fit if folds == 1 else _part(fit, 1 - fold, folds)
    return {
        "fit": _part(fit, fold, folds),
        "memorized": scored.model_copy(update={"images_per_prompt": images}),
        "calibration": _part(calibration, 0, 2),
        "clean": _part(calibration, 1, 2).model_copy(
            update={"limit": clean, "images_per_prompt": 1}
        ),
    }


def _part(prompts: PromptSettings, which: int, count: int) -> PromptSettings:
    """Every `count`-th of the prompts, from number `which` on.

    Where the suite itself takes a part of a list, it is a part of that part.
    """
    start, step = prompts.part or (0, 1)
    return prompts.model_copy(
        update={"part": (start + which * step, count * step), "expected": None}
    )


def _refuse_leaks(suite: Suite, derived: Sequence[Suite]) -> None:
    """Raises `UserError` where a prompt that is learned from or scored on is also held out."""
    leaked = []
    for roles, held_out_roles in HELD_OUT:
        held_out = {prompt.text for role in held_out_roles for prompt in suite.prompts(role)}
        leaked += [
            prompt.text
            for fold in derived
            for role in roles
            for prompt in fold.prompts(role)
            if prompt.text in held_out
        ]
    if leaked:
        raise UserError(
            f"suite {suite.name}: '{leaked[0]}' is to be learned from and is held out too; keep fit"
            " and calibration prompts apart from the others"
        )


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
    """Measure `none` and every setting of the grid, and choose one by the rule.

    `tolerance` says for `clip_score` and `clip_score_clean` how far a setting may fall below
    `none`. Finished settings are found again in `work` when the command is repeated. Raises
    `UserError` where the suite does not suffice, and where no setting at all could be measured.
    """
    entry = registry.find("method", name)
    methods = [configure("method", entry.name, entry.load(), values) for values in grid]
    learns = any(NEEDED_ROLE.get(need) == "fit" for method in methods for need in method.needed())
    suites = tuning_suites(suite, 2 if learns else 1, clean, images)
    if learns and any(
        not derived.prompts("memorized") or not derived.prompts("fit") for derived in suites
    ):
        raise UserError(f"suite {suite.name} has too few fit prompts for two folds")
    study = _Study(suite, suites, work, device, report)
    none = study.scores("none", {}, "none")
    settings = [
        study.setting(name, values, f"setting {number} of {len(grid)}")
        for number, values in enumerate(grid, 1)
    ]
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
        evaluations=study.evaluations(),
        environment=environment(device),
    )


@dataclass(frozen=True)
class _Study:
    """The derived suites, and where runs under them are kept and computed."""

    suite: Suite
    folds: Sequence[Suite]
    work: Path
    device: torch.device
    report: Report
    # row evaluations of every record; None where they are not known
    spent: list[float | None] = field(default_factory=list)

    def scores(self, method: str, values: dict[str, Any], label: str) -> dict[str, float]:
        """Means over the prompts of all folds, with six decimals.

        Raises `UserError` for a suite that does not measure one of `SCORES`, and whatever the
        method raises.
        """
        per_prompt: dict[str, list[float]] = {score: [] for score in SCORES}
        for fold in self.folds:
            record = self._record(fold, method, values, label)
            for score in SCORES:
                per_prompt[score].extend(record.per_prompt.get(score, {}).values())
        missing = [score for score, of_prompts in per_prompt.items() if not of_prompts]
        if missing:
            raise UserError(
                f"suite {self.suite.name} does not measure {missing[0]}, which parameters are"
                " chosen by"
            )
        return {
            score: round(sum(of_prompts) / len(of_prompts), 6)
            for score, of_prompts in per_prompt.items()
        }

    def _record(self, fold: Suite, method: str, values: dict[str, Any], label: str) -> RunRecord:
        prepared = prepare(fold, method, values, self.work / "store", self.device)
        records = self.work / "records"
        record = finished(prepared.experiment, prepared.engine, records) or run(
            *prepared,
            records,
            report=lambda what, done, of: self.report(f"{label}: {what}", done, of),
        )
        self.spent.append(_evaluations(prepared))
        return record

    def evaluations(self) -> int | None:
        """Row evaluations of all runs so far; None where those of one are not known."""
        known = [spent for spent in self.spent if spent is not None]
        return round(sum(known)) if len(known) == len(self.spent) else None

    def setting(self, method: str, values: dict[str, Any], label: str) -> Setting:
        """A setting with its scores, or with the error that it ended in: one setting that breaks
        must not cost the others their numbers.
        """
        try:
            return Setting(parameters=values, scores=self.scores(method, values, label))
        except (Exception, SystemExit) as error:  # a stranger's method may raise anything
            return Setting(parameters=values, error=f"{type(error).__name__}: {one_line(error)}")


def _evaluations(prepared: Prepared) -> float | None:
    """Row evaluations of all images of a finished run and of what its method learned; None where
    the store has them no longer.
    """
    experiment, engine, images = prepared
    if images.missing():
        return None
    learned = fitted(experiment, engine, images.store).rows
    made = [images.samples(role).evaluations() for role in experiment.roles]
    return learned + sum(float(each.sum()) for each in made)


def choose(
    none: dict[str, float], settings: list[Setting], tolerance: dict[str, float]
) -> dict[str, Any]:
    """The parameters that the rule chooses.

    Where no setting keeps alignment, it is the one that exceeds its tolerance least. Of equal ones,
    it is the first of the grid.
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
    """The settings that keep alignment: no CLIP score falls below that of `none` by more than is
    tolerated.
    """
    return [
        setting for setting in settings if setting.scores and _excess(none, setting, tolerance) <= 0
    ]


def _excess(none: dict[str, float], setting: Setting, tolerance: dict[str, float]) -> float:
    """How much further than tolerated the worst CLIP score falls below that of `none`; negative
    where all stay within their tolerance.
    """
    return max(
        none[score] - setting.scores[score] - allowed for score, allowed in tolerance.items()
    )


def tuned_parameters(
    path: Path, suite: Suite, method: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The chosen parameters of a tuning file, and what the record of a run says about the choice.

    Raises `UserError` when the file is about another method, version, model or other prompts.
    """
    tuning, digest = load_tuning(path)
    entry = registry.find("method", method)
    chosen_for = (
        tuning.method,
        tuning.method_version,
        tuning.source,
        tuning.generation,
        tuning.chosen_on,
    )
    asked_for = (
        entry.name,
        entry.load().version,
        entry.source,
        _generation(suite),
        _prompts(suite),
    )
    if chosen_for != asked_for:
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
        "evaluations": tuning.evaluations,
    }
    return tuning.chosen, about


def _generation(suite: Suite) -> str:
    """A hash of the model and of how it is sampled."""
    return digest_of(suite.generation)[:16]


def _prompts(suite: Suite) -> str:
    """A hash of the prompts that parameters are chosen on."""
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
    if tuning.evaluations is not None:
        lines.append(f"{tuning.evaluations:,} evaluations of the model were behind the choice")
    return "\n".join(lines)
