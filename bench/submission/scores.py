"""Checks of a submitted record's numbers: everything that follows from the values by prompt, and
what the suite asks for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np

from bench.contracts.attack import Attack
from bench.contracts.metric import Metric
from bench.records.record import RunRecord, Score
from bench.statistics import intervals as stats
from bench.submission.case import NAME, Case, is_built_in, judge_of, role_of, scores_of, short
from bench.suite.prompts import Prompt

# how far a number may be from what follows from the prompts' values: means in float32, groups with
# six decimals
VALUE, INTERVAL = 2e-6, 5e-6
SLACK = 1e-6  # of cosines: float32
SIZED = {"fid", "fid_matched", "kid"}  # built-in, of a number of images that the suite states
# built-in, no mean over prompts
PLAIN = SIZED | {
    "sscd_p95",
    "knn_unique",
    "clique_unique",
    "clique_precision",
    "clique_recall",
    "clique_clean_flagged",
}
POOLED = PLAIN - SIZED - {"knn_unique", "clique_unique"}  # not the mean over generations either
# have a number or not, depending on what was flagged or decided
UNFLAGGED = {"clique_precision", "clique_recall", "clique_clean_flagged"}
# nothing follows from them, nor they from anything
FREE = ("facts", "tuning", "environment", "details of scores", "captions of exhibits")
# of built-in attacks, one value a prompt; metrics say so themselves
ONE_A_PROMPT = {"clique_identified", "clique_extracted", "clique_extracted_sscd"}
# by unit; shares and costs have theirs too
RANGES = {"cosine": (-1.0, 1.0), "1 - cosine": (0.0, 2.0), "distance": (0.0, math.inf)}


def judges(case: Case) -> Iterator[str]:
    expected = {
        (part, name): key
        for key, judge in case.run.metrics.items()
        for part in ("cost" if judge.cost else "scores",)
        for name in judge.names
    }
    expected |= {
        ("attacks", name): key for key, judge in case.run.attacks.items() for name in judge.names
    }
    recorded = {(part, name): score for part, name, score in scores_of(case.record)}
    for part, name in sorted(expected.keys() - recorded.keys()):
        yield f"{part} has no {name}, which the suite's {expected[part, name]} gives"
    for (part, name), score in recorded.items():
        judge = judge_of(case, part, score)
        if judge is None:
            yield f"{part}.{name} is by '{score.metric[:NAME]}', which is none of the suite's"
            continue
        if name not in judge.names and is_built_in(case, part, score):
            yield f"{part}.{name} is no score of {score.metric}"
        elif (part, name) in expected and expected[part, name] != score.metric:
            yield f"{part}.{name} is by {score.metric} and not by {expected[part, name]}"
        if score.metric_version != judge.version:
            yield (
                f"{part}.{name} is of version {score.metric_version} of {score.metric}, which is"
                f" version {judge.version} here"
            )
        own = getattr(case.reference, part).get(name) if case.reference else None
        if score.value is None:
            if (
                own
                and own.value is not None
                and is_built_in(case, part, score)
                and not _may_be_null(case, name)
            ):
                yield (
                    f"{name} is null ({score.reason[:120]}), and our own record of this protocol"
                    " has a number"
                )
            else:
                case.notes.append(f"{name} is null: {score.reason[:120]}")
            continue
        if score.threat != (judge.threat if isinstance(judge, Attack) else None):
            yield (
                f"{part}.{name} has the threat model {score.threat}, which is not that of"
                f" {score.metric}"
            )
        if not isinstance(judge, Attack) and score.statistic != _statistic_of(judge, name):
            yield (
                f"{part}.{name} is the {score.statistic or 'mean'} over prompts, and {score.metric}"
                f" gives the {_statistic_of(judge, name) or 'mean'}"
            )
        if score.shown != judge.shown.get(name):
            yield f"{part}.{name} is not shown in tables as {score.metric} says"
        if (
            own
            and own.value is not None
            and (own.unit, own.higher_is_better) != (score.unit, score.higher_is_better)
        ):
            yield (
                f"{part}.{name} is '{score.unit}', better when higher: {score.higher_is_better};"
                f" our own: '{own.unit}', {own.higher_is_better}"
            )


def _is_pooled(judge: Metric | Attack, name: str) -> bool:
    """Whether a built-in's score is not the mean over its generations."""
    return name in POOLED or (not isinstance(judge, Attack) and name in judge.over_prompts)


def _statistic_of(judge: Metric | Attack, name: str) -> str | None:
    """What a score says that it is; a percentile says so in its details and is taken for a mean."""
    found = None if isinstance(judge, Attack) else judge.over_prompts.get(name)
    return None if found == "percentile" else found


