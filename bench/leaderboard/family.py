"""The family of claims that a board makes: every row against `none`, in both headline columns.

With forty rows and two columns, two of eighty intervals leave out 0 by chance alone. So the words
"clearly better" need more than an interval: a p-value of the paired difference (random signs),
corrected by Holm over the whole family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bench.leaderboard.front import REPLICATION, UTILITY, headline
from bench.records.parts import REFERENCE, design_for
from bench.records.record import RunRecord
from bench.statistics.claims import holm, sign_flip_p

LEVEL = 0.05


def adjusted(
    records: Sequence[RunRecord], references: Mapping[int, RunRecord]
) -> dict[str, dict[str, float]]:
    """By run and score, the adjusted p-value of its difference to the reference of as many seeds;
    for headline columns with values by prompt.
    """
    claims: list[tuple[str, str]] = []
    p_values: list[float] = []
    for record in records:
        reference = references.get(record.seeds)
        if reference is None or record.method == REFERENCE:
            continue
        for name in (headline(record, REPLICATION), headline(record, UTILITY)):
            mine, theirs = (one.per_prompt.get(name, {}) for one in (record, reference))
            shared = sorted(mine.keys() & theirs.keys())
            if len(shared) > 1:
                differences = np.array([mine[prompt] - theirs[prompt] for prompt in shared])
                units = design_for(record, name).units(shared)
                claims.append((record.run, name))
                p_values.append(sign_flip_p(units.totals(differences) if units else differences))
    found: dict[str, dict[str, float]] = {}
    for (run, name), value in zip(claims, holm(p_values), strict=True):
        found.setdefault(run, {})[name] = value
    return found
