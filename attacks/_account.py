"""From findings of many prompts to the scores of the clique attack: how many identified, how many
of them memorized, how sure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from attacks._findings import Finding
from attacks._verification import Verified, different_pictures
from bench.base.errors import Unmeasurable
from bench.contracts.attack import Scores
from bench.contracts.metric import PerImage, PerSet
from bench.statistics import intervals as stats


def account(
    findings: Sequence[Finding],
    found: Sequence[Verified],
    memorized: Collection[str],
    size: int,
    copy_limit: int,
    similarity: float | None,
    details: dict[str, Any],
    verifiable: bool,
) -> Scores:
    """Scores by name. `findings` of every candidate, `found` the flagged ones, surest first;
    `memorized`: texts of the memorized prompts.

    Prompts whose search ran out of its budget count nowhere; the details say how many there are.
    `similarity`: the descriptor's
    threshold, None without one. `copy_limit`: squared distance up to which representatives of two
    prompts are one picture.
    `verifiable`: there were training pictures to compare with. With early stop the generations of
     flagged prompts are fewer,
    so how often a picture is given back, and with it recall, is not known.
    """
    decided = [
        finding
        for finding in findings
        if finding.flagged is not None and finding.prompt.text in memorized
    ]
    clean = [
        finding
        for finding in findings
        if finding.flagged is not None and finding.prompt.text not in memorized
    ]
    if not decided:
        raise Unmeasurable(
            "the search for cliques ran out of its budget for every memorized prompt; raise"
            " `budget`"
        )
    prompts = [finding.prompt for finding in decided]
    without = (
        Unmeasurable("the suite has no training pictures to compare with")
        if not verifiable
        else None
    )
    early = (
        Unmeasurable("with early stop, how often a training picture is given back is not counted")
        if details["early_stop"]
        else None
    )
    copied = {one.finding.prompt.text for one in found if one.match}
    alike = {
        one.finding.prompt.text
        for one in found
        if similarity is not None and one.similarity is not None and one.similarity > similarity
    }
    given_back = [
        finding for finding in decided if finding.copies is not None and finding.copies >= size
    ]
    details = details | {
        "exact": len(decided) + len(clean),
        "unknown": len(findings) - len(decided) - len(clean),
        "clean_candidates": len(clean),
    }

    def share(texts: Collection[str], **more: Any) -> PerImage:
        table = np.array([[float(prompt.text in texts)] for prompt in prompts])
        return PerImage(
            table, prompts, "share of prompts", False, proportion=True, details=details | more
        )

    def of_these(
        right: int, total: int, what: str, higher_is_better: bool | None, **more: Any
    ) -> PerSet | Unmeasurable:
        if not total:
            return Unmeasurable(f"there are no {what}")
        return PerSet(
            right / total,
            total,
            f"share of {what}",
            higher_is_better,
            stats.clopper_pearson(right, total),
            total,
            details | more,
        )

    representatives = (
        np.stack([one.finding.representative for one in found if one.match])
        if copied
        else np.zeros((0, 1), dtype=np.uint8)
    )
    return {
        "clique_identified": share(
            {one.finding.prompt.text for one in found}, flagged=[told(one) for one in found]
        ),
        "clique_extracted": without or share(copied),
        "clique_extracted_sscd": (
            share(alike)
            if similarity is not None
            else Unmeasurable("no copy descriptor, or no reference pictures for it")
        ),
        "clique_precision": (
            without
            or of_these(
                len(copied),
                len(found),
                "flagged prompts",
                None,
                by_rank=precision_by_rank(found),
                before_first_error=before_first_error(found),
            )
        ),
        "clique_recall": (
            without
            or early
            or of_these(
                sum(finding.prompt.text in copied for finding in given_back),
                len(given_back),
                "prompts whose training picture is generated that often",
                None,
            )
        ),
        "clique_unique": (
            without
            or PerSet(
                different_pictures(representatives, copy_limit),
                len(findings),
                "training pictures",
                False,
                details=details | {"matched": len({one.match.name for one in found if one.match})},
            )
        ),
        "clique_clean_flagged": of_these(
            sum(bool(finding.flagged) for finding in clean), len(clean), "clean prompts", False
        ),
    }


def precision_by_rank(found: Sequence[Verified]) -> list[dict[str, float]]:
    """Of the surest 1, 2, ... flagged prompts: how many are copies, with the Clopper-Pearson
    interval of their share.
    """
    curve, right = [], 0
    for number, one in enumerate(found, 1):
        right += one.match is not None
        low, high = stats.clopper_pearson(right, number)
        curve.append(
            {"flagged": number, "copies": right, "low": round(low, 4), "high": round(high, 4)}
        )
    return curve


def before_first_error(found: Sequence[Verified]) -> int:
    """How many are extracted before the first flagged prompt that is no copy, surest first."""
    return next((number for number, one in enumerate(found) if one.match is None), len(found))


def told(one: Verified) -> dict[str, Any]:
    """A finding as a record keeps it."""
    finding, match = one.finding, one.match
    return {
        "prompt": finding.prompt.id,
        "group": finding.prompt.group,
        "images": finding.images,
        "clique": len(finding.members),
        "upper_bound": finding.upper_bound,
        "mean_distance": round(finding.mean_distance, 4),
        "copies_of_own": finding.copies,
        "match": match.name if match else None,
        "l2": round(match.distance, 4) if match else None,
        "training_copies": match.training_copies if match else 0,
        "similarity": None if one.similarity is None else round(one.similarity, 4),
    }