def _is_plain(judge: Metric | Attack, name: str) -> bool:
    """Whether a built-in's score is neither a mean nor a median over prompts, so that nothing
    follows from their values.
    """
    return name in PLAIN or (
        not isinstance(judge, Attack)
        and judge.over_prompts.get(name, "lower_median") != "lower_median"
    )


def _may_be_null(case: Case, name: str) -> bool:
    identified = case.record.attacks.get("clique_identified")
    # what is flagged has a precision
    return name in UNFLAGGED and not (
        name == "clique_precision" and identified and identified.value
    )


def ranges(case: Case) -> Iterator[str]:
    for part, name, score in scores_of(case.record):
        if score.value is None:
            if not (
                score.low is score.high is None
                and not score.groups
                and not score.by_seed
                and name not in case.record.per_prompt
            ):
                yield f"{name} is null and has an interval, groups or values by prompt"
            continue
        if (score.low is None) != (score.high is None):
            yield f"{name} has one end of an interval"
        elif (
            score.low is not None
            and score.high is not None
            and not score.low - SLACK <= score.value <= score.high + SLACK
        ):
            yield f"{name} is {score.value} outside its interval [{score.low}, {score.high}]"
        yield from _groups_fit(name, score)
        low, high = (
            (0.0, math.inf)
            if part == "cost"
            else (
                (0.0, 1.0)
                if score.unit.startswith("share")
                else RANGES.get(score.unit, (-math.inf, math.inf))
            )
        )
        of_prompts = case.record.per_prompt.get(name, {}).values()
        for what, numbers in (
            ("value", [score.value]),
            ("interval", [end for end in (score.low, score.high) if end is not None]),
            ("value of a group", score.groups.values()),
            (
                "interval of a group",
                [end for ends in score.group_intervals.values() for end in ends],
            ),
            ("value of a generation", score.by_seed),
            ("value of a prompt", of_prompts),
        ):
            wrong = [number for number in numbers if not low - SLACK <= number <= high + SLACK]
            if wrong:
                yield (
                    f"{name} has the {what} {wrong[0]}, and '{score.unit}' is within [{low:g},"
                    f" {high:g}]"
                )
        if score.n < 1 or score.prompts < 0:
            yield f"{name} is of {score.n} images and {score.prompts} prompts"


def _groups_fit(name: str, score: Score) -> Iterator[str]:
    """Counts and intervals are those of groups that have a value; records from before there were
    any have none.
    """
    if score.group_prompts and score.group_prompts.keys() != score.groups.keys():
        yield f"{name} counts prompts of other groups than it has values of"
    for group, (low, high) in score.group_intervals.items():
        if group not in score.groups:
            yield f"{name} has an interval of {group[:NAME]}, which has no value"
        elif not low - SLACK <= score.groups[group] <= high + SLACK:
            yield (
                f"{name} is {score.groups[group]} for {group[:NAME]}, outside its interval [{low},"
                f" {high}]"
            )


def means(case: Case) -> Iterator[str]:
    measured = {
        name: (part, score)
        for part, name, score in scores_of(case.record)
        if score.value is not None
    }
    for name in case.record.per_prompt.keys() - measured.keys():
        yield f"per_prompt has {name[:NAME]}, which is no score"
    for name, (part, score) in measured.items():
        means, judge, built_in = (
            case.record.per_prompt.get(name),
            judge_of(case, part, score),
            is_built_in(case, part, score),
        )
        if judge is None or part == "cost":
            continue
        yield from _generations(case, judge, name, score, built_in)
        if means is None:
            if built_in and not _is_plain(judge, name):
                yield f"{name} has no values by prompt"
            elif set(score.groups) - {
                prompt.group
                for role in case.suite.settings.prompts
                for prompt in case.suite.prompts(role)
            }:
                yield f"{name} has groups that the suite has not"
            continue
        prompts = _prompts_of(case, judge, name, means, built_in)
        if prompts is None:
            yield (
                f"{name} has values of {len(means)} prompts that are not the suite's prompts of one"
                " role"
            )
            continue
        values = [means[prompt.id] for prompt in prompts]
        statistic, follows = _over_prompts(case, score)
        if follows and abs(float(statistic(np.array(values))) - cast(float, score.value)) > VALUE:
            yield (
                f"{name} is {score.value}, and the {'median' if score.statistic else 'mean'} over"
                f" its prompts is {float(statistic(np.array(values))):.6f}"
            )
        each, rest = divmod(score.n, len(prompts))
        if (
            score.prompts != len(prompts)
            or rest
            or (score.unit.startswith("share") and built_in and not _whole(np.array(values), each))
        ):
            yield (
                f"{name} is of {score.n} images and {score.prompts} prompts, which does not fit its"
                " values by prompt"
            )
        groups: dict[str, list[float]] = {}
        for prompt, value in zip(prompts, values, strict=True):
            if prompt.group:
                groups.setdefault(prompt.group, []).append(value)
        off = groups.keys() != score.groups.keys() or any(
            follows and abs(float(statistic(np.array(groups[group]))) - score.groups[group]) > VALUE
            for group in groups
        )
        if off:
            yield f"{name} has values by group that do not follow from its values by prompt"
        if any(count != len(groups.get(group, ())) for group, count in score.group_prompts.items()):
            yield f"{name} counts prompts by group that are not the suite's"


