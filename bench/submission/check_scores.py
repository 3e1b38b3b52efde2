"""Checks of a submitted record's numbers: what follows from its values by prompt, and what the
suite asks for.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from typing import cast

import numpy as np

from bench.contracts.attack import Attack
from bench.contracts.metric import Metric
from bench.records.record import RunRecord, Score
from bench.statistics import intervals as stats
from bench.statistics.ranges import range_of, within
from bench.statistics.units import Design, Units
from bench.submission.claim import NAME, Claim, is_built_in, judge_of, role_of, scores_of, short
from bench.suite.design import design_of
from bench.suite.prompts import Prompt

# How far a number may be from what follows from the prompts' values: means are taken in float32,
# and values of groups have six decimals.
VALUE, INTERVAL = 2e-6, 5e-6
SLACK = 1e-6  # of cosines, which are float32
SIZED = {"fid", "fid_matched", "kid"}  # built-in scores of a number of images that the suite states
# Built-in scores that are no mean over prompts.
PLAIN = SIZED | {
    "sscd_p95",
    "recall",
    "knn_unique",
    "clique_unique",
    "clique_precision",
    "clique_recall",
    "clique_clean_flagged",
}
# Of these, those that are not the mean over generations either.
POOLED = PLAIN - SIZED - {"recall", "knn_unique", "clique_unique"}
# Scores that have a number or none, depending on what was flagged or decided.
UNFLAGGED = {"clique_precision", "clique_recall", "clique_clean_flagged"}
# Parts of a record that nothing else in it confirms or contradicts: they are believed.
FREE = ("facts", "tuning", "environment", "details of scores", "captions of exhibits")
# Scores of built-in attacks that have one value for each prompt; metrics state theirs.
ONE_A_PROMPT = {"clique_identified", "clique_extracted", "clique_extracted_sscd"}


def judges(claim: Claim) -> Iterator[str]:
    """Every score is one that the suite's metrics and attacks give, and says of itself what they
    say; a number is null only where it may be.
    """
    expected = {
        ("cost" if metric.cost else "scores", name): key
        for key, metric in claim.experiment.metrics.items()
        for name in metric.names
    }
    expected |= {
        ("attacks", name): key
        for key, attack in claim.experiment.attacks.items()
        for name in attack.names
    }
    recorded = {(part, name): score for part, name, score in scores_of(claim.record)}
    for part, name in sorted(expected.keys() - recorded.keys()):
        yield f"{part} has no {name}, which the suite's {expected[part, name]} gives"
    for (part, name), score in recorded.items():
        judge = judge_of(claim, part, score)
        if judge is None:
            yield f"{part}.{name} is by '{score.metric[:NAME]}', which is none of the suite's"
            continue
        yield from _origin(claim, judge, part, name, score, expected.get((part, name)))
        own = getattr(claim.reference, part).get(name) if claim.reference else None
        if score.value is None:
            yield from _null(claim, part, name, score, own)
        else:
            yield from _declarations(judge, part, name, score, own)


def _origin(
    claim: Claim, judge: Metric | Attack, part: str, name: str, score: Score, expected: str | None
) -> Iterator[str]:
    """A score is by the metric or attack that gives it, in the version that is here.

    `expected` is the one of the suite that gives a score of this name.
    """
    if name not in judge.names and is_built_in(claim, part, score):
        yield f"{part}.{name} is no score of {score.metric}"
    elif expected is not None and expected != score.metric:
        yield f"{part}.{name} is by {score.metric} and not by {expected}"
    if score.metric_version != judge.version:
        yield (
            f"{part}.{name} is of version {score.metric_version} of {score.metric}, which is"
            f" version {judge.version} here"
        )


def _null(claim: Claim, part: str, name: str, score: Score, own: Score | None) -> Iterator[str]:
    """A score without a number: a failure where our own record has one, else a note."""
    has_number = own is not None and own.value is not None
    if has_number and is_built_in(claim, part, score) and not _may_be_null(claim, name, score):
        yield (
            f"{name} is null ({score.reason[:120]}), and our own record of this protocol"
            " has a number"
        )
    else:
        claim.notes.append(f"{name} is null: {score.reason[:120]}")


def _declarations(
    judge: Metric | Attack, part: str, name: str, score: Score, own: Score | None
) -> Iterator[str]:
    """Threat model, statistic, direction and unit are those of the metric or attack."""
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
    if own is None or own.value is None:
        return
    if (own.unit, own.higher_is_better) != (score.unit, score.higher_is_better):
        yield (
            f"{part}.{name} is '{score.unit}', better when higher: {score.higher_is_better};"
            f" our own: '{own.unit}', {own.higher_is_better}"
        )


def _is_pooled(judge: Metric | Attack, name: str) -> bool:
    """Whether a built-in's score is not the mean over its generations."""
    of_joined = isinstance(judge, Attack) and judge.may_be_null(name)  # a ratio of joined tables
    return name in POOLED or of_joined or (isinstance(judge, Metric) and name in judge.over_prompts)


