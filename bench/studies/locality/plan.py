"""What an analysis of locality would evaluate, without doing it and without the model's files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.base.errors import UserError, one_line
from bench.studies.locality.functions import BANK
from bench.studies.locality.parts import Ask, attack_of, check, finders_of
from bench.studies.locality.populations import NAMES, SEARCHED
from bench.studies.locality.rounds import CLEAN
from bench.suite.suite import Suite


def plan(suite: Suite, ask: Ask) -> dict[str, Any]:
    """Row evaluations by part of the work; a lenient suite will do.

    What the methods evaluate to find weights is not known before they do. `problems` says what
    stands in the way of the analysis.
    """
    check(ask)
    attack, _ = attack_of(suite, ask)
    finders = finders_of(ask, ())
    problems = []
    try:
        attack.fits(suite)
    except UserError as error:
        problems.append(one_line(error))
    if suite.settings.model.size:
        problems.append("searches know squares of the model's side: leave [model] size out")
    memorized = len(suite.prompts("memorized"))
    counts = dict.fromkeys(NAMES, ask.count) | {
        "different": max(0, min(ask.count, memorized - 1)),
        "clean": min(ask.count, len(suite.prompts("clean"))),
    }
    model = suite.settings.model
    image, searches = 2 * model.steps, sum(counts[name] for name in SEARCHED)
    part = {name: min(count, ask.transfer) for name, count in counts.items()}
    again = 2 * ask.searches * (ask.rounds + 1) if ask.rounds else 0
    utility = (
        CLEAN * (ask.rounds + 1) if ask.rounds and "clip_score" in suite.settings.metrics else 0
    )
    evaluations = {
        "searches": searches * attack.evaluations(),
        "generations with triggers": searches * ask.images * image,
        "differences of predictions": BANK * (2 * searches + counts["clean"]),
        "activations": sum(counts.values()),
        "transfer matrix": sum(part.values()) * part["same"] * ask.images * image,
        "rounds": again * (attack.evaluations() + ask.images * image) + utility * image,
    }
    # the first of `noise` is the first of `same`
    fits = sum(counts.values()) - 1 + ask.rounds * ask.searches
    return {
        "suite": suite.name,
        "members": counts,
        "evaluations": evaluations,
        "total": sum(evaluations.values()),
        "fits": {finder.name: fits for finder in finders},
        "problems": problems,
    }


def plan_in_words(found: Mapping[str, Any]) -> str:
    """The plan for people."""
    members = ", ".join(f"{count:,} {name}" for name, count in found["members"].items())
    parts = {name: count for name, count in found["evaluations"].items() if count}
    fits = ", ".join(f"{count:,} of {name}" for name, count in found["fits"].items())
    width = max(map(len, parts))
    lines = [
        f"locality on {found['suite']}: {members}",
        *(f"  {name:<{width}}  {count:>12,} row evaluations" for name, count in parts.items()),
        f"  {'all':<{width}}  {found['total']:>12,}, less what the store has already",
        f"  methods find weights by evaluations of their own: fits on one prompt, {fits}",
    ]
    return "\n".join(lines + [f"  problem: {problem}" for problem in found["problems"]])
