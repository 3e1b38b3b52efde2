"""The figures of docs/experiments.md are those of the committed records."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from bench.records.experiment import load_experiments
from bench.studies.experiments import by_size_tables, solidmark_tables

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
    exact = found.table("auc").cell("50", "fine-tuned")
    three = [f"{number:.3f}".removeprefix("0") for number in (exact.value, exact.low, exact.high)]
    chance = "not clear of chance" if exact.low <= 0.5 else "clear of chance"
    assert f"the key AUC is {three[0]} [{three[1]}, {three[2]}], {chance}, and" in said
    assert auc["random-tokens"][0] == auc["caption-dropout"][0]
    follow = {
        model: cell(found, f"Answers of the model: {model}", "50", "correlation")[1]
        for model in ("random-tokens", "caption-dropout", "embedding-noise")
    }
    assert f"bring the AUC to {auc['random-tokens'][0]} and weaken" in said
    assert f"to {follow['random-tokens']} and {follow['caption-dropout']}, which stay" in said
    assert not any(interval.partition("[")[2].startswith("-") for interval in follow.values())
    noise = f"{auc['embedding-noise'][0]}; correlation {follow['embedding-noise']}"
    assert f"changes less ({noise})" in said
    answers = "Answers of the model: fine-tuned"
    assert f"correlation {cell(found, answers, '50', 'correlation')[1]}" in said
    rows = found.table("model-fine-tuned")
    some, none = (rows.cell(dose, "correlation") for dose in ("10", "1"))
    assert f"After 100 views the correlation is {some.value:.2f}".replace("0.", ".") in said
    assert -0.005 < some.low <= 0 and none.low < -0.3 and "after 10 views nothing is seen" in said
    assert f"answer by {cell(found, answers, '50', 'slope')[0]}" in said
    shown = cell(found, "Keys that were shown", "fine-tuned", "shown − withheld")
    assert f"shown less withheld {shown[1]}" in said


@pytest.mark.parametrize(
    ("experiment", "module"),
    [("memorization-by-size", by_size_tables), ("solidmark", solidmark_tables)],
)
def test_what_a_record_says_it_found_follows_from_its_tables(experiment, module):
    found = record(experiment)
    assert found.found == module.found_in(found.tables) and found.claim == module.CLAIM
    for file in ("index.html", f"experiment-{found.folder}.md"):
        page = html.unescape((ROOT / "leaderboards" / file).read_text(encoding="utf-8"))
        page = page.replace("\\", "")
        assert all(sentence in page for sentence in found.found)


def test_labels_that_change_nothing_are_told_from_labels_that_do():
    table = record("memorization-by-size").table("labels")
    said = " ".join(record("memorization-by-size").found)
    for column, words in (("random", "Random labels"), ("unique", "Unique labels")):
        cell = table.cell("all sizes", f"{column} labels − true labels")
        does = (
            "raise R" if cell.low > 0 else "lower R" if cell.high < 0 else "do not clearly change"
        )
        assert f"{words} {does}" in said


def test_the_printed_command_makes_the_printed_table():
    (sizes,) = re.findall(r"bench experiment memorization-by-size --sizes (\S+)", DOCS)
    assert [int(size) for size in sizes.split(",")] == record("memorization-by-size").settings[
        "sizes"
    ]


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
