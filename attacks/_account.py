"""From findings of many prompts to the scores of the clique attack: how many identified, how many
of them memorized, how sure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import bench.statistics as stats
from attacks._findings import Finding
from attacks._verification import Verified, different_pictures
from bench import PerImage, PerSet, Prompt, Scores, Unmeasurable
from bench.statistics import Design

# in the order in which records have them
NAMES = (
    "clique_identified",
    "clique_extracted",
    "clique_extracted_sscd",
    "clique_precision",
    "clique_recall",
    "clique_unique",
    "clique_clean_flagged",
)


@dataclass(frozen=True)
class Tally:
    """What the scores are counted from.

    Prompts whose search ran out of its budget are in neither `decided` nor `clean`.
    """

    decided: Sequence[Finding]  # memorized prompts, flagged or not
    clean: Sequence[Finding]  # the others, among which a flag is an error
    flagged: Sequence[Verified]  # of both, surest first
    # which prompts hang together; no strata, since what was flagged decides who is counted
    design: Design
    details: Mapping[str, Any]  # of every score

    @property
    def copied(self) -> set[str]:
        """Texts of flagged prompts whose representative is a copy of a training picture."""
        return {one.finding.prompt.text for one in self.flagged if one.match}

    def share(self, texts: Collection[str], **more: Any) -> PerImage:
        """Of the memorized prompts, those with one of these texts."""
        table = np.array([[float(finding.prompt.text in texts)] for finding in self.decided])
        prompts = [finding.prompt for finding in self.decided]
        return PerImage(
            table,
            prompts,
            "share of prompts",
            False,
            proportion=True,
            details=dict(self.details) | more,
        )

    def share_of(
        self,
        right: Sequence[tuple[Prompt, bool]],
        what: str,
        higher_is_better: bool | None,
        **more: Any,
    ) -> PerSet | Unmeasurable:
        """The share of prompts that are `right`, with its 95 % interval over what varies
        independently; `Unmeasurable` where there are none.
        """
        if not right:
            return Unmeasurable(f"there are no {what}")
        return PerSet(
            sum(answer for _, answer in right) / len(right),
            len(right),
            f"share of {what}",
            higher_is_better,
            interval_of(right, self.design),
            len(right),
            dict(self.details) | more,
        )


def interval_of(right: Sequence[tuple[Prompt, bool]], design: Design) -> tuple[float, float]:
    """The 95 % interval of a share of prompts, of which `design` says which hang together."""
    table = np.array([[float(answer)] for _, answer in right])
    return stats.proportion_interval(table, design.units([prompt.id for prompt, _ in right]))


def account(
    findings: Sequence[Finding],
    found: Sequence[Verified],
    memorized: Collection[str],
    size: int,
    copy_limit: int,
    similarity: float | None,
    details: dict[str, Any],
    verifiable: bool,
    design: Design,
) -> Scores:
    """All scores of the attack by name.

    `findings`: of every candidate. `found`: the flagged ones, surest first. `memorized`: texts of
    the memorized prompts. `size`: of a clique that flags a prompt. `copy_limit`: squared distance
    up to which representatives of two prompts are one picture. `similarity`: the descriptor's
    threshold, None without a descriptor. `verifiable`: whether there were training pictures to
    compare with. `design`: which prompts hang together.

    Raises `Unmeasurable` when the search ran out of its budget for every memorized prompt.
    """
    tally = _tally(findings, found, memorized, details, design)
    scores: dict[str, PerImage | PerSet | Unmeasurable] = {
        "clique_identified": tally.share(
            {one.finding.prompt.text for one in found}, flagged=[as_recorded(one) for one in found]
        ),
        "clique_extracted_sscd": _extracted_by_similarity(tally, similarity),
        "clique_clean_flagged": tally.share_of(
            [(finding.prompt, bool(finding.flagged)) for finding in tally.clean],
            "clean prompts",
            False,
        ),
    }
    if verifiable:
        scores |= {
            "clique_extracted": tally.share(tally.copied),
            "clique_precision": _precision(tally),
            "clique_recall": _recall(tally, size),
            "clique_unique": _unique(tally, len(findings), copy_limit),
        }
    else:
        why = Unmeasurable("the suite has no training pictures to compare with")
        scores |= dict.fromkeys(
            ("clique_extracted", "clique_precision", "clique_recall", "clique_unique"), why
        )
    return {name: scores[name] for name in NAMES}


def _tally(
    findings: Sequence[Finding],
    found: Sequence[Verified],
    memorized: Collection[str],
    details: dict[str, Any],
    design: Design,
) -> Tally:
    known = [finding for finding in findings if finding.flagged is not None]
    decided = [finding for finding in known if finding.prompt.text in memorized]
    clean = [finding for finding in known if finding.prompt.text not in memorized]
    if not decided:
        raise Unmeasurable(
            "the search for cliques ran out of its budget for every memorized prompt; raise"
            " `budget`"
        )
    counts = {
        "exact": len(known),
        "unknown": len(findings) - len(known),
        "clean_candidates": len(clean),
    }
    return Tally(decided, clean, found, design, details | counts)


def _extracted_by_similarity(tally: Tally, similarity: float | None) -> PerImage | Unmeasurable:
    if similarity is None:
        return Unmeasurable("no copy descriptor, or no reference pictures for it")
    return tally.share(
        {
            one.finding.prompt.text
            for one in tally.flagged
            if one.similarity is not None and one.similarity > similarity
        }
    )


def _precision(tally: Tally) -> PerSet | Unmeasurable:
    return tally.share_of(
        [(one.finding.prompt, one.match is not None) for one in tally.flagged],
        "flagged prompts",
        None,
        by_rank=precision_by_rank(tally.flagged, tally.design),
        before_first_error=before_first_error(tally.flagged),
    )


def _recall(tally: Tally, size: int) -> PerSet | Unmeasurable:
    """Of the prompts whose training picture is generated at least `size` times, those extracted.

    With early stop, flagged prompts have fewer generations, so that number is not known.
    """
    if tally.details["early_stop"]:
        return Unmeasurable(
            "with early stop, how often a training picture is given back is not counted"
        )
    given_back = [
        finding
        for finding in tally.decided
        if finding.copies is not None and finding.copies >= size
    ]
    return tally.share_of(
        [(finding.prompt, finding.prompt.text in tally.copied) for finding in given_back],
        "prompts whose training picture is generated that often",
        None,
    )


def _unique(tally: Tally, candidates: int, copy_limit: int) -> PerSet:
    """How many different training pictures were extracted from so many candidates."""
    matched = [one for one in tally.flagged if one.match]
    representatives = (
        np.stack([one.finding.representative for one in matched])
        if matched
        else np.zeros((0, 1), dtype=np.uint8)
    )
    names = {one.match.name for one in matched if one.match}
    return PerSet(
        different_pictures(representatives, copy_limit),
        candidates,
        "training pictures",
        False,
        details=dict(tally.details) | {"matched": len(names)},
    )


def precision_by_rank(found: Sequence[Verified], design: Design) -> list[dict[str, float]]:
    """Of the surest 1, 2, ... flagged prompts: how many are copies, with the interval of their
    share over what varies independently.
    """
    curve: list[dict[str, float]] = []
    right: list[tuple[Prompt, bool]] = []
    for one in found:
        right.append((one.finding.prompt, one.match is not None))
        low, high = interval_of(right, design)
        curve.append(
            {
                "flagged": len(right),
                "copies": sum(answer for _, answer in right),
                "low": round(low, 4),
                "high": round(high, 4),
            }
        )
    return curve


def before_first_error(found: Sequence[Verified]) -> int:
    """How many are extracted before the first flagged prompt that is no copy, surest first."""
    return next((number for number, one in enumerate(found) if one.match is None), len(found))


def as_recorded(one: Verified) -> dict[str, Any]:
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
