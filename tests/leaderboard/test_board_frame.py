"""`bench.load_board`: the boards that the repository commits, as DataFrames."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import bench
from bench.base.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "leaderboards"


def plain(value):
    """A cell as JSON has it: null for NaN."""
    return None if not isinstance(value, (list, dict)) and pd.isna(value) else value


@pytest.mark.parametrize("suite", ["testbed", "testbed-quick"])
def test_a_board_holds_the_numbers_of_its_committed_json(suite):
    frame = bench.load_board(suite)
    found = [{k: plain(v) for k, v in row.items()} for row in frame.to_dict("records")]
    assert found == json.loads((COMMITTED / f"{suite}.json").read_text(encoding="utf-8"))


def test_a_board_is_found_from_any_folder(tmp_path, monkeypatch):
    expected = bench.load_board("testbed-quick")
    monkeypatch.chdir(tmp_path)
    pd.testing.assert_frame_equal(bench.load_board("testbed-quick"), expected)


def test_numbers_can_be_compared_and_sorted(tmp_path):
    frame = bench.load_board("testbed")
    assert frame["copies"].is_monotonic_increasing
    assert frame["sscd"].dtype == frame["sscd_difference_low"].dtype == "float64"
    assert frame.loc[frame.method == "none", "sscd_difference"].isna().all()
    assert frame["sscd_n"].dtype == "int64"


def test_a_folder_of_records_may_be_named_as_text(tmp_path):
    folder = tmp_path / "records"
    shutil.copytree(COMMITTED / "records/testbed-quick", folder / "testbed-quick")
    pd.testing.assert_frame_equal(
        bench.load_board("testbed-quick", str(folder)), bench.load_board("testbed-quick")
    )
    with pytest.raises(UserError, match="unknown suite .*'testbed': did you mean 'testbed-quick'"):
        bench.load_board("testbed", folder)


def test_a_damaged_record_is_left_out_with_a_warning(tmp_path):
    folder = tmp_path / "records"
    shutil.copytree(COMMITTED / "records/testbed-quick", folder / "testbed-quick")
    (folder / "testbed-quick/none/cut.json").write_text('{"suite"', encoding="utf-8")
    with pytest.warns(UserWarning, match="left out: record testbed-quick/none/cut.json"):
        frame = bench.load_board("testbed-quick", folder)
    assert len(frame) == len(bench.load_board("testbed-quick"))


def test_a_folder_without_records_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="no records below .*; make one with"):
        bench.load_board("testbed", tmp_path)


def test_neither_bench_nor_its_help_imports_pandas():
    code = (
        "import sys, bench\n"
        "from bench.cli.main import main\n"
        "sys.argv = ['bench', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "assert not {'pandas', 'matplotlib', 'torch'} & sys.modules.keys()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_example_of_the_readme_runs(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("### In Python")[2]
    exec(section.partition("```python\n")[2].partition("```")[0], {})
    assert "copies_difference" in capsys.readouterr().out
