"""No text of a stranger becomes a formula in a CSV that people open."""

import csv
import io

import pandas as pd
import pytest

from bench.auditing.output import frame_as_csv
from bench.base.csv_cells import FORMULAS, csv_cell
from bench.studies.tables import csv_table


@pytest.mark.parametrize("begins", FORMULAS)
def test_a_text_that_begins_as_a_formula_does_gets_an_apostrophe(begins):
    text = f"{begins}HYPERLINK(1)"
    assert csv_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["", "a=1", "'=1", " =1", -1, -0.5, None, True, (-1, 2), {}])
def test_other_values_stay(value):
    assert csv_cell(value) == value and type(csv_cell(value)) is type(value)


def test_tables_of_analyses_keep_their_numbers():
    rows = [{"name": "=1+1", "value": -0.25, "count": -3, "none": None}]
    (read,) = csv.DictReader(io.StringIO(csv_table(rows).decode()))
    assert read == {"name": "'=1+1", "value": "-0.25", "count": "-3", "none": ""}


def test_frames_of_an_audit_are_written_as_pandas_writes_them():
    """But for texts that would be formulas."""
    frame = pd.DataFrame(
        {
            "name": ["a.png", "b.png"],
            "copies": [1, -2],
            "limit": [None, 0.5],
            "views": pd.Series([None, 3], dtype=object),
            "similar": [True, False],
            "interval": [(0.1, 0.2), None],
            "by_kind": [{"caption": (1, 2)}, {}],
        }
    )
    assert frame_as_csv(frame) == frame.to_csv(index=False)
    hostile = frame_as_csv(pd.DataFrame({"name": ["=1", "a", None], "n": [-1, 2, 3]}))
    assert hostile == "name,n\n'=1,-1\na,2\n,3\n"
