"""What the checks of a submitted record share: the record beside what its suite says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, cast

from bench.contracts.attack import Attack
from bench.contracts.metric import Metric
from bench.records.parts import PARTS
from bench.records.record import RunRecord, Score
from bench.running.run import Run
from bench.store.folders import Root
from bench.suite.settings import Role
from bench.suite.suite import Suite

NAME = 100  # characters of a method's name, which becomes a folder


@dataclass
class Case:
    """A record under examination, beside what the suite says; `run` is the run that it claims to
    be, with an empty store.
    """

    record: RunRecord
    suite: Suite
    run: Run
    # of our own records of the same protocol, the one without mitigation
    reference: RunRecord | None
    store: Root | None
    notes: list[str] = field(default_factory=list)


Check = Callable[[Case], Iterator[str]]  # gives a line for everything that is wrong


def short(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 120 else f"{shown[:110]} ..."


def scores_of(record: RunRecord) -> Iterator[tuple[str, str, Score]]:
    """Part, name and score of everything measured or null."""
    for part in PARTS:
        yield from ((part, name, score) for name, score in getattr(record, part).items())


def judge_of(case: Case, part: str, score: Score) -> Metric | Attack | None:
    judges: dict[str, Any] = case.run.attacks if part == "attacks" else case.run.metrics
    judge = judges.get(score.metric)
    return (
        judge if isinstance(judge, Attack) or (judge and judge.cost == (part == "cost")) else None
    )


def is_built_in(case: Case, part: str, score: Score) -> bool:
    return f"{'attack' if part == 'attacks' else 'metric'} {score.metric}" not in case.run.sources


def role_of(judge: Metric | Attack, name: str) -> Role:
    """Whose prompts a built-in's score is of: those of its first role, unless its name ends with
    another.
    """
    if isinstance(judge, Attack):
        return cast(Role, getattr(judge, "role", "memorized"))
    return next((role for role in judge.roles if name.endswith(f"_{role}")), judge.roles[0])
