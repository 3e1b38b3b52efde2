"""What docs/detectors.md says of `geometry_policy` stands in its record and in its curve."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean

import pytest

from bench.records.record import load_record
from bench.records.sweep import load_sweeps

ROOT = Path(__file__).parents[2]
BOARDS = ROOT / "leaderboards"
SAID = " ".join((ROOT / "docs/detectors.md").read_text(encoding="utf-8").split())


ROLES = ("memorized", "clean")


def two(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def record(method: str):
    (file,) = (BOARDS / "records/testbed" / method).glob("*.json")
    return load_record(file)


def test_what_it_does_at_its_default_stands_in_the_record():
    none, policy = record("none"), record("geometry_policy")
    acted = [f"{policy.facts[role]['triggered']:.0%}".replace("%", " %") for role in ROLES]
    assert f"acts on {acted[0]} of the images of memorized captions and {acted[1]} of clean" in SAID
    spent = [policy.cost[f"nfe_per_image{end}"].value for end in ("", "_clean")]
    base = none.cost["nfe_per_image"].value
    assert (
        f"at {spent[0]:.0f} and {spent[1]:.0f} evaluations an image instead of {base:.0f}" in SAID
    )
    copies = [two(one.scores["copies"].value) for one in (none, policy)]
    extracted = [two(one.attacks["clique_extracted"].value) for one in (none, policy)]
    clean = [two(one.scores["clip_score_clean"].value) for one in (none, policy)]
    assert clean[0] == clean[1]
    assert (
        f"Copies fall from {copies[0]} to {copies[1]}, what the extraction attack gets from"
        f" {extracted[0]} to {extracted[1]}, and clean CLIP stays at {clean[0]}"
    ) in SAID


@pytest.mark.parametrize(
    ("quantile", "words"),
    [
        (0.5, "(`quantile=0.5`) {} of the images are copies at clean CLIP {}"),
        (0.0, "where it always acts {} at {}"),
    ],
)
def test_what_it_does_when_it_acts_more_often_stands_in_the_curve(quantile, words):
    sweeps, _ = load_sweeps(BOARDS / "sweeps")
    (sweep,) = (one for one in sweeps if one.method == "geometry_policy")
    (point,) = (one for one in sweep.points if one.strength == quantile)
    means = [fmean(point.per_prompt[name].values()) for name in ("copies", "clip_score_clean")]
    assert words.format(*map(two, means)) in SAID


def test_what_is_left_at_equal_utility_stands_on_the_board():
    board = (BOARDS / "testbed.md").read_text(encoding="utf-8")
    table = board.partition("## At equal utility")[2]
    cells = {line.split("|")[1].split()[0]: line.split("|")[3] for line in table.splitlines()[4:7]}
    shown = {
        method: "{} [{}, {}]".format(*(two(float(n)) for n in re.findall(r"\d\.\d+", cell)))
        for method, cell in cells.items()
    }
    assert (
        f"{shown['geometry_policy']} are left, where the control, a smaller guidance scale, leaves"
        f" {shown['guidance']} and `wanda` {shown['wanda']}"
    ) in SAID
