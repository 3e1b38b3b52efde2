"""The family of claims that a board makes: every row against `none`, in replication, in clean
utility, and in what the extraction attack gets.

With forty rows and three columns, six of 120 intervals leave out 0 by chance alone. So the words
"clearly better" need more than an interval: a p-value of the paired difference (random signs),
corrected by Holm over the whole family.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.leaderboard.front import REPLICATION, UTILITY, headline
from bench.records.parts import REFERENCE, design_for
from bench.records.record import RunRecord
from bench.statistics.claims import holm, sign_flip_p

LEVEL = 0.05
EXTRACTED = "clique_extracted"


def adjusted(
    records: Sequence[RunRecord], reference: RunRecord | None
) -> dict[str, dict[str, float]]:
    """By run and score, the adjusted p-value of its difference to the reference, which is of the
    same effort; for columns of the family with values by prompt.
    """
    if reference is None:
        return {}
    claims: list[tuple[str, str]] = []
    p_values: list[float] = []
    for record in records:
        if record.method == REFERENCE:
            continue
        for name in (headline(record, REPLICATION), headline(record, UTILITY), EXTRACTED):
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
