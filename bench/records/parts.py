"""What a record's numbers depend on: the parts of a protocol that two records must share to be
compared.
"""

from __future__ import annotations

from typing import Any, Literal

from bench.records.record import RunRecord
from bench.statistics.units import Design

REFERENCE = "none"


# of a record, in the order of the tables
PARTS: tuple[Literal["scores"], Literal["attacks"], Literal["cost"]] = ("scores", "attacks", "cost")


Protocol = tuple[int, tuple[tuple[str, int], ...], str, str]


def protocol(record: RunRecord) -> Protocol:
    """What two records must share to stand in one table: version and fingerprint of the suite, and
    of every metric and attack the version. Last stands the track, which the fingerprint covers
    too: no record of one may ever stand among those of the other.
    """
    versions = {
        score.metric: score.metric_version
        for score in (*record.scores.values(), *record.cost.values(), *record.attacks.values())
    }
    return (
        record.suite_version,
        tuple(sorted(versions.items())),
        record.suite_fingerprint,
        record.track,
    )


def design_for(record: RunRecord, name: str) -> Design:
    """How the prompts of a score hang together."""
    for part in PARTS:
        score = getattr(record, part).get(name)
        if score and score.role and (known := record.design.get(score.role)):
            return known.design
    return Design()


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested tables as one with dotted names: `{"packages": {"torch": "2"}}` becomes
    `{"packages.torch": "2"}`. Empty tables and lists stay values.
    """
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= (
            flat(value, f"{before}{key}.")
            if isinstance(value, dict) and value
            else {f"{before}{key}": value}
        )
    return result
