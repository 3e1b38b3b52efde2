"""The table and curves after an attacker who knows the picture."""

from __future__ import annotations

import pytest

from bench.leaderboard.known_pictures import COLUMNS, chart, known_attacks
from bench.leaderboard.leaderboard import make_boards
from bench.leaderboard.markdown import markdown
from bench.leaderboard.page import html
from bench.records.record import RunRecord, Score, Shown

CURVE = {"memorized": [[0.2, 0.1, 0.4], [0.8, 0.6, 0.9]], "control": [[0, 0, 0.3], [0.1, 0, 0.4]]}


def score(value, **more):
    return Score(
        value=value,
        low=value - 0.1,
        high=value + 0.1,
        n=4,
        prompts=2,
        unit="share",
        higher_is_better=False,
        metric="dori",
        metric_version=1,
        threat="weights",
        **more,
    )


def record_of(method, curve=CURVE, marks=("0 steps", "50 steps")):
    shown = Shown(heading="Dori excess", decimals=3, meaning="an embedding is searched: share")
    values = {"memorized": 0.8, "control": 0.1, "ceiling": 0.9, "zero": 0.2}
    attacks = {f"dori_{name}": score(value) for name, value in values.items()}
    attacks["dori_excess"] = score(0.7, shown=shown, details={"marks": list(marks), "curve": curve})
    return RunRecord(
        run={"none": "a"}.get(method, "b"),
        status="complete",
        suite="demo",
        suite_version=1,
        suite_fingerprint="f",
        method=method,
        method_version=1,
        where="nothing",
        needs=[],
        paper="",
        parameters={},
        attacks=attacks,
    )


def board_of(*records):
    (board,) = make_boards(list(records))
    return board


def test_only_the_excess_is_a_column_and_the_rest_has_a_table_of_its_own():
    board = board_of(record_of("none"), record_of("wanda"))
    text = markdown(board)
    assert "| Dori excess ↓ |" in text.replace("  ", " ") or "Dori excess ↓" in text
    main = text.partition("## After an attacker who knows the picture")[0]
    assert "Dori control" not in main and "without mitigation" not in main
    (attack,) = known_attacks(board)
    assert (attack.heading, attack.threat) == ("Dori", "weights")
    cells = dict(zip((name for _, name, _ in COLUMNS), attack.rows[0][2], strict=True))
    assert cells["attacked"] == "0.800 [0.700, 0.900]" and cells["control"].startswith("0.100")
    assert cells["recovered"] == "–"
    assert "**Dori** (threat model weights). An embedding is searched." in text


def test_the_chart_has_a_line_and_a_dashed_one_for_each_row():
    board = board_of(record_of("none"), record_of("wanda"))
    drawn = chart(board, known_attacks(board)[0])
    assert [line["control"] for line in drawn["lines"]] == [True, False, True, False]
    ups = [[point["y"] for point in line["points"]] for line in drawn["lines"]]
    assert ups[1][1] < ups[1][0] < ups[0][0]  # more copies stand higher
    assert [name for _, name in drawn["x_ticks"]] == ["0 steps", "50 steps"]
    page = html(board)
    assert "After an attacker who knows the picture" in page and 'id="known-dori"' in page


def test_generations_are_one_line_with_the_widest_interval():
    other = {"memorized": [[0.4, 0.0, 0.5], [0.6, 0.5, 1.0]], "control": CURVE["control"]}
    board = board_of(record_of("none", curve=[CURVE, other]))
    drawn = chart(board, known_attacks(board)[0])
    line = drawn["lines"][1]["points"]
    single = chart(b := board_of(record_of("none")), known_attacks(b)[0])["lines"][1]["points"]
    assert line[0]["y"] < single[0]["y"] and line[1]["y"] > single[1]["y"]
    assert line[0]["up"][0] > single[0]["up"][0]


def test_a_row_with_other_marks_has_cells_and_no_line():
    board = board_of(record_of("none"), record_of("wanda", marks=("0 steps", "10 steps")))
    (attack,) = known_attacks(board)
    assert len(attack.rows) == 2
    assert len(chart(board, attack)["lines"]) == 2


def test_a_board_without_such_attacks_says_nothing_of_them():
    record = record_of("none")
    record.attacks.clear()
    board = board_of(record)
    assert known_attacks(board) == []
    assert "knows the picture" not in markdown(board) and "knows the picture" not in html(board)


@pytest.mark.parametrize("ending", [ending for ending, *_ in COLUMNS])
def test_every_column_is_a_score_that_such_attacks_give(ending):
    from bench.contracts.picture_attack import scores_of

    assert f"dori_{ending}" in scores_of("dori")
