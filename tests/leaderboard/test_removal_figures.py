"""The figures of docs/removal.md are those of the committed records."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from bench.records.record import load_record

ROOT = Path(__file__).parents[2]
NAMES = (
    "copies",
    "copies_unnamed",
    "clip_score_clean",
    "clip_score_neighbours",
    "dori_memorized",
    "dori_control",
    "completion_memorized",
)


def lines():
    page = (ROOT / "docs/removal.md").read_text(encoding="utf-8")
    table = page.partition("| row | named copies |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        name, *values = [cell.strip() for cell in line.strip("|").split("|")]
        method, adversary = re.fullmatch(r"`(\w+)`(?:, adversary `(\w+)`)?", name).groups()
        yield method, adversary, [float(value) for value in values]


def recorded(method, adversary=None):
    files = (ROOT / "leaderboards/records/testbed-removal" / method).glob("*.json")
    (record,) = (
        one for one in map(load_record, files) if one.changed.get("adversary") == adversary
    )
    return record


def test_who_takes_more_from_named_captions_than_from_others_is_what_the_records_say():
    """The shares that are taken away, with the named and the unnamed captions drawn anew."""
    page = (ROOT / "docs/removal.md").read_text(encoding="utf-8")
    said = " ".join(page.partition("**Nothing removes only what it was told to.**")[2].split())
    said = said.partition("- **")[0]
    none, random = recorded("none"), np.random.default_rng(0)

    def taken(record, name):
        """Of 4,000 draws of prompts, the share of copies that is taken away."""
        before, after = (one.per_prompt[name] for one in (none, record))
        values = np.array([[before[prompt], after[prompt]] for prompt in sorted(before)])
        drawn = values[random.integers(0, len(values), (4000, len(values)))].mean(1)
        return 1 - drawn[:, 1] / drawn[:, 0]

    def selective(record):
        return np.quantile(taken(record, "copies") - taken(record, "copies_unnamed"), 0.025) > 0

    control, siss = recorded("adv_finetune", "prompt"), recorded("siss")
    assert selective(control) and "adversary's embedding takes visibly more" in said
    others = [("uce", None), ("esd", None), ("concept_ablation", None), ("siss", None)]
    assert not any(selective(recorded(*one)) for one in [*others, ("adv_finetune", None)])
    assert "`siss` takes little, and as much from both" in said
    for record, words in (
        (control, "{0:.2f} of {1:.2f} named, {2:.2f} of {3:.2f} unnamed copies are left"),
        (siss, "({0:.2f} of {1:.2f}, {2:.2f} of {3:.2f})"),
    ):
        numbers = [
            one.scores[name].value
            for name in ("copies", "copies_unnamed")
            for one in (record, none)
        ]
        assert words.format(*numbers) in said


@pytest.mark.parametrize(("method", "adversary", "values"), list(lines()))
def test_a_line_of_the_table_is_what_the_record_says(method, adversary, values):
    record = recorded(method, adversary)
    scores = record.scores | record.attacks
    assert values == [round(scores[name].value, 2) for name in NAMES]


def test_what_is_said_of_adversaries_and_of_costs_is_what_the_records_say():
    page = " ".join((ROOT / "docs/removal.md").read_text(encoding="utf-8").split())

    def of(name, method, adversary=None):
        record = recorded(method, adversary)
        return (record.scores | record.attacks | record.cost)[name].value

    adversaries = ("none", "prompt", None)
    clean = [f"{of('clip_score_clean', 'adv_finetune', one):.2f}" for one in adversaries]
    assert f"clean prompts pay for it (CLIP {', '.join(clean)})" in page
    nothing, part, most = (
        1 - of("copies", "adv_finetune", one) / of("copies", "none") for one in adversaries
    )
    assert abs(nothing) < 0.1 and round(10 * part) == 6 and most > 0.9
    assert "the caption in its place takes six of ten copies" in page
    edits = [(name, None) for name in ("uce", "esd", "concept_ablation", "siss")]
    edits += [("adv_finetune", one) for one in adversaries]
    brought = [of("dori_memorized", *one) for one in [("none", None), *edits]]
    assert min(brought) > 0.85 and "brings back nine of ten images of named pictures" in page
    seen = min(of("recognised", *one) for one in edits)
    assert f"({of('recognised', 'wanda'):.2f}; all others at least {seen:.2f})" in page
    for method in ("esd", "concept_ablation", "siss"):
        assert 8_000 < of("fit_nfe", method) < 12_000
    assert f"`adv_finetune` {of('fit_nfe', 'adv_finetune'):,.0f}" in page
    assert of("fit_nfe", "uce") == 0 and of("fit_seconds", "uce") < 2