def _over_prompts(case: Case, score: Score) -> tuple[stats.Statistic, bool]:
    """What a score is of its prompts' values, and whether it follows from them: a median of several
    generations is over all of them.
    """
    return (
        stats.STATISTICS[score.statistic or "mean"],
        score.statistic is None or case.record.seeds == 1,
    )


def _generations(
    case: Case, judge: Metric | Attack, name: str, score: Score, built_in: bool
) -> Iterator[str]:
    """An attack may have been unable to tell in some generations, a built-in metric in none."""
    by_seed, seeds = score.by_seed, case.record.seeds
    most = seeds if seeds > 1 else 0
    least = 0 if not built_in else min(1, most) if isinstance(judge, Attack) else most
    if not least <= len(by_seed) <= most:
        yield f"{name} has values of {len(by_seed)} generations, and there are {seeds}"
    elif (
        by_seed
        and built_in
        and not _is_pooled(judge, name)
        and abs(float(np.mean(by_seed)) - cast(float, score.value)) > VALUE
    ):
        yield (
            f"{name} is {score.value}, and the mean over its generations is {np.mean(by_seed):.6f}"
        )


def _prompts_of(
    case: Case, judge: Metric | Attack, name: str, means: dict[str, float], built_in: bool
) -> list[Prompt] | None:
    """The prompts that the means are of, in the suite's order; None when they are not those of a
    role. Attacks and plug-ins may leave prompts out.
    """
    if built_in and not isinstance(judge, Attack):
        prompts = _measured_prompts(case, judge, name)
        return prompts if means.keys() == {prompt.id for prompt in prompts} else None
    roles = (
        judge.roles
        if not isinstance(judge, Attack)
        else (role_of(judge, name),)
        if built_in
        else case.suite.settings.prompts
    )
    found = (
        [prompt for prompt in case.suite.prompts(role) if prompt.id in means] for role in roles
    )
    return next((chosen for chosen in found if chosen and len(chosen) == len(means)), None)


def _measured_prompts(case: Case, judge: Metric, name: str) -> list[Prompt]:
    """The prompts that a built-in metric measures: all of its role, or those with a training
    picture.
    """
    return [
        prompt
        for prompt in case.suite.prompts(role_of(judge, name))
        if prompt.references or name not in judge.pictured
    ]


def _whole(shares: np.ndarray, of: int) -> bool:
    """Whether shares are whole numbers of `of` images, as far as written decimals tell."""
    return bool((np.abs(shares * of - np.round(shares * of)) <= SLACK * of).all())


def intervals(case: Case) -> Iterator[str]:
    if case.record.intervals != stats.INTERVALS:
        case.notes.append(
            f"intervals were made in another way ('{case.record.intervals[:NAME]}') and cannot be"
            " made again"
        )
        return
    for part, name, score in scores_of(case.record):
        judge, means = judge_of(case, part, score), case.record.per_prompt.get(name)
        if score.value is None or judge is None or part == "cost" or not means:
            continue
        prompts = _prompts_of(case, judge, name, means, is_built_in(case, part, score))
        if prompts is None or not _over_prompts(case, score)[1]:
            continue
        if len(prompts) < 2:
            again: list[tuple[float | None, float | None]] = [(None, None)]
        else:
            again = list(
                _intervals_of(
                    np.array([[means[prompt.id]] for prompt in prompts]),
                    score,
                    is_built_in(case, part, score),
                )
            )
        yield from _group_intervals(
            case, score, name, prompts, means, is_built_in(case, part, score)
        )
        if not any(_near(score, low, high) for low, high in again):
            yield (
                f"{name} has the interval [{score.low}, {score.high}], and [{again[0][0]},"
                f" {again[0][1]}] follows from its values by prompt"
            )