def _statistic_of(judge: Metric | Attack, name: str) -> str | None:
    """The statistic that a record states for a score: None for a mean, and for a percentile, which
    stands in the details.
    """
    statistic = None if isinstance(judge, Attack) else judge.over_prompts.get(name)
    return None if statistic == "percentile" else statistic


def _is_plain(judge: Metric | Attack, name: str) -> bool:
    """Whether a built-in's score is neither a mean nor a median over prompts, so that nothing
    follows from their values.
    """
    if isinstance(judge, Attack):
        return name in PLAIN or judge.is_of_set(name)
    return name in PLAIN or (judge.over_prompts.get(name, "lower_median") != "lower_median")


def _may_be_null(claim: Claim, name: str, score: Score) -> bool:
    """Whether a score has no number where nothing was flagged (what is flagged has a precision), or
    where its attack says so.
    """
    attack = claim.experiment.attacks.get(score.metric)
    if attack and attack.may_be_null(name):
        return True
    identified = claim.record.attacks.get("clique_identified")
    has_precision = name == "clique_precision" and identified and identified.value
    return name in UNFLAGGED and not has_precision


def ranges(claim: Claim) -> Iterator[str]:
    """Every number lies within the range of its unit, and every value within its interval."""
    for part, name, score in scores_of(claim.record):
        if score.value is None:
            if not (
                score.low is score.high is None
                and not score.groups
                and not score.by_seed
                and name not in claim.record.per_prompt
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
        low, high = (0.0, math.inf) if part == "cost" else range_of(score.unit)
        for what, numbers in _numbers_of(claim.record, name, score):
            wrong = [number for number in numbers if not low - SLACK <= number <= high + SLACK]
            if wrong:
                yield (
                    f"{name} has the {what} {wrong[0]}, and '{score.unit}' is within [{low:g},"
                    f" {high:g}]"
                )
        if score.n < 1 or score.prompts < 0:
            yield f"{name} is of {score.n} images and {score.prompts} prompts"


def _numbers_of(
    record: RunRecord, name: str, score: Score
) -> Iterator[tuple[str, Collection[float]]]:
    """All numbers of a measured score that have its unit, with what they are."""
    yield "value", [cast(float, score.value)]
    yield "interval", [end for end in (score.low, score.high) if end is not None]
    yield "value of a group", score.groups.values()
    yield "interval of a group", [end for ends in score.group_intervals.values() for end in ends]
    yield "value of a generation", _known(score)
    yield "value of a prompt", record.per_prompt.get(name, {}).values()


def _known(score: Score) -> list[float]:
    """The values of the generations that have one."""
    return [value for value in score.by_seed if value is not None]


def _groups_fit(name: str, score: Score) -> Iterator[str]:
    """Counts and intervals are those of groups that have a value; older records have no counts."""
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


def means(claim: Claim) -> Iterator[str]:
    """Values, values by group and counts of prompts follow from the values by prompt."""
    measured = {
        name: (part, score)
        for part, name, score in scores_of(claim.record)
        if score.value is not None
    }
    for name in claim.record.per_prompt.keys() - measured.keys():
        yield f"per_prompt has {name[:NAME]}, which is no score"
    for name, (part, score) in measured.items():
        judge, built_in = judge_of(claim, part, score), is_built_in(claim, part, score)
        if judge is None or part == "cost":
            continue
        yield from _generations(claim, judge, name, score, built_in)
        of_prompts = claim.record.per_prompt.get(name)
        if of_prompts is None:
            yield from _without_prompts(claim, judge, name, score, built_in)
            continue
        prompts = _prompts_of(claim, judge, name, of_prompts, built_in)
        if prompts is None:
            yield (
                f"{name} has values of {len(of_prompts)} prompts that are not the suite's prompts"
                " of one role"
            )
            continue
        values = [of_prompts[prompt.id] for prompt in prompts]
        yield from _value_follows(claim, name, score, values, built_in)
        yield from _groups_follow(claim, name, score, prompts, values)


def _without_prompts(
    claim: Claim, judge: Metric | Attack, name: str, score: Score, built_in: bool
) -> Iterator[str]:
    """A score without values by prompt: one that cannot have any, with groups of the suite."""
    if built_in and not _is_plain(judge, name):
        yield f"{name} has no values by prompt"
    elif set(score.groups) - {
        prompt.group
        for role in claim.suite.settings.prompts
        for prompt in claim.suite.prompts(role)
    }:
        yield f"{name} has groups that the suite has not"


def _value_follows(
    claim: Claim, name: str, score: Score, values: list[float], built_in: bool
) -> Iterator[str]:
    """A score follows from its values by prompt, and its counts fit them."""
    statistic, follows = _over_prompts(claim, score)
    array = np.array(values)
    if follows and abs(float(statistic(array)) - cast(float, score.value)) > VALUE:
        yield (
            f"{name} is {score.value}, and the {'median' if score.statistic else 'mean'} over"
            f" its prompts is {float(statistic(array)):.6f}"
        )
    each, rest = divmod(score.n, len(values))
    if (
        score.prompts != len(values)
        or rest
        or (score.unit.startswith("share") and built_in and not _whole(array, each))
    ):
        yield (
            f"{name} is of {score.n} images and {score.prompts} prompts, which does not fit its"
            " values by prompt"
        )


def _groups_follow(
    claim: Claim, name: str, score: Score, prompts: Sequence[Prompt], values: list[float]
) -> Iterator[str]:
    """Values by group follow from the values of the suite's prompts of each group."""
    statistic, follows = _over_prompts(claim, score)
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values, strict=True):
        if prompt.group:
            groups.setdefault(prompt.group, []).append(value)
    if groups.keys() != score.groups.keys() or any(
        follows and abs(float(statistic(np.array(groups[group]))) - score.groups[group]) > VALUE
        for group in groups
    ):
        yield f"{name} has values by group that do not follow from its values by prompt"
    if any(count != len(groups.get(group, ())) for group, count in score.group_prompts.items()):
        yield f"{name} counts prompts by group that are not the suite's"


