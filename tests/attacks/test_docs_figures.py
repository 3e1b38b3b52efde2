"""The figures of docs/attacks.md are those of the committed records."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.records.record import load_record

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "leaderboards/records"
# what stands in the table's columns after the row's name and its attacker
ENDINGS = ("zero", "memorized", "control", "excess")
ITEMS = {"weights": "dori", "inputs": "dori_inputs"}


def record_of(method: str, item: str):
    """The record of the board, or of the board of attackers where the first has no such score."""
    for suite in ("testbed", "testbed-attackers"):
        for file in (RECORDS / suite / method).glob("*.json"):
            if f"{item}_excess" in (record := load_record(file)).attacks:
                return record
    raise AssertionError(f"no record of {method} has {item}")


def lines():
    page = (ROOT / "docs/attacks.md").read_text(encoding="utf-8")
    table = page.partition("| row | attacker |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        names, attacker, *values = [cell.strip() for cell in line.strip("|").split("|")]
        for name in re.findall(r"`(\w+)`", names):
            yield name, attacker, [float(re.match(r"[.\d]+", value)[0]) for value in values]


@pytest.mark.parametrize(("method", "attacker", "values"), list(lines()))
def test_a_line_of_the_table_is_what_the_record_says(method, attacker, values):
    item = ITEMS[attacker]
    attacks = record_of(method, item).attacks
    assert values == [round(attacks[f"{item}_{ending}"].value, 2) for ending in ENDINGS]


def test_the_table_has_the_rows_that_the_text_speaks_of():
    assert {(name, attacker) for name, attacker, _ in lines()} >= {
        ("none", "weights"),
        ("wen", "inputs"),
        ("wanda", "weights"),
    }


def test_what_is_said_of_pruning_and_the_other_attackers_stands_in_the_record():
    page = (ROOT / "docs/attacks.md").read_text(encoding="utf-8")
    said = page.partition("holds against the searched embedding and not against")[2]
    said = said.partition("\n\n")[0]
    (file,) = (RECORDS / "testbed-attackers/wanda").glob("*.json")
    attacks = load_record(file).attacks

    def two(name):
        return f"{attacks[name].value:.2f}".removeprefix("0")

    for attack, words in {
        "latent_inversion": "brings back {} (control {})",
        "inpainting": "filled with a copy in {} (control {})",
        "exact_guidance": "gives {} ({})",
        "completion": "began {} ({})",
    }.items():
        assert words.format(two(f"{attack}_memorized"), two(f"{attack}_control")) in said
    assert f"a search over noise {two('noise_memorized')}" in said
    assert f"cycles {two('cyclic_memorized')}" in said
