"""An analysis writes over what it wrote, and over nothing else."""

import json

import pytest

from bench.base.errors import UserError
from bench.studies.analysis_folder import claim

MASKS, SUBSETS = "bench analyze masks", "bench analyze subsets"


def test_a_new_folder_and_its_own_are_taken(tmp_path):
    claim(tmp_path / "new/folder", MASKS)
    (tmp_path / "new/folder/subsets.csv").write_text("half of a table")
    claim(tmp_path / "new/folder", MASKS)


@pytest.mark.parametrize("name", ["summary.json", "conclusions.txt", "prices.csv", "holiday.png"])
def test_somebodys_own_tables_and_pictures_stay(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"holds {name}.*give another folder with --out"):
        claim(tmp_path, MASKS)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_no_analysis_writes_is_in_nobodys_way(tmp_path):
    (tmp_path / "notes.md").write_text("mine")
    claim(tmp_path, MASKS)


def test_the_folder_of_another_analysis_stays(tmp_path):
    claim(tmp_path, MASKS)
    with pytest.raises(UserError, match="is of another analysis"):
        claim(tmp_path, SUBSETS)


def test_a_mark_that_is_no_file_is_of_nobody_here(tmp_path):
    (tmp_path / ".analysis").mkdir()
    with pytest.raises(UserError, match="is of another analysis"):
        claim(tmp_path, MASKS)


def test_a_finished_analysis_of_before_there_were_marks_is_known(tmp_path):
    facts = {"suite": "s", "fingerprint": "0", "files": []}
    (tmp_path / "subsets.csv").write_text("a table")
    (tmp_path / "summary.json").write_text(json.dumps(facts))
    claim(tmp_path, SUBSETS)
    claim(tmp_path, SUBSETS)
