"""The figures of docs/experiments.md are those of the committed records."""

from __future__ import annotations

import re
from pathlib import Path

from bench.records.experiment import load_experiments

ROOT = Path(__file__).parents[2]
DOCS = (ROOT / "docs/experiments.md").read_text(encoding="utf-8")


def record(experiment):
    records, damaged = load_experiments(ROOT / "leaderboards/experiments")
    assert not damaged
    (found,) = (one for one in records if one.experiment == experiment)
    return found


def cell(found, title, row, column):
    """The value and interval of a table's cell, with two decimals and without a leading zero."""
    table = next(one for one in found.tables if one.title.startswith(title))
    place = [one.heading for one in table.columns].index(column)
    value = table.cells[list(table.labels).index(row)][place]
    short = [
        f"{number:.2f}".replace("0.", ".", 1) for number in (value.value, value.low, value.high)
    ]
    return short[0], f"{short[0]} [{short[1]}, {short[2]}]"


def test_what_is_said_of_keys_stands_in_the_record():
    found = record("solidmark")
    said = re.sub(r"\s+", " ", DOCS.partition("## Keys painted")[2])
    auc = {
        model: cell(found, "Key AUC", "50", model)
        for model in ("base", "fine-tuned", "random-tokens", "embedding-noise", "caption-dropout")
    }
    assert f"key AUC {auc['base'][0]} at dose 50" in said
    assert f"the key AUC is {auc['fine-tuned'][1]}" in said
    assert auc["random-tokens"][0] == auc["caption-dropout"][0]
    assert f"bring the AUC back to {auc['random-tokens'][0]}" in said
    assert f"changes less ({auc['embedding-noise'][0]})" in said
    answers = "Answers of the model: fine-tuned"
    assert f"correlation {cell(found, answers, '50', 'correlation')[1]}" in said
    assert f"answer by {cell(found, answers, '50', 'slope')[0]}" in said
    shown = cell(found, "Keys that were shown", "fine-tuned", "shown − withheld")
    assert f"shown less withheld {shown[1]}" in said


def test_what_is_said_of_sizes_stands_in_the_record():
    found = record("memorization-by-size")
    said = re.sub(r"\s+", " ", DOCS.partition("## Keys painted")[0])
    shares = next(one for one in found.tables if one.title.startswith("Share of memorized"))
    for label, cells in zip(shares.labels, shares.cells, strict=True):
        shown = " | ".join(f"{value.value:.3f}" for value in cells[:3])
        assert f"| {label} | {shown} |" in said
    assert {cells[3].value for cells in shares.cells} == {1.0}  # the ideal denoiser
    assert {cells[4].value for cells in shares.cells} == {0.0}  # held-out pictures
    emm = next(one for one in found.tables if one.title.startswith("EMM"))
    point = {label: cells[0].value for label, cells in zip(emm.labels, emm.cells, strict=True)}
    assert f"EMM {point['random labels, last snapshot']:.1f} for" in said
    assert f"for {point['true labels, last snapshot']:.1f} under true labels" in said
    assert f"EMM {point['unique labels, last snapshot']:.1f}, and" in said
    raised = next(one for one in found.tables if one.title.startswith("By how much"))
    value = raised.cells[list(raised.labels).index("all sizes")][0]
    assert f"over all sizes {value.value:.3f} [{value.low:.3f}, {value.high:.3f}]" in said