def _over_prompts(claim: Claim, score: Score) -> tuple[stats.Statistic, bool]:
    """The statistic that a score is of its prompts' values, and whether it follows from them.

    The median of several generations does not: it is over all their values.
    """
    return (
        stats.STATISTICS[score.statistic or "mean"],
        score.statistic is None or claim.record.seeds == 1,
    )


def _generations(
    claim: Claim, judge: Metric | Attack, name: str, score: Score, built_in: bool
) -> Iterator[str]:
    """A score has a value for every generation, and is their mean.

    An attack may have been unable to decide in some generations, a built-in metric in none.
    """
    by_seed, seeds = _known(score), claim.record.seeds
    asked = seeds if not isinstance(judge, Attack) or judge.anew else 1
    most = asked if asked > 1 else 0
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
    claim: Claim, judge: Metric | Attack, name: str, means: dict[str, float], built_in: bool
) -> list[Prompt] | None:
    """The prompts that the means are of, in the suite's order; None when they are not those of one
    role.

    Attacks and plug-ins may leave prompts out.
    """
    if built_in and not isinstance(judge, Attack):
        prompts = list(judge.measured(claim.suite, name))
        return prompts if means.keys() == {prompt.id for prompt in prompts} else None
    roles = (
        judge.roles
        if not isinstance(judge, Attack)
        else (role_of(judge, name),)
        if built_in
        else claim.suite.settings.prompts
    )
    by_role = (
        [prompt for prompt in claim.suite.prompts(role) if prompt.id in means] for role in roles
    )
    return next((found for found in by_role if found and len(found) == len(means)), None)


