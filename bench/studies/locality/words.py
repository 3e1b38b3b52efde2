"""What follows from the numbers of an analysis of locality, in words; also what does not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.studies.locality.functions import HIDDEN, VALUES

WORKS = 0.5  # share of copies from which on triggers bring a picture back
ALIKE = 0.05  # difference of mean IoU below which two populations are called alike
ERRORS = 2.0  # standard errors beyond which two ratios differ


def conclusions(facts: Mapping[str, Any]) -> list[str]:
    """A paragraph for each measure, then what all of them say about locality."""
    found = [_searches(facts), _spread(facts["spread"]), _activations(facts["activations"])]
    found += [_agreement(name, rows) for name, rows in facts["agreement"].items()]
    if "transfer" in facts:
        found.append(_transfer(facts["transfer"]))
    if "rounds" in facts:
        found.append(_rounds(facts["rounds"]))
    return [*found, _verdict(facts)]


def _searches(facts: Mapping[str, Any]) -> str:
    shares = facts["copied"]
    text = (
        f"Searches for picture {facts['picture']} from {facts['members']['same']} beginnings end at"
        f" embeddings of whose generations {_share(shares['same'])} are copies; those for"
        f" {facts['members']['different']} other memorized pictures {_share(shares['different'])},"
        f" those for a picture that was never trained on {_share(shares['control'])}."
    )
    if shares["same"] < WORKS:
        text += " They hardly work, so the rest says little about memory."
    elif shares["control"] >= WORKS:
        text += (
            " The picture that was never trained on comes back as well, so a trigger that is found"
            " does not show memory here."
        )
    return text


def _spread(rows: Mapping[str, Mapping[str, Any]]) -> str:
    same, control = rows["same"], rows["control"]
    text = (
        f"Spread: the ends lie {same['ratio']:.3f} times as far apart as the beginnings"
        f" ({same['ratio_unrelated']:.3f} if searches had moved without regard to each other), for"
        f" the picture never trained on {control['ratio']:.3f}"
        f" ({control['ratio_unrelated']:.3f}); an entry moved by {same['shift']:.2f}"
        f" ({control['shift']:.2f})."
    )
    pull = _compared(same, control)
    if pull is None:
        text += " There are too few searches to tell the two ratios apart."
    elif pull == 0:
        text += (
            " The two ratios do not differ beyond their errors: that triggers of one picture are"
            " far apart is inherited from where the searches began, and says nothing about memory."
        )
    elif pull < 0:
        text += (
            " The triggers of the memorized picture lie closer together than those of the control:"
            " if anything the picture pulls. The distance that they have is inherited from where"
            " the searches began."
        )
    else:
        text += (
            " The triggers of the memorized picture lie further apart than those of the control;"
            " most of that distance is inherited from where the searches began, and no sign of many"
            " places of memory."
        )
    text += (
        f" What the model predicts with them differs by {same['function_ratio']:.2f} of what it"
        f" predicts with the beginnings (control {control['function_ratio']:.2f}): by"
        f" {same['function']:.3f} for a value (control {control['function']:.3f}), by"
        f" {rows['different']['function']:.3f} for triggers of different pictures and by"
        f" {rows['clean']['function']:.3f} for clean captions."
    )
    if same["function"] < rows["different"]["function"] / 2:
        text += (
            " So triggers of one picture that are far apart act more alike than those of different"
            " pictures by far: distance between embeddings says little about what the model does"
            " with them."
        )
    return text


def _compared(same: Mapping[str, Any], control: Mapping[str, Any]) -> int | None:
    """Whether the ratio of the one is below (-1) or above (1) that of the other, or neither (0)."""
    errors = [same["ratio_error"], control["ratio_error"]]
    if any(error is None or error != error for error in errors):
        return None
    apart = same["ratio"] - control["ratio"]
    beyond = abs(apart) > ERRORS * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    return (1 if apart > 0 else -1) if beyond else 0


def _activations(views: Mapping[str, Any]) -> str:
    parts = []
    for view in (VALUES, HIDDEN):
        facts, relative = views[view], views[view]["relative"]
        parts.append(
            f"in the {view} triggers of one picture differ more than those of different pictures in"
            f" {facts['same_above_different']} of {facts['layers']} layers (relative to the size of"
            f" activations, mean over layers: {relative['same']:.2f} and"
            f" {relative['different']:.2f}; control {relative['control']:.2f}, clean captions"
            f" {relative['clean']:.2f}, one trigger under other noise {relative['noise']:.2f})"
        )
    text = f"Activations: {'; '.join(parts)}."
    relative = views[VALUES]["relative"]
    if relative["control"] >= 0.9 * relative["same"]:
        text += (
            " Value projections see nothing but the embedding and are linear, so they repeat the"
            " spread of the embeddings; searches for a picture that was never trained on differ as"
            " much. Such distances do not speak against locality."
        )
    return text


def _agreement(name: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    same, other, ceiling = rows["same"], rows["different"], rows["noise"]
    text = (
        f"Weights found by {name}: mean IoU {_number(same['mean'])} between triggers of one"
        f" picture, {_number(other['mean'])} between triggers of different pictures,"
        f" {_number(rows['clean']['mean'])} between clean captions,"
        f" {_number(rows['control']['mean'])} between triggers of the control, by chance"
        f" {_number(same['chance'])}; {_number(ceiling['mean'])} for one trigger under other noise,"
        " where all others have the same noise."
    )
    empty = {key: row["undefined"] for key, row in rows.items() if row["undefined"]}
    if empty:
        counted = ", ".join(
            f"{count} of {rows[key]['pairs']} ({key})" for key, count in empty.items()
        )
        text += (
            f" Pairs of which neither embedding has any weight are left out: {counted}. To count"
            " them as full agreement would be to read agreement out of nothing found."
        )
    if same["mean"] is None or other["mean"] is None:
        return text + " One of the two that matter has no pair to compare, so nothing follows."
    if ceiling["mean"] is not None and same["mean"] >= ceiling["mean"] - ALIKE:
        text += (
            " Two triggers of one picture agree as much as one trigger does with itself under other"
            " noise, which is all that can be asked."
        )
    apart = same["mean"] - other["mean"]
    if apart > ALIKE:
        text += (
            " Triggers of one picture agree more than triggers of different pictures do: an IoU"
            " below 1 alone does not make memory spread out."
        )
    elif apart < -ALIKE:
        text += " Triggers of one picture agree less than triggers of different pictures do."
    else:
        text += (
            " Triggers of one picture agree as those of different pictures do: these weights are"
            " not the picture's own, and their agreement says nothing about where it is stored."
        )
    return text


def _transfer(facts: Mapping[str, Any]) -> str:
    text = (
        f"Transfer ({facts['method']}, {facts['triggers']} triggers): of generations with the"
        f" triggers of one picture {_share(facts['nothing'])} are copies on the whole model;"
        f" {_share(facts['own'])} after pruning by the trigger itself, {_share(facts['same'])} by"
        f" another trigger of the picture, {_share(facts['different'])} by triggers of other"
        f" memorized pictures, {_share(facts['control'])} by triggers of the control,"
        f" {_share(facts['clean'])} by clean captions."
    )
    if facts["nothing"] < WORKS:
        return text + " The triggers hardly work on the whole model, so nothing follows."
    if not _prunes(facts):
        return text + (
            " Pruning by a trigger does not even stop that trigger, so the matrix says nothing"
            " about locality; prune more."
        )
    others = facts["others_less_own"]
    bounds = f"difference {others['value']:.2f} [{others['low']:.2f}, {others['high']:.2f}]"
    shared = _shared(facts)
    if shared == "yes":
        text += (
            f" Pruning by another trigger stops about as much as pruning by the trigger itself"
            f" ({bounds}): the triggers lead to the same weights."
        )
    elif shared == "no":
        text += (
            f" Pruning by another trigger stops less than half of what pruning by the trigger"
            f" itself stops ({bounds}): removing the triggers that were found leaves others alive."
        )
    else:
        text += f" How much another trigger stops lies between, or is not decided ({bounds})."
    spared = facts["different_less_same"]
    return text + (
        f" Pruning by other memorized pictures leaves {spared['value']:.2f}"
        f" [{spared['low']:.2f}, {spared['high']:.2f}] more"
        + (
            ": what stops the triggers belongs to the picture and is not mere damage."
            if spared["low"] > 0
            else ": what stops the triggers is not shown to belong to the picture."
        )
    )


def _rounds(rows: list[Mapping[str, Any]]) -> str:
    first, last = rows[0], rows[-1]
    path = ", ".join(_share(row["copied"]) for row in rows)
    text = (
        f"Rounds: searching again after pruning all triggers found brings back {path} copies after"
        f" 0 to {len(rows) - 1} rounds (control at most"
        f" {_share(max(row['copied_control'] for row in rows))}), with"
        f" {_share(last['pruned'])} of the weights gone"
    )
    if first["clip_clean"] is not None:
        text += f"; alignment of clean captions went from {first['clip_clean']:.3f} to"
        text += f" {last['clip_clean']:.3f}"
    if first["copied"] < WORKS:
        return text + ". The first searches hardly work, so nothing follows."
    if max(row["copied"] for row in rows[1:]) >= WORKS:
        return text + (
            ". A new search finds the picture in the pruned model: pruning by the triggers that"
            " were found does not remove it."
        )
    return text + (
        ". New searches of this length do not find the picture in most generations any more; longer"
        " ones may."
    )


def _verdict(facts: Mapping[str, Any]) -> str:
    """What all of it says about "memorization is not local"."""
    text = "Is memorization local here? "
    found = facts.get("transfer")
    if found is None:
        return text + (
            "Distances and agreement alone do not decide it: the transfer matrix does, and it was"
            " left out."
        )
    if not _prunes(found):
        return text + "The transfer matrix decides it, and it decides nothing at these settings."
    shared, own = _shared(found), found["different_less_same"]["low"] > 0
    if shared == "yes" and own:
        return text + (
            "By the test that counts, yes, as far as these triggers and this pruning go: what is"
            " pruned by one trigger stops the others, and what is pruned by other pictures does"
            " not. That memorization is not local does not follow from how far triggers or their"
            " activations lie apart. It is one picture"
            + (
                "; searches on the pruned model are another matter, see the rounds."
                if "rounds" in facts
                else ", and searches on a pruned model may still find it again (--rounds)."
            )
        )
    if shared == "yes":
        return text + (
            "Triggers of the picture share the weights that matter, but so do unrelated ones:"
            " neither locality nor its absence follows."
        )
    if shared == "no":
        return text + (
            "Not in the weights that this pruning takes: triggers stay alive where another one was"
            " removed. That supports the claim for this method of finding weights, not for every"
            " one."
        )
    return text + "Partly, or the transfer matrix is too small to decide it; take more triggers."


def _prunes(facts: Mapping[str, Any]) -> bool:
    """Whether triggers work on the whole model, and pruning by a trigger stops it."""
    works: bool = facts["nothing"] >= WORKS
    return works and facts["own"] <= (1 - WORKS) * facts["nothing"]


def _shared(facts: Mapping[str, Any]) -> str:
    """Whether pruning by another trigger stops at least half of what pruning by the trigger itself
    stops: yes, no, or open where the interval holds both.
    """
    half = (facts["nothing"] - facts["own"]) / 2
    if facts["others_less_own"]["high"] < half:
        return "yes"
    return "no" if facts["others_less_own"]["low"] > half else "open"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
