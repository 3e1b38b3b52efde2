"""Which rows no other row beats in replication, clean utility and evaluations together.

One row beats another when it is clearly better in at least one of the three and clearly worse in
none: of scores, by the interval of the difference paired by prompt; of evaluations, by their
number. So a difference that could be chance neither puts a row on the front nor takes it off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.records.parts import design_for
from bench.records.record import RunRecord, Score
from bench.statistics import intervals as stats
from bench.statistics.claims import rank_intervals

# The first of each that a record has counts.
REPLICATION = ("copies", "sscd")
UTILITY = ("clip_score_clean",)  # that of memorized prompts falls where copies go
EVALUATIONS = ("nfe_per_image_clean", "nfe_per_image")


def headline(record: RunRecord, names: Sequence[str]) -> str:
    """The first of the names that the record has a score of, else the last of them."""
    return next((name for name in names if name in record.scores), names[-1])


def replication_of(record: RunRecord) -> Score | None:
    """The score that rows are ordered by."""
    return record.scores.get(headline(record, REPLICATION))


def front(records: Sequence[RunRecord]) -> set[str]:
    """The runs that no other beats; a run that lacks one of the three numbers is not among them."""
    rated = [record for record in records if _rated(record)]
    return {record.run for record in rated if not _beaten(record, rated)}


def ranks(records: Sequence[RunRecord]) -> dict[str, tuple[int, int]]:
    """By run, the least and the greatest rank in replication that the data allow, all rows together
    with 95 % confidence; over the prompts that all of them have values for, and without runs that
    have none. The records are of equal effort, as those of one table are.
    """
    values = {
        record.run: record.per_prompt[name]
        for record in records
        if (name := headline(record, REPLICATION)) in record.per_prompt
    }
    shared = sorted(set.intersection(*(set(means) for means in values.values()))) if values else []
    if not shared:
        return {}
    table = np.array([[means[prompt] for prompt in shared] for means in values.values()])
    units = {
        score.unit
        for record in records
        if (score := replication_of(record)) and record.run in values
    }
    shares = all(unit.startswith("share") for unit in units)
    first = next(record for record in records if record.run in values)
    hanging = design_for(first, headline(first, REPLICATION)).units(shared)
    return dict(zip(values, rank_intervals(table, shares=shares, units=hanging), strict=True))


Difference = tuple[float, float, float]  # of two rows: mean, low, high


def each_against_each(records: Sequence[RunRecord]) -> list[list[Difference | None]]:
    """Replication of each record less that of each other, paired by prompt with its 95 % interval;
    None on the diagonal and where two records share fewer than two prompts.
    """
    names = [headline(record, REPLICATION) for record in records]
    means = [record.per_prompt.get(name, {}) for record, name in zip(records, names, strict=True)]
    places = [(i, j) for i in range(len(records)) for j in range(i)]
    keys = {place: f"{place[0]} {place[1]}" for place in places}
    shares = [
        keys[place]
        for place in places
        if (score := records[place[0]].scores.get(names[place[0]]))
        and score.unit.startswith("share")
    ]
    found = stats.paired_differences(
        {keys[i, j]: means[i] for i, j in places},
        {keys[i, j]: means[j] for i, j in places},
        shares=shares,
        designs={keys[i, j]: design_for(records[i], names[i]) for i, j in places},
    )
    table: list[list[Difference | None]] = [[None] * len(records) for _ in records]
    for i, j in places:
        if difference := found.get(keys[i, j]):
            value, low, high = difference
            table[i][j], table[j][i] = difference, (-value, -high, -low)
    return table


def _beaten(record: RunRecord, others: Sequence[RunRecord]) -> bool:
    rivals = [other for other in others if other is not record]
    names = (headline(record, REPLICATION), headline(record, UTILITY))
    values, baseline = {}, {}
    for place, rival in enumerate(rivals):
        for name in names:
            values[f"{place} {name}"] = rival.per_prompt.get(name, {})
            baseline[f"{place} {name}"] = record.per_prompt.get(name, {})
    shares = [key for key in values if record.scores[key.split(" ")[1]].unit.startswith("share")]
    own = {name: design_for(record, name) for name in names}
    designs = {key: own[key.split(" ")[1]] for key in values}
    found = stats.paired_differences(values, baseline, shares=shares, designs=designs)
    for place, rival in enumerate(rivals):
        signs = [_advantage(rival, record, name, found.get(f"{place} {name}")) for name in names]
        spared = _number(_evaluations(record)) - _number(_evaluations(rival))
        signs.append((spared > 0) - (spared < 0))
        if min(signs) >= 0 and max(signs) > 0:
            return True
    return False


def _advantage(
    rival: RunRecord, record: RunRecord, name: str, paired: tuple[float, float, float] | None
) -> int:
    """1 where the rival is clearly better in a score, -1 where it is clearly worse, else 0."""
    mine, theirs = record.scores[name], rival.scores.get(name)
    if theirs is None or theirs.value is None or mine.value is None:
        return 0
    if paired is None:  # no values by prompt: the numbers themselves
        low = high = float(theirs.value) - float(mine.value)
    else:
        _, low, high = paired
    sign = (low > 0) - (high < 0)
    return sign if mine.higher_is_better else -sign


def _rated(record: RunRecord) -> bool:
    scores = [record.scores.get(headline(record, names)) for names in (REPLICATION, UTILITY)]
    numbers = [*scores, _evaluations(record)]
    return all(number is not None and number.value is not None for number in numbers)


def _evaluations(record: RunRecord) -> Score | None:
    return next((record.cost[name] for name in EVALUATIONS if name in record.cost), None)


def _number(score: Score | None) -> float:
    return float(score.value) if score and score.value is not None else 0.0