def _whole(shares: np.ndarray, of: int) -> bool:
    """Whether shares are whole numbers of `of` images, as far as written decimals tell."""
    return bool((np.abs(shares * of - np.round(shares * of)) <= SLACK * of).all())


def intervals(claim: Claim) -> Iterator[str]:
    """Intervals are those that follow from the values by prompt, where they are made as here."""
    if claim.record.intervals != stats.INTERVALS:
        claim.notes.append(
            f"intervals were made in another way ('{claim.record.intervals[:NAME]}') and cannot be"
            " made again"
        )
        return
    for part, name, score in scores_of(claim.record):
        judge, of_prompts = judge_of(claim, part, score), claim.record.per_prompt.get(name)
        if score.value is None or judge is None or part == "cost" or not of_prompts:
            continue
        built_in = is_built_in(claim, part, score)
        prompts = _prompts_of(claim, judge, name, of_prompts, built_in)
        if prompts is None or not _over_prompts(claim, score)[1]:
            continue
        possible: list[tuple[float | None, float | None]] = [(None, None)]
        design = design_of(claim.suite, role_of(judge, name))
        units = design.units([prompt.id for prompt in prompts]) if prompts else None
        if (len(units.strata) if units else len(prompts)) >= 2:
            values = np.array([[of_prompts[prompt.id]] for prompt in prompts])
            possible = list(_intervals_of(values, score, built_in, units))
            yield from _group_intervals(score, name, prompts, of_prompts, built_in, design)
        if not any(_near(score, low, high) for low, high in possible):
            yield (
                f"{name} has the interval [{score.low}, {score.high}], and [{possible[0][0]},"
                f" {possible[0][1]}] follows from its values by prompt"
            )


