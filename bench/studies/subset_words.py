"""What follows from the numbers of `bench analyze subsets`, in plain sentences: which claims of
Chavhan et al. (arXiv 2406.18566) hold on this model, and which do not.

A difference counts as one where its 95 % interval over prompts excludes zero.
"""

from __future__ import annotations

from collections.abc import Sequence

from bench.studies.masks import ALL, UNION, Row
from bench.studies.subset_models import BESIDE, NONE, RANDOM

COMMON = 2.0  # times the IoU of random masks, from which two masks count as having much in common
MOST = 0.5  # share of the copies of `none` that must be gone where most of them are
FEW_COPIES = 0.05  # a share of copies of `none` below which there is too little to remove


def conclusions(calls: Sequence[Row], sizes: Sequence[Row], agreement: Sequence[Row]) -> list[str]:
    """One sentence or two for each question, from the tables of calls, sizes and agreement."""
    found = {(row["kind"], row["size"]): row for row in sizes}
    alike = {(row["kind"], row["size"]): row for row in agreement}
    kind = next(row["kind"] for row in sizes if row["kind"] not in (NONE, BESIDE, RANDOM))
    present = sorted(size for of, size in found if of == kind and size is not None)
    own = [found[kind, size] for size in present]
    return [
        *_of_masks([row for row in calls if row["layer"] == ALL and row["call"] == UNION]),
        *_of_copies(own, found),
        *_of_alignment(own),
        *_of_agreement(kind, [alike[kind, size] for size in present], alike),
    ]


def _of_masks(rows: Sequence[Row]) -> list[str]:
    known = [row for row in rows if row["iou_mean"] is not None]
    if not known:
        return [f"Agreement of masks is not known: {rows[0]['reason']}."]
    low, high = (_range(known, "iou_mean"), _range(known, "chance_iou"))
    common = all(row["iou_mean"] > COMMON * row["chance_iou"] for row in known)
    claim = (
        "different prompts do choose common weights"
        if common
        else "the claim that different prompts choose common weights does not hold"
    )
    return [
        f"Masks of two subsets have an IoU of {low}, random masks of the same sizes {high}:"
        f" {claim}. Subsets share prompts, which raises the IoU of the larger ones; and whether"
        " clean prompts would choose the same weights is not measured here."
    ]


def _of_copies(own: Sequence[Row], found: dict[tuple[str, int | None], Row]) -> list[str]:
    none = found[NONE, None]["copies"]
    if none is None:
        return ["No held-out prompt has a training picture, so copies are not known."]
    words = [f"Without mitigation {none:.0%} of the images of held-out prompts are copies."]
    if none < FEW_COPIES:
        words.append("That is too little for any method to show what it removes.")
    words.append(
        "After pruning on a subset they are "
        + ", ".join(f"{row['copies']:.0%} ({row['size']} prompts)" for row in own)
        + "."
    )
    fewer = [row["size"] for row in own if _below(row, "copies_minus_none")]
    most = [row["size"] for row in own if row["copies"] <= (1 - MOST) * none]
    if len(fewer) == len(own):
        words.append(
            "At every size that is fewer than without, also on prompts that pruning never saw"
            + (
                ", but at no size are most copies gone."
                if not most
                else f", and most copies are gone with {_list(most)} prompts."
            )
        )
    elif fewer:
        words.append(f"Fewer than without they are only with {_list(fewer)} prompts.")
    else:
        words.append(
            "At no size can that be told from none"
            + (
                "; it takes more held-out prompts to say."
                if most
                else ": the claim that pruning on few prompts removes the copies of others does not"
                " hold here, at this strength."
            )
        )
    if any(row["copies_minus_random"] is not None for row in own):
        better = [row["size"] for row in own if _below(row, "copies_minus_random")]
        random = [found[RANDOM, row["size"]]["copies"] for row in own]
        words.append(
            f"Random masks with as many weights leave {_span(random, '{:.0%}')}:"
            + (
                " which weights are pruned matters at every size."
                if len(better) == len(own)
                else f" which weights are pruned matters only with {_list(better)} prompts."
                if better
                else " that chosen weights do better than random ones cannot be said."
            )
        )
    if (beside := found.get((BESIDE, None))) and beside["copies"] is not None:
        words.append(f"{BESIDE} leaves {beside['copies']:.0%}.")
    if len(own) > 1:
        first, last = own[0], own[-1]
        words.append(
            f"From {first['size']} to {last['size']} prompts copies change by"
            f" {last['copies'] - first['copies']:+.1%}; the standard deviation over subsets is"
            f" {_span([row['copies_std'] for row in own], '{:.1%}')}."
        )
    return [" ".join(words)]


def _of_alignment(own: Sequence[Row]) -> list[str]:
    if any(row["clip_clean_minus_none"] is None for row in own):
        return []
    changes = _span([row["clip_clean_minus_none"] for row in own], "{:+.3f}")
    lower = [row["size"] for row in own if _below(row, "clip_clean_minus_none")]
    claim = (
        f"alignment is lost with {_list(lower)} prompts"
        if lower
        else "no loss of alignment can be told from none"
    )
    known = [row for row in own if row["clip_clean_minus_none_low"] is not None]
    if known:
        low = min(row["clip_clean_minus_none_low"] for row in known)
        high = max(row["clip_clean_minus_none_high"] for row in known)
        changes += f" (intervals within {low:+.3f} to {high:+.3f})"
    return [f"On clean prompts the CLIP score changes by {changes}: {claim}."]


def _of_agreement(
    kind: str, own: Sequence[Row], alike: dict[tuple[str, int | None], Row]
) -> list[str]:
    known = [row for row in own if row["models"] is not None]
    if not known:
        return []
    seeds = [row["seeds"] for row in known if row["seeds"] is not None]
    models, to_none = _range(known, "models"), _range(known, "none")
    words = [
        f"With the same seed, models of two subsets give pictures that are {models} alike, and"
        f" {to_none} alike to those without mitigation"
        + (f"; two seeds of one model are {_span(seeds, '{:.2f}')} alike." if seeds else "."),
        f"So {kind} of different subsets changes pictures in the same way."
        if all(_above(row, "models_minus_none") for row in known)
        else f"So it cannot be said that {kind} of different subsets changes pictures in the same"
        " way: they are not nearer to each other than to the model without mitigation.",
    ]
    control = [alike[RANDOM, row["size"]] for row in known if (RANDOM, row["size"]) in alike]
    if control:
        words.append(
            f"Models of random masks are {_range(control, 'models')} alike, and"
            f" {_range(control, 'none')} to those without mitigation: "
            + (
                "they too change pictures in the same way, so this is no mark of chosen weights."
                if all(_above(row, "models_minus_none") for row in control)
                else "what they change is not the same."
            )
        )
    return [" ".join(words)]


def _below(row: Row, name: str) -> bool:
    return row[f"{name}_high"] is not None and row[f"{name}_high"] < 0


def _above(row: Row, name: str) -> bool:
    return row[f"{name}_low"] is not None and row[f"{name}_low"] > 0


def _range(rows: Sequence[Row], name: str) -> str:
    return _span([row[name] for row in rows], "{:.2f}")


def _span(values: Sequence[float | None], number: str) -> str:
    """From the first to the last value, or the single one, as `number` writes them."""
    known = [value for value in values if value is not None]
    if not known:
        return "not known"
    low, high = number.format(min(known)), number.format(max(known))
    return low if low == high else f"{low} to {high}"


def _list(sizes: Sequence[int]) -> str:
    *others, last = map(str, sizes)
    return f"{', '.join(others)} and {last}" if others else last
