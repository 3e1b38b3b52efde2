"""What a score carries besides its value: counts, interval, groups, spread of generations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bench.base.errors import Unmeasurable
from bench.contracts.metric import OfTables, PerImage, PerSet
from bench.records.record import Score
from bench.statistics import intervals as stats
from bench.statistics.ranges import within
from bench.statistics.units import Design, Units

FEW_GROUPS = 16  # of prompts, which tables can show apart


def as_score(
    name: str,
    version: int,
    score: PerImage | PerSet,
    role: str | None = None,
    design: Design | None = None,
) -> Score:
    """Add to the numbers of a metric or attack what every score carries: interval, counts, groups,
    versions. `design` says which of the prompts of the score's `role` hang together.
    """
    design = design or Design()
    common: dict[str, Any] = {
        "unit": score.unit,
        "higher_is_better": score.higher_is_better,
        "metric": name,
        "metric_version": version,
        "details": score.details,
        "role": role,
    }
    if isinstance(score, PerSet):
        low, high = score.interval or (None, None)
        return Score(
            value=score.value, low=low, high=high, n=score.n, prompts=score.prompts, **common
        )
    statistic = _statistic(score)
    ids = [prompt.id for prompt in score.prompts]
    low, high = _interval(score, score.table, design.units(ids)) or (None, None)
    by_group: dict[str, list[int]] = {}
    for place, prompt in enumerate(score.prompts):
        if prompt.group:
            by_group.setdefault(prompt.group, []).append(place)
    groups = {group: score.table[places] for group, places in by_group.items()}
    intervals = (
        {
            group: _interval(score, groups[group], design.units([ids[place] for place in places]))
            for group, places in by_group.items()
        }
        if len(groups) <= FEW_GROUPS
        else {}
    )
    return Score(
        value=float(statistic(score.table.reshape(-1))),
        low=low,
        high=high,
        n=score.table.size,
        prompts=len(score.table),
        statistic=None if score.statistic == "mean" else score.statistic,
        groups={
            group: round(float(statistic(table.reshape(-1))), 6) for group, table in groups.items()
        },
        group_intervals={
            group: (round(found[0], 6), round(found[1], 6))
            for group, found in intervals.items()
            if found
        },
        group_prompts={group: len(table) for group, table in groups.items()},
        **common,
    )


def together(
    scores: Sequence[PerImage | PerSet | OfTables | Unmeasurable],
) -> tuple[PerImage | PerSet | Unmeasurable, list[float | None]]:
    """One score from those of every generation, and the value of each, None for one that has none;
    a single one stays as it is, with no such list.

    Images of all generations stand side by side in the rows of their prompts (prompts that not
    every generation has are left out), so an interval still resamples prompts; what follows from
    tables follows from the joined ones. Of other scores that only a set has, shares are pooled and
    other values averaged; the interval reaches from the lowest to the highest bound of any
    generation, which promises less than it could. Details that differ between generations are
    listed, one entry a generation.
    """
    alone = [score.alone() if isinstance(score, OfTables) else score for score in scores]
    if len(scores) == 1:
        return alone[0], []
    joint = _joint(scores)
    known = [score for score in alone if not isinstance(score, Unmeasurable)]
    if not known or isinstance(joint, Unmeasurable):
        return joint or alone[0], []
    details = _merged([score.details for score in known])
    first = replace(joint or known[0], details=details)
    if isinstance(first, PerSet):
        if not joint:
            first = _pooled(first, [score for score in known if isinstance(score, PerSet)])
        return first, [float(score.value) if isinstance(score, PerSet) else None for score in alone]
    tables = [
        {prompt.id: row for prompt, row in zip(score.prompts, score.table, strict=True)}
        if isinstance(score, PerImage)
        else None
        for score in alone
    ]
    there = [rows for rows in tables if rows is not None]
    prompts = [prompt for prompt in first.prompts if all(prompt.id in rows for rows in there)]
    if not prompts:
        return Unmeasurable("no prompt has this score in every generation"), []
    table = np.array([np.concatenate([rows[prompt.id] for rows in there]) for prompt in prompts])
    statistic = _statistic(first)
    by_seed = [
        None
        if rows is None
        else float(statistic(np.concatenate([rows[prompt.id] for prompt in prompts])))
        for rows in tables
    ]
    return replace(first, table=table, prompts=prompts), by_seed


def _joint(
    scores: Sequence[PerImage | PerSet | OfTables | Unmeasurable],
) -> PerSet | Unmeasurable | None:
    """What follows from the tables of all generations joined; None for scores without tables."""
    several = [score for score in scores if isinstance(score, OfTables)]
    if not several:
        return None
    names = several[0].tables
    return several[0].number(
        {name: np.concatenate([one.tables[name] for one in several], axis=1) for name in names}
    )


def _pooled(first: PerSet, sets: Sequence[PerSet]) -> PerSet:
    values, counts = [float(score.value) for score in sets], [score.n for score in sets]
    pooled = first.unit.startswith("share") and sum(counts) > 0
    bounds = [score.interval for score in sets if score.interval]
    return replace(
        first,
        value=float(np.average(values, weights=counts if pooled else None)),
        n=sum(counts) if pooled else first.n,
        interval=(
            (min(low for low, _ in bounds), max(high for _, high in bounds)) if bounds else None
        ),
    )


def _merged(details: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all agree on as it is; of anything else a list with one entry for each of them."""
    names = dict.fromkeys(name for one in details for name in one)
    merged: dict[str, Any] = {}
    for name in names:
        values = [one.get(name) for one in details]
        same = all(value == values[0] for value in values)
        merged[name] = values[0] if same else values
    return merged


def _statistic(score: PerImage) -> stats.Statistic:
    percentile = score.percentile
    return (
        stats.STATISTICS[score.statistic]
        if percentile is None
        else lambda values: np.percentile(values, percentile, axis=-1)
    )


def _interval(
    score: PerImage, table: np.ndarray, units: Units | None
) -> tuple[float, float] | None:
    """Over the prompts of `table`, all of the score's or those of a group, which are these `units`;
    None where so few say nothing.
    """
    if (len(units.strata) if units else len(table)) < 2 or (
        score.percentile is not None and not stats.enough_for(score.percentile, len(table))
    ):
        return None
    if score.proportion:
        return stats.proportion_interval(table, units=units)
    if score.unit == stats.OF_SHARES and score.statistic == "mean" and score.percentile is None:
        return stats.difference_of_shares(table.mean(1), units)
    # Values of units vary about the mean of their prompts, and may lie beyond those of any prompt.
    found = stats.cluster_bootstrap(table, _statistic(score), units=units)
    return within(score.unit, found, table)
