"""The numbers of a record: every metric and every attack asked in turn, and what each score carries
besides its value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.base.errors import Unmeasurable, UserError, one_line
from bench.base.pictures import small_png
from bench.contracts.attack import EXHIBITS, Attack, Exhibit, Scores, Target, edited_weights
from bench.contracts.method import State
from bench.contracts.metric import Evaluation, Metric, PerImage, PerSet
from bench.contracts.samples import SampleSet, Timing
from bench.records.record import RecordedExhibit, RunRecord, Score
from bench.running.timing import time_against_none
from bench.statistics import intervals as stats
from bench.suite.prompts import Prompt
from bench.suite.settings import Role

if TYPE_CHECKING:
    from bench.diffusion.denoiser import Denoiser
    from bench.running.run import Run

PICTURES = 4  # of one exhibit
FEW_GROUPS = 12  # of prompts, which tables can show apart


def measure(
    run: Run, record: RunRecord, state: State, fit_seconds: float, fit_rows: int
) -> Exception | None:
    """Fill the record's scores, cost and attacks.

    One that breaks must not cost the others their numbers: its error is returned.

    With several seeds every metric and attack is asked once for each generation; costs are measured
    once.
    """
    failure: Exception | None = None
    total = len(run.metrics) + len(run.attacks)
    for number, (name, metric) in enumerate(run.metrics.items()):
        run.report(f"measure {name}", number, total)

        def scores_of(generation: int, metric: Metric = metric) -> Scores:
            return metric.measure(
                evaluation_of(run, metric, state, fit_seconds, fit_rows, generation)
            )

        error = _ask(
            record,
            record.cost if metric.cost else record.scores,
            name,
            metric,
            scores_of,
            1 if metric.cost else run.seeds,
        )
        failure = failure or error
    for number, (name, attack) in enumerate(run.attacks.items(), len(run.metrics)):
        run.report(f"attack {name}", number, total)
        targets = [target_of(run, attack, state, generation) for generation in range(run.seeds)]

        def finds_of(
            generation: int, attack: Attack = attack, targets: Sequence[Target] = targets
        ) -> Scores:
            return attack.run(targets[generation])

        failure = _ask(record, record.attacks, name, attack, finds_of, run.seeds) or failure
        record.exhibits += [
            kept(name, exhibit, run.suite.settings.share_references)
            for exhibit in targets[0].exhibits[:EXHIBITS]
        ]
    run.report("measure", total, total)
    return failure


def _ask(
    record: RunRecord,
    into: dict[str, Score],
    name: str,
    judge: Metric | Attack,
    scores_of: Callable[[int], Scores],
    generations: int,
) -> Exception | None:
    measured: dict[str, Score] = {}
    reasons: dict[str, str] = {}
    reason, failure = "the suite's prompts do not allow it", None
    try:
        by_generation = _every_generation(judge, scores_of, generations)
        for score_name in dict.fromkeys(name for scores in by_generation for name in scores):
            score, by_seed = together(
                [scores[score_name] for scores in by_generation if score_name in scores]
            )
            if isinstance(score, Unmeasurable):
                reasons[score_name] = one_line(score)
                continue
            described = {
                "threat": judge.threat if isinstance(judge, Attack) else None,
                "shown": judge.shown.get(score_name),
                "by_seed": by_seed,
            }
            measured[score_name] = as_score(name, judge.version, score).model_copy(update=described)
            _warn_of_lost_pictures(record, score.details)
            if (
                isinstance(score, PerImage)
                and score.percentile is None
                and score.statistic in ("mean", "lower_median")
            ):
                means = score.table.mean(1)
                record.per_prompt[score_name] = {
                    prompt.id: round(float(m), 12)
                    for prompt, m in zip(score.prompts, means, strict=True)
                }
    except Unmeasurable as why:
        reason = one_line(why)
        record.warnings.append(f"{name}: {reason}")
    except Exception as error:
        reason, failure = f"{type(error).__name__}: {one_line(error)}", error
    for score_name in judge.names:
        if score_name not in measured:
            why_not = reasons.get(score_name, reason)
            into[score_name] = Score(
                value=None,
                unit="",
                higher_is_better=None,
                metric=name,
                metric_version=judge.version,
                reason=why_not,
            )
    into |= measured
    return failure


def _warn_of_lost_pictures(record: RunRecord, details: Mapping[str, Any]) -> None:
    """Links rot: a number over some of the prompts is no worse, but a reader must know of which."""
    expected, found = details.get("n_expected"), details.get("n_found")
    if isinstance(expected, int) and isinstance(found, int) and found < expected:
        warning = f"{expected - found} of {expected} memorized prompts have no training picture"
        if warning not in record.warnings:
            record.warnings.append(warning)


def _every_generation(
    judge: Metric | Attack, scores_of: Callable[[int], Scores], generations: int
) -> list[Scores]:
    """What it gives for each generation; one that cannot be measured at all costs the others
    nothing. Raises `Unmeasurable` when none can.
    """
    given: list[Scores] = []
    reasons: list[Unmeasurable] = []
    for generation in range(generations):
        try:
            given.append(_as_scores(scores_of(generation)))
        except Unmeasurable as why:
            reasons.append(why)
            given.append(dict.fromkeys(judge.names, why))
    if len(reasons) == generations:
        raise reasons[0]
    return given


def _as_scores(returned: Any) -> Scores:
    if not isinstance(returned, Mapping):
        raise UserError(f"it gave {type(returned).__name__} instead of its scores by name")
    return returned


def together(
    scores: Sequence[PerImage | PerSet | Unmeasurable],
) -> tuple[PerImage | PerSet | Unmeasurable, list[float]]:
    """One score from those of every generation, and the value of each; a single one stays as it is,
    with no such list.

    Images of all generations stand side by side in the rows of their prompts (prompts that not
    every generation has are left out), so an interval still resamples prompts. Of scores that only
    a set has, shares are pooled and other values averaged; the interval reaches from the lowest to
    the highest bound of any generation, which promises less than it could. Details are those of the
    first generation that has the score.
    """
    known = [score for score in scores if not isinstance(score, Unmeasurable)]
    if len(scores) == 1 or not known:
        return scores[0], []
    first = known[0]
    if isinstance(first, PerSet):
        sets = [score for score in known if isinstance(score, PerSet)]
        values, counts = [float(score.value) for score in sets], [score.n for score in sets]
        pooled = first.unit.startswith("share") and sum(counts) > 0
        bounds = [score.interval for score in sets if score.interval]
        return (
            replace(
                first,
                value=float(np.average(values, weights=counts if pooled else None)),
                n=sum(counts) if pooled else first.n,
                interval=(
                    (min(low for low, _ in bounds), max(high for _, high in bounds))
                    if bounds
                    else None
                ),
            ),
            values,
        )
    tables = [
        {prompt.id: row for prompt, row in zip(score.prompts, score.table, strict=True)}
        for score in known
        if isinstance(score, PerImage)
    ]
    prompts = [prompt for prompt in first.prompts if all(prompt.id in rows for rows in tables)]
    if not prompts:
        return Unmeasurable("no prompt has this score in every generation"), []
    table = np.array([np.concatenate([rows[prompt.id] for rows in tables]) for prompt in prompts])
    statistic = _statistic(first)
    by_seed = [
        float(statistic(np.concatenate([rows[prompt.id] for prompt in prompts]))) for rows in tables
    ]
    return replace(first, table=table, prompts=prompts), by_seed


def _statistic(score: PerImage) -> stats.Statistic:
    percentile = score.percentile
    return (
        stats.STATISTICS[score.statistic]
        if percentile is None
        else lambda values: np.percentile(values, percentile, axis=-1)
    )


def _interval(score: PerImage, table: np.ndarray) -> tuple[float, float] | None:
    """Over the prompts of `table`, all of the score's or those of a group; None where so few say
    nothing.
    """
    if len(table) < 2 or (
        score.percentile is not None and not stats.enough_for(score.percentile, len(table))
    ):
        return None
    return (
        stats.proportion_interval(table)
        if score.proportion
        else stats.cluster_bootstrap(table, _statistic(score))
    )


def evaluation_of(
    run: Run, metric: Metric, state: State, fit_seconds: float, fit_rows: int, generation: int = 0
) -> Evaluation:
    def samples(role: Role) -> SampleSet:
        if role not in metric.roles:
            raise UserError(
                f"metric {type(metric).__name__} reads prompts of the role {role} without declaring"
                " it in `roles`"
            )
        return run.samples(role, generation)

    def time(rounds: int, images: int) -> Timing:
        return time_against_none(run, state, rounds, images)

    return Evaluation(
        run.suite,
        run.device,
        samples,
        time,
        fit_seconds,
        fit_rows,
        run.report,
        run.cache,
        run.loaded,
    )


def target_of(run: Run, attack: Attack, state: State, generation: int = 0) -> Target:
    lent = False

    @contextmanager
    def weights() -> Iterator[Denoiser]:
        nonlocal lent
        with edited_weights(run.denoiser, run.method, state) as denoiser:
            lent = True
            try:
                yield denoiser
            finally:
                lent = False

    def generate(prompts: Sequence[Prompt], images: int) -> SampleSet:
        if lent:  # the store must not get images of weights that an attacker may have changed
            raise UserError(
                "an attack asked for generations while it held the weights; generate before or"
                " after, or sample with the denoiser"
            )
        samples = run.sample_set(prompts, images, generation)
        run.generate(state, samples.keys, pictures=True)
        return samples

    return Target(
        run.suite, run.device, attack.threat, generate, weights, run.report, map_=run.executor.map
    )


def kept(attack: str, exhibit: Exhibit, with_reference: bool) -> RecordedExhibit:
    """An exhibit as a record keeps it: small pictures, and training pictures only where the suite
    may share them.
    """
    return RecordedExhibit(
        attack=attack,
        prompt_id=exhibit.prompt.id,
        prompt=exhibit.prompt.text,
        group=exhibit.prompt.group,
        caption=exhibit.caption,
        pictures=[small_png(picture) for picture in exhibit.pictures[:PICTURES]],
        reference=(
            small_png(exhibit.reference)
            if with_reference and exhibit.reference is not None
            else None
        ),
    )


def as_score(name: str, version: int, score: PerImage | PerSet) -> Score:
    """Add to the numbers of a metric or attack what every score carries: interval, counts, groups,
    versions.
    """
    common: dict[str, Any] = {
        "unit": score.unit,
        "higher_is_better": score.higher_is_better,
        "metric": name,
        "metric_version": version,
        "details": score.details,
    }
    if isinstance(score, PerSet):
        low, high = score.interval or (None, None)
        return Score(
            value=score.value, low=low, high=high, n=score.n, prompts=score.prompts, **common
        )
    statistic = _statistic(score)
    low, high = _interval(score, score.table) or (None, None)
    by_group: dict[str, list[np.ndarray]] = {}
    for prompt, row in zip(score.prompts, score.table, strict=True):
        if prompt.group:
            by_group.setdefault(prompt.group, []).append(row)
    groups = {group: np.stack(rows) for group, rows in by_group.items()}
    intervals = (
        {group: _interval(score, table) for group, table in groups.items()}
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
