"""What lies in a folder that a command fills, and is not the command's, stays."""

import pytest

from bench.base.errors import UserError
from bench.base.work_folder import refuse_own_files, refuse_read
from bench.studies.experiments.trainings import Kept
from bench.training.loop import Course


def refused(*call) -> str:
    with pytest.raises(UserError) as error:
        call[0](*call[1:])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_name_that_is_taken_is_refused_whatever_has_it(tmp_path):
    refuse_own_files(tmp_path / "nowhere", ["a"], "bench")
    refuse_own_files(tmp_path, ["a", "b"], "bench")
    (tmp_path / "b").symlink_to(tmp_path / "gone")
    said = refused(refuse_own_files, tmp_path, ["a", "b"], "bench this", "--work")
    assert "holds b, which `bench this` would write over" in said and "--work" in said


def test_what_is_read_is_refused_where_it_is_written_or_lies_inside(tmp_path):
    (tmp_path / "made/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "made/deep")
    for read in (tmp_path / "made", tmp_path / "made/deep/file", tmp_path / "link"):
        assert "would write over it" in refused(refuse_read, tmp_path, ["made"], [read], "bench")
    for read in (tmp_path, tmp_path / "made2", tmp_path / "other"):
        refuse_read(tmp_path, ["made"], [read], "bench")


def test_checkpoints_of_another_training_are_not_removed(tmp_path):
    kept = Kept(tmp_path, {}, Course(steps=1, learning_rate=0.1), (1,))
    assert kept.known() is None
    (tmp_path / "checkpoints").mkdir()
    assert "holds checkpoints" in refused(kept.known)
    kept.write({})
    assert kept.known() is None
