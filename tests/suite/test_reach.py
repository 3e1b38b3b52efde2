"""A suite reads below its own folder, and where its user says."""

from __future__ import annotations

import os

import pytest

from bench.base.errors import UserError
from bench.suite.load import load_suite
from bench.suite.reach import VARIABLE, allow

SUITE = """
name = "mine"
[model]
path = "pipeline"
[prompts.memorized]
file = "{file}"
format = "{format}"
[metrics.walltime]
"""


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    """A suite in a folder of its own, beside a file that is none of its business."""
    monkeypatch.delenv(VARIABLE)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "diary.txt").write_text("nobody's business\n")
    (tmp_path / "photo.png").write_bytes(b"x")

    def suite(file, format="lines", rows=None):
        if rows is not None:
            (tmp_path / "theirs/list.csv").write_text(rows)
        path = tmp_path / "theirs/suite.toml"
        path.write_text(SUITE.format(file=file, format=format))
        return load_suite(str(path))

    return suite


@pytest.mark.parametrize("how", ["../diary.txt", "absolute", "link"])
def test_a_list_outside_the_suites_folder_is_refused_and_can_be_allowed(strangers, tmp_path, how):
    diary, file = tmp_path / "diary.txt", how
    if how == "absolute":
        file = str(diary)
    if how == "link":
        (tmp_path / "theirs/link.txt").symlink_to(diary)
        file = "link.txt"
    suite = strangers(file)
    with pytest.raises(UserError, match="its list .* lies outside the suite's folder") as error:
        suite.prompts("memorized")
    assert "\n" not in str(error.value) and "bench --allow" in str(error.value)
    allow([tmp_path])
    assert [prompt.text for prompt in suite.prompts("memorized")] == ["nobody's business"]
    with pytest.raises(UserError, match="there is no folder"):
        allow([tmp_path / "nothing"])
    assert os.environ[VARIABLE] == str(tmp_path)


@pytest.mark.parametrize("reference", ["../photo.png", "{tmp}/photo.png", "../theirs/../photo.png"])
def test_a_picture_outside_the_suites_folder_is_refused(strangers, tmp_path, reference):
    rows = f"prompt,reference\na photo,{reference.format(tmp=tmp_path)}\n"
    suite = strangers("list.csv", "csv", rows)
    with pytest.raises(UserError, match="its training picture .* lies outside"):
        suite.prompts("memorized")


def test_code_outside_the_suites_folder_is_refused(tiny_folder, tmp_path, monkeypatch):
    from bench.running.experiment import Experiment

    monkeypatch.setenv(VARIABLE, str(tiny_folder))
    (tmp_path / "theirs").mkdir()
    (tmp_path / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    path = tmp_path / "theirs/suite.toml"
    path.write_text(f'name = "mine"\nextends = "{tiny_folder}/tiny.toml"\n[metrics."../code.py"]\n')
    with pytest.raises(UserError, match="its code .* lies outside"):
        Experiment.resolve(load_suite(str(path)), "none", {})
    assert not (tmp_path / "ran").exists()


def test_shipped_suites_read_what_comes_with_them(monkeypatch):
    monkeypatch.delenv(VARIABLE)
    assert load_suite("testbed-quick").prompts("memorized")


def test_a_suite_that_extends_a_shipped_one_reads_what_that_one_reads(tmp_path, monkeypatch):
    monkeypatch.delenv(VARIABLE)
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\nextends = "testbed-quick"\n[model]\nsteps = 10\n')
    assert load_suite(str(path)).prompts("memorized")[0].references


def test_a_cache_whose_folders_are_links_is_a_good_cache(strangers, tmp_path, monkeypatch):
    monkeypatch.setenv("BENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk/a.png").write_bytes(b"x")
    (tmp_path / "cache/pictures").symlink_to(tmp_path / "disk")
    suite = strangers("list.csv", "csv", "id,prompt\na,a photo\n")
    places = suite.places
    places.refuse_outside("training picture", places.assets.cache / "pictures/a.png")
    with pytest.raises(UserError, match="lies outside"):
        places.refuse_outside("training picture", places.assets.cache / "../photo.png")
