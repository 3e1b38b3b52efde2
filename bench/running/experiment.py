"""The question of a run: suite, method, metrics, attacks and seeds, without any model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.assets.catalogue import PREFIX
from bench.base.errors import UserError, one_line
from bench.contracts.attack import Attack

if TYPE_CHECKING:
    from bench.suite.suite import Suite


def judge_problems(suite: Suite, name: str, judge: Any) -> list[str]:
    """What stands in the way of a metric or attack: files that are not there, settings that do not
    fit.
    """
    problems = []
    for file in (getattr(judge, key) for key in judge.files):
        if file and not file.startswith(PREFIX) and not suite.place(file).exists():
            problems.append(
                f"{name} names '{file}', which is missing (looked at {suite.place(file)})"
            )
    if isinstance(judge, Attack):
        try:
            judge.fits(suite)
        except UserError as error:
            problems.append(one_line(error))
    return problems