def _group_intervals(
    score: Score,
    name: str,
    prompts: Sequence[Prompt],
    means: dict[str, float],
    built_in: bool,
    design: Design,
) -> Iterator[str]:
    """The interval of every group is one that follows from the values of its prompts."""
    each = max(score.n // len(prompts), 1)
    for group, (low, high) in score.group_intervals.items():
        ids = [prompt.id for prompt in prompts if prompt.group == group]
        values = np.array([[means[prompt]] for prompt in ids])
        units = design.units(ids) if ids else None
        if len(values) < 2 or not any(
            _close((low, high), *again)
            for again in _intervals_of(values, score, built_in, units, each)
        ):
            yield (
                f"{name} has the interval [{low}, {high}] for {group[:NAME]}, which does not follow"
                " from its values by prompt"
            )


def _intervals_of(
    means: np.ndarray, score: Score, built_in: bool, units: Units | None, images: int = 0
) -> Iterator[tuple[float, float]]:
    """The intervals that may belong to prompts' means `[prompts, 1]`, of `images` images each (0:
    as many as the score counts).

    There may be two for a plug-in, as a record does not say whether its score is a proportion.
    """
    each = images or max(score.n // len(means), 1)
    share = score.unit.startswith("share")
    if share and _whole(means, each):
        means = np.round(means * each) / each  # as it was before its decimals were cut off
    if (share or not built_in) and each == 1 and np.isin(means, (0.0, 1.0)).all():
        yield stats.proportion_interval(means, units)
        if built_in:
            return
    if score.statistic:
        yield stats.cluster_bootstrap(means, stats.STATISTICS[score.statistic], units=units)
        return
    if score.unit == stats.OF_SHARES:
        yield stats.difference_of_shares(means[:, 0], units)
        if built_in:
            return
    if (share or not built_in) and means.min() >= 0 and means.max() <= 1:
        yield stats.share_interval(means[:, 0], units)
    yield within(score.unit, stats.cluster_bootstrap(means, units=units), means)


def _near(score: Score, low: float | None, high: float | None) -> bool:
    """Whether a score has this interval, or none where there is none."""
    if score.low is None or score.high is None or low is None or high is None:
        return score.low is score.high is low is high is None
    return _close((score.low, score.high), low, high)


def _close(recorded: tuple[float, float], low: float, high: float) -> bool:
    # The last decimal of a prompt may move a resample across the mean, and the correction of the
    # bias with it: by less than a thousandth of the width.
    allowed = INTERVAL + 1e-3 * (high - low)
    return abs(recorded[0] - low) <= allowed and abs(recorded[1] - high) <= allowed


def counts(claim: Claim) -> Iterator[str]:
    """There are as many images and prompts as the suite asks for, of the run and of every score."""
    seeds, settings = claim.record.seeds, claim.suite.settings.prompts
    wanted = {
        role: len(claim.suite.prompts(role)) * settings[role].images_per_prompt * seeds
        for role in claim.experiment.roles
    }
    if claim.record.images != wanted:
        yield (
            f"images are {short(claim.record.images)}, and the suite with {seeds}"
            f" seed{'s' if seeds > 1 else ''} has {short(wanted)}"
        )
    for part, name, score in scores_of(claim.record):
        judge = judge_of(claim, part, score)
        if score.value is None or judge is None or part == "cost":
            continue
        if not is_built_in(claim, part, score):
            continue
        images = _images_of(claim, judge, name, score)
        counted = part == "scores" or not _is_plain(judge, name)
        if counted and score.n != images:
            yield f"{name} is of {score.n} images, and the suite asks for {images}"
        if (
            not isinstance(judge, Attack)
            and _is_plain(judge, name)
            and score.prompts != len(judge.measured(claim.suite, name))
        ):
            yield (
                f"{name} is of {score.prompts} prompts, and the suite has"
                f" {len(judge.measured(claim.suite, name))}"
            )


def _images_of(claim: Claim, judge: Metric | Attack, name: str, score: Score) -> int:
    """The number of images that a built-in's score is of, given its number of prompts."""
    if isinstance(judge, Attack):
        each = 1 if name in ONE_A_PROMPT else judge.values_a_prompt(name)
        return score.prompts * each * (len(_known(score)) or 1)
    if name in SIZED:
        return int(judge.images)  # type: ignore[attr-defined]  # a parameter of these metrics
    once = name in ONE_A_PROMPT or name in judge.one_a_prompt
    settings = claim.suite.settings.prompts[role_of(judge, name)]
    return score.prompts * (1 if once else settings.images_per_prompt) * claim.record.seeds


def costs(claim: Claim) -> Iterator[str]:
    """Images are made with the model, by a built-in method with at least one evaluation a step;
    what other methods do is not known.
    """
    least = claim.suite.settings.model.steps
    for name in ("nfe_per_image", "nfe_per_image_clean"):
        score = claim.record.cost.get(name)
        if score is None or score.value is None or not is_built_in(claim, "cost", score):
            continue
        if score.value <= 0:
            yield f"{name} is {score.value}, and no image is made without the model"
        elif (
            score.value < least and f"method {claim.record.method}" not in claim.experiment.sources
        ):
            yield f"{name} is {score.value}, and sampling takes at least {least}, one a step"


def unchecked(record: RunRecord) -> list[str]:
    """What is believed, because it follows from nothing else in the record: scores that have a
    number and no values by prompt, and free fields.
    """
    return [
        *(
            name
            for _, name, score in scores_of(record)
            if score.value is not None and name not in record.per_prompt
        ),
        *FREE,
    ]
