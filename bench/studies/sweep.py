"""`bench sweep`: one method at several strengths on the held-out prompts, without attacks.

A single row of a board says what a method does at one setting. The curve says what it costs to have
less replication, so that methods can be compared where they keep the same utility, and against
controls that only weaken guidance or take random weights. Nothing is chosen here: parameters are
chosen on fit prompts, by `bench tune`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.base.errors import UserError, one_line
from bench.base.parameters import configure
from bench.base.progress import Report, silent
from bench.records.environment import environment
from bench.records.parts import design_for
from bench.records.record import RunRecord, recorded_designs
from bench.records.sweep import REPLICATION, UTILITY, Measured, Point, Sweep
from bench.registry import registry
from bench.running.prepare import prepare
from bench.running.run import finished, run
from bench.suite.suite import Suite

# The metrics of a curve; their scores all stand in its file.
METRICS = ("copies", "sscd", "any_copy", "clip_score", "recognised")


def without_attacks(suite: Suite) -> Suite:
    """The same prompts and images, with only the metrics that a curve needs."""
    settings = suite.settings
    metrics = {name: settings.metrics[name] for name in METRICS if name in settings.metrics}
    changed = settings.model_copy(update={"metrics": metrics, "attacks": {}})
    return replace(suite, settings=changed)


def sweep(
    suite: Suite,
    name: str,
    values: Sequence[float],
    parameters: Mapping[str, Any],
    work: Path,
    store: str | Path,
    device: torch.device,
    report: Report = silent,
    seeds: int = 1,
) -> Sweep:
    """Measure `none` and every strength, from least to most; without `values` those that the method
    names itself. `seeds` counts independent generations of every image.

    Images are those of ordinary runs and are kept in `store`; finished points of as many seeds are
    found again in `work` when the command is repeated. Raises `UserError` where the method says no
    strength, and where no point could be measured.
    """
    entry = registry.find("method", name)
    cls = entry.load()
    if cls.swept is None:
        raise UserError(
            f"method {entry.name} does not say which parameter is its strength: set `swept` in its"
            " class to the parameter's name and some values, from least to most"
        )
    field, own = cls.swept
    chosen = _from_least(values or own, own)
    if field in parameters:
        raise UserError(f"{field} is the strength of {entry.name}; give its values with --values")
    settings = [dict(parameters) | {field: _as_given(value)} for value in chosen]
    methods = [configure("method", entry.name, cls, given) for given in settings]
    study = _Study(without_attacks(suite), work, store, device, seeds, report)
    none = study.record("none", {}, "none")
    replication, utility = (_first(none, names, suite) for names in (REPLICATION, UTILITY))
    names = (replication, utility)
    points = []
    for number, (value, given) in enumerate(zip(chosen, settings, strict=True), 1):
        label = f"{field}={value:g} ({number} of {len(chosen)})"
        try:
            points.append(_point(value, study.record(name, given, label), names))
        except (Exception, SystemExit) as error:  # a stranger's method may raise anything
            points.append(Point(strength=value, error=f"{type(error).__name__}: {one_line(error)}"))
    if not any(point.scores for point in points):
        raise UserError(f"no strength could be measured; the first: {points[0].error}")
    return Sweep(
        suite=suite.name,
        suite_version=suite.settings.version,
        suite_fingerprint=suite.fingerprint,
        method=entry.name,
        method_version=methods[0].version,
        source=entry.source,
        field=field,
        parameters=dict(parameters),
        seeds=seeds,
        replication=replication,
        utility=utility,
        none=_point(None, none, names),
        points=points,
        design=recorded_designs({name: design_for(none, name) for name in names}),
        environment=environment(device),
    )


def _from_least(values: Sequence[float], own: Sequence[float]) -> list[float]:
    """Strengths in the direction in which the method's own go from least to most, each once."""
    return sorted(set(values), reverse=own[-1] < own[0])


def _as_given(value: float) -> float | int:
    """Whole numbers as such: some parameters are counts."""
    return int(value) if float(value).is_integer() else value


def _first(record: RunRecord, names: Sequence[str], suite: Suite) -> str:
    for name in names:
        if record.per_prompt.get(name):
            return name
    raise UserError(f"suite {suite.name} measures none of {', '.join(names)}")


def _point(strength: float | None, record: RunRecord, names: Sequence[str]) -> Point:
    scores = {
        name: Measured(value=score.value, low=score.low, high=score.high)
        for name, score in sorted(record.scores.items())
        if score.value is not None
    }
    per_prompt = {name: record.per_prompt[name] for name in names}
    return Point(strength=strength, scores=scores, per_prompt=per_prompt)


@dataclass(frozen=True)
class _Study:
    suite: Suite
    work: Path
    store: str | Path
    device: torch.device
    seeds: int
    report: Report

    def record(self, method: str, values: dict[str, Any], label: str) -> RunRecord:
        """The record of one point, measured now or found from before."""
        prepared = prepare(self.suite, method, values, self.store, self.device, seeds=self.seeds)
        return finished(prepared.experiment, prepared.engine, self.work) or run(
            *prepared,
            self.work,
            report=lambda what, done, of: self.report(f"{label}: {what}", done, of),
        )


def text(sweep: Sweep) -> str:
    """The curve as a table for people."""
    lines = [
        f"{sweep.label} on {sweep.suite}{sweep.of_seeds}",
        f"{sweep.field:>12} {sweep.replication:>22} {sweep.utility:>22}",
    ]
    for point in [sweep.none, *sweep.points]:
        strength = "none" if point.strength is None else f"{point.strength:g}"
        cells = [
            _cell(point.scores[name]) if name in point.scores else "failed"
            for name in (sweep.replication, sweep.utility)
        ]
        lines.append(f"{strength:>12} {cells[0]:>22} {cells[1]:>22} {point.error}".rstrip())
    return "\n".join(lines)


def _cell(score: Measured) -> str:
    brackets = "" if score.low is None else f" [{score.low:.3f}, {score.high:.3f}]"
    return f"{score.value:.3f}{brackets}"
