"""A board as a pandas DataFrame, for those who analyse or plot results in Python."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from bench.base.distribution import checkout
from bench.base.errors import UnknownName
from bench.leaderboard.board import columns_of, make_boards
from bench.leaderboard.leaderboard import REPORTED, no_records
from bench.leaderboard.tables import rows_of
from bench.records.record import load_records

if TYPE_CHECKING:
    from pandas import DataFrame

COMMITTED = Path("leaderboards/records")
# endings of the columns of a score that hold one number or none
NUMBERS = ("", "_low", "_high", "_difference", "_difference_low", "_difference_high")


def load_board(suite: str, records: Path | str | None = None) -> DataFrame:
    """The board of a suite as a pandas DataFrame: one row a run, in the order of the table.

    The columns are those of `leaderboards/<suite>.csv`: what a row stands for (`method`,
    `parameters`, `where`, `needs`, `holds_against`, `seeds`, `rank_low`, `rank_high`, `pareto`,
    `run`, `measured_by`), then for every score its value (`sscd`), its 95 % interval (`sscd_low`,
    `sscd_high`), the images behind it (`sscd_n`), its values by generation and by group of prompts
    (`sscd_by_seed`, `sscd_by_group`), and its difference to `none` with an interval
    (`sscd_difference`, `sscd_difference_low`, `sscd_difference_high`; not for costs). Numbers are
    rounded to six decimals; those that were not measured are NaN.

    `records` is the folder of run records: by default `leaderboards/records` in the current folder,
    or else in the checkout that this code is from. A record that cannot be used is left out with a
    warning. Raises `UserError` where the folder has no records of the suite.
    """
    import pandas

    folder = _committed_records() if records is None else Path(records).expanduser()
    loaded, damaged = load_records(folder)
    reported, damaged_reports = load_records(folder.parent / REPORTED)
    for problem in (*damaged, *damaged_reports):
        if problem.suite == suite:
            warnings.warn(f"left out: {problem.why}", stacklevel=2)
    if not loaded and not reported:
        raise no_records(folder)
    boards = {board.suite: board for board in make_boards(loaded, reported)}
    if suite not in boards:
        raise UnknownName(f"suite of the records below {folder}", suite, boards)
    board = boards[suite]
    frame = pandas.DataFrame(rows_of(board))
    numbers = {column.name + ending for column in columns_of(board) for ending in NUMBERS}
    # so that a column of which no row has a number holds NaN, not None
    return frame.astype({name: "float64" for name in frame.columns if name in numbers})


def _committed_records() -> Path:
    root = checkout()
    return COMMITTED if root is None or COMMITTED.is_dir() else root / COMMITTED
