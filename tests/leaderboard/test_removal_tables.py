"""No table holds rows of two tracks, and a page says of which it is."""

from __future__ import annotations

import hashlib

from bench.leaderboard.board import columns_of, make_boards
from bench.leaderboard.columns import BY_NAME, NAMED
from bench.leaderboard.comparing import compare
from bench.leaderboard.markdown import TRACK, markdown
from bench.leaderboard.page import html
from bench.records.record import RunRecord, Score


def record(method, run, **changes):
    score = Score(
        value=0.5,
        n=12,
        prompts=6,
        unit="share",
        higher_is_better=False,
        metric="copies",
        metric_version=1,
        role="memorized",
    )
    content = {
        "run": hashlib.sha256(run.encode()).hexdigest()[:12],
        "status": "complete",
        "suite": "demo",
        "suite_version": 1,
        "suite_fingerprint": "f" * 16,
        "method": method,
        "method_version": 1,
        "where": "weights",
        "needs": [],
        "paper": "",
        "parameters": {},
        "scores": {"copies": score},
        "per_prompt": {"copies": {f"p{i}": 0.1 * i for i in range(6)}},
        "environment": {},
    }
    return RunRecord(**{**content, **changes})


def test_a_record_of_the_other_track_stands_apart_even_with_the_same_fingerprint():
    rows = [record("none", "a"), record("wanda", "b"), record("uce", "c", track="removal")]
    (board,) = make_boards(rows)
    assert {row.record.method for row in board.rows} == {"none", "wanda"}
    ((apart, reason),) = board.apart
    assert apart.method == "uce"
    assert reason == "another protocol: track removal; the table is of the track held_out"
    assert "track held_out and removal" in compare(rows[0], rows[2]).forbids


def test_a_page_of_the_track_removal_says_so_and_what_its_columns_mean():
    (plain,) = make_boards([record("none", "a")])
    (board,) = make_boards([record("none", "a", track="removal")])
    assert TRACK in markdown(board) and TRACK not in markdown(plain)
    assert "Track removal" in html(board) and "Track removal" not in html(plain)
    (column,) = columns_of(board)
    assert column.meaning == NAMED["copies"] != BY_NAME["copies"].meaning
    assert columns_of(plain) == [BY_NAME["copies"]]
