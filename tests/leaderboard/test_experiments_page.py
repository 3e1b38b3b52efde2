"""Pages of experiments, of records made by hand."""

from __future__ import annotations

import csv
import io
import shutil
from pathlib import Path

import pytest

from bench.base.errors import UserError
from bench.leaderboard import experiments_page as page
from bench.leaderboard.experiments import make_experiment_boards
from bench.leaderboard.leaderboard import check_pages, make_pages, write_pages
from bench.records.experiment import (
    Cell,
    Column,
    Curves,
    Experiment,
    ResultTable,
    load_experiment,
    load_experiments,
)
from bench.suite.load import load_suite
from conftest import SUITE

RECORDS = Path(__file__).parents[2] / "leaderboards/records"


def table(**changes):
    given = {
        "name": "share",
        "title": "Share by size",
        "means": "What it means.",
        "rows_are": "N",
        "columns": [Column(heading="true labels"), Column(heading="random labels", decimals=1)],
        "labels": ["0", "8", "16"],
        "cells": [
            [Cell(value=1.0, low=0.9, high=1.0, n=10), Cell(note="none was tried")],
            [Cell(value=0.5, n=10, note="by hand"), Cell(value=0.75)],
            [Cell(value=0.25, low=0.1, high=0.4), Cell(value=0.5)],
        ],
        "curves": Curves(
            x_name="N",
            y_name="R",
            columns=["true labels", "random labels"],
            logarithmic=True,
            chance=0.5,
        ),
    }
    return ResultTable.model_validate(given | changes)


def record(label="one", data="mine", **changes):
    given = {
        "experiment": "by-size",
        "experiment_version": 1,
        "data": data,
        "label": label,
        "title": "Memorization by size",
        "about": ["What was asked <b>.", "More."],
        "claim": "That it falls.",
        "paper": "Somebody 2023",
        "model": "pipeline",
        "model_sha256": "a" * 64,
        "data_sha256": "b" * 64,
        "settings": {"width": 32, "rate": 0.001, "sizes": [8, 16], "how": {"noise": 0.5}},
        "raw": {},
        "tables": [table()],
        "environment": {"device_name": "a processor"},
    }
    return Experiment.model_validate(given | changes)


def board(*records, damaged=()):
    (found,) = make_experiment_boards(records, damaged)
    return found


def test_a_record_comes_back_as_it_was_under_a_name_of_its_question(tmp_path):
    made = record()
    path = made.save(tmp_path)
    assert path.parent.name == "by-size-mine" and path.name == made.file_name
    assert load_experiment(path) == made
    assert record(raw={"a": 1}).file_name == made.file_name
    assert record(settings={}).file_name != made.file_name
    assert record(experiment_version=2).file_name != made.file_name


def test_a_damaged_file_costs_itself_only(tmp_path):
    record().save(tmp_path)
    (tmp_path / "by-size-mine" / "broken.json").write_text("{")
    found, damaged = load_experiments(tmp_path)
    assert len(found) == 1 and damaged[0][0] == "by-size-mine"
    shown = board(*found, damaged=damaged)
    assert "Cannot be used" in page.markdown(shown) and "Cannot be used" in page.html(shown)
    with pytest.raises(UserError, match="experiment .*missing"):
        load_experiment(tmp_path / "missing.json")


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ["0", "8"]},
        {"columns": [Column(heading="true labels")]},
        {"labels": ["a", "b", "c"]},
        {"curves": Curves(x_name="N", y_name="R", columns=["other"])},
    ],
)
def test_a_table_that_does_not_fit_is_refused(changes):
    with pytest.raises(ValueError):
        table(**changes)


def test_numbers_have_bounds_notes_and_dashes():
    shown = table()
    texts = [page.text(cell, shown.columns[0]) for row in shown.cells for cell in row]
    assert texts[:3] == ["1.000 [0.900, 1.000]", "none was tried", "0.500 (by hand)"]
    assert page.text(Cell(), shown.columns[0]) == "–"


