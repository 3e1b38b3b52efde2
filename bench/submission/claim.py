"""The claim that a stranger's record makes, and what all its checks share."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.contracts.attack import Attack
from bench.contracts.metric import Metric
from bench.records.parts import PARTS
from bench.records.record import RunRecord, Score
from bench.running.experiment import Experiment
from bench.store.folders import Root
from bench.suite.schema import Role
from bench.suite.suite import Suite

NAME = 100  # characters of a method's name, which becomes a folder
LONGEST_SHOWN = 120  # characters of a value in a finding


@dataclass
class Claim:
    """A record under examination beside what its suite says.

    `experiment` is the one that the record claims to be of. `reference` is our own
    record of the method `none` under the same protocol, where there is one. `store` is the sample
    store that was sent with the record. Checks add to `notes` what is wrong with nothing, but a
    reader should know.
    """

    record: RunRecord
    suite: Suite
    experiment: Experiment
    reference: RunRecord | None
    store: Root | None
    notes: list[str] = field(default_factory=list)


Check = Callable[[Claim], Iterator[str]]  # gives a line for everything that is wrong


def short(value: Any) -> str:
    """A value as JSON that fits into a line."""
    shown = json.dumps(value)
    return shown if len(shown) <= LONGEST_SHOWN else f"{shown[: LONGEST_SHOWN - 10]} ..."


def scores_of(record: RunRecord) -> Iterator[tuple[str, str, Score]]:
    """Part of the record, name and score of everything that was measured, or could not be."""
    for part in PARTS:
        yield from ((part, name, score) for name, score in getattr(record, part).items())


def judge_of(claim: Claim, part: str, score: Score) -> Metric | Attack | None:
    """The metric or attack of the suite that gave a score; None where the suite has no such one."""
    of_suite = claim.experiment
    judges: Mapping[str, Any] = of_suite.attacks if part == "attacks" else of_suite.metrics
    judge = judges.get(score.metric)
    if isinstance(judge, Attack) or (judge and judge.cost == (part == "cost")):
        return judge
    return None


def is_built_in(claim: Claim, part: str, score: Score) -> bool:
    """Whether a score is that of a metric or attack of this project."""
    kind = "attack" if part == "attacks" else "metric"
    return f"{kind} {score.metric}" not in claim.experiment.sources


def role_of(judge: Metric | Attack, name: str) -> Role:
    """The role whose prompts a built-in's score is of."""
    return judge.role_of(name)
