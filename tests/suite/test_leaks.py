"""What a method may learn from is not judged: the same text and the same picture are refused."""

from __future__ import annotations

import shutil

import pytest

from bench.base.errors import UserError
from bench.running.experiment import Experiment
from bench.suite.leaks import refuse_leaks
from bench.suite.load import load_suite


@pytest.fixture
def folder(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "suite")
    return tmp_path / "suite"


def refused(folder) -> str:
    suite = load_suite(str(folder / "tiny.toml"))
    with pytest.raises(UserError) as error:
        refuse_leaks(suite)
    # A method that learns from that role is refused before it runs, and one that does not is not.
    with pytest.raises(UserError) as again:
        Experiment.resolve(suite, "nemo", {"mode": "permanent"})
    assert str(again.value) == str(error.value)
    Experiment.resolve(suite, "none", {})
    assert "\n" not in str(error.value)
    return str(error.value)


def test_roles_that_are_apart_are_not_refused(tiny_suite):
    refuse_leaks(tiny_suite)


def test_a_prompt_that_is_fitted_on_and_judged_is_refused(folder):
    text = (folder / "tiny.toml").read_text()
    (folder / "tiny.toml").write_text(text.replace('split = "fit"', 'split = "memorized"'))
    assert "'p2' of the role memorized has the same text as one of the role fit" in refused(folder)


def test_a_training_picture_under_another_name_is_refused_too(folder):
    shutil.copy(folder / "reference-0.png", folder / "reference-3.png")
    assert "'p3' of the role memorized has the same training picture" in refused(folder)


@pytest.mark.parametrize("role", ["clean", "quality"])
def test_what_clean_statistics_come_from_is_not_judged(folder, role):
    text = (folder / "tiny.toml").read_text()
    other = {"clean": "quality", "quality": "clean"}[role]
    apart = text.replace(
        f'[prompts.{other}]\nfile = "clean.csv"', f'[prompts.{other}]\nfile = "o.csv"'
    )
    (folder / "o.csv").write_text("id,prompt\no0,a kite\n")
    (folder / "tiny.toml").write_text(apart.replace("calibration.csv", "clean.csv"))
    assert f"of the role {role} has the same text as one of the role calibration" in refused(folder)


def test_a_control_of_attacks_is_no_training_picture(folder):
    pictures = folder / "control-0.png"
    kept = pictures.read_bytes()
    refuse_leaks(load_suite(str(folder / "tiny.toml")))
    pictures.write_bytes((folder / "reference-3.png").read_bytes())
    with pytest.raises(UserError, match="role control has the same training picture"):
        refuse_leaks(load_suite(str(folder / "tiny.toml")))
    pictures.write_bytes(kept)