def test_every_number_stands_in_the_csv():
    rows = list(csv.DictReader(io.StringIO(page.as_csv(board(record(), record("two"))))))
    assert len(rows) == 12 and rows[0] == {
        "record": "one",
        "table": "share",
        "row": "0",
        "column": "true labels",
        "value": "1.0",
        "low": "0.9",
        "high": "1.0",
        "n": "10",
        "note": "",
    }


def test_no_text_of_a_record_is_a_formula_in_the_csv():
    hostile = table(
        labels=["=1", "+2", "3"], columns=[Column(heading="@a"), Column(heading="-b")], curves=None
    )
    made = record(tables=[hostile])
    rows = list(csv.DictReader(io.StringIO(page.as_csv(board(made)))))
    assert {row["row"] for row in rows} == {"'=1", "'+2", "3"}
    assert {row["column"] for row in rows} == {"'@a", "'-b"}


def test_the_table_in_markdown_says_what_was_asked_and_claimed():
    found = page.markdown(board(record()))
    assert "| 8 | 0.500 (by hand) | 0.8 |" in found
    assert "no row of the board of methods" in found and "&lt;b&gt;" in found
    assert "*The paper* (Somebody 2023): That it falls." in found
    assert "how noise 0.5, rate 0.001, sizes 8/16, width 32" in found


def test_curves_rise_with_their_values_and_leave_out_what_was_not_measured():
    drawn = page.chart(table())
    true, random = drawn["lines"]
    assert [point["x"] for point in true["points"]] == sorted(
        point["x"] for point in true["points"]
    )
    assert true["points"][0]["y"] < true["points"][1]["y"] < true["points"][2]["y"]
    assert true["points"][0]["range"] and true["points"][1]["range"] is None
    assert len(random["points"]) == 2
    # Points of 8 and 16 lie nearer to each other than 0 and 8 on the axis of log(1 + x).
    places = [x for x, _ in drawn["x_ticks"]]
    assert places[2] - places[1] < places[1] - places[0]
    assert drawn["chance"] == pytest.approx(true["points"][1]["y"])
    assert page.chart(table(curves=None)) == {}


def test_the_page_draws_every_line_and_escapes_what_a_record_says():
    found = page.html(board(record(label="x", title="<script>")))
    assert found.count("<polyline") == 2 and "<script>" not in found
    assert "&lt;b&gt;" in found and "a processor" in found


def test_the_terminal_shows_the_tables():
    found = page.in_words(record())
    assert "Share by size" in found and "0.500 (by hand)" in found


def test_pages_follow_from_records_and_drift_is_found(tmp_path):
    shutil.copytree(RECORDS / "testbed-quick", tmp_path / "records" / "testbed-quick")
    record().save(tmp_path / "experiments")
    pages, problems = make_pages(tmp_path / "records")
    assert not problems
    names = {f"experiment-by-size-mine.{ending}" for ending in ("md", "csv", "html")}
    assert names <= pages.keys()
    # No number of an experiment stands on the board of methods.
    assert b"by-size" not in pages["testbed-quick.md"] + pages["testbed-quick.html"]
    write_pages(pages, tmp_path / "out")
    assert check_pages(pages, tmp_path / "out") == []
    changed = record(tables=[table(means="Other words.")])
    changed.save(tmp_path / "experiments")
    drifted = check_pages(make_pages(tmp_path / "records")[0], tmp_path / "out")
    assert any("experiment-by-size-mine.md differs from its records" in line for line in drifted)


def test_no_suite_may_have_the_name_of_a_page_of_experiments(tmp_path):
    (tmp_path / "mine.toml").write_text(SUITE.replace('"tiny"', '"experiment-mine"', 1))
    with pytest.raises(UserError, match="a page of the leaderboards has that name"):
        load_suite(str(tmp_path / "mine.toml"))