def _group_intervals(
    case: Case,
    score: Score,
    name: str,
    prompts: Sequence[Prompt],
    means: dict[str, float],
    built_in: bool,
) -> Iterator[str]:
    each = max(score.n // len(prompts), 1)
    for group, (low, high) in score.group_intervals.items():
        values = np.array([[means[prompt.id]] for prompt in prompts if prompt.group == group])
        if len(values) < 2 or not any(
            _close((low, high), *again) for again in _intervals_of(values, score, built_in, each)
        ):
            yield (
                f"{name} has the interval [{low}, {high}] for {group[:NAME]}, which does not follow"
                " from its values by prompt"
            )


def _intervals_of(
    means: np.ndarray, score: Score, built_in: bool, images: int = 0
) -> Iterator[tuple[float, float]]:
    """Intervals that may belong to prompts' means `[prompts, 1]`.

    Whether a plug-in's score is a proportion does not stand in a record.
    """
    each = images or max(score.n // len(means), 1)
    if score.unit.startswith("share") and _whole(means, each):
        # as before it was written with so many decimals: the bootstrap counts ties
        means = np.round(means * each) / each
    # With several images a prompt the exact interval is for those that all agree.
    if (
        (score.unit.startswith("share") or not built_in)
        and np.isin(means, (0.0, 1.0)).all()
        and (each == 1 or means.min() == means.max())
    ):
        yield stats.proportion_interval(means)
        if built_in:
            return
    yield (
        stats.cluster_bootstrap(means, stats.STATISTICS[score.statistic])
        if score.statistic
        else stats.cluster_bootstrap(means)
    )


def _near(score: Score, low: float | None, high: float | None) -> bool:
    if score.low is None or score.high is None or low is None or high is None:
        return score.low is score.high is low is high is None
    return _close((score.low, score.high), low, high)


def _close(recorded: tuple[float, float], low: float, high: float) -> bool:
    # The last decimal of a prompt may move a resample across the mean, and the correction of the
    # bias with it: by less than a thousandth of the width.
    allowed = INTERVAL + 1e-3 * (high - low)
    return abs(recorded[0] - low) <= allowed and abs(recorded[1] - high) <= allowed


def counts(case: Case) -> Iterator[str]:
    seeds, settings = case.record.seeds, case.suite.settings.prompts
    wanted = {
        role: len(case.suite.prompts(role)) * settings[role].images_per_prompt * seeds
        for role in case.run.roles
    }
    if case.record.images != wanted:
        yield (
            f"images are {short(case.record.images)}, and the suite with {seeds}"
            f" seed{'s' if seeds > 1 else ''} has {short(wanted)}"
        )
    for part, name, score in scores_of(case.record):
        judge = judge_of(case, part, score)
        if (
            score.value is None
            or judge is None
            or part == "cost"
            or not is_built_in(case, part, score)
        ):
            continue
        generations = (len(score.by_seed) or 1) if isinstance(judge, Attack) else seeds
        once = name in ONE_A_PROMPT or (
            not isinstance(judge, Attack) and name in judge.one_a_prompt
        )
        each = (
            1
            if once
            else (
                getattr(judge, "images", 1)
                if isinstance(judge, Attack)
                else settings[role_of(judge, name)].images_per_prompt
            )
        )
        n = judge.images if name in SIZED else score.prompts * each * generations  # type: ignore[union-attr]
        if (name not in PLAIN or part == "scores") and score.n != n:
            yield f"{name} is of {score.n} images, and the suite asks for {n}"
        if (
            not isinstance(judge, Attack)
            and _is_plain(judge, name)
            and score.prompts != len(_measured_prompts(case, judge, name))
        ):
            yield (
                f"{name} is of {score.prompts} prompts, and the suite has"
                f" {len(_measured_prompts(case, judge, name))}"
            )


def costs(case: Case) -> Iterator[str]:
    """A built-in method evaluates the model for at least one branch at each step; what another does
    is not known.
    """
    score, least = case.record.cost.get("nfe_per_image"), case.suite.settings.model.steps
    if score is None or score.value is None or not is_built_in(case, "cost", score):
        return
    if score.value <= 0:
        yield f"nfe_per_image is {score.value}, and no image is made without the model"
    elif score.value < least and f"method {case.record.method}" not in case.run.sources:
        yield f"nfe_per_image is {score.value}, and sampling takes at least {least}, one a step"


def unchecked(record: RunRecord) -> list[str]:
    """What is believed, because it follows from nothing else in the record: scores with a number
    and no values by prompt, and free fields.
    """
    return [
        *(
            name
            for _, name, score in scores_of(record)
            if score.value is not None and name not in record.per_prompt
        ),
        *FREE,
    ]
